"""A transaction that stays open, so that a race is certain: whoever comes second waits for its locks until the test lets go."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import trio
from attrs import define

from engines.crossing import cross
from node.records.postgres import Database, Row

_SECONDS = 20.0


class Unreachable(Exception):
    """The held connection did not answer in time."""


@define(eq=False)
class Held:
    """Takes statements like `Database`, all in one open transaction."""

    connection: Any

    async def fetch(self, sql: str, *args: object, deadline: float | None = None) -> Sequence[Row]:
        # Nothing is late here: how long this connection is held up is what the test decides.
        sql = sql.replace("in_time($0)", "in_time('infinity')")
        rows: Sequence[Row] = await cross(
            self.connection.fetch, sql, *args, deadline=deadline or _SECONDS, unavailable=Unreachable
        )
        return rows

    async def fetch_row(self, sql: str, *args: object, deadline: float | None = None) -> Row | None:
        rows = await self.fetch(sql, *args, deadline=deadline)
        return rows[0] if rows else None


@asynccontextmanager
async def held_transaction(uri: str) -> AsyncIterator[Any]:
    """Begin a transaction on a connection of its own; commit it at the end of the block. Use it where a `Database` is wanted."""
    connection = await cross(asyncpg.connect, uri, deadline=_SECONDS, unavailable=Unreachable)
    try:
        held = Held(connection)
        await held.fetch("BEGIN")
        yield held
        await held.fetch("COMMIT")
    finally:
        connection.terminate()


async def wait_until_one_waits(database: Database, several: int = 1) -> None:
    """Return when a statement in this database waits for a lock, or so many do."""
    with trio.fail_after(_SECONDS):
        while True:
            row = await database.fetch_row(
                "SELECT count(*) AS n FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
            )
            assert row is not None
            if row["n"] >= several:
                return
            await trio.sleep(0.01)


async def wait_until_one_waits_for(database: Database, held: Held) -> None:
    """Return when a statement in this database waits for what this transaction has."""
    (mine,) = await held.fetch("SELECT pg_backend_pid() AS pid")
    with trio.fail_after(_SECONDS):
        while True:
            if await database.fetch(
                "SELECT FROM pg_stat_activity WHERE datname = current_database() AND $1 = ANY(pg_blocking_pids(pid))",
                mine["pid"],
            ):
                return
            await trio.sleep(0.01)
