"""The part of the hints that knows no wire: local delivery, bounded buffers, counters, and what to say after a loss.

The rules:

1. `publish` never waits and never raises. Subscribers of this process have the hint when it returns; the wire gets it from
   a bounded buffer.
2. Hints that did not reach the wire are not repeated one by one: once it works again, every node is told that everything may
   have changed (`EVERYTHING`), which is short and covers whatever was lost.
3. The same goes for a subscriber that reads too slowly, and for everybody here after the line was lost.
"""

from collections import deque
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import trio
from attrs import define, field, frozen

from node.hint_wire import EVERYTHING, BadMessage, decode
from replication.ports import Hint

MOST_WAITING = 1024
"""Hints in a buffer, for the wire or for one subscriber. A burst of pushes is a few dozen; beyond this "everything" is cheaper."""


@frozen
class HintStatistics:
    """Counters since the node started, and the line's state. `since` is Trio's clock in seconds."""

    transport: str
    """"redis", "postgresql" or "local"."""
    connected: bool
    since: float
    last_error: str | None
    published: int
    """Hints that this process published."""
    sent: int
    """Messages that the wire took."""
    received: int
    """Messages of other nodes."""
    dropped: int
    """Hints that the wire's buffer could not take, or that were lost on the way into the wire."""
    overrun: int
    """Times that a subscriber read too slowly and was told "everything" instead."""
    invalid: int
    """Messages that could not be parsed and were ignored."""
    gaps: int
    """Times that the line came (back), so that hints may have been missed."""
    subscribers: int
    waiting: int
    """Hints in the wire's buffer."""


@define(eq=False)
class Subscription:
    """One subscriber's hints, oldest first. Implements `replication.ports.HintSource`."""

    _waiting: deque[Hint] = field(factory=deque)
    _arrived: trio.Event = field(factory=trio.Event)
    _closed: bool = False
    overrun: int = 0

    def give(self, hints: Iterable[Hint]) -> None:
        """Add hints; where they are too many, replace all by "everything"."""
        self._waiting.extend(hints)
        if len(self._waiting) > MOST_WAITING:
            self._waiting.clear()
            self._waiting.extend(EVERYTHING)
            self.overrun += 1
        self._arrived.set()

    def give_first(self, hints: tuple[Hint, ...]) -> None:
        """Put hints before all others, once."""
        if tuple(self._waiting)[: len(hints)] != hints:
            self._waiting.extendleft(reversed(hints))
        self._arrived.set()

    def close(self) -> None:
        """End the iteration, at once."""
        self._closed = True
        self._arrived.set()

    def __aiter__(self) -> "Subscription":
        return self

    async def __anext__(self) -> Hint:
        # A checkpoint also where nothing has to be waited for: a subscriber must not hold the loop.
        await trio.lowlevel.checkpoint()
        while not self._closed:
            if self._waiting:
                return self._waiting.popleft()
            self._arrived = trio.Event()
            await self._arrived.wait()
        raise StopAsyncIteration


@define(eq=False)
class Hub:
    """Hints within one process; `outbox` is what a wire takes to the other nodes. Implements `replication.ports.Hints`."""

    sender: str
    """This process: its own messages come back from the wire and are ignored."""
    transport: str = "local"
    _subscriptions: list[Subscription] = field(factory=list)
    _outbox: deque[Hint] = field(factory=deque)
    _owes_everything: bool = False
    _work: trio.Event = field(factory=trio.Event)
    _connected: trio.Event = field(factory=trio.Event)
    _lost: trio.Event = field(factory=trio.Event)
    _since: float = field(factory=trio.current_time)
    _last_error: str | None = None
    _published: int = 0
    _sent: int = 0
    _received: int = 0
    _dropped: int = 0
    _overrun: int = 0
    _invalid: int = 0
    _gaps: int = 0

    def publish(self, *hints: Hint) -> None:
        """Send to all nodes, this one included. Never waits, never raises; what the buffer cannot take is dropped and counted."""
        self._published += len(hints)
        self._deliver(hints)
        if self.transport == "local":
            return
        for hint in hints:
            if len(self._outbox) < MOST_WAITING:
                self._outbox.append(hint)
            else:
                self._dropped += 1
                self._owes_everything = True
        self._work.set()

    @asynccontextmanager
    async def subscribe(self) -> AsyncIterator[Subscription]:
        """Receive every hint from now on. After a gap (connection lost) a `Forget()` of everything and a `Wake()` come first."""
        subscription = Subscription()
        self._subscriptions.append(subscription)
        try:
            yield subscription
        finally:
            subscription.close()
            self._subscriptions.remove(subscription)
            self._overrun += subscription.overrun

    def statistics(self) -> HintStatistics:
        """Return the counters as they are now."""
        return HintStatistics(
            transport=self.transport,
            connected=self.transport == "local" or self._connected.is_set(),
            since=self._since,
            last_error=self._last_error,
            published=self._published,
            sent=self._sent,
            received=self._received,
            dropped=self._dropped,
            overrun=self._overrun + sum(subscription.overrun for subscription in self._subscriptions),
            invalid=self._invalid,
            gaps=self._gaps,
            subscribers=len(self._subscriptions),
            waiting=len(self._outbox),
        )

    async def wait_connected(self) -> None:
        """Wait until the line stands."""
        await self._connected.wait()

    async def wait_lost(self) -> None:
        """Wait until the line is lost, or could not be opened."""
        await self._lost.wait()

    # What follows is for the wire.

    def _deliver(self, hints: Iterable[Hint]) -> None:
        held = tuple(hints)
        for subscription in self._subscriptions:
            subscription.give(held)

    def heard(self, payload: str | bytes) -> None:
        """Take a message from the wire; one of our own, or one that cannot be parsed, goes no further."""
        try:
            message = decode(payload)
        except BadMessage:
            self._invalid += 1
            return
        if message.sender != self.sender:
            self._received += 1
            self._deliver(message.hints)

    def line_stands(self) -> None:
        """Note that the line is there, and tell every subscriber that hints may have been missed before."""
        self._connected.set()
        self._lost = trio.Event()
        self._since = trio.current_time()
        self._gaps += 1
        for subscription in self._subscriptions:
            subscription.give_first(EVERYTHING)

    def line_lost(self, reason: str) -> None:
        """Note that there is no line, and why."""
        if self._connected.is_set():
            self._connected = trio.Event()
            self._since = trio.current_time()
        self._last_error = reason
        self._lost.set()

    async def next_batch(self) -> tuple[Hint, ...]:
        """Wait for hints to send and take them; `EVERYTHING` goes first where some were lost before."""
        while not self._outbox and not self._owes_everything:
            self._work = trio.Event()
            await self._work.wait()
        batch = (*(EVERYTHING if self._owes_everything else ()), *self._outbox)
        self._owes_everything = False
        self._outbox.clear()
        return batch

    def sent(self) -> None:
        """Note a message that the wire took."""
        self._sent += 1

    def batch_lost(self, batch: tuple[Hint, ...]) -> None:
        """Note that a batch may not have arrived: once the line stands again, everybody is told "everything"."""
        self._dropped += len(batch)
        self._owes_everything = True
