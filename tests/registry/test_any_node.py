"""Any node, any request: an upload begun in one region goes on in another, whatever the sizes of its pieces."""

import secrets
from collections.abc import Sequence

import pytest
import trio

from engines.contract import EngineUnavailable
from node.answers import ClientGone
from node.janitor import sweep_up
from tests.faulty_engine import Hold, LoseAnswer, Refuse, Wrong
from tests.registry.world import MIB, Body, MakeWorld, Region, Reply, digest_of

SIZES = [1, MIB, 4 * MIB + 900_000, 5 * MIB, 5 * MIB + 100_000, 11 * MIB]
PART = 64 * 1024


async def bury_due(region: Region) -> None:
    """Let the time pass that dead objects wait, and sweep every store."""
    await region.rows("UPDATE dead_object SET not_before = now()")
    for location in region.engines:
        await region.node.scheduler._sweeper.sweep(location)


async def test_two_regions_write_one_upload(world: MakeWorld, repository: str) -> None:
    """POST on us, PATCH on eu, PATCH on us, PUT on eu, on real gateways, with chunks around the part's size, byte by byte."""
    us, eu = await world("us eu", "eu us", ceph=True, proxy_storage=True)

    async def push(size: int) -> None:
        data = [secrets.token_bytes(size) for _ in range(3)]
        whole = b"".join(data)
        location = await us.start_upload(repository)
        for region, start, chunk in ((eu, 0, data[0]), (us, size, data[1])):
            reply = await region.patch(location, chunk, start)
            assert (reply.status, reply.headers["range"]) == (202, f"0-{start + size - 1}")
            location = reply.location
        for region in (us, eu):
            status = await region.ask("GET", location)
            assert (status.status, status.headers["range"]) == (204, f"0-{2 * size - 1}")
        reply = await eu.put(location, digest_of(whole), data[2])
        assert (reply.status, reply.location) == (201, f"/v2/{repository}/blobs/{digest_of(whole)}")
        for region in (us, eu):
            pulled = await region.ask("GET", reply.location)
            assert (pulled.status, pulled.body == whole, pulled.headers["antipode-location"]) == (200, True, "us")

    async with trio.open_nursery() as nursery:
        for size in SIZES:
            nursery.start_soon(push, size)
    await bury_due(us)
    assert len(await us.contents("us")) == len(SIZES)
    assert await us.rows("SELECT FROM dead_object") == []


@pytest.mark.parametrize("sizes", [(10, 20, 30), (PART, PART, 1), (3 * PART, 0, PART - 1), (1, 5 * PART, 7, 2 * PART)])
async def test_the_end_may_come_without_bytes(world: MakeWorld, repository: str, sizes: Sequence[int]) -> None:
    """A PUT without a body publishes what PATCHes of any sizes, on nodes in turn, have brought."""
    us, eu = await world("us eu", "eu us", part_size=PART)
    data, location = b"", await us.start_upload(repository)
    for turn, size in enumerate(sizes):
        chunk = secrets.token_bytes(size)
        reply = await (eu, us)[turn % 2].patch(location, chunk)
        data, location = data + chunk, reply.location
    assert (await eu.put(location, digest_of(data))).status == 201
    assert (await us.ask("GET", f"/v2/{repository}/blobs/{digest_of(data)}")).body == data
    await bury_due(us)
    assert len(await us.contents("us")) == 1


async def test_hundreds_of_requests_in_turn(world: MakeWorld, repository: str) -> None:
    """An upload whose every request goes to the other node stays far below the part numbers that stores allow."""
    us, eu = await world("us eu", "eu us", part_size=1024)
    data, location = b"", await us.start_upload(repository)
    for turn in range(120):
        chunk = secrets.token_bytes(1024)
        reply = await (eu, us)[turn % 2].patch(location, chunk, len(data))
        data, location = data + chunk, reply.location
    (upload,) = await us.rows("SELECT next_part, jsonb_array_length(parts) AS parts FROM upload")
    # 20 GiB in 5 MiB requests are 4096 of them: 48 takeovers that skip 32, the rest 1, and one part each, of 10 000.
    assert upload["next_part"] <= 48 * 32 + (120 - 48) + 120
    assert (await us.put(location, digest_of(data))).status == 201
    assert (await us.ask("GET", f"/v2/{repository}/blobs/{digest_of(data)}")).body == data


async def test_the_repeated_put(world: MakeWorld, repository: str) -> None:
    """A PUT that is repeated because its answer was lost gives 201 again, on either node; another digest is unknown."""
    us, eu = await world("us eu", "eu us")
    location = await us.start_upload(repository)
    assert (await us.patch(location, b"hello")).status == 202
    for region in (us, us, eu):
        assert (await region.put(location, digest_of(b"hello"))).status == 201
    assert (await eu.put(location, digest_of(b"other"))).failure == (404, "BLOB_UPLOAD_UNKNOWN")
    assert (await us.rows("SELECT count(*) AS n FROM blob")) == [{"n": 1}]


@pytest.mark.parametrize("elsewhere", [False, True], ids=["same node", "other node"])
async def test_two_patches_at_once(world: MakeWorld, repository: str, elsewhere: bool) -> None:
    """Of two PATCHes at once the newer goes through, the other gets a clear 416, and nothing is corrupted."""
    us, eu = await world("us eu", "eu us", part_size=PART)
    second = eu if elsewhere else us
    location = (await us.patch(await us.start_upload(repository), b"head")).location
    slow, replies = Body(secrets.token_bytes(5 * PART), pause_at=3 * PART), {}

    async def first() -> None:
        replies["first"] = await us.patch(location, slow)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(first)
        with trio.fail_after(60):
            await slow.paused.wait()
        tail = secrets.token_bytes(3 * PART)
        won = await second.patch(location, tail, 4)
        slow.go_on.set()
    assert (won.status, won.headers["range"]) == (202, f"0-{3 * PART + 3}")
    assert replies["first"].failure == (416, "BLOB_UPLOAD_INVALID")
    assert "took this upload over" in replies["first"].detail["reason"]
    data = b"head" + tail
    assert (await us.put(won.location, digest_of(data))).status == 201
    assert (await eu.ask("GET", f"/v2/{repository}/blobs/{digest_of(data)}")).body == data
    await bury_due(us)
    assert len(await us.contents("us")) == 1


async def test_out_of_order(world: MakeWorld, repository: str) -> None:
    """A chunk that does not follow is 416 and says where to go on; nothing of it is kept."""
    us, eu = await world("us eu", "eu us")
    location = (await us.patch(await us.start_upload(repository), b"0123", 0)).location
    for region, start in ((us, 2), (eu, 7)):
        refused = await region.patch(location, b"xx", start)
        assert refused.failure == (416, "BLOB_UPLOAD_INVALID")
        assert refused.headers["range"] == "0-3"
        location = refused.location
    assert (await us.put(location, digest_of(b"0123x"), b"x", **{"content-range": "9-9"})).failure[0] == 416
    # The last request went to us, so what eu remembers is out of date: it says where to go on, too.
    refused = await eu.put(location, digest_of(b"01234"), b"4", **{"content-range": "4-4"})
    assert (refused.failure[0], refused.headers["range"]) == (416, "0-3")
    assert (await eu.put(refused.location, digest_of(b"01234"), b"4", **{"content-range": "4-4"})).status == 201


async def test_a_put_without_bytes_needs_no_memory(world: MakeWorld, repository: str) -> None:
    """A final PUT succeeds at any node, also one whose memory of the upload is out of date."""
    us, eu = await world("us eu", "eu us")
    first = (await us.patch(await us.start_upload(repository), b"01")).location
    await eu.patch(first, b"23")
    assert (await us.put(first, digest_of(b"0123"))).status == 201
    assert await us.unaccounted("us") == set()


async def test_a_client_that_vanishes_goes_on(world: MakeWorld, repository: str) -> None:
    """What came before a client vanished is kept: it asks how far it got, on any node, and goes on from there."""
    us, eu = await world("us eu", "eu us", part_size=PART)
    data = secrets.token_bytes(10 * PART)
    location = await us.start_upload(repository)
    with pytest.raises(ClientGone):
        await us.patch(location, Body(data[: 4 * PART + 100], gone=True))
    status = await eu.ask("GET", location)
    assert status.headers["range"] == f"0-{4 * PART + 99}"
    reply = await eu.patch(status.location, data[4 * PART + 100 :], 4 * PART + 100)
    assert (await us.put(reply.location, digest_of(data))).status == 201


@pytest.mark.parametrize("parts", [5, 100], ids=["short", "long"])
@pytest.mark.parametrize("begun", [0, PART // 2, 3 * PART - 7], ids=["whole", "behind a tail", "behind parts"])
async def test_a_put_that_breaks_off_can_be_repeated(world: MakeWorld, repository: str, parts: int, begun: int) -> None:
    """A client that vanishes in the final PUT repeats it, however long it is; what the torn one wrote is accounted for and goes."""
    us, eu = await world("us eu", "eu us", part_size=PART)
    data = secrets.token_bytes(begun + (parts + 1) * PART)
    location = await us.start_upload(repository)
    if begun:
        location = (await us.patch(location, data[:begun])).location
    with pytest.raises(ClientGone):
        await us.put(location, digest_of(data), Body(data[begun : begun + parts * PART], gone=True))
    assert await us.rows("SELECT FROM blob") == []
    assert (await eu.put(location, digest_of(data), data[begun:])).status == 201
    assert (await eu.ask("GET", f"/v2/{repository}/blobs/{digest_of(data)}")).body == data
    assert await us.unaccounted("us") == set()
    await bury_due(us)
    assert len(await us.contents("us")) == 1


@pytest.mark.parametrize("operation", ["put_part", "begin_parts", "finish_parts"])
@pytest.mark.parametrize("fault", [Refuse(), LoseAnswer()], ids=["refused", "answer lost"])
async def test_a_store_that_fails_in_the_middle(
    world: MakeWorld, repository: str, operation: str, fault: Refuse | LoseAnswer
) -> None:
    """A store that fails a whole PUT is a 503; the client repeats it, another store takes it, and no part of the first is left."""
    us, eu = await world("us eu", "eu us", part_size=PART)
    data = secrets.token_bytes(6 * PART)
    location = await us.start_upload(repository)
    us.engines["us"].plan(operation, fault, call=0)
    failed = await us.put(location, digest_of(data), data)
    assert failed.failure == (503, "UNAVAILABLE")
    assert failed.headers["retry-after"]
    assert (await eu.put(location, digest_of(data), data)).status == 201
    assert (await us.ask("GET", f"/v2/{repository}/blobs/{digest_of(data)}")).body == data
    for region in (us, eu):
        assert await region.unaccounted(region.registry.settings.preferred) == set()
        await bury_due(region)
    assert await us.contents("us") == set()
    assert len(await eu.contents("eu")) == 1


async def test_two_parts_fail_at_once(world: MakeWorld, repository: str) -> None:
    """However many parts fail at the same moment, the client gets one answer: 503."""
    (us,) = await world("us", part_size=PART)
    us.engines["us"].plan("put_part", Refuse(EngineUnavailable("full")))
    data = secrets.token_bytes(8 * PART)
    assert (await us.put(await us.start_upload(repository), digest_of(data), data)).failure == (503, "UNAVAILABLE")
    reply = await us.ask("POST", f"/v2/{repository}/blobs/uploads/?digest={digest_of(data)}", data)
    assert reply.failure == (503, "UNAVAILABLE")
    assert await us.unaccounted("us") == set()


async def test_cancel_from_the_other_node(world: MakeWorld, repository: str) -> None:
    """DELETE on any node ends an upload everywhere, and its parts and bytes go from the store."""
    us, eu = await world("us eu", "eu us", part_size=PART)
    location = (await us.patch(await us.start_upload(repository), secrets.token_bytes(3 * PART))).location
    assert (await eu.ask("DELETE", location)).status == 204
    for region in (us, eu):
        assert (await region.ask("GET", location)).failure == (404, "BLOB_UPLOAD_UNKNOWN") or region is us
        assert (await region.ask("DELETE", location)).failure == (404, "BLOB_UPLOAD_UNKNOWN")
    assert (await us.patch(location, b"more")).status in (404, 416)
    assert (await us.put(location, digest_of(b"more"))).failure == (404, "BLOB_UPLOAD_UNKNOWN")
    await bury_due(us)
    assert await us.contents("us") == set()


@pytest.mark.parametrize("size", [PART // 2, 5 * PART], ids=["tail", "parts"])
@pytest.mark.parametrize("final", [False, True], ids=["PATCH", "PUT"])
async def test_cancel_under_a_writer(world: MakeWorld, repository: str, size: int, final: bool) -> None:
    """What a request writes after its upload was cancelled elsewhere, and after the store was swept, is known and goes too."""
    us, eu = await world("us eu", "eu us", part_size=PART)
    location = await us.start_upload(repository)
    data = secrets.token_bytes(size)
    slow, replies = Body(data, pause_at=0), []

    async def write() -> None:
        replies.append(await (us.put(location, digest_of(data), slow) if final else us.patch(location, slow)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write)
        with trio.fail_after(60):
            await slow.paused.wait()
        assert (await eu.ask("DELETE", location)).status == 204
        await bury_due(eu)
        assert await eu.rows("SELECT FROM dead_object") == []
        slow.go_on.set()
    assert replies[0].status in (404, 416)
    assert await us.unaccounted("us") == set()
    await bury_due(us)
    assert await us.contents("us") == set()
    assert await us.rows("SELECT FROM blob") == []


async def test_abandoned_uploads_go(world: MakeWorld, repository: str) -> None:
    """An upload that nobody finished in time goes from the database and from the store, with its parts, tail and all."""
    us, eu = await world("us eu", "eu us", ceph=True)
    for size in (100, 6 * MIB):
        location = await us.start_upload(repository)
        await us.patch(location, secrets.token_bytes(size))
    location = await us.start_upload(repository)
    await us.patch(location, secrets.token_bytes(6 * MIB))
    with pytest.raises(ClientGone):
        await eu.put(location, digest_of(b""), Body(secrets.token_bytes(6 * MIB), gone=True))
    assert len(await us.contents("us")) == 3
    assert await us.unaccounted("us") == set()
    await us.rows("UPDATE upload SET expires_at = now() - interval '1 second'")
    assert (await us.ask("GET", location)).failure == (404, "BLOB_UPLOAD_UNKNOWN")
    await sweep_up(eu.registry.database, eu.registry.hints)
    assert await us.rows("SELECT FROM upload") == []
    await bury_due(us)
    assert await us.contents("us") == set()
    assert await us.rows("SELECT FROM dead_object") == []


async def test_a_late_writer_does_not_drop_its_successor(world: MakeWorld, repository: str) -> None:
    """A writer that lost its upload, and finds that the store has finished it, takes nothing from the one who finished it."""
    us, eu = await world("us eu", "eu us", part_size=PART)
    head, replies = secrets.token_bytes(3 * PART), {}
    location = (await us.patch(await us.start_upload(repository), head)).location
    # The successor has finished its object and is about to commit it when the late one writes on.
    eu.engines["us"].plan("finish_parts", (slow := Hold()))

    async def succeed() -> None:
        replies["put"] = await eu.put(location, digest_of(head))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(succeed)
        with trio.fail_after(60):
            await slow.reached.wait()
        assert (await us.patch(location, secrets.token_bytes(3 * PART))).status in (404, 416)
        slow.go_on.set()
    assert replies["put"].status == 201
    assert (await us.ask("GET", f"/v2/{repository}/blobs/{digest_of(head)}")).body == head
    assert await us.unaccounted("us") == set()


@pytest.mark.parametrize(
    ("proof", "checked"), [("as it is", True), ("NULL", False), ("'another ' || repeat('0', 64)", False)]
)
async def test_a_tail_that_does_not_come_back_as_it_was_stored(
    world: MakeWorld, repository: str, proof: str, checked: bool
) -> None:
    """Nobody builds upon it, on another node either; what a node of the last release wrote has no proof, and goes on."""
    us, eu = await world("us eu", "eu us", part_size=PART)
    first, second = b"a" * 1000, b"b" * 1000
    for call in (0, None):
        location = await us.start_upload(repository)
        assert (await us.patch(location, first)).status == 202
        if proof != "as it is":
            await us.rows(f"UPDATE upload SET tail_proof = {proof}")  # noqa: S608 - the test's own
        if checked:
            eu.engines["us"].plan("read", Wrong(3), call)
        reply = await eu.put(location, digest_of(first + second), second)
        eu.engines["us"].clear()
        assert reply.status == (201 if call == 0 or not checked else 503)
        if reply.status == 201:
            assert (await us.ask("GET", reply.location)).body == first + second
            assert (await us.ask("DELETE", f"/v2/{repository}/blobs/{digest_of(first + second)}")).status == 202
    assert (await eu.ask("HEAD", f"/v2/{repository}/blobs/{digest_of(first + second)}")).status == 404


async def test_an_upload_that_another_request_ended_is_not_taken_for_ones_own(
    world: MakeWorld, repository: str
) -> None:
    """Of two requests that end an upload at once with as many bytes, but not the same, none becomes the other's blob."""
    us, eu = await world("us eu", "us eu", part_size=PART)
    begun, good, bad = secrets.token_bytes(2 * PART), secrets.token_bytes(PART), secrets.token_bytes(PART)
    location = await us.start_upload(repository)
    location = (await us.patch(location, begun)).location
    last, ends, ended = [Hold(), Hold()], dict[str, Reply](), {"bad": trio.Event(), "good": trio.Event()}
    us.engines["us"].plan("put_part", last[0], 0)
    eu.engines["us"].plan("put_part", last[1], 0)

    async def end(region: Region, data: bytes, name: str) -> None:
        ends[name] = await region.put(location, digest_of(begun + data), data)
        ended[name].set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(end, us, bad, "bad")
        with trio.fail_after(60):
            await last[0].reached.wait()
            nursery.start_soon(end, eu, good, "good")
            await last[1].reached.wait()
            last[0].go_on.set()
            await ended["bad"].wait()
            last[1].go_on.set()
    assert ends["bad"].status != 201
    assert ends["good"].failure == (400, "DIGEST_INVALID")
    assert await eu.rows("SELECT * FROM placement") == []
    assert await eu.unaccounted("us") == set()
