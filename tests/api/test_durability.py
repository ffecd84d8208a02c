"""Durability on request: a push is acknowledged when its copies are there, or says what is missing; its tag never moves before."""

import json
from functools import partial
from typing import Any

import pytest
import trio

from node.push.reading import OCI_MANIFEST
from node.records.auditlog import Filter, read_lines
from tests.api.conftest import PATIENCE, MakeWaiters, Waiters, beside
from tests.faulty_engine import Hold, Refuse
from tests.registry.world import Region, Reply, digest_of, image, until

LAYER = b"a layer" * 300
CONFIG = b'{"architecture": "amd64", "os": "linux"}'


async def prepare(region: Region, *layers: bytes, name: str = "ns/app") -> bytes:
    """Push the blobs of an image and return its manifest."""
    for blob in (CONFIG, *layers):
        await region.push_blob(name, blob)
    return json.dumps(image(CONFIG, *layers)).encode()


async def put(region: Region, body: bytes, reference: str = "v1", name: str = "ns/app", **headers: str) -> Reply:
    """PUT a manifest; headers are named with underscores."""
    given = {"content-type": OCI_MANIFEST, **{key.replace("_", "-"): value for key, value in headers.items()}}
    with trio.fail_after(PATIENCE):
        return await region.ask("PUT", f"/v2/{name}/manifests/{reference}", body, given)


async def tagged(region: Region, tag: str = "v1", name: str = "ns/app") -> str | None:
    """Return the digest that a tag names in the database."""
    rows = await region.rows(
        "SELECT m.digest FROM tag t JOIN repository r ON r.id = t.repository_id JOIN manifest m ON m.id = t.manifest_id "
        "WHERE r.name = $1 AND t.name = $2",
        name,
        tag,
    )
    return rows[0]["digest"] if rows else None


async def placed(region: Region, location: str) -> set[str]:
    """Return the digests that a location holds for good."""
    rows = await region.rows(
        "SELECT b.digest FROM blob b JOIN placement p ON p.blob_id = b.id JOIN location l ON l.id = p.location_id "
        "WHERE l.name = $1 AND p.state = 'present'",
        location,
    )
    return {row["digest"] for row in rows}


async def asked(region: Region, body: bytes) -> None:
    """Wait until a push has asked for the copies of this image's first layer, and waits for them."""
    layer = json.loads(body)["layers"][0]["digest"]

    async def urgent() -> bool:
        sql = "SELECT FROM task t JOIN blob b ON b.id = t.blob_id WHERE t.priority = 20 AND b.digest = $1"
        return bool(await region.rows(sql, layer)) and region.registry.durable.waiters > 0

    await until(urgent)


@pytest.mark.parametrize("durability", ["quorum:2", "all", "QUORUM:2"])
async def test_acknowledged_when_the_copies_are_there(waiters: Waiters, durability: str) -> None:
    """`quorum:2` and `all` answer 201 when every blob has its copies, and the tag has moved by then."""
    await waiters.copy()
    body = await prepare(waiters.us, LAYER)
    answer = await put(waiters.us, body, antipode_durability=durability)
    assert (answer.status, answer.headers["docker-content-digest"]) == (201, digest_of(body))
    assert await placed(waiters.us, "eu") == {digest_of(CONFIG), digest_of(LAYER)}
    assert await tagged(waiters.us) == digest_of(body)


async def test_the_audit_log_has_the_move(waiters: Waiters) -> None:
    """A push that waits has a line without tags, and its tags one when they move; where they do not, there is no such line."""
    us, body = waiters.us, await prepare(waiters.us, LAYER)
    late = await put(us, body, antipode_durability="quorum:2", antipode_durability_timeout="1ms")
    found = await read_lines(us.registry.database, Filter(), None, 10)
    assert late.status == 503
    assert [(kept.line.action, kept.line.detail["tags"]) for kept in found] == [("push", [])]
    await waiters.copy()
    assert (await put(us, body, antipode_durability="quorum:2")).status == 201
    moved, pushed, _ = (kept.line for kept in await read_lines(us.registry.database, Filter(), None, 10))
    assert (pushed.action, pushed.detail["tags"], pushed.detail["durability"]) == ("push", [], "quorum:2")
    assert (moved.action, moved.repository) == ("moveTags", "ns/app")
    assert moved.detail == {"digest": digest_of(body), "tags": ["v1"], "durability": "quorum:2"}


async def test_local_waits_for_nothing(waiters: Waiters) -> None:
    """`local`, and no header, need at most two round trips and no copy."""
    body = await prepare(waiters.us, LAYER)
    trips, answer = await waiters.us.trips(partial(put, waiters.us, body, antipode_durability="local"))
    assert (answer.status, await tagged(waiters.us)) == (201, digest_of(body))
    assert trips <= 2
    assert await placed(waiters.us, "eu") == set()


async def test_pullable_by_digest_meanwhile(waiters: Waiters, nursery: trio.Nursery) -> None:
    """While a push waits, its manifest can be pulled by digest from every node, and its copies go before others."""
    us, eu = waiters.us, waiters.eu
    old = await us.push_image("ns/app", "v1", b"old")
    body = await prepare(us, LAYER)
    task = beside(nursery, partial(put, us, body, antipode_durability="all"))
    await asked(us, body)
    for region in (us, eu):
        pulled = await region.ask("GET", f"/v2/ns/app/manifests/{digest_of(body)}")
        assert (pulled.status, pulled.body) == (200, body)
        assert (await region.ask("HEAD", "/v2/ns/app/manifests/v1")).headers["docker-content-digest"] == old
    priorities = await us.rows(
        "SELECT t.priority FROM task t JOIN blob b ON b.id = t.blob_id WHERE b.size >= $1", len(LAYER)
    )
    assert [row["priority"] for row in priorities] == [20]
    await waiters.copy()
    assert (await task.get()).status == 201
    assert await tagged(us) == digest_of(body)


async def test_past_the_deadline(waiters: Waiters) -> None:
    """What is not durable in time is answered 503 with what is missing and where; the tag stays, and a repeated PUT goes on."""
    us, eu = waiters.us, waiters.eu
    old = await us.push_image("ns/app", "v1", b"old")
    body = await prepare(us, LAYER)
    eu.engines["eu"].plan("put", Refuse())
    await waiters.copy()

    async def both_have_failed() -> bool:
        # Before the push waits at all: how long a try takes on a busy machine is not what its deadline is about.
        blobs = [digest_of(CONFIG), digest_of(LAYER)]
        sql = "SELECT FROM task t JOIN blob b ON b.id = t.blob_id WHERE b.digest = ANY($1) AND t.last_error IS NOT NULL"
        return len(await us.rows(sql, blobs)) == len(blobs)

    await until(both_have_failed)
    answer = await put(us, body, antipode_durability="quorum:2", antipode_durability_timeout="700ms")
    assert answer.failure == (503, "UNAVAILABLE")
    assert int(answer.headers["retry-after"]) > 0
    (missing,) = answer.detail["missing"]
    assert (missing["location"], missing["blobs"], missing["bytes"]) == ("eu", 2, len(LAYER) + len(CONFIG))
    assert "fault: refused" in missing["last_error"]
    assert answer.detail["digest"] == digest_of(body)
    assert await tagged(us) == old
    assert (await us.ask("GET", f"/v2/ns/app/manifests/{digest_of(body)}")).status == 200
    eu.engines["eu"].clear()
    # On another node, too: nothing of the first try is in a process.
    answer = await put(eu, body, antipode_durability="quorum:2")
    assert answer.status == 201
    assert await tagged(us) == digest_of(body)


async def test_a_repeated_put_of_what_is_durable_waits_for_nothing(waiters: Waiters) -> None:
    """When the copies are there already, the push is as quick as its look."""
    await waiters.copy()
    body = await prepare(waiters.us, LAYER)
    assert (await put(waiters.us, body, antipode_durability="all")).status == 201
    trips, answer = await waiters.us.trips(partial(put, waiters.us, body, "v2", antipode_durability="all"))
    assert (answer.status, trips) == (201, 3)
    assert await waiters.us.rows("SELECT FROM wanted") == []


async def test_a_client_that_leaves(waiters: Waiters) -> None:
    """A client that leaves ends the wait and moves no tag; the copies go on."""
    us = waiters.us
    body = await prepare(us, LAYER)
    async with trio.open_nursery() as clients:
        clients.start_soon(partial(put, us, body, antipode_durability="all"))
        await asked(us, body)
        clients.cancel_scope.cancel()
    assert us.registry.durable.waiters == 0
    await waiters.copy()
    assert (await waiters.ask("ns/app", digest_of(body), wait="15s"))["status"] == "present"
    assert await tagged(us) is None


async def test_the_last_to_be_durable_wins(waiters: Waiters, nursery: trio.Nursery) -> None:
    """Of two pushes of one tag the one whose copies are there last has the tag in the end, and the history shows the other."""
    us, eu = waiters.us, waiters.eu
    slow, quick = await prepare(us, b"slow" * 9000), await prepare(us, b"quick")
    await us.rows("UPDATE task SET due_at = now() + interval '1 hour'")
    # The big layer of the first push is written last, and held there.
    held = Hold()
    first = beside(nursery, partial(put, us, slow, antipode_durability="all"))
    await asked(us, slow)
    await us.rows(
        "UPDATE task t SET due_at = now() + interval '1 hour' FROM blob b WHERE b.id = t.blob_id AND b.size = 36000"
    )
    second = beside(nursery, partial(put, eu, quick, antipode_durability="all"))
    await waiters.copy()
    assert (await second.get()).status == 201
    assert not first.done.is_set()
    assert await tagged(us) == digest_of(quick)
    eu.engines["eu"].plan("put", held)
    await us.rows("UPDATE task SET due_at = now()")
    eu.node.scheduler.nudge("eu")
    with trio.fail_after(60):
        await held.reached.wait()
    assert not first.done.is_set()
    held.go_on.set()
    assert (await first.get()).status == 201
    assert await tagged(us) == digest_of(slow)
    history = await us.rows("SELECT m.digest FROM tag_history h JOIN manifest m ON m.id = h.manifest_id ORDER BY h.id")
    assert [row["digest"] for row in history] == [digest_of(quick)]


@pytest.mark.parametrize(
    ("headers", "right"),
    [
        ({"antipode_durability": "quorum:5"}, "ask for quorum:2 or less"),
        ({"antipode_durability": "quorum"}, "is not local, quorum:N"),
        ({"antipode_durability": "very"}, "is not local, quorum:N"),
        ({"antipode_durability": "all", "antipode_durability_timeout": "later"}, "write a number of seconds"),
    ],
)
async def test_impossible_demands_are_refused_at_once(waiters: Waiters, headers: dict[str, str], right: str) -> None:
    """What could never be had, or cannot be read, is 400 with what would be right, and stores nothing."""
    body = await prepare(waiters.us, LAYER)
    answer = await put(waiters.us, body, **headers)
    assert answer.status == 400
    assert right in answer.detail["reason"]
    assert (await waiters.us.ask("GET", f"/v2/ns/app/manifests/{digest_of(body)}")).status == 404


async def test_a_forbidden_location_does_not_count(waiters: Waiters) -> None:
    """A quorum needs locations where the namespace may keep blobs; a rule that was lifted meanwhile refuses nobody."""
    body = await prepare(waiters.us, LAYER)
    await waiters.policy("ns", never=["eu"])
    answer = await put(waiters.us, body, antipode_durability="quorum:2")
    assert (answer.status, "1 can be used (us)" in answer.detail["reason"]) == (400, True)
    assert (await put(waiters.us, body, antipode_durability="all")).status == 201
    await waiters.policy("ns", required=["us"])
    await waiters.copy()
    assert (await put(waiters.us, body, antipode_durability="quorum:2")).status == 201


async def test_a_policy_s_durability(waiters: Waiters) -> None:
    """A namespace's policy asks for every push; a header can ask for more, never for less."""
    us = waiters.us
    await waiters.policy("ns", durability="quorum:2")
    body = await prepare(us, LAYER)
    for headers in ({}, {"antipode_durability": "local"}):
        answer = await put(us, body, antipode_durability_timeout="200ms", **headers)
        assert (answer.status, answer.detail["durability"]) == (503, "quorum:2")
    answer = await put(us, body, antipode_durability_timeout="200ms", antipode_durability="all")
    assert answer.detail["durability"] == "all"
    await waiters.copy()
    assert (await put(us, body)).status == 201


async def test_a_quorum_beyond_the_policy(waiters: Waiters) -> None:
    """Where fewer locations are required than the quorum needs, further ones are chosen and what is there is kept for a while."""
    us = waiters.us
    await waiters.policy("ns", required=["us"])
    await waiters.copy()
    body = await prepare(us, LAYER)
    assert (await put(us, body, antipode_durability="quorum:2")).status == 201
    assert await placed(us, "eu") == {digest_of(CONFIG), digest_of(LAYER)}
    assert len(await us.rows("SELECT FROM wanted WHERE until > now() + interval '6 days'")) == 2
    assert (await waiters.ask("ns/app", "v1"))["status"] == "present"


async def test_all_takes_in_what_the_tag_s_pattern_adds(waiters: Waiters) -> None:
    """With `all` a tag whose pattern requires a location moves only when its closure is there, too; another tag does not wait."""
    us = waiters.us
    await waiters.policy("ns", required=["us"], tags=[{"pattern": "v*", "locations": ["eu"]}])
    body = await prepare(us, LAYER)
    assert (await put(us, body, "dev", antipode_durability="all")).status == 201
    answer = await put(us, body, "v1", antipode_durability="all", antipode_durability_timeout="200ms")
    assert [missing["location"] for missing in answer.detail["missing"]] == ["eu"]
    await waiters.copy()
    assert (await put(us, body, "v1", antipode_durability="all")).status == 201
    assert len(await us.rows("SELECT FROM tag_location WHERE name = 'v1'")) == 1


async def test_a_push_by_digest(waiters: Waiters) -> None:
    """A manifest that is pushed by its digest waits as well, and moves the tags that it names afterwards."""
    us = waiters.us
    body = await prepare(us, LAYER)
    target = f"{digest_of(body)}?tag=a&tag=b"
    answer = await put(us, body, target, antipode_durability="all", antipode_durability_timeout="200ms")
    assert (answer.status, await tagged(us, "a")) == (503, None)
    await waiters.copy()
    answer = await put(us, body, target, antipode_durability="all")
    assert (answer.status, answer.headers["oci-tag"]) == (201, "a, b")
    assert [await tagged(us, tag) for tag in "ab"] == [digest_of(body)] * 2


async def test_deleted_while_it_is_waited_for(waiters: Waiters, nursery: trio.Nursery) -> None:
    """When the manifest is deleted meanwhile, the push fails and moves nothing."""
    us = waiters.us
    body = await prepare(us, LAYER)
    task = beside(nursery, partial(put, us, body, antipode_durability="all"))
    await asked(us, body)
    assert (await us.ask("DELETE", f"/v2/ns/app/manifests/{digest_of(body)}")).status == 202
    answer: Any = await task.get()
    assert answer.failure == (404, "MANIFEST_UNKNOWN")
    assert await tagged(us) is None


async def test_no_more_than_may_wait(make_waiters: MakeWaiters, nursery: trio.Nursery) -> None:
    """One more push than may wait is told when to come back; ordinary pushes go on."""
    waiters = await make_waiters(durability_waiters=1)
    us = waiters.us
    first, second = await prepare(us, LAYER), await prepare(us, b"another")
    task = beside(nursery, partial(put, us, first, antipode_durability="all"))
    await asked(us, first)
    answer = await put(us, second, "v2", antipode_durability="all")
    assert answer.failure == (503, "UNAVAILABLE")
    assert "DURABILITY_WAITERS" in answer.detail["reason"]
    assert (await put(us, second, "v3")).status == 201
    await waiters.copy()
    assert (await task.get()).status == 201


async def test_waiting_pushes_hold_no_gate(make_waiters: MakeWaiters, nursery: trio.Nursery) -> None:
    """Pushes that only wait for copies keep no other push from working."""
    waiters = await make_waiters(maximum_pushes=1, queue_patience=0.2)
    us = waiters.us
    body = await prepare(us, LAYER)
    task = beside(nursery, partial(put, us, body, antipode_durability="all"))
    await asked(us, body)
    await us.push_image("ns/other", "v1", b"other")
    await waiters.copy()
    assert (await task.get()).status == 201


async def test_a_node_that_stops_lets_pushes_go(waiters: Waiters, nursery: trio.Nursery) -> None:
    """When a node begins to stop, a waiting push is told to come back; on another node it goes on."""
    body = await prepare(waiters.us, LAYER)
    task = beside(nursery, partial(put, waiters.us, body, antipode_durability="all"))
    await asked(waiters.us, body)
    waiters.us.node.start_draining()
    assert (await task.get()).failure == (503, "UNAVAILABLE")
    assert await tagged(waiters.us) is None
    await waiters.copy()
    assert (await put(waiters.eu, body, antipode_durability="all")).status == 201
