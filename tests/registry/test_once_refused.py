"""Keys that stand for one request only: what was refused to one try is not done by another; and deletes, which have keys, too."""

from collections.abc import Awaitable, Callable
from functools import partial

import asyncpg
import pytest
import trio

from engines.crossing import cross
from node.api.immutability import set_immutability
from node.api.quotas import set_quota
from node.api.tags import Means
from node.push.idempotency import identify
from node.push.reading import OCI_MANIFEST
from node.records.idempotency import refuse
from node.records.postgres import DatabaseUnavailable
from tests.registry.test_once import NAME, prepare, put, tagged, traces
from tests.registry.world import Body, MakeWorld, Region, Reply, digest_of, until

Change = Callable[[Region], Awaitable[object]]


async def full(region: Region) -> None:
    await set_quota(region.registry.database, "team", {"reject": 1}, 0)


async def room(region: Region) -> None:
    await set_quota(region.registry.database, "team", {}, 0)


async def patterns(region: Region, *found: str) -> None:
    means = Means(region.registry.database, region.node.settings, region.registry.hints.publish)
    await set_immutability(means, {"patterns": list(found)}, namespace="team", repository=None)


async def immutable(region: Region) -> None:
    await patterns(region, "v*")


async def mutable(region: Region) -> None:
    await patterns(region)


async def delete(region: Region, key: str | None = None, reference: str = "v1") -> Reply:
    headers = {} if key is None else {"idempotency-key": key}
    return await region.ask("DELETE", f"/v2/{NAME}/manifests/{reference}", headers=headers)


@pytest.mark.parametrize(("obstacle", "without", "status"), [(full, room, 403), (immutable, mutable, 409)])
async def test_the_first_comes_late_after_a_refusal(
    world: MakeWorld, obstacle: Change, without: Change, status: int
) -> None:
    """A try that stood still while its repetition was refused stores nothing when it goes on, though it now could."""
    us, eu = await world("us eu", "eu us")
    old, new = await prepare(us, "old", "new")
    await put(us, old)
    standing = Body(new, chunk=len(new) // 2, pause_at=len(new) // 2)
    found: list[Reply] = []

    async def late() -> None:
        found.append(await put(us, standing, "once-1"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(late)
        await standing.paused.wait()
        await obstacle(us)
        assert (await put(eu, new, "once-1")).status == status
        await without(us)
        before = await traces(us)
        standing.go_on.set()
    assert [reply.failure for reply in found] == [(409, "DENIED")]
    assert await traces(us) == before
    assert await tagged(us) == digest_of(old)
    assert (await put(us, new, "once-2")).status == 201


async def test_a_repository_that_was_refused_is_not_made(us: Region) -> None:
    """A late try makes no repository for what another was refused."""
    (body,) = await prepare(us, "one")
    assert (await put(us, body, "once-1", name="team/other")).status == 404
    assert (await put(us, body, "once-1", name="team/other")).failure == (409, "DENIED")
    assert [row["name"] for row in await us.rows("SELECT name FROM repository")] == [NAME]


async def test_a_refusal_while_the_first_is_at_work(world: MakeWorld, migrated_uri: str) -> None:
    """A repetition that would be refused, but whose first try is in the database, waits for that, and is answered as it is."""
    us, eu = await world("us eu", "eu us")
    old, new = await prepare(us, "old", "new")
    await put(us, old)
    found: dict[str, int] = {}

    async def waiting(most: int) -> bool:
        rows = await eu.rows(
            "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        )
        return len(rows) >= most

    async def one(name: str, region: Region) -> None:
        found[name] = (await put(region, new, "once-1")).status

    holder = await cross(
        partial(_begin, migrated_uri, "SELECT FROM tag WHERE name = 'v1' FOR UPDATE"),
        deadline=10,
        unavailable=DatabaseUnavailable,
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one, "us", us)
        await until(partial(waiting, 1), 10)
        await full(eu)
        nursery.start_soon(one, "eu", eu)
        await until(partial(waiting, 2), 10)
        await _commit(holder)
    assert found == {"us": 201, "eu": 201}
    assert await tagged(us) == digest_of(new)


async def test_the_first_while_a_refusal_is_at_work(us: Region, migrated_uri: str) -> None:
    """A try that comes while a refusal of another is written waits for that, and does nothing."""
    old, new = await prepare(us, "old", "new")
    await put(us, old)
    once = identify("once-1", "", NAME, "v1", ("v1",), digest_of(new), OCI_MANIFEST)
    found: list[Reply] = []

    async def waiting() -> bool:
        rows = await us.rows(
            "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        )
        return bool(rows)

    async def push() -> None:
        found.append(await put(us, new, "once-1"))

    refusing = f"INSERT INTO idempotency_key (id, moved, refused) VALUES ('{once.id}', false, true)"  # noqa: S608  # a UUID
    holder = await cross(partial(_begin, migrated_uri, refusing), deadline=10, unavailable=DatabaseUnavailable)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(push)
        await until(waiting, 10)
        await _commit(holder)
    assert [reply.failure for reply in found] == [(409, "DENIED")]
    assert await tagged(us) == digest_of(old)


async def test_what_was_done_is_not_refused(us: Region) -> None:
    """A refusal that comes after the request was done changes nothing."""
    (body,) = await prepare(us, "one")
    await put(us, body, "once-1")
    once = identify("once-1", "", NAME, "v1", ("v1",), digest_of(body), OCI_MANIFEST)
    assert not await refuse(us.registry.database, once.id)
    assert (await put(us, body, "once-1")).status == 201


@pytest.mark.parametrize("by", ["tag", "digest"])
async def test_a_delete_that_is_sent_again(world: MakeWorld, by: str) -> None:
    """A DELETE is done once, and its repetition answered as it was: what was pushed since stays."""
    us, eu = await world("us eu", "eu us")
    (body,) = await prepare(us, "one")
    reference = "v1" if by == "tag" else digest_of(body)
    await put(us, body)
    before = (await traces(us))["audit"]
    assert (await delete(us, "key-1", reference)).status == 202
    assert await tagged(us) is None
    assert (await delete(eu, "key-1", reference)).status == 202
    assert (await traces(us))["audit"] - before == 1
    await put(us, body)
    assert (await delete(eu, "key-1", reference)).status == 202
    assert await tagged(us) == digest_of(body)
    assert (await delete(eu, "key-2", reference)).status == 202
    assert await tagged(us) is None


@pytest.mark.parametrize("by", ["tag", "digest"])
async def test_many_deletes_at_once(world: MakeWorld, by: str) -> None:
    """All tries of a DELETE at the same moment are answered 202, and one of them deletes."""
    us, eu = await world("us eu", "eu us")
    (body,) = await prepare(us, "one")
    reference = "v1" if by == "tag" else digest_of(body)
    for number in range(5):
        await put(us, body)
        statuses: list[int] = []

        async def one(region: Region, key: str, statuses: list[int] = statuses) -> None:
            statuses.append((await delete(region, key, reference)).status)

        async with trio.open_nursery() as nursery:
            for region in (us, eu) * 4:
                nursery.start_soon(one, region, f"key-{number}")
        assert statuses == [202] * 8
        assert await tagged(us) is None


async def test_a_delete_of_nothing(us: Region) -> None:
    """What there was not to delete is not deleted late, after it was pushed, under a key for one request; under another it is."""
    (body,) = await prepare(us, "one")
    for key in ("once-1", "key-1"):
        assert (await delete(us, key)).status == 404
    await put(us, body)
    assert (await delete(us, "once-1")).failure == (409, "DENIED")
    assert await tagged(us) == digest_of(body)
    assert (await delete(us, "key-1")).status == 202
    assert await tagged(us) is None


async def _begin(uri: str, sql: str) -> asyncpg.Connection:
    connection = await asyncpg.connect(uri)
    await connection.execute("BEGIN")
    await connection.execute(sql)
    return connection


async def _commit(holder: asyncpg.Connection) -> None:
    await cross(partial(holder.execute, "COMMIT"), deadline=10, unavailable=DatabaseUnavailable)
    await cross(holder.close, deadline=10, unavailable=DatabaseUnavailable)
