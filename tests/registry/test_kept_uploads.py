"""Uploads whose store fails, in process: where they go, what is left of them, and what the spool may cost."""

import os
import secrets
from pathlib import Path
from uuid import uuid4

import pytest
import trio

from engines.contract import EngineError, EngineRefused, EngineUnavailable, Part, PartsMissing
from node.config.settings import SpoolSettings
from node.push.begin_again import begin_again
from node.records.uploads import record_upload
from replication.model import Verdict
from replication.patience import SILENCE
from replication.upload_state import UploadState
from tests.faulty_engine import Fault, Hold, LoseAnswer, Refuse, Stall
from tests.registry.test_any_node import bury_due
from tests.registry.world import MIB, Body, MakeWorld, Region, digest_of

PART = 5 * MIB
DATA = 3 * PART + 12345
PODMAN = {"user-agent": "containers/5.23.1 (github.com/containers/image)"}


def spool(folder: Path, most: int = 200 * MIB) -> SpoolSettings:
    return SpoolSettings(folder, most)


async def all_gone(us: Region, eu: Region, *digests: str) -> None:
    """Check that the us store has nothing, the eu store exactly these blobs, and the spool no bytes."""
    for location in ("us", "eu"):
        assert await us.unaccounted(location) == set()
        us.engines[location].clear()
    await bury_due(us)
    assert await us.contents("us") == set()
    placed = await us.rows("SELECT key FROM placement")
    assert await us.contents("eu") == {row["key"] for row in placed}
    assert len(placed) == len(digests)
    assert us.registry.upload_spool.used == 0
    for digest in digests:
        assert (await eu.ask("GET", f"/v2/a/b/blobs/{digest}")).status == 200


@pytest.mark.parametrize(
    "error", [EngineUnavailable("down"), EngineRefused("full"), PartsMissing("forgotten")], ids=repr
)
@pytest.mark.parametrize("operation", ["begin_parts", "put_part", "finish_parts"])
async def test_the_spool_survives_any_operation(
    world: MakeWorld, tmp_path: Path, error: EngineError, operation: str
) -> None:
    """Whatever of the store fails, in PATCH or PUT, the same requests succeed in the next store, and nothing is left."""
    us, eu = await world("us eu", "eu us", upload_spool=spool(tmp_path))
    data = secrets.token_bytes(DATA)
    us.engines["us"].plan(operation, Refuse(error))
    reply = await us.patch(await us.start_upload("a/b"), data[:-MIB])
    assert reply.status == 202
    reply = await us.patch(reply.location, data[-MIB:])
    assert (await us.put(reply.location, digest_of(data))).status == 201
    await all_gone(us, eu, digest_of(data))


@pytest.mark.parametrize("fault", [Refuse(), LoseAnswer()], ids=["refused", "answer lost"])
async def test_small_tails_survive(world: MakeWorld, tmp_path: Path, fault: Fault) -> None:
    """Uploads in small chunks, and whole ones in POST, survive, too; hashing goes on where it was."""
    us, eu = await world("us eu", "eu us", upload_spool=spool(tmp_path))
    data, small = secrets.token_bytes(3000), secrets.token_bytes(100)
    location = (await us.patch(await us.start_upload("a/b"), data[:1000])).location
    us.engines["us"].plan("put", fault)
    location = (await us.patch(location, data[1000:2000], start=1000)).location
    assert (await us.put(location, digest_of(data), data[2000:])).status == 201
    assert await us.push_blob("a/b", small) == digest_of(small)
    sha512 = await us.push_blob("a/b", secrets.token_bytes(100), "sha512")
    await all_gone(us, eu, digest_of(data), digest_of(small), sha512)


async def test_the_disk_is_not_believed(world: MakeWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes that the spool does not give back as they came are no blob, though the client's had the right digest."""
    us, eu = await world("us eu", "eu us", upload_spool=spool(tmp_path))
    data = secrets.token_bytes(DATA)
    read = os.pread
    monkeypatch.setattr(
        os,
        "pread",
        lambda file, size, at: bytes([read(file, 1, at)[0] ^ 1]) + read(file, size - 1, at + 1),
    )
    location = (await us.patch(await us.start_upload("a/b"), data)).location
    us.engines["us"].plan("finish_parts", Refuse())
    assert (await us.put(location, digest_of(data))).failure == (400, "DIGEST_INVALID")
    await all_gone(us, eu)


async def test_what_comes_late_of_the_old_store_changes_nothing(world: MakeWorld, tmp_path: Path) -> None:
    """A record of what the store had that died, held back on its way, does not hit the upload that has begun anew elsewhere."""
    us, eu = await world("us eu", "eu us", upload_spool=spool(tmp_path))
    data = secrets.token_bytes(DATA)
    location = (await us.patch(await us.start_upload("a/b"), data[:-MIB])).location
    (row,) = await us.rows("SELECT id, epoch FROM upload")
    us.engines["us"].plan_all(Refuse())
    location = (await us.patch(location, data[-MIB:])).location
    late = UploadState("uploads/old", "uploads/reserved", offset=5, parts_upload="old", parts=(Part(1, 5, "etag"),))
    assert not await record_upload(us.registry.database, row["id"], row["epoch"], late)
    # By what the row says, as on a node that knows nothing else.
    assert (await us.put(location.partition("?")[0], digest_of(data))).status == 201
    await all_gone(us, eu, digest_of(data))


async def test_a_read_back_that_fails(world: MakeWorld, tmp_path: Path) -> None:
    """An object that must be read before it counts is written elsewhere when that fails."""
    us, eu = await world("us eu", "eu us", upload_spool=spool(tmp_path))
    data = secrets.token_bytes(DATA)
    us.engines["us"].plan("open", Refuse())
    location = (await us.patch(await us.start_upload("a/b"), data)).location
    digest = digest_of(data, "sha512")
    assert (await us.put(location, digest)).status == 201
    await all_gone(us, eu, digest)


async def test_two_stores_fail(world: MakeWorld, tmp_path: Path) -> None:
    """When the next store fails as well, the one after it is tried; when none is left, the client hears of it, once."""
    us, _ = await world("us eu ap", "eu us ap", upload_spool=spool(tmp_path))
    data = secrets.token_bytes(DATA)
    us.engines["us"].plan("put_part", Refuse(), call=1)
    us.engines["eu"].plan("put_part", Refuse(), call=2)
    reply = await us.patch(await us.start_upload("a/b"), data)
    assert (await us.put(reply.location, digest_of(data))).status == 201
    assert [row["name"] for row in await us.rows(
        "SELECT l.name FROM placement p JOIN location l ON l.id = p.location_id"
    )] == ["ap"]  # fmt: skip
    for location in ("us", "eu", "ap"):
        us.engines[location].plan("put_part", Refuse())
    location = await us.start_upload("a/b")
    assert (await us.patch(location, secrets.token_bytes(DATA))).failure == (503, "UNAVAILABLE")
    assert (await us.ask("GET", location)).failure == (404, "BLOB_UPLOAD_UNKNOWN")
    assert us.registry.upload_spool.used == 0


async def test_never_where_the_namespace_forbids(world: MakeWorld, tmp_path: Path) -> None:
    """A kept upload is not written into a store that its namespace may not be in: the client begins again instead."""
    us, _ = await world("us eu", "eu us", upload_spool=spool(tmp_path))
    location = await us.start_upload("a/b")
    await us.rows(
        "INSERT INTO namespace_never (namespace_id, location_id) SELECT n.id, l.id FROM namespace n, location l "
        "WHERE n.name = 'a' AND l.name = 'eu'"
    )
    us.engines["us"].plan("put_part", Refuse())
    assert (await us.patch(location, secrets.token_bytes(DATA))).failure == (503, "UNAVAILABLE")
    assert await us.contents("eu") == set()


async def test_beyond_the_room_uploads_go_on_without(world: MakeWorld, tmp_path: Path) -> None:
    """An upload that does not fit into the spool goes on, its room is free at once, and it dies with its store."""
    us, _ = await world("us eu", "eu us", upload_spool=spool(tmp_path, 8 * MIB))
    data = secrets.token_bytes(DATA)
    small = await us.start_upload("a/b")
    small = (await us.patch(small, data[: 2 * MIB])).location
    assert us.registry.upload_spool.used == 2 * MIB
    large = (await us.patch(await us.start_upload("a/b"), data)).location
    assert us.registry.upload_spool.used == 2 * MIB
    us.engines["us"].plan("finish_parts", Refuse())
    assert (await us.put(large, digest_of(data))).failure == (503, "UNAVAILABLE")
    us.engines["us"].plan("put", Refuse())
    assert (await us.put(small, digest_of(data[: 2 * MIB]), b"")).status == 201
    assert us.registry.upload_spool.used == 0


async def test_what_is_forsaken_gives_its_room_away(world: MakeWorld, tmp_path: Path) -> None:
    """Room that an upload without requests holds goes to one that needs it, after a minute."""
    us, _ = await world("us eu", "eu us", upload_spool=spool(tmp_path, 4 * MIB))
    data = secrets.token_bytes(3 * MIB)
    await us.patch(await us.start_upload("a/b"), data)
    (forsaken,) = us.registry.upload_spool._kept
    forsaken.used_at -= 61
    await us.patch(await us.start_upload("a/b"), data)
    assert not forsaken.whole
    assert us.registry.upload_spool.used == 3 * MIB
    # This one was written just now: it stays.
    await us.patch(await us.start_upload("a/b"), data)
    assert us.registry.upload_spool.used == 3 * MIB


@pytest.mark.parametrize("ending", ["cancelled", "taken over", "wrong digest"])
async def test_every_end_frees_the_disk(world: MakeWorld, tmp_path: Path, ending: str) -> None:
    """However an upload ends on this node, its file goes."""
    us, _ = await world("us eu", "eu us", upload_spool=spool(tmp_path))
    location = (await us.patch(await us.start_upload("a/b"), secrets.token_bytes(3 * MIB))).location
    assert us.registry.upload_spool.used == 3 * MIB
    if ending == "cancelled":
        assert (await us.ask("DELETE", location)).status == 204
    elif ending == "taken over":
        # Without the state that the last answer named, as after another node had it.
        assert (await us.patch(location.partition("?")[0], b"more")).status == 202
    else:
        assert (await us.put(location, digest_of(b""))).failure == (400, "DIGEST_INVALID")
    assert us.registry.upload_spool.used == 0


async def test_podman_is_told_404(world: MakeWorld) -> None:
    """The containers/image family takes a 503 for final and a 404 for a reason to begin again; the upload is gone either way."""
    us, _ = await world("us eu", "eu us")
    us.engines["us"].plan("put_part", Refuse())
    location = await us.start_upload("a/b")
    reply = await us.ask("PATCH", location, secrets.token_bytes(DATA), PODMAN)
    assert reply.failure == (404, "BLOB_UPLOAD_UNKNOWN")
    assert reply.detail["location"] == "us"
    assert (await us.ask("GET", location)).failure == (404, "BLOB_UPLOAD_UNKNOWN")


async def test_containerd_repeats_its_put(world: MakeWorld) -> None:
    """A whole PUT that fails may be repeated, and to containerd 429 says so: the same upload takes it, in another store."""
    us, eu = await world("us eu", "eu us")
    data = secrets.token_bytes(DATA)
    us.engines["us"].plan("put_part", Refuse())
    target = f"{await us.start_upload('a/b')}&digest={digest_of(data)}"
    reply = await us.ask("PUT", target, data, {"user-agent": "containerd/1.6.20~ds1"})
    assert (reply.failure, reply.headers["retry-after"]) == ((429, "TOOMANYREQUESTS"), "1")
    assert (await us.ask("PUT", target, data)).status == 201
    await all_gone(us, eu, digest_of(data))


@pytest.mark.parametrize(
    ("agent", "status"),
    [
        ("skopeo/1.9.3", 404),
        ("containers/5.23.1 (github.com/containers/image)", 404),
        ("Buildah/1.28.2", 404),
        ("docker/20.10.24+dfsg1 go/go1.19.8 os/linux arch/amd64 UpstreamClient(Docker-Client/28.2.2)", 503),
        ("buildkit/v0.17", 503),
        ("crane/v0.21.9 go-containerregistry/v0.21.9", 503),
        ("containerd/1.6.20~ds1", 503),
        ("", 503),
    ],
)
def test_what_each_client_begins_again_after(agent: str, status: int) -> None:
    """The status is one after which this client, by its User-Agent, was seen to begin the blob again."""
    assert begin_again(agent, uuid4(), "us").code.status == status


async def test_the_next_upload_goes_elsewhere_at_once(world: MakeWorld) -> None:
    """What failed an upload is degraded from that moment: the next POST begins in a healthy store."""
    us, _ = await world("us eu", "eu us", probe_interval=600.0)
    us.engines["us"].plan("put_part", Refuse())
    await us.patch(await us.start_upload("a/b"), secrets.token_bytes(DATA))
    assert us.registry.watcher.board["us"].verdict is Verdict.DEGRADED
    await us.start_upload("a/b")
    (row,) = await us.rows("SELECT l.name FROM upload u JOIN location l ON l.id = u.location_id")
    assert row["name"] == "eu"


@pytest.mark.parametrize("operation", ["begin_parts", "put_part", "finish_parts"])
async def test_a_store_that_hangs_is_not_waited_for(world: MakeWorld, operation: str) -> None:
    """A store that is silent, and to its probes, is given up after a few seconds; one whose probes are good is waited for."""
    # One probe that is late is enough: a busy machine must be in time.
    us, _ = await world("us eu", "eu us", probe_interval=0.2, probe_deadline=SILENCE)
    data = secrets.token_bytes(DATA)
    slow = Hold()
    us.engines["us"].plan(operation, slow, call=0)
    location = await us.start_upload("a/b")
    with trio.fail_after(20 * SILENCE):
        async with trio.open_nursery() as nursery:

            async def push() -> None:
                patched = await us.patch(location, data)
                assert (await us.put(patched.location, digest_of(data))).status == 201

            nursery.start_soon(push)
            await slow.reached.wait()
            await trio.sleep(SILENCE + 0.5)
            slow.go_on.set()
    us.engines["us"].plan_all(Stall())
    us.engines["us"].plan("put_part", Stall())
    location = await us.start_upload("a/b")
    # Not as long as a store may take whose probes are good: for ever, here.
    with trio.fail_after(20 * SILENCE):
        assert (await us.patch(location, secrets.token_bytes(DATA))).failure == (503, "UNAVAILABLE")


@pytest.fixture
async def paused(world: MakeWorld, tmp_path: Path) -> tuple[Region, Body, bytes]:
    us, _ = await world("us eu", "eu us", upload_spool=spool(tmp_path))
    data = secrets.token_bytes(DATA)
    return us, Body(data, pause_at=2 * MIB), data


async def test_a_client_that_comes_back_while_its_first_request_hangs(paused: tuple[Region, Body, bytes]) -> None:
    """A kept upload that a second request takes over goes on without the disk, and right."""
    us, body, data = paused
    location, replies = await us.start_upload("a/b"), []

    async def first() -> None:
        replies.append(await us.patch(location, body))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(first)
        await body.paused.wait()
        assert (await us.put(location, digest_of(data), data)).status == 201
    assert replies[0].status in (404, 416)
    assert us.registry.upload_spool.used == 0
