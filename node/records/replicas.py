"""Read replicas of the database: look-ups by digest, as fresh as an answer from memory must be, or none at all.

A replica is behind its primary by no promised time, so every answer says as of when it is: this node writes a mark, its row's
`seen_at`, into the primary every second, and an answer is as of the latest mark that it shows. A miss proves nothing and is for the
primary, as is every tag: so a client reads what it has written.
"""

import random
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from math import inf
from typing import TypeVar
from uuid import UUID

import structlog
import trio
from attrs import define, field

from node.records.postgres import Database, DatabaseMisconfigured, DatabaseUnavailable, Reads, Row

_log = structlog.get_logger("antipode.database")

T = TypeVar("T")

DEADLINE = 1.0
"""Seconds for a look-up at a replica, the connection included."""

_MARK_SECONDS = 1.0
_MOST_MARKS = 3600
_ALONE = {"failed": 10.0, "behind": 3.0}
"""Seconds for which a replica is left alone that failed, or whose answer was too old."""


@define(eq=False)
class Replica:
    """One replica. `name` is its host; `looked` counts look-ups by what came of them: used, missed, behind, failed."""

    name: str
    database: Database
    looked: Counter[str] = field(factory=Counter, init=False)
    alone_until: float = field(default=-inf, init=False)


@define(eq=False)
class _Reading:
    """One look-up: the statement's row, and this node's mark as the replica knows it."""

    _replica: Replica
    _member: UUID
    seen_at: datetime | None = field(default=None, init=False)

    async def fetch_row(self, sql: str, *args: object, deadline: float | None = None) -> Row | None:
        """Run one statement that only reads; as `Database.fetch_row`."""
        row = await self._replica.database.fetch_row(
            f"WITH answer AS ({sql}) SELECT answer.*, (SELECT seen_at FROM node WHERE id = ${len(args) + 1}) AS mark FROM answer",  # noqa: S608
            *args,
            self._member,
            deadline=deadline,
        )
        self.seen_at = None if row is None else row["mark"]
        return row


@define(eq=False)
class Replicas:
    """The replicas of a node; one that is well is picked at random. Run `run` in a nursery."""

    _primary: Database
    replicas: Sequence[Replica]
    _member: UUID
    _marks: deque[tuple[datetime, float]] = field(factory=lambda: deque(maxlen=_MOST_MARKS), init=False)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Write marks for ever. Ends by cancellation."""
        task_status.started()
        while True:
            sent = trio.current_time()
            try:
                row = await self._primary.fetch_row(
                    "UPDATE node SET seen_at = clock_timestamp() WHERE id = $1 RETURNING seen_at", self._member
                )
            except DatabaseUnavailable:
                row = None
            if row is not None:
                self._marks.append((row["seen_at"], sent))
            await trio.sleep(_MARK_SECONDS)

    async def look(
        self, ask: Callable[[Reads], Awaitable[T]], hit: Callable[[T], bool], oldest: float
    ) -> tuple[T, float] | None:
        """Ask a replica; return a hit and when, on Trio's clock, it was surely true: after `oldest`. None: ask the primary.

        Takes `DEADLINE` at most, and raises nothing that the replica is to blame for.
        """
        now = trio.current_time()
        well = [replica for replica in self.replicas if replica.alone_until <= now]
        if not well:
            return None
        replica = random.choice(well)  # noqa: S311  # to spread load
        reading, outcome = _Reading(replica, self._member), "failed"
        found: tuple[T, float] | None = None
        try:
            with trio.move_on_after(DEADLINE):
                answer = await ask(reading)
                as_of = self._as_of(reading.seen_at)
                outcome = "missed" if not hit(answer) else "used" if as_of > oldest else "behind"
                found = (answer, as_of) if outcome == "used" else None
        except (DatabaseUnavailable, DatabaseMisconfigured) as error:
            _log.warning("a replica does not answer; the primary is asked", replica=replica.name, reason=str(error))
        replica.looked[outcome] += 1
        replica.alone_until = max(replica.alone_until, now + _ALONE.get(outcome, -inf))
        return found

    def _as_of(self, seen_at: datetime | None) -> float:
        """Return when, on Trio's clock, the latest mark up to this one was sent."""
        if seen_at is None:
            return -inf
        place = bisect_right(self._marks, seen_at, key=lambda mark: mark[0])
        return self._marks[place - 1][1] if place else -inf
