"""PostgreSQL behind trio-native functions: one statement, one crossing, one real deadline.

All that knows asyncpg is here, in `dial.py` and in `pool.py`.

Every unit of work in this folder is one statement and so one transaction; nothing holds a connection between two crossings.

A network that is cut keeps what was sent, and delivers it when it heals: minutes after the caller was told that it failed. A
statement that would undo what came since says `in_time($0)`; the last argument is then the moment, by the server's own clock, at
which the caller stops waiting, and the statement fails when it arrives later.
"""

import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from math import inf
from typing import Any, Protocol, TypeVar

import asyncpg
import structlog
import trio
from attrs import define, field, frozen

from engines.clock import trio_clock
from engines.crossing import cross
from engines.trace import current_trace, waiting
from node.records.dial import LOST, MISCONFIGURED, NO_ROOM, Connection, Dial, LineageChange
from node.records.hosts import each_host
from node.records.lineage import Lineage
from node.records.pool import STATEMENTS, Pool
from replication.ports import LedgerUnavailable
from replication.standstill import Standstill

_log = structlog.get_logger("antipode.database")

T = TypeVar("T")
Row = Mapping[str, Any]

_TRIES = 4
_AWAY_SECONDS = 2.0
"""What somebody who tries a database that is known to be away waits for it: enough for one across the world, and not for ever."""
_FAILURES_TO_OPEN = 3
"""Failures in a row after which nobody waits for the database any more but one caller at a time."""

_REQUEST_SECONDS = 12.0
"""What one request of a client waits within a minute for slow answers, all its statements together: each of them alone may take
nearly as long, and a client that waits for three of them has given up before it is told."""
_SLOW_SECONDS = 1.0
_LEAST_SECONDS = 0.5

_TOO_LATE = "AT001"
"""What the schema's `in_time` raises."""

_IMMUTABLE = "AN002"
"""What the schema's `tag_immutable` raises."""

_AGAIN = (asyncpg.DeadlockDetectedError, asyncpg.SerializationError)
# What a statement had seen was collected before it could refer to it: a second look will not see it any more.
_COLLECTED = asyncpg.ForeignKeyViolationError
# What it had not seen somebody else has made before it could: a second look sees it.
_MADE = asyncpg.UniqueViolationError


class DatabaseUnavailable(LedgerUnavailable):
    """The database could not be reached or did not answer in time."""


class DatabaseMisconfigured(Exception):
    """The database answered and will refuse again: no such database, wrong password, missing rights."""


class TagImmutable(Exception):
    """A tag that would be moved or deleted is one that never is. `str(error)` is the tag."""


class Reads(Protocol):
    """What a look-up needs of a database."""

    async def fetch_row(self, sql: str, *args: object, deadline: float | None = None) -> Row | None:
        """Run one statement and return its first row, None if there is none. Raises DatabaseUnavailable."""
        ...


@frozen
class DatabaseStatistics:
    """Round trips and failures since the start. `trips` counts statements sent."""

    trips: int
    unavailable: int


@define(eq=False)
class Database:
    """A pool of connections. Statements are prepared once per connection."""

    _pool: Pool = field(alias="pool")
    _dial: Dial = field(alias="dial")
    _deadline: float = field(alias="deadline")
    _standstill: Standstill = field(factory=Standstill, alias="standstill")
    _now: Callable[[], float] = field(factory=trio_clock, init=False)
    _trips: int = field(default=0, init=False)
    _unavailable: int = field(default=0, init=False)
    _failures: int = field(default=0, init=False)
    _trying: bool = field(default=False, init=False)
    _changed: trio.Event = field(factory=trio.Event, init=False)
    _excused: float = field(default=-inf, init=False)
    """The standstill whose failures do not count."""
    _answered: bool = field(default=True, init=False)
    """Whether the database has answered since then."""
    _reach: tuple[bool, float, str] = field(factory=lambda: (True, trio.current_time(), ""), init=False)

    async def fetch(self, sql: str, *args: object, deadline: float | None = None) -> Sequence[Row]:
        """Run one statement in its own transaction and return its rows.

        Raises DatabaseUnavailable: then a statement that says `in_time($0)` has done nothing and never will, another one may
        have. A deadlock, a serialization failure or a row that somebody else has just made is tried again a few times: nothing had
        happened.
        """
        limit = deadline or self._deadline
        fenced = "$0" in sql
        if fenced:
            sql = sql.replace("$0", f"${len(args) + 1}")

        async def work(connection: Any, limit: float) -> Sequence[Row]:
            last = (connection.moment(time.monotonic() + limit),) if fenced else ()
            rows: Sequence[Row] = await connection.fetch(sql, *args, *last, timeout=limit)
            return rows

        return await self._run(work, limit)

    async def fetch_row(self, sql: str, *args: object, deadline: float | None = None) -> Row | None:
        """Run one statement and return its first row, None if there is none. Raises DatabaseUnavailable."""
        rows = await self.fetch(sql, *args, deadline=deadline)
        return rows[0] if rows else None

    async def script(self, lock: int, steps: Callable[[Any], Awaitable[T]], deadline: float) -> T:
        """Run asyncpg-flavoured `steps(connection)` in one transaction under an advisory lock. For migrations.

        A statement of the steps that names no `timeout` has this pool's own.
        """

        async def work(connection: Any, limit: float) -> T:
            async with connection.transaction():
                # As long as whoever has the lock may take.
                await connection.execute("SELECT pg_advisory_xact_lock($1)", lock, timeout=limit)
                return await steps(connection)

        return await self._run(work, deadline)

    def statistics(self) -> DatabaseStatistics:
        """Return the counts so far."""
        return DatabaseStatistics(self._trips, self._unavailable)

    def reachability(self) -> tuple[bool, float, str]:
        """Return whether the latest statement was answered, since when that is so (Trio's clock), and why not."""
        return self._reach

    def lineage(self) -> Lineage | None:
        """Return where the server that answers comes from, as far as it tells."""
        return self._dial.lineage

    async def next_change(self) -> LineageChange:
        """Wait until another server answers than before, or an older state of it, and return what has changed."""
        while not self._dial.changes:
            await self._changed.wait()
            self._changed = trio.Event()
        return self._dial.changes.pop(0)

    def _note(self, ok: bool, began: float, reason: str = "") -> None:
        if self._dial.changes:
            self._changed.set()
        if not ok:
            self._unavailable += 1
            if self._is_excused(began):
                return
        self._answered = self._answered or ok
        self._failures = 0 if ok else self._failures + 1
        if ok != self._reach[0]:
            self._reach = (ok, trio.current_time(), reason)

    def _is_excused(self, began: float) -> bool:
        """Say whether a failure of what began then tells nothing of the database, because this process stood still meanwhile.

        Only one standstill excuses until the database has answered: a node that is held up all the time must still find out.
        """
        ended = self._standstill.ended()
        if ended < began or (ended != self._excused and not self._answered):
            return False
        self._excused, self._answered = ended, False
        return True

    async def _run(self, work: Callable[[Any, float], Awaitable[T]], limit: float) -> T:
        """Cross once. While the database is known to be away one caller at a time tries it and the others fail at once."""
        if self._failures < _FAILURES_TO_OPEN:
            return await self._cross(work, limit)
        if self._trying:
            self._unavailable += 1
            raise DatabaseUnavailable(f"away: {self._reach[2]}")
        self._trying = True
        try:
            return await self._cross(work, min(limit, _AWAY_SECONDS))
        finally:
            self._trying = False

    async def _cross(self, work: Callable[[Any, float], Awaitable[T]], limit: float) -> T:
        """Cross once: `limit` seconds for a connection and as many for the work, and all of it within what its request may wait."""
        began, deadline, trace = self._now(), 2 * limit + 1, current_trace()
        if trace is not None:
            left = _REQUEST_SECONDS - trace.slow_lately()
            if left < _LEAST_SECONDS:
                raise DatabaseUnavailable(f"this request has waited for it for {_REQUEST_SECONDS - left:.0f} s")
            limit, deadline = min(limit, left), min(deadline, left)
        last = time.monotonic() + deadline

        async def crossing() -> T:
            connection = await self._pool.take(limit)
            try:
                # Never beyond the deadline: what comes in time would else come after the caller was told that it failed.
                result = await self._attempt(connection, lambda on: work(on, min(limit, last - time.monotonic())))
            except BaseException as error:
                if isinstance(error, LOST):
                    self._dial.drop_resting()
                if isinstance(error, asyncpg.ReadOnlySQLTransactionError):
                    # Its server keeps it open, and whoever came next would be refused as well.
                    connection.terminate()
                await self._pool.give_back_failed(connection)
                raise
            await self._pool.give_back(connection)
            return result

        try:
            with waiting("database"):
                result = await cross(crossing, deadline=deadline, unavailable=DatabaseUnavailable)
        except Exception as error:
            if (meant := self._meaning_of(error, began)) is error:
                raise
            raise meant from error
        finally:
            if (
                trace is not None
                and (took := self._now() - began) > _SLOW_SECONDS
                and not self._standstill.since(began)
            ):
                trace.note_slow(took)
        self._note(True, began)
        return result

    def _meaning_of(self, error: Exception, began: float) -> Exception:
        """Return what a crossing that failed raises, and note what it says of the database."""
        if isinstance(error, DatabaseUnavailable):
            self._note(False, began, str(error))
            return error
        if isinstance(error, _AGAIN):
            return DatabaseUnavailable(f"conflicting transactions: {error}")
        if isinstance(error, MISCONFIGURED):
            return DatabaseMisconfigured(str(error))
        state = error.sqlstate if isinstance(error, asyncpg.PostgresError) else None
        if isinstance(error, (*LOST, *NO_ROOM)) or state == _TOO_LATE:
            reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            self._note(False, began, reason)
            return DatabaseUnavailable(reason)
        if state == _IMMUTABLE:
            self._note(True, began)
            return TagImmutable(str(error).partition("\n")[0])
        return error

    async def _attempt(self, connection: Any, work: Callable[[Any], Awaitable[T]]) -> T:
        """Do the work, again where that helps (asyncio side)."""
        for attempt in range(_TRIES):
            self._trips += 1
            try:
                return await work(connection)
            except (*_AGAIN, _COLLECTED, _MADE):
                if attempt == _TRIES - 1:
                    raise
            except asyncpg.PostgresError as error:
                if error.sqlstate != _TOO_LATE or attempt:
                    raise
                # Quick, and called late: the server's clock has been set.
                await self._dial.greet(connection)
        raise AssertionError("unreachable")


@asynccontextmanager
async def open_database(
    uri: str,
    *,
    most: int = 10,
    deadline: float = 5.0,
    tls: ssl.SSLContext | None = None,
    standstill: Standstill | None = None,
) -> AsyncIterator[Database]:
    """Open a pool of up to `most` connections; connects when first used. `deadline` bounds each statement, in seconds.

    With several hosts in `uri`, connections go to whichever takes writes now. What `standstill` saw is not held against it.
    """
    dial = Dial(each_host(uri), deadline)

    async def create() -> Pool:
        pool = await asyncpg.create_pool(
            uri,
            connect=dial.connect,
            min_size=0,
            max_size=most,
            max_queries=STATEMENTS,
            connection_class=Connection,
            timeout=deadline,
            command_timeout=deadline,
            max_inactive_connection_lifetime=0,
            max_cached_statement_lifetime=0,
            server_settings={"application_name": "antipode", "jit": "off"},
            **({"ssl": tls} if tls is not None else {}),
        )
        return Pool(pool)

    pool = await cross(create, deadline=deadline, unavailable=DatabaseUnavailable)
    try:
        yield Database(pool, dial, deadline, standstill or Standstill())
    finally:
        with trio.move_on_after(deadline, shield=True):
            try:
                await cross(pool.close, deadline=deadline / 2, unavailable=DatabaseUnavailable)
            except (DatabaseUnavailable, *LOST) as error:
                _log.info("the pool was closed the hard way", reason=repr(error))
