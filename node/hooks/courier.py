"""The service that delivers events to webhooks: any node any event, under a lease, again and again until it is taken or dead.

One webhook that fails or hangs holds up no other: of each only a few are under way at once, within a deadline.
"""

import random
import time
from collections import deque
from collections.abc import Callable

import structlog
import trio
from attrs import define, field, frozen

from node.config.settings import Settings
from node.hooks.addresses import networks
from node.hooks.message import Event, make_message
from node.hooks.secrets import Sealed, open_secret
from node.hooks.sender import Outcome, send
from node.records.deliveries import (
    Due,
    bound_deliveries,
    claim_deliveries,
    delivered,
    postpone,
    settle_arrivals,
    tell_location,
)
from node.records.postgres import Database
from replication.model import LocationHealth, Verdict
from replication.ports import LedgerUnavailable

_log = structlog.get_logger("antipode.webhooks")


@frozen
class CourierSettings:
    """How deliveries are made. Durations in seconds."""

    poll: float = 2.0
    deadline: float = 10.0
    streams: int = 16
    each: int = 4
    """Of one webhook at once, per node."""
    first: float = 5.0
    longest: float = 6 * 3600.0
    attempts: int = 20
    """Then a delivery is dead; with these waits after about three days."""
    arrivals: int = 200
    pending: int = 10_000
    """Of one webhook; the oldest beyond are dead."""
    dead: int = 1000
    dead_for: float = 30 * 86400.0
    bound_every: float = 60.0


def wait_before(attempt: int, settings: CourierSettings, dice: float) -> float | None:
    """Return how long to wait after the attempt with this number (1, 2, ...) has failed; None: it was the last.

    Doubles up to a cap; `dice` (0 to 1) takes up to half away, so that what failed together does not come again together. Pure.
    """
    if attempt >= settings.attempts:
        return None
    return float(min(settings.longest, settings.first * 2 ** (attempt - 1))) * (1 - dice / 2)


@define(eq=False)
class Courier:
    """One node's courier."""

    _database: Database = field(alias="database")
    _current: Callable[[], Settings] = field(alias="current")
    _node: str = field(alias="node")
    settings: CourierSettings = field(factory=CourierSettings)
    clock: Callable[[], float] = time.time
    _down: set[str] = field(factory=set, init=False)
    _facts: deque[tuple[str, str, str]] = field(factory=lambda: deque(maxlen=1000), init=False)
    _sending: list[int] = field(factory=list, init=False)
    """The webhook of each delivery under way."""
    _wake: trio.Event = field(factory=trio.Event, init=False)

    def location_changed(self, after: LocationHealth) -> None:
        """Take note of what this node's watcher found: down, and well again after that."""
        if after.verdict is Verdict.DOWN and after.location not in self._down:
            self._down.add(after.location)
            self._facts.append(("location_down", after.location, after.reason))
        elif after.verdict is Verdict.HEALTHY and after.location in self._down:
            self._down.remove(after.location)
            self._facts.append(("location_up", after.location, after.reason))
        self._wake.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Deliver for ever; while the database is away nothing is due."""
        task_status.started()
        bound_at = trio.current_time()
        async with trio.open_nursery() as nursery:
            while True:
                try:
                    more = await self._round(nursery)
                    if trio.current_time() >= bound_at:
                        await self._bound()
                        bound_at = trio.current_time() + self.settings.bound_every
                except LedgerUnavailable as error:
                    _log.info("webhooks wait: the database is away", reason=str(error))
                    more = False
                if not more:
                    with trio.move_on_after(self.settings.poll):
                        await self._wake.wait()
                self._wake = trio.Event()

    async def _round(self, nursery: trio.Nursery) -> bool:
        """Start what is due; return whether there may be more at once."""
        while self._facts:
            kind, location, reason = self._facts[0]
            await tell_location(self._database, kind, location, self._node, reason)
            self._facts.popleft()
        told = await settle_arrivals(self._database, self.settings.arrivals)
        free = self.settings.streams - len(self._sending)
        if free <= 0:
            return False
        lease = 2 * self.settings.deadline + 30
        each, busy = self.settings.each, self._sending
        due = await claim_deliveries(self._database, most=free, each=each, lease=lease, busy=busy)
        for one in due:
            self._sending.append(one.webhook)
            nursery.start_soon(self._deliver, one)
        return len(due) == free or told == self.settings.arrivals

    async def _deliver(self, due: Due) -> None:
        try:
            await self._send(due)
        except LedgerUnavailable as error:
            # Its lease ends, and somebody sends it again: receivers know it by its id.
            _log.warning("what became of a delivery could not be recorded", id=due.event, reason=str(error))
        finally:
            self._sending.remove(due.webhook)
            self._wake.set()

    async def _try(self, due: Due) -> Outcome:
        registry = self._current()
        try:
            secret = open_secret(due.secret, registry.secret_key)
        except Sealed as error:
            return Outcome(False, f"its secret cannot be read: {error}")
        message = make_message(
            Event(due.event, due.kind, due.subject, due.at, due.data),
            source=f"{registry.scheme}://{registry.server_hostname}",
            secret=secret,
            now=self.clock(),
        )
        return await send(
            due.url,
            message,
            allowed=networks(registry.webhook_networks),
            deadline=self.settings.deadline,
            agent="antipode",
            authorities=registry.authorities,
        )

    async def _send(self, due: Due) -> None:
        outcome = await self._try(due)
        if outcome.taken:
            await delivered(self._database, due)
            return
        wait = wait_before(due.attempts, self.settings, random.random())  # noqa: S311 - no secret
        tell = _log.info if wait is not None else _log.error
        tell(
            "a webhook did not take an event"
            if wait is not None
            else "an event is given up: its webhook never took it",
            id=due.event,
            kind=due.kind,
            attempts=due.attempts,
            reason=outcome.reason,
        )
        await postpone(self._database, due, outcome.reason, wait)

    async def _bound(self) -> None:
        settings = self.settings
        given_up, gone = await bound_deliveries(
            self._database, pending=settings.pending, dead=settings.dead, dead_seconds=settings.dead_for
        )
        if given_up or gone:
            _log.error("too many events wait for their webhooks", given_up=given_up, dropped=gone)
