"""The connections of a database, taken and given back (asyncio side, all of it).

asyncpg's pool opens them, hands places out in turn, and knows what to do with a connection whose statement was cancelled. To take
one there and to give it back costs as much as a statement does, so those whose statements have ended well stay here, at hand.
"""

import asyncio
from typing import Any

import asyncpg
import structlog
from attrs import define, field

from node.records.dial import LOST, Connection

_log = structlog.get_logger("antipode.database")

_GIVE_BACK_SECONDS = 1.0
"""How long a connection whose statement was cancelled may take to say so before it is closed."""

STATEMENTS = 50_000
"""How many a connection has until another one takes its place: a server's process keeps something of each, and clocks drift."""


@define(eq=False)
class Pool:
    """Connections, of which asyncpg's pool (`create_pool`) has as many as it may open."""

    _pool: Any = field(alias="pool")
    _most: int = field(default=STATEMENTS, alias="most")
    """Statements of one connection."""
    _resting: list[Connection] = field(factory=list, init=False)
    """The one that was used last comes last."""
    _waiting: int = field(default=0, init=False)
    """How many wait for one of asyncpg's, opened or left by somebody else."""
    _coming_back: set[asyncio.Task[None]] = field(factory=set, init=False)

    async def take(self, limit: float) -> Connection:
        """Return a connection, which must be given back. Raises TimeoutError after so many seconds, and what connecting raises."""
        connection = self._at_hand()
        if connection is None:
            self._waiting += 1
            try:
                connection = (await self._pool.acquire(timeout=limit)).itself
            finally:
                self._waiting -= 1
        return connection

    async def give_back(self, connection: Connection) -> None:
        """Take back a connection whose statement ended well."""
        if self._waiting or connection.statements >= self._most:
            await self._release(connection)
        else:
            connection.at_hand = True
            self._resting.append(connection)

    async def give_back_failed(self, connection: Connection) -> None:
        """Take back one whose statement did not; one that is still busy with it is closed soon.

        In a task that outlives a caller who stops waiting: the pool's own would end with an error that nobody takes.
        """
        task = asyncio.ensure_future(self._release(connection))
        self._coming_back.add(task)
        task.add_done_callback(self._coming_back.discard)
        await asyncio.shield(task)

    async def close(self) -> None:
        """Close all connections, when they have come back."""
        # For those that are out: they come back to asyncpg's pool, which waits for them.
        self._waiting += 1
        try:
            while (connection := self._at_hand()) is not None:
                await self._release(connection)
            await self._pool.close()
        finally:
            self._pool.terminate()

    def _at_hand(self) -> Connection | None:
        while self._resting:
            connection = self._resting.pop()
            connection.at_hand = False
            if not connection.is_closed():
                return connection
            connection.terminate()  # by which asyncpg's pool has its place back
        return None

    async def _release(self, connection: Connection) -> None:
        if (handed_out := connection.handed_out) is None:
            return
        try:
            await self._pool.release(handed_out, timeout=_GIVE_BACK_SECONDS)
        except (*LOST, asyncpg.PostgresError) as error:
            _log.debug("a connection did not come back", reason=repr(error))
