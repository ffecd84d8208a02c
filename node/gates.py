"""Gates: how many requests of one kind work at once, so that a thousand pulls starve neither pushes nor health checks.

Who finds a gate full waits in order. Waiting costs a task and a connection, being sent away costs one of a client's few tries: so
many may wait, and long, as long as that is of use. Who would wait longer than anybody has patience, by how fast the queue moves,
is told so at once (429, with a Retry-After that is as honest), and so is everybody when it has stood still for too long.
"""

from collections import OrderedDict
from contextlib import AbstractAsyncContextManager
from math import ceil, isfinite

import trio
from attrs import frozen

from engines.trace import waiting
from node.errors import TOOMANYREQUESTS, RegistryError
from node.queueing import Movement

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


class Gate:
    """Lets `limit` in at once; at most `queue` others wait, each at most `patience` seconds."""

    def __init__(self, kind: str, limit: int, queue: int, patience: float) -> None:
        self._kind = kind
        self._limit = limit
        self._queue = queue
        self._patience = patience
        self._inside = 0
        self._waiting: OrderedDict[object, trio.Event] = OrderedDict()
        self._movement: Movement | None = None
        """Of the queue that there is; None without one. With one the gate is full: who leaves hands the place over."""
        self._refused = 0

    def enter(self) -> AbstractAsyncContextManager[None]:
        """Be inside for the time of the block. Raises RegistryError (429)."""
        return _Inside(self)

    @property
    def free(self) -> bool:
        """Whether who comes now need not wait. Who waits for nothing else either need not come in."""
        return self._inside < self._limit

    def leave(self) -> None:
        """Leave the place to whoever has waited longest."""
        if self._movement is None:
            self._inside -= 1
            return
        self._movement.left(trio.current_time())
        self._waiting.popitem(last=False)[1].set()
        self._end_if_empty()

    def statistics(self) -> GateStatistics:
        """Return the counts as of now."""
        return GateStatistics(self._limit, self._inside, len(self._waiting), self._refused)

    async def acquire(self, ticket: object) -> None:
        """Come in. Raises RegistryError (429)."""
        # Before the place is taken: who is cancelled here never leaves.
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._inside < self._limit:
            self._inside += 1
            return
        now = trio.current_time()
        movement, ahead = self._movement or Movement(now), len(self._waiting)
        expected = movement.expected(ahead, now)
        if ahead >= self._queue or expected > self._patience:
            raise self._refuse(expected)
        self._movement, woken = movement, trio.Event()
        self._waiting[ticket] = woken
        try:
            with waiting("gate"):
                await self._wait(woken, movement, now + self._patience)
        except trio.Cancelled:
            self._withdraw(ticket)
            raise
        if not woken.is_set():
            self._withdraw(ticket)
            raise self._refuse(movement.expected(len(self._waiting), trio.current_time()))

    async def _wait(self, woken: trio.Event, movement: Movement, last: float) -> None:
        """Wait until `last` at most, and only while the queue moves."""
        while not woken.is_set():
            until = min(last, movement.moved + self._patience / _STANDSTILL)
            if until <= trio.current_time():
                return
            with trio.move_on_at(until):
                await woken.wait()

    def _withdraw(self, ticket: object) -> None:
        """Give up a turn, or the place that it has just become."""
        if self._waiting.pop(ticket, None) is None:
            self.leave()
        else:
            self._end_if_empty()

    def _end_if_empty(self) -> None:
        if not self._waiting:
            self._movement = None

    def _refuse(self, expected: float) -> RegistryError:
        self._refused += 1
        detail = {"reason": f"this node is working on {self._limit} {self._kind}; more have to wait"}
        # What is left of the wait when the patience has gone by; the patience itself where the queue cannot tell.
        later = expected - self._patience if isfinite(expected) and expected > self._patience else self._patience
        return RegistryError(TOOMANYREQUESTS, detail, retry_after=max(1, min(_LONGEST_RETRY, ceil(later))))


class _Inside(AbstractAsyncContextManager[None]):
    """A turn. A class, because a generator costs a warm pull 2 % more."""

    __slots__ = ("_gate",)

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    async def __aenter__(self) -> None:
        await self._gate.acquire(self)

    async def __aexit__(self, *_error: object) -> None:
        self._gate.leave()


class Gates:
    """The gates of a node: short pull answers, streamed blobs, pushes, and requests for tokens. `queue` may wait before each."""

    def __init__(self, pulls: int, streams: int, pushes: int, tokens: int, *, queue: int, patience: float) -> None:
        self.pulls = Gate("pulls", pulls, queue, patience)
        self.streams = Gate("streamed blobs", streams, queue, patience)
        self.pushes = Gate("pushes", pushes, queue, patience)
        self.tokens = Gate("requests for tokens", tokens, queue, patience)
