"""Connections to the database that rest between two statements: used again, in nobody's hands for nothing, given up when lost."""

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest
import trio

from engines.contract import EngineUnavailable
from engines.crossing import cross, open_bridge
from node.records.dial import Connection
from node.records.pool import Pool
from node.records.postgres import Database, DatabaseUnavailable, open_database
from tests.registry.world import until
from tests.services import fetch_rows

ME = "SELECT pg_backend_pid() AS pid"


@pytest.fixture
async def database(database_uri: str) -> AsyncIterator[Database]:
    """A pool of two."""
    async with open_bridge(), open_database(database_uri, most=2) as opened:
        yield opened


async def pids(database: Database, count: int) -> list[int]:
    """Return who answers so many statements that are asked at the same time."""
    found = list[int]()

    async def ask() -> None:
        row = await database.fetch_row(ME + ", pg_sleep(0.02)")
        assert row is not None
        found.append(row["pid"])

    async with trio.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(ask)
    return found


async def test_one_is_used_as_long_as_one_is_enough(database: Database) -> None:
    """Whoever comes next gets the one that was used last."""
    assert len({(await pids(database, 1))[0] for _ in range(5)}) == 1
    both = set(await pids(database, 2))
    assert len(both) == 2
    assert {(await pids(database, 1))[0] for _ in range(5)} < both


async def test_more_than_there_are_wait_for_those_that_come_back(database: Database) -> None:
    """Nobody keeps one at hand while others wait, and all of them are of the pool's."""
    found = await pids(database, 30)
    assert len(found) == 30
    assert len(set(found)) == 2
    assert set(await pids(database, 10)) == set(found)


async def test_one_that_the_server_has_closed_is_not_used(database: Database, database_uri: str) -> None:
    """Nobody notices: it was closed while nobody used it."""
    before = set(await pids(database, 2))

    async def ended() -> bool:
        sql = "SELECT count(*) FROM pg_stat_activity WHERE pid = ANY($1)"
        return (await trio.to_thread.run_sync(fetch_rows, database_uri, sql, list(before))) == [(0,)]

    sql = "SELECT pg_terminate_backend(pid) FROM unnest($1::int[]) pid"
    await trio.to_thread.run_sync(fetch_rows, database_uri, sql, list(before))
    await until(ended)
    await trio.testing.wait_all_tasks_blocked()
    after = await pids(database, 30)
    assert len(set(after)) == 2
    assert not before & set(after)


async def test_one_whose_statement_failed_is_good(database: Database) -> None:
    """The error was the statement's."""
    (before,) = await pids(database, 1)
    with pytest.raises(Exception, match="division by zero"):
        await database.fetch("SELECT 1 / 0")
    assert await pids(database, 1) == [before]


async def test_one_whose_statement_was_given_up_is_not_lost(database: Database) -> None:
    """As many as there may be are there afterwards."""
    for _ in range(4):
        with trio.move_on_after(0.05) as scope:
            await database.fetch("SELECT pg_sleep(30)")
        assert scope.cancelled_caught
    assert len(set(await pids(database, 6))) == 2


async def open_pool(uri: str, most: int = 1000) -> Pool:
    """Return a pool of one, which has so many statements (asyncio side)."""
    pool = await asyncpg.create_pool(uri, min_size=0, max_size=1, max_queries=most, connection_class=Connection)
    return Pool(pool, most=most)


async def test_one_that_comes_back_while_all_are_closed_is_closed(database_uri: str) -> None:
    """Who closes them waits for whoever was left behind with one, and then no longer."""

    async def close_meanwhile() -> bool:
        pool = await open_pool(database_uri)
        connection = await pool.take(5)
        closing = asyncio.ensure_future(pool.close())
        await asyncio.sleep(0)
        await pool.give_back(connection)
        ended, _ = await asyncio.wait([closing], timeout=2)
        closing.cancel()
        await asyncio.wait([closing])
        return bool(ended)

    async with open_bridge():
        assert await cross(close_meanwhile, deadline=10, unavailable=EngineUnavailable)


async def test_one_that_has_been_used_often_enough_makes_way(database_uri: str) -> None:
    """What a server's process keeps of its statements does not grow for ever."""

    async def ask() -> list[int]:
        pool, found = await open_pool(database_uri, most=10), list[int]()
        for _ in range(30):
            connection = await pool.take(5)
            found.append(await connection.fetchval("SELECT pg_backend_pid()"))
            await pool.give_back(connection)
        await pool.close()
        return found

    async with open_bridge():
        found = await cross(ask, deadline=10, unavailable=EngineUnavailable)
    assert found[0] == found[1]
    assert len(set(found)) >= 3


async def test_one_to_a_server_that_takes_no_writes_any_more_is_not_used_again(database: Database) -> None:
    """A server that has become a standby without ending its connections: whoever comes next asks for the one that takes writes."""
    before = set(await pids(database, 1))
    await database.fetch("SET default_transaction_read_only = on")
    with pytest.raises(DatabaseUnavailable, match="read-only"):
        await database.fetch("CREATE TABLE refused ()")
    assert not before & set(await pids(database, 2))
