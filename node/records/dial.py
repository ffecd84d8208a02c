"""Connections to PostgreSQL: to whichever host takes writes, with the server's clock and where it comes from (asyncio side)."""

import asyncio
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from weakref import WeakSet

import asyncpg
from attrs import define, field, frozen

from node.records.lineage import Change, Lineage, compare, latest

_NEXT_HOST_AFTER = 1.0
"""Seconds that one host may take before the next one is tried beside it."""

_GREETING = """
    SELECT clock_timestamp() AS now, pg_is_in_recovery() AS standby, s.system_identifier AS system,
        CASE WHEN pg_is_in_recovery() THEN NULL
            ELSE ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::int END AS timeline,
        pg_snapshot_xmax(pg_current_snapshot())::text::bigint AS next
    FROM pg_control_system() s
"""
_PLAIN_GREETING = "SELECT clock_timestamp() AS now, NULL AS timeline"
"""For servers that keep where they come from to themselves, as some hosted ones do."""

MISCONFIGURED = (
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.InsufficientPrivilegeError,
)


LOST = (
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.CannotConnectNowError,
    asyncpg.TooManyConnectionsError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.QueryCanceledError,
    asyncpg.ReadOnlySQLTransactionError,
    OSError,
    TimeoutError,
)
"""What tells that a connection is of no use any more, or that none is to be had."""


NO_ROOM = (asyncpg.InsufficientResourcesError, asyncpg.PostgresSystemError)
"""What a server says that answers and cannot do what it is asked: its disk is full or fails, its memory is used up."""


class Closed(asyncpg.InterfaceError):  # type: ignore[misc]  # asyncpg ships no types
    """A server that lets nobody in for now, as while its database is under maintenance (ALLOW_CONNECTIONS false)."""


class Outdated(asyncpg.InterfaceError):  # type: ignore[misc]  # asyncpg ships no types
    """A primary that has been replaced by another one."""


class Connection(asyncpg.Connection):  # type: ignore[misc]  # asyncpg ships no types
    """A connection that leaves no session state, so that its pool need not send a reset on every release."""

    ahead: float = 0.0
    """At least how far the server's clock, in POSIX seconds, is before this machine's monotonic one."""
    at_hand: bool = False
    """Whether nobody uses it just now, although its pool has handed it out."""

    @property
    def itself(self) -> "Connection":
        """The connection behind what the pool hands out, which passes every call on."""
        return self

    @property
    def handed_out(self) -> Any | None:
        """What the pool takes back; None where it has it already."""
        return self._proxy

    @property
    def statements(self) -> int:
        """How many it has sent, as its pool counts them (`max_queries`)."""
        count: int = 0 if self._protocol is None else self._protocol.queries_count
        return count

    def get_reset_query(self) -> str:
        """Return nothing to send."""
        return ""

    async def reset(self, *, timeout: float | None = None) -> None:
        """Reset what a statement that ended well has not left: nothing, for which no clock need be set."""
        if self.is_in_transaction():
            await super().reset(timeout=timeout)

    async def greet(self, timeout: float) -> Lineage | None:
        """Read the server's clock, and return where it comes from; None for a standby and where it does not tell."""
        try:
            row = await self.fetchrow(_GREETING, timeout=timeout)
        except (asyncpg.InsufficientPrivilegeError, asyncpg.FeatureNotSupportedError, asyncpg.UndefinedFunctionError):
            row = await self.fetchrow(_PLAIN_GREETING, timeout=timeout)
        # The answer was under way, so the clock is at least that far: a deadline made from it is never too late.
        self.ahead = row["now"].timestamp() - time.monotonic()
        return None if row["timeline"] is None else Lineage(row["system"], row["timeline"], row["next"])

    def moment(self, monotonic: float) -> datetime:
        """Return a moment of this machine's monotonic clock by the server's clock."""
        return datetime.fromtimestamp(self.ahead + monotonic, UTC)


@frozen
class LineageChange:
    """A server that is not the one that answered before: what it is to that, and both."""

    change: Change
    before: Lineage
    after: Lineage


@define(eq=False)
class Dial:
    """Opens connections: to the host that answered last, and beside it to the others in turn while it does not answer."""

    uris: tuple[str, ...]
    deadline: float
    lineage: Lineage | None = None
    opened: "WeakSet[Connection]" = field(factory=WeakSet)
    changes: list[LineageChange] = field(factory=list)
    """What has been seen and not yet been taken notice of."""

    async def connect(self, *_: object, **given: Any) -> Connection:
        """Return a connection to the first host that is what it should be. The pool's `connect`."""
        if len(self.uris) == 1:
            return await self._try(self.uris[0], given)
        waiting, running, errors = list(self.uris), set[asyncio.Task[Connection]](), list[BaseException]()
        try:
            while waiting or running:
                if waiting:
                    running.add(asyncio.ensure_future(self._try(waiting.pop(0), given)))
                ended, running = await asyncio.wait(
                    running, timeout=_NEXT_HOST_AFTER if waiting else None, return_when=asyncio.FIRST_COMPLETED
                )
                found = [task.result() for task in ended if task.exception() is None]
                errors += [error for task in ended if (error := task.exception()) is not None]
                for second in found[1:]:
                    second.terminate()
                if found:
                    return found[0]
        finally:
            for task in running:
                task.cancel()
                task.add_done_callback(_close_unwanted)
        raise next((error for error in errors if isinstance(error, MISCONFIGURED)), errors[-1])

    async def _try(self, uri: str, given: Mapping[str, Any]) -> Connection:
        try:
            connection: Connection = await asyncpg.connect(uri, **given)
        except (*MISCONFIGURED, *LOST):
            raise
        except asyncpg.PostgresError as error:
            raise Closed(str(error)) from error
        try:
            await self.greet(connection)
        except BaseException:
            connection.terminate()
            raise
        self.opened.add(connection)
        # Whoever answered goes first the next time.
        self.uris = (uri, *(other for other in self.uris if other != uri))
        return connection

    def drop_resting(self) -> None:
        """Close the connections that nobody uses: another one was lost, and nobody should have to find that out for each."""
        for connection in tuple(self.opened):
            if connection.at_hand or connection.handed_out is None:
                connection.terminate()

    async def greet(self, connection: Connection) -> None:
        """Read a server's clock and where it comes from. Raises Outdated for a primary that has a successor."""
        before = self.lineage
        lineage = await connection.greet(self.deadline)
        if lineage is None:
            return
        # Answers overtake one another: an older state is one that is older than what was known when it was asked for.
        change, now = compare(before, lineage), compare(self.lineage, lineage)
        if now is Change.OUTDATED:
            raise Outdated(f"this server is on timeline {lineage.timeline} and has been replaced")
        if change is not Change.NONE and now is change and before is not None:
            self.changes.append(LineageChange(change, before, lineage))
            self.lineage = lineage
        else:
            self.lineage = latest(self.lineage, lineage)


def _close_unwanted(task: "asyncio.Task[Connection]") -> None:
    """Close a connection that came after another had been chosen."""
    if not task.cancelled() and task.exception() is None:
        task.result().terminate()
