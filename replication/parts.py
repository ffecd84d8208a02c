"""One pool of memory for all part buffers of a node, uploads and copies together: the bound of what bytes in flight may cost.

A holder says at the start how much it may come to need (its claim) and takes it as bytes arrive. A grant is given only when
afterwards everybody can still come to the end one after the other (the banker's rule), so many slow uploads that each hold
a little can never lock one another out. Whoever grows goes before whoever begins; otherwise first come, first served.
"""

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import trio
from attrs import define, field, frozen

from engines.trace import waiting


@frozen
class PoolStatistics:
    """The pool's state in bytes and tasks."""

    total: int
    held: int
    holders: int
    waiting: int


def is_safe(total: int, holders: Iterable[tuple[int, int]]) -> bool:
    """Decide whether holders, as (held, claim) in bytes, can all get their claim in some order and give it back."""
    pairs = sorted(holders, key=lambda pair: pair[1] - pair[0])
    free = total - sum(held for held, _ in pairs)
    if free < 0:
        return False
    for held, claim in pairs:
        if claim - held > free:
            return False
        free += held
    return True


@define(eq=False)
class Share:
    """One holder's share of a pool."""

    claim: int
    _pool: "PartPool" = field(alias="pool", repr=False)
    held: int = 0

    async def grow(self, nbytes: int) -> None:
        """Take `nbytes` more; waits until the pool can give them. Never beyond the claim."""
        if self.held + nbytes > self.claim:
            message = f"a share of {self.claim} bytes cannot grow from {self.held} by {nbytes}"
            raise ValueError(message)
        await self._pool.grant(self, nbytes)

    def shrink(self, nbytes: int) -> None:
        """Give `nbytes` back."""
        self.held -= nbytes
        self._pool.settle()


@define(eq=False)
class _Waiter:
    share: Share
    nbytes: int
    granted: trio.Event = field(factory=trio.Event)


class PartPool:
    """`total` bytes for part buffers."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._shares: set[Share] = set()
        self._waiting: list[_Waiter] = []

    @asynccontextmanager
    async def open(self, claim: int) -> AsyncIterator[Share]:
        """Open a share that may grow to `claim` bytes (at most the pool's total); everything goes back at the end."""
        share = Share(min(claim, self._total), self)
        try:
            yield share
        finally:
            self._shares.discard(share)
            self.settle()

    @asynccontextmanager
    async def hold(self, nbytes: int) -> AsyncIterator[None]:
        """Hold `nbytes` (or the whole pool, if that is less) for as long as the context lasts."""
        share = Share(min(nbytes, self._total), self)
        try:
            await self.grant(share, share.claim)
            yield
        finally:
            self._shares.discard(share)
            self.settle()

    def statistics(self) -> PoolStatistics:
        """Return how full the pool is."""
        held = sum(share.held for share in self._shares)
        return PoolStatistics(self._total, held, len(self._shares), len(self._waiting))

    async def grant(self, share: Share, nbytes: int) -> None:
        """Give `nbytes` to a share once that is safe; a cancelled wait takes nothing."""
        await trio.lowlevel.checkpoint_if_cancelled()
        waiter = _Waiter(share, nbytes)
        self._waiting.append(waiter)
        self.settle()
        if waiter.granted.is_set():
            return
        try:
            with waiting("gate"):
                await waiter.granted.wait()
        except trio.Cancelled:
            if waiter.granted.is_set():
                share.held -= nbytes
            else:
                self._waiting.remove(waiter)
            self.settle()
            raise

    def settle(self) -> None:
        """Grant what can be granted now: growth first, then newcomers in order until one does not fit."""
        for growing in (True, False):
            for waiter in [w for w in self._waiting if (w.share in self._shares) is growing]:
                if self._fits(waiter):
                    waiter.share.held += waiter.nbytes
                    self._shares.add(waiter.share)
                    self._waiting.remove(waiter)
                    waiter.granted.set()
                elif not growing:
                    return

    def _fits(self, waiter: _Waiter) -> bool:
        others = [(share.held, share.claim) for share in self._shares if share is not waiter.share]
        return is_safe(self._total, [*others, (waiter.share.held + waiter.nbytes, waiter.share.claim)])
