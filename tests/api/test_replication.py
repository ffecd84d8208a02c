"""The wait API: what is said of an image while it is on its way, and when a request that waits is answered."""

import json
import re
from datetime import datetime
from functools import partial
from typing import Any, cast
from uuid import UUID

import pytest
import trio
import trio.testing
from attrs import Factory, define, evolve

from node.push.reading import OCI_INDEX, OCI_MANIFEST
from node.records.closures import read_closure
from node.records.postgres import Database, Row
from node.waiting import Subject
from replication.closure import Closure
from replication.model import Drill
from replication.ports import Forget, Wake
from tests.api.conftest import PATIENCE, SAFETY_NET, MakeWaiters, Waiters, beside
from tests.faulty_engine import Hold
from tests.registry.world import Region, descriptor, digest_of, image, index, until

LAYERS = (b"first layer" * 100, b"second layer" * 500)
CONFIG = 53
"""Bytes of the configuration that `push_image` makes for the tag v1."""
SIZE = sum(map(len, LAYERS)) + CONFIG
AT_ONCE = SAFETY_NET - 1
"""Seconds: what a busy machine takes, and sooner than anybody who waits would look of his own accord."""


async def test_an_image_on_its_way_is_pending(waiters: Waiters) -> None:
    """Of an image that was just pushed in us, eu lacks everything, and us has everything."""
    us = waiters.us
    digest = await us.push_image("ns/app", "v1", *LAYERS)
    answer = await waiters.ask("ns/app", "v1")
    assert {key: answer[key] for key in ("status", "digest", "location", "reference", "repository")} == {
        "status": "pending",
        "digest": digest,
        "location": "eu",
        "reference": "v1",
        "repository": "ns/app",
    }
    assert (answer["blobs"], answer["missing_blobs"]) == (3, 3)
    assert answer["bytes"] == answer["missing_bytes"] == SIZE
    assert (answer["queue_position"], answer["bytes_ahead"], answer["estimate_seconds"]) == (0, 0, None)
    here = await waiters.ask("ns/app", digest, location="us")
    assert (here["status"], here["missing_blobs"], here["missing_bytes"]) == ("present", 0, 0)


async def test_the_queue_and_the_estimate(waiters: Waiters) -> None:
    """What goes before an image in a location's queue is counted, and the measured pace makes it seconds; any node can tell."""
    us = waiters.us
    await us.push_image("ns/early", "v0", b"x" * 7000)
    await us.push_image("ns/app", "v1", *LAYERS)
    await us.rows(
        "INSERT INTO node (id, preference, defaults, version, throughput) "
        "VALUES (gen_random_uuid(), '{eu,us}', '{eu,us}', 'test', '{\"eu\": 1000}')"
    )
    for region in (waiters.us, waiters.eu):
        answer = await waiters.ask("ns/app", "v1", region)
        # The small configuration and the layer of the image before were owed first.
        assert answer["queue_position"] == 2
        assert answer["bytes_ahead"] == 7000 + CONFIG
        assert answer["estimate_seconds"] == pytest.approx((7000 + CONFIG + SIZE) / 1000)


async def test_copies_are_measured(waiters: Waiters) -> None:
    """A node measures what its copies bring, and tells it with its heartbeat."""
    await waiters.us.push_image("ns/app", "v1", *LAYERS)
    await waiters.copy()
    assert (await waiters.ask("ns/app", "v1", wait="50s"))["status"] == "present"
    assert waiters.eu.node.ledger.throughput.rates()["eu"] > 0
    await waiters.eu.node.ledger.heartbeat()
    rows = await waiters.us.rows("SELECT (throughput ->> 'eu')::float8 AS rate FROM node")
    assert [row["rate"] > 0 for row in rows] == [True]


async def test_waiting_ends_with_the_last_copy(waiters: Waiters, nursery: trio.Nursery) -> None:
    """A request that waits is answered when the last copy is recorded, on another node, too, and no safety net has to find it."""
    us, eu = waiters.us, waiters.eu
    await us.push_image("ns/app", "v1", *LAYERS)
    waiting = [beside(nursery, partial(waiters.ask, "ns/app", "v1", region, wait="50s")) for region in (us, eu)]
    await waiters.waiting(us)
    await waiters.waiting(eu)
    assert not any(task.done.is_set() for task in waiting)
    await waiters.copy()
    for task in waiting:
        answer = await task.get()
        assert answer["status"] == "present"
        last = await us.rows("SELECT extract(epoch FROM max(p.created_at))::float8 AS at FROM placement p")
        took = answer_time(answer) - last[0]["at"]
        assert took < SAFETY_NET / 2, f"{took} s after the last placement"


def answer_time(answer: dict[str, object]) -> float:
    """Return when the database was looked at for this answer, POSIX seconds."""
    return datetime.fromisoformat(str(answer["as_of"])).timestamp()


async def test_never_early(waiters: Waiters, nursery: trio.Nursery) -> None:
    """Whoever is told `present` finds every byte in the location's own store, while copies arrive one by one."""
    us, eu = waiters.us, waiters.eu
    digests = [await us.push_image("ns/app", f"v{number}", f"layer {number}".encode() * 50) for number in range(12)]
    store = eu.engines["eu"].inner
    found: list[int] = []

    async def watch(number: int) -> None:
        answer = await waiters.ask("ns/app", digests[number], eu if number % 2 else us, wait="50s")
        assert answer["status"] == "present"
        layer = f"layer {number}".encode() * 50
        config = b'{"architecture": "amd64", "os": "linux", "tag": "v%d"}' % number
        for data in (layer, config):
            rows = await us.rows(
                "SELECT p.key FROM blob b JOIN placement p ON p.blob_id = b.id JOIN location l ON l.id = p.location_id "
                "WHERE b.digest = $1 AND l.name = 'eu'",
                digest_of(data),
            )
            assert await store.read(rows[0]["key"], 0, len(data)) == data
        found.append(number)

    async with trio.open_nursery() as watchers:
        for number in range(12):
            watchers.start_soon(watch, number)
        await waiters.waiting(us, 6)
        await waiters.copy()
    assert sorted(found) == list(range(12))


async def test_a_copy_that_is_not_recorded_is_not_present(waiters: Waiters) -> None:
    """Bytes that are in the store, but not yet verified and recorded, do not count."""
    held = Hold()
    waiters.eu.engines["eu"].plan("put", held)
    await waiters.us.push_image("ns/app", "v1", LAYERS[0])
    await waiters.copy()
    with trio.fail_after(60):
        await held.reached.wait()
    answer = await waiters.ask("ns/app", "v1", wait="300ms")
    assert answer["status"] == "pending"
    held.go_on.set()
    assert (await waiters.ask("ns/app", "v1", wait="50s"))["status"] == "present"


async def test_waiting_does_not_poll(waiters: Waiters, nursery: trio.Nursery) -> None:
    """Fifty requests that wait for one image send a handful of statements, however long they wait."""
    us = waiters.us
    digest = await us.push_image("ns/app", "v1", *LAYERS)
    room, everybody, looking = us.registry.waiting, trio.Event(), 0
    look = room._look

    async def held(subject: Subject) -> Closure | None:
        nonlocal looking
        await everybody.wait()
        looking += 1
        found = await look(subject)
        looking -= 1
        return found

    room._look = held
    waiting = [beside(nursery, partial(waiters.ask, "ns/app", digest, wait="50s")) for _ in range(50)]
    await waiters.waiting(us, 50)
    everybody.set()

    async def they_have_looked() -> bool:
        return room.looks == 2 and not looking

    # One for the first, which began before the others came, and one for all of these.
    await until(they_have_looked)
    await trio.testing.wait_all_tasks_blocked(0.5)
    assert room.looks == 2
    await waiters.copy()
    for task in waiting:
        assert (await task.get())["status"] == "present"
    # One image of three blobs: a look for the last copy, and at most a few that others' hints caused.
    assert room.looks <= 2 + 5


async def test_a_lost_hint_costs_only_time(waiters: Waiters, nursery: trio.Nursery) -> None:
    """Where no hint comes, a slow safety net finds out all the same."""
    us = waiters.us
    us.registry.waiting.safety_net = 0.5
    await us.push_image("ns/app", "v1", LAYERS[0])
    task = beside(nursery, partial(waiters.ask, "ns/app", "v1", wait="50s"))
    await waiters.waiting(us)
    await us.rows(
        "INSERT INTO placement (blob_id, location_id, key) "
        "SELECT b.id, l.id, 'k' || b.id FROM blob b, location l WHERE l.name = 'eu'"
    )
    assert (await task.get())["status"] == "present"


async def test_the_time_is_up(waiters: Waiters) -> None:
    """A wait that brings nothing ends when it was told to, with what is known by then."""
    await waiters.us.push_image("ns/app", "v1", LAYERS[0])
    began = trio.current_time()
    answer = await waiters.ask("ns/app", "v1", wait="500ms")
    assert answer["status"] == "pending"
    assert 0.45 < trio.current_time() - began < AT_ONCE
    assert answer["waited_seconds"] >= 0.45


async def test_the_digest_that_the_tag_named(waiters: Waiters, nursery: trio.Nursery) -> None:
    """A tag that moves while somebody waits changes nothing about what is waited for."""
    first = await waiters.us.push_image("ns/app", "v1", LAYERS[0])
    task = beside(nursery, partial(waiters.ask, "ns/app", "v1", wait="50s"))
    await waiters.waiting(waiters.us)
    second = await waiters.us.push_image("ns/app", "v1", LAYERS[1])
    assert first != second
    await waiters.copy()
    answer = await task.get()
    assert (answer["digest"], answer["status"]) == (first, "present")


async def test_an_index_with_its_children(waiters: Waiters) -> None:
    """The closure of an index is that of all its children; an empty one has nothing to wait for."""
    us = waiters.us
    children = []
    for tag in ("amd64", "arm64"):
        await us.push_image("ns/app", tag, LAYERS[0], tag.encode())
        manifest = await us.ask("GET", f"/v2/ns/app/manifests/{tag}")
        children.append(descriptor(manifest.body, OCI_MANIFEST))
    await us.push_manifest("ns/app", "all", index(children, OCI_INDEX))
    answer = await waiters.ask("ns/app", "all")
    assert (answer["blobs"], answer["absent_manifests"]) == (5, 0)  # the shared layer once
    await us.push_manifest("ns/app", "none", index([], OCI_INDEX))
    assert (await waiters.ask("ns/app", "none"))["status"] == "present"


async def test_children_that_come_later(make_waiters: MakeWaiters) -> None:
    """What a sparse index names and nobody pushed yet is counted as absent; once it is there, its blobs count."""
    waiters = await make_waiters(sparse_index=True)
    us = waiters.us
    config = b"{}"
    child = image(config, LAYERS[0])
    body = json.dumps(child).encode()
    await us.push_manifest("ns/app", "all", index([descriptor(body, OCI_MANIFEST)], OCI_INDEX))
    answer = await waiters.ask("ns/app", "all")
    assert (answer["blobs"], answer["absent_manifests"]) == (0, 1)
    for blob in (config, LAYERS[0]):
        await us.push_blob("ns/app", blob)
    await us.push_manifest("ns/app", digest_of(body), body)
    answer = await waiters.ask("ns/app", "all")
    assert (answer["blobs"], answer["absent_manifests"], answer["status"]) == (2, 0, "pending")


@pytest.mark.parametrize("by", ["subject", "tag"])
async def test_what_is_attached(waiters: Waiters, by: str) -> None:
    """`referrers=true` takes in signatures and the like of the same repository, by their subject or by their tag."""
    us = waiters.us
    digest = await us.push_image("ns/app", "v1", LAYERS[0])
    body = (await us.ask("GET", "/v2/ns/app/manifests/v1")).body
    signature = b"signature"
    for name in ("ns/app", "ns/other"):
        for blob in (b"{}", signature, name.encode()):
            await us.push_blob(name, blob)
        more: dict[str, Any] = {"subject": descriptor(body, OCI_MANIFEST)} if by == "subject" else {}
        reference = f"sha256-{digest[7:]}.sig" if by == "tag" else "signature"
        await us.push_manifest(name, reference, image(b"{}", signature, name.encode(), **more))
    assert (await waiters.ask("ns/app", "v1"))["blobs"] == 2
    assert (await waiters.ask("ns/app", "v1", referrers="true"))["blobs"] == 5


async def test_not_required_until_it_is_requested(waiters: Waiters) -> None:
    """What no policy wants is not coming; `request=true` makes it wanted once, before other work, and then it comes."""
    us = waiters.us
    await waiters.policy("ns", required=["us"])
    await us.push_image("ns/app", "v1", *LAYERS)
    began = trio.current_time()
    answer = await waiters.ask("ns/app", "v1", wait="50s")
    assert answer["status"] == "not_required"
    assert "request=true" in answer["reason"]
    assert trio.current_time() - began < AT_ONCE
    assert await us.rows("SELECT FROM task") == []
    hints: list[object] = []
    async with us.registry.hints.subscribe() as subscription:
        answer = await waiters.ask("ns/app", "v1", request="true")
        hints.append(await anext(subscription))
    assert hints == [Wake(("eu",))]
    assert (answer["status"], answer["missing_blobs"], answer["required"]) == ("pending", 3, False)
    assert [row["priority"] for row in await us.rows("SELECT priority FROM task")] == [20, 20, 20]
    kept = await us.rows("SELECT extract(epoch FROM until - now())::float8 AS seconds FROM wanted")
    assert [round(row["seconds"] / 86400) for row in kept] == [7, 7, 7]
    await waiters.copy()
    assert (await waiters.ask("ns/app", "v1", wait="50s"))["status"] == "present"


async def test_what_is_required_is_not_made_wanted_for_less(waiters: Waiters) -> None:
    """Asking for an image that is coming anyway lets it go first, also where a try failed just now."""
    us = waiters.us
    await us.push_image("ns/app", "v1", LAYERS[0])
    await us.rows("UPDATE task SET due_at = now() + interval '1 hour', attempts = 2, last_error = 'busy'")
    await waiters.ask("ns/app", "v1", request="true")
    rows = await us.rows("SELECT priority, due_at <= now() AS due, attempts FROM task")
    assert [(row["priority"], row["due"], row["attempts"]) for row in rows] == [(20, True, 2)] * 2


async def test_never_is_impossible(waiters: Waiters) -> None:
    """A policy that forbids a location is the end of it, also for who asks."""
    await waiters.policy("ns", never=["eu"])
    await waiters.us.push_image("ns/app", "v1", LAYERS[0])
    answer = await waiters.ask("ns/app", "v1", request="true", wait="50s")
    assert (answer["status"], answer["reason"]) == ("impossible", "the namespace's policy says never eu")
    assert await waiters.us.rows("SELECT FROM task") == []
    assert await waiters.us.rows("SELECT FROM wanted") == []


async def test_nothing_left_is_impossible(waiters: Waiters, nursery: trio.Nursery) -> None:
    """When the last copy of a blob is gone, a wait for it ends at once."""
    us = waiters.us
    await us.push_image("ns/app", "v1", LAYERS[0])
    task = beside(nursery, partial(waiters.ask, "ns/app", "v1", wait="50s"))
    await waiters.waiting(us)
    us.registry.waiting.safety_net = 0.2
    await us.rows("DELETE FROM placement p USING blob b WHERE b.id = p.blob_id AND b.digest = $1", digest_of(LAYERS[0]))
    us.registry.hints.publish(Forget())
    answer = await task.get()
    assert answer["status"] == "impossible"
    assert digest_of(LAYERS[0]) in answer["reason"]


async def test_stalled_is_still_retried(waiters: Waiters) -> None:
    """What fails again and again is stalled, with its last error and since when; waiting for it goes on."""
    us = waiters.us
    await us.push_image("ns/app", "v1", LAYERS[0])
    await us.rows("UPDATE task SET attempts = 9, last_error = 'disk full', failing_since = '2026-01-02T03:04:05Z'")
    answer = await waiters.ask("ns/app", "v1", wait="300ms")
    assert (answer["status"], answer["last_error"]) == ("stalled", "disk full")
    assert answer["since"] == "2026-01-02T03:04:05.000Z"
    assert answer["waited_seconds"] >= 0.29
    await waiters.copy()
    assert (await waiters.ask("ns/app", "v1", wait="50s"))["status"] == "present"


async def test_a_location_that_is_down_for_those_who_copy_there_is_stalled(waiters: Waiters) -> None:
    """While every node that copies there sees it down nothing moves, whoever is asked: no estimate, until it is back."""
    us, eu = waiters.us, waiters.eu
    await us.push_image("ns/app", "v1", *LAYERS)
    others = [await joined(us, "{eu,us}") for _ in range(2)]
    await joined(us, "{us,eu}", down='{"eu": 1}')
    await us.rows("UPDATE node SET throughput = '{\"eu\": 1000}'")
    assert (await waiters.ask("ns/app", "v1"))["status"] == "pending"
    # Heartbeats tell what a node's own watcher thinks, here because of a drill; no hint has to arrive.
    cluster = await eu.node.ledger.heartbeat()
    eu.node.scheduler.cluster = evolve(cluster, drills={"eu": Drill(60.0, ran=30.0)})
    eu.node.scheduler.cluster_at = trio.current_time()
    await eu.node.ledger.heartbeat()
    for words, status in (
        (('{"us": 1}', "{}"), "pending"),
        (('{"us": 1, "eu": 1}', "{}"), "pending"),
        (('{"us": 1, "eu": 1}', '{"eu": 1}'), "stalled"),
    ):
        for node, word in zip(others, words, strict=True):
            await us.rows("UPDATE node SET down = $2::text::jsonb WHERE id = $1", node, word)
        assert (await waiters.ask("ns/app", "v1"))["status"] == status, words
    answer = await waiters.ask("ns/app", "v1", wait="100ms")
    assert (answer["status"], answer["reason"], answer["estimate_seconds"]) == ("stalled", "eu is down", None)
    assert "every node that copies there" in answer["last_error"]
    took = answer_time(answer) - datetime.fromisoformat(answer["since"]).timestamp()
    assert 30 <= took < 30 + PATIENCE, "the last of them sees it down for as long"
    assert (await waiters.ask("ns/app", "v1", location="us"))["status"] == "present"
    # One that leaves, or has fallen silent, copies nothing and is not asked.
    await us.rows("UPDATE node SET down = '{}', draining = true WHERE id = $1", others[0])
    await us.rows("UPDATE node SET down = '{}', seen_at = now() - interval '11 seconds' WHERE id = $1", others[1])
    assert (await waiters.ask("ns/app", "v1"))["status"] == "stalled"
    eu.node.scheduler.cluster = cluster
    await eu.node.ledger.heartbeat()
    assert (await waiters.ask("ns/app", "v1"))["status"] == "pending"
    await waiters.copy()
    assert (await waiters.ask("ns/app", "v1", wait="50s"))["status"] == "present"


@pytest.mark.parametrize(
    ("word", "status", "source"),
    [("{}", "pending", "pending"), ('{"us": 1}', "pending", "stalled"), (None, "stalled", "pending")],
    ids=["well", "no source", "does not say"],
)
async def test_what_the_node_that_is_asked_sees(waiters: Waiters, word: str | None, status: str, source: str) -> None:
    """It counts only where nobody else copies, or one who does is of a release that does not say what it sees."""
    us = waiters.us
    await us.push_image("ns/app", "v1", *LAYERS)
    us.node.scheduler.cluster = evolve(await us.node.ledger.heartbeat(), drills={"eu": Drill(60.0, ran=30.0)})
    us.node.scheduler.cluster_at = trio.current_time()
    assert (await waiters.ask("ns/app", "v1"))["status"] == "stalled"
    await joined(us, "{eu,us}", down=word)
    answer = await waiters.ask("ns/app", "v1")
    assert answer["status"] == ("stalled" if "stalled" in (status, source) else "pending")
    assert (answer["reason"] or "").endswith("eu is down") is (status == "stalled")
    assert ("the only copies" in (answer["reason"] or "")) is (source == "stalled")


async def joined(region: Region, preference: str, down: str | None = "{}") -> UUID:
    """Let another node live, and return its id."""
    (row,) = await region.rows(
        "INSERT INTO node (id, preference, defaults, version, down) "
        "VALUES (gen_random_uuid(), $1::text::text[], '{eu,us}', 'test', $2::text::jsonb) RETURNING id",
        preference,
        down,
    )
    return UUID(str(row["id"]))


async def test_locations_that_take_nothing(waiters: Waiters) -> None:
    """A paused location is stalled; one that is being emptied requires nothing, whoever asks."""
    us = waiters.us
    await us.push_image("ns/app", "v1", LAYERS[0])
    await us.rows("UPDATE location SET state = 'paused' WHERE name = 'eu'")
    assert (await waiters.ask("ns/app", "v1"))["status"] == "stalled"
    await us.rows("UPDATE location SET state = 'draining' WHERE name = 'eu'")
    answer = await waiters.ask("ns/app", "v1", request="true", wait="50s")
    assert (answer["status"], answer["reason"]) == ("not_required", "eu is draining and takes no new copies")
    assert await us.rows("SELECT FROM wanted") == []


async def test_without_replication_nothing_is_required(make_waiters: MakeWaiters) -> None:
    """Where FEATURE_STORAGE_REPLICATION is off, an image goes only where somebody asked for it."""
    waiters = await make_waiters(replicate=False)
    await waiters.us.push_image("ns/app", "v1", LAYERS[0])
    assert (await waiters.ask("ns/app", "v1"))["status"] == "not_required"
    assert (await waiters.ask("ns/app", "v1", request="true"))["status"] == "pending"
    await waiters.copy()
    assert (await waiters.ask("ns/app", "v1", wait="50s"))["status"] == "present"


async def test_a_pattern_of_a_tag_requires(waiters: Waiters) -> None:
    """What a tag's pattern adds is required for the tag's closure, and for no other image."""
    await waiters.policy("ns", required=["us"], tags=[{"pattern": "v*", "locations": ["eu"]}])
    await waiters.us.push_image("ns/app", "v1", LAYERS[0])
    await waiters.us.push_image("ns/app", "dev", LAYERS[1])
    assert (await waiters.ask("ns/app", "v1"))["status"] == "pending"
    assert (await waiters.ask("ns/app", "dev"))["status"] == "not_required"


async def test_a_manifest_that_is_deleted_meanwhile(waiters: Waiters, nursery: trio.Nursery) -> None:
    """A wait for a manifest that is deleted ends as if it had never been there."""
    us = waiters.us
    digest = await us.push_image("ns/app", "v1", LAYERS[0])
    task = beside(nursery, partial(waiters.problem, "ns/app", "v1", wait="50s"))
    await waiters.waiting(us)
    assert (await us.ask("DELETE", f"/v2/ns/app/manifests/{digest}")).status == 202
    assert (await task.get()).status == 404


async def test_no_more_than_may_wait(make_waiters: MakeWaiters, nursery: trio.Nursery) -> None:
    """One more than may wait is told when to come back, and is not kept from asking without waiting."""
    waiters = await make_waiters(replication_waiters=1)
    await waiters.us.push_image("ns/app", "v1", LAYERS[0])
    task = beside(nursery, partial(waiters.ask, "ns/app", "v1", wait="50s"))
    await waiters.waiting(waiters.us)
    problem = await waiters.problem("ns/app", "v1", wait="50s")
    assert (problem.status, dict(problem.headers)["retry-after"]) == (503, "5")
    assert (await waiters.ask("ns/app", "v1"))["status"] == "pending"
    await waiters.copy()
    assert (await task.get())["status"] == "present"
    assert waiters.us.registry.waiting.waiters == 0


async def test_a_client_that_leaves_is_forgotten(waiters: Waiters, nursery: trio.Nursery) -> None:
    """A request that is cancelled takes its place in the waiting room along."""
    await waiters.us.push_image("ns/app", "v1", LAYERS[0])
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as clients:
            clients.start_soon(partial(waiters.ask, "ns/app", "v1", wait="50s"))
            await waiters.waiting(waiters.us)
            scope.cancel()
    assert waiters.us.registry.waiting.waiters == 0
    assert waiters.us.registry.waiting._watches == {}


async def test_a_node_that_stops_lets_waiters_go(waiters: Waiters, nursery: trio.Nursery) -> None:
    """When a node begins to stop, whoever waits is answered with what is known: any other node may go on."""
    await waiters.us.push_image("ns/app", "v1", LAYERS[0])
    task = beside(nursery, partial(waiters.ask, "ns/app", "v1", wait="50s"))
    await waiters.waiting(waiters.us)
    began = trio.current_time()
    waiters.us.node.start_draining()
    assert (await task.get())["status"] == "pending"
    assert task.at - began < AT_ONCE


async def test_the_look_scans_no_table(waiters: Waiters) -> None:
    """However many blobs the registry has, a closure's facts are found by keys: no large table is ever read as a whole."""
    us = waiters.us
    await us.push_image("ns/app", "v1", LAYERS[0])
    # Each of them is filled: once autovacuum has counted a table of two rows, reading it whole is the right plan.
    tables = ("blob", "placement", "task", "manifest", "manifest_blob", "repository_manifest")
    for table in tables:
        await us.rows(f"ALTER TABLE {table} DISABLE TRIGGER USER")
    for statement in (
        "INSERT INTO blob (digest, size) SELECT 'sha256:' || lpad(to_hex(i), 64, '0'), i FROM generate_series(1, 20000) i",
        "INSERT INTO placement (blob_id, location_id, key) SELECT id, 1, 'k' || id FROM blob ON CONFLICT DO NOTHING",
        "INSERT INTO task (blob_id, location_id, size) SELECT id, 2, size FROM blob ON CONFLICT DO NOTHING",
        "INSERT INTO manifest (digest, bytes) SELECT 'sha256:' || lpad(to_hex(i), 64, '0'), '{}' FROM generate_series(1, 20000) i",
        (
            "INSERT INTO repository_manifest (repository_id, manifest_id, media_type) "
            "SELECT 1, id, '' FROM manifest ON CONFLICT DO NOTHING"
        ),
        (
            "INSERT INTO manifest_blob (manifest_id, blob_id) "
            "SELECT m.id, b.id FROM manifest m JOIN blob b ON b.id = m.id ON CONFLICT DO NOTHING"
        ),
    ):
        await us.rows(statement)
    for table in tables:
        await us.rows(f"ALTER TABLE {table} ENABLE TRIGGER USER")
    await us.rows("ANALYZE")
    database = Explaining(us.registry.database)
    await read_closure(cast("Database", database), "ns/app", "v1", locations=["eu"], replicate=True)
    (plan,) = database.plans
    assert "Index Scan using placement_pkey" in plan
    scans = re.findall(r"Seq Scan on (?:placement|task|blob|manifest_blob|manifest|repository_manifest)\b.*", plan)
    assert scans == []


@define
class Explaining:
    """A database that keeps the plan of every statement."""

    inner: Database
    plans: list[str] = Factory(list)

    async def fetch_row(self, sql: str, *args: object) -> Row | None:
        rows = await self.inner.fetch(f"EXPLAIN {sql}", *args)
        self.plans.append("\n".join(row["QUERY PLAN"] for row in rows))
        return await self.inner.fetch_row(sql, *args)


@pytest.mark.parametrize(
    ("query", "field", "right"),
    [
        ({"location": ""}, "location", "known locations are eu, us"),
        ({"location": "mars"}, "location", "known locations are eu, us"),
        ({"wait": "soon"}, "wait", 'such as "500ms", "5s", "10m"'),
        ({"wait": "-1s"}, "wait", 'such as "500ms"'),
        ({"referrers": "yes"}, "referrers", "write true or false"),
        ({"request": "1"}, "request", "write true or false"),
        ({"refferers": "true"}, "refferers", "did you mean referrers?"),
        ({"colour": "red"}, "colour", "known are location, wait, referrers, request"),
    ],
)
async def test_bad_parameters(waiters: Waiters, query: dict[str, str], field: str, right: str) -> None:
    """A parameter that cannot be used is named, with what was found and what would be right."""
    problem = await waiters.problem("ns/app", "v1", **query)
    (wrong,) = problem.wrong
    assert (problem.status, wrong.field) == (400, field)
    assert right in wrong.right
    assert next(iter(query.values())) in wrong.found or wrong.found == "an unknown parameter"


@pytest.mark.parametrize(
    ("name", "reference"),
    [("ns/none", "v1"), ("ns/app", "v2"), ("ns/app", digest_of(b"")), ("NS", "v1"), ("ns/app", "sha256:x"), ("a", "-")],
)
async def test_unknown_things(waiters: Waiters, name: str, reference: str) -> None:
    """A repository or manifest that the registry does not have is 404."""
    await waiters.us.push_image("ns/app", "v1", LAYERS[0])
    assert (await waiters.problem(name, reference)).status == 404
