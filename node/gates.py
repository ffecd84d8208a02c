"""Gates: how many requests of one kind work at once, so that a thousand pulls starve neither pushes nor health checks.

Who finds no place waits. Waiting costs a task and a connection, being sent away costs one of a client's few tries: so many may
wait, and long, as long as that is of use. Who would wait longer than anybody has patience, by how fast the queue moves, is told so
at once (429, with a Retry-After that is as honest), and so is everybody when it has stood still for too long.

Nobody takes all places, inside or in the queue (`shares.py`). Each has a line of their own there, in order, and the lines take
turns: who comes with one request does not wait behind a thousand of somebody else's.
"""

from collections import OrderedDict
from contextlib import AbstractAsyncContextManager
from math import ceil, isfinite

import trio
from attrs import frozen

from engines.trace import waiting
from node.errors import TOOMANYREQUESTS, RegistryError
from node.queueing import Movement
from node.shares import Places, Share

_STANDSTILL = 4
"""A queue stands still when nobody has left for a so-manieth part of the patience."""
_LONGEST_RETRY = 60


@frozen
class GateStatistics:
    """How full a gate is, and how many it has sent away since the start."""

    limit: int
    inside: int
    waiting: int
    refused: int
    bounded: int
    """Of these, who had their share while others would have found room."""


class Gate:
    """Lets `limit` in at once; at most `queue` others wait, each at most `patience` seconds."""

    def __init__(self, kind: str, limit: int, queue: int, patience: float) -> None:
        self._kind = kind
        self._limit = limit
        self.places = Places(kind, Share(limit))
        self._queue = Places(f"{kind} that wait", Share(queue))
        self._patience = patience
        self._lines: OrderedDict[str, OrderedDict[object, trio.Event]] = OrderedDict()
        """Who waits, by whose they are, with the line first whose turn is next. None of them may come in as things are."""
        self._movement: Movement | None = None
        """Of the queue that there is; None without one."""

    def enter(self, who: str) -> AbstractAsyncContextManager[None]:
        """Be inside for the time of the block, as one of `who`'s. Raises RegistryError (429)."""
        return _Inside(self, who)

    @property
    def free(self) -> bool:
        """Whether anybody who comes now need not wait. Who waits for nothing else either need not come in."""
        return self.places.taken < self._limit

    def leave(self, who: str) -> None:
        """Leave the place to whoever's turn it is."""
        self.places.give_back(who)
        if self._lines:
            self._let_in()

    def statistics(self) -> GateStatistics:
        """Return the counts as of now."""
        inside, queue = self.places, self._queue
        refused = inside.full + inside.bounded
        return GateStatistics(self._limit, inside.taken, queue.taken, refused, inside.bounded)

    async def acquire(self, ticket: object, who: str) -> None:
        """Come in. Raises RegistryError (429)."""
        # Before the place is taken: who is cancelled here never leaves.
        await trio.lowlevel.checkpoint_if_cancelled()
        if self.places.take(who):
            if self._lines and not self.free:
                # Until now they waited only because they have their share: that says nothing of how fast a full room empties.
                self._movement = Movement(trio.current_time())
            return
        now = trio.current_time()
        movement = self._movement or Movement(now)
        expected = movement.expected(self._ahead(who), now)
        if expected > self._patience or not self._queue.take(who):
            raise self._refuse(who, expected)
        self._movement, woken = movement, trio.Event()
        self._lines.setdefault(who, OrderedDict())[ticket] = woken
        try:
            with waiting("gate"):
                await self._wait(woken, now + self._patience)
        except trio.Cancelled:
            self._withdraw(ticket, who, woken)
            raise
        if not woken.is_set():
            movement = self._movement or movement
            self._withdraw(ticket, who, woken)
            raise self._refuse(who, movement.expected(self._ahead(who), trio.current_time()))

    async def _wait(self, woken: trio.Event, last: float) -> None:
        """Wait until `last` at most, and only while the queue moves."""
        while not woken.is_set():
            # While somebody waits there is a queue.
            moved = last if self._movement is None else self._movement.moved
            until = min(last, moved + self._patience / _STANDSTILL)
            if until <= trio.current_time():
                return
            with trio.move_on_at(until):
                await woken.wait()

    def _ahead(self, who: str) -> int:
        """Return how many come in before another of `who`'s: of each other line as many as wait in theirs, and one."""
        own = len(self._lines.get(who, ()))
        others = len(self._lines) - (who in self._lines)
        return min(self._queue.taken, own + others * (own + 1))

    def _let_in(self) -> None:
        """Let in who may come in, one of each line in turn."""
        while self._lines and self.free:
            # Who holds as much as keeps them out holds three places at least: there are few such lines, but for an owner's robots'.
            who = next((who for who in self._lines if self.places.open_to(who)), None)
            if who is None:
                return
            line = self._lines[who]
            line.popitem(last=False)[1].set()
            self._lines.move_to_end(who)
            self._queue.give_back(who)
            self.places.take(who)
            if self._movement is not None:
                self._movement.left(trio.current_time())
            self._end_if_empty(who)

    def _withdraw(self, ticket: object, who: str, woken: trio.Event) -> None:
        """Give up a turn, or the place that it has just become."""
        if woken.is_set():
            self.leave(who)
            return
        del self._lines[who][ticket]
        self._queue.give_back(who)
        self._end_if_empty(who)

    def _end_if_empty(self, who: str) -> None:
        if not self._lines[who]:
            del self._lines[who]
        if not self._lines:
            self._movement = None

    def _refuse(self, who: str, expected: float) -> RegistryError:
        reason = f"this node is working on {self._limit} {self._kind}; more have to wait"
        if self.places.refused(who):
            held, whose = self.places.working_on(who)
            reason = (
                f"this node is working on {held} {self._kind} of {whose} and keeps room for others; more have to wait"
            )
        # What is left of the wait when the patience has gone by; the patience itself where the queue cannot tell.
        later = expected - self._patience if isfinite(expected) and expected > self._patience else self._patience
        after = max(1, min(_LONGEST_RETRY, ceil(later)))
        return RegistryError(TOOMANYREQUESTS, {"reason": reason}, retry_after=after)


class _Inside(AbstractAsyncContextManager[None]):
    """A turn. A class, because a generator costs a warm pull 2 % more."""

    __slots__ = ("_gate", "_who")

    def __init__(self, gate: Gate, who: str) -> None:
        self._gate = gate
        self._who = who

    async def __aenter__(self) -> None:
        await self._gate.acquire(self, self._who)

    async def __aexit__(self, *_error: object) -> None:
        self._gate.leave(self._who)


API_AT_ONCE = 32
"""Requests of the API: what one of them asks the database for may take a hundred times as long as a pull's look-up. More of them
would keep all its connections, and pulls and pushes with them, until the database counts as away."""


class Gates:
    """The gates of a node: short pull answers, streamed blobs, pushes, requests for tokens, and the API's.

    `queue` may wait before each.
    """

    def __init__(self, pulls: int, streams: int, pushes: int, tokens: int, *, queue: int, patience: float) -> None:
        self.pulls = Gate("pulls", pulls, queue, patience)
        self.streams = Gate("streamed blobs", streams, queue, patience)
        self.pushes = Gate("pushes", pushes, queue, patience)
        self.tokens = Gate("requests for tokens", tokens, queue, patience)
        self.api = Gate("requests of the API", API_AT_ONCE, queue, patience)
