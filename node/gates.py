"""Gates: how many requests of one kind work at once, so that a thousand pulls starve neither pushes nor health checks.

Who finds a gate full waits a bounded time in order, and is then told to come back (429 with Retry-After).
"""

from contextlib import AbstractAsyncContextManager

import trio
from attrs import frozen

from engines.trace import waiting
from node.errors import TOOMANYREQUESTS, RegistryError


@frozen
class GateStatistics:
    """How full a gate is, and how many it has sent away since the start."""

    limit: int
    inside: int
    waiting: int
    refused: int


class Gate:
    """Lets `limit` in at once; the others wait `patience` seconds, `limit` of them at the most."""

    def __init__(self, kind: str, limit: int, patience: float) -> None:
        self._kind = kind
        self._limiter = trio.CapacityLimiter(limit)
        self._patience = patience
        self._refused = 0

    def enter(self) -> AbstractAsyncContextManager[None]:
        """Be inside for the time of the block. Raises RegistryError (429)."""
        return _Inside(self)

    def leave(self, ticket: object) -> None:
        """Let the next one in."""
        self._limiter.release_on_behalf_of(ticket)

    def statistics(self) -> GateStatistics:
        """Return the counts as of now."""
        seen = self._limiter.statistics()
        return GateStatistics(int(self._limiter.total_tokens), seen.borrowed_tokens, seen.tasks_waiting, self._refused)

    async def acquire(self, ticket: object) -> None:
        """Come in. Raises RegistryError (429)."""
        # Before the place is taken: who is cancelled here never leaves.
        await trio.lowlevel.checkpoint_if_cancelled()
        try:
            self._limiter.acquire_on_behalf_of_nowait(ticket)
        except trio.WouldBlock:
            if self._limiter.statistics().tasks_waiting >= self._limiter.total_tokens:
                raise self._refuse() from None
            with waiting("gate"), trio.move_on_after(self._patience) as scope:
                await self._limiter.acquire_on_behalf_of(ticket)
            if scope.cancelled_caught:
                raise self._refuse() from None

    def _refuse(self) -> RegistryError:
        self._refused += 1
        detail = {"reason": f"this node is working on {self._limiter.total_tokens} {self._kind}; more have to wait"}
        return RegistryError(TOOMANYREQUESTS, detail, retry_after=max(1, round(self._patience)))


class _Inside(AbstractAsyncContextManager[None]):
    """A turn. A class, because a generator costs a warm pull 2 % more."""

    __slots__ = ("_gate",)

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    async def __aenter__(self) -> None:
        await self._gate.acquire(self)

    async def __aexit__(self, *_error: object) -> None:
        self._gate.leave(self)


class Gates:
    """The gates of a node: short pull answers, streamed blobs, and pushes."""

    def __init__(self, pulls: int, streams: int, pushes: int, patience: float) -> None:
        self.pulls = Gate("pulls", pulls, patience)
        self.streams = Gate("streamed blobs", streams, patience)
        self.pushes = Gate("pushes", pushes, patience)
