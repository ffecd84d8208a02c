"""Word of what clients wait for on its way to the ledger, so that a pull which goes elsewhere does not wait for the database."""

from collections import OrderedDict

import trio

from replication.model import Blob
from replication.plan import WAITED_FOR, backoff
from replication.ports import Hints, Ledger, LedgerUnavailable, Wake

_MOST_WAITING = 10_000
_MOST_REMEMBERED = 50_000

Copy = tuple[int, str]
"""A blob's id and the location that lacks it."""


class Wanted:
    """Raises the priority of copies that somebody asked for. What does not fit is dropped and counted: the next pull says it again.

    The same copy is told to the ledger at most once in `repeat` seconds, however many ask for it.
    """

    def __init__(self, ledger: Ledger, hints: Hints, repeat: float = 60.0) -> None:
        self._ledger = ledger
        self._hints = hints
        self._repeat = repeat
        self._waiting: dict[Copy, int] = {}
        self._told: OrderedDict[Copy, tuple[int, float]] = OrderedDict()
        self._noted = trio.Event()
        self.dropped = 0
        self.raised = 0

    def note(self, blob: Blob, location: str, priority: int = WAITED_FOR) -> None:
        """Take in that somebody in this region waits for a blob that `location` lacks. Never waits."""
        copy = (blob.id, location)
        told, told_at = self._told.get(copy, (0, 0.0))
        if told >= priority and trio.current_time() < told_at + self._repeat:
            return
        if len(self._waiting) >= _MOST_WAITING and copy not in self._waiting:
            self.dropped += 1
            return
        self._waiting[copy] = max(priority, self._waiting.get(copy, 0))
        self._noted.set()

    async def run(self) -> None:
        """Tell the ledger for ever, and wake who pays for that location. Ends by cancellation."""
        failures = 0
        while True:
            await self._noted.wait()
            self._noted = trio.Event()
            while self._waiting:
                copy, priority = next(iter(self._waiting.items()))
                try:
                    raised = await self._ledger.raise_priority(*copy, priority)
                except LedgerUnavailable:
                    failures += 1
                    await trio.sleep(backoff(failures, 0.5, cap=30.0))
                    continue
                failures = 0
                if self._waiting[copy] == priority:
                    del self._waiting[copy]
                self._remember(copy, priority)
                if raised:
                    self.raised += 1
                    self._hints.publish(Wake((copy[1],)))

    def _remember(self, copy: Copy, priority: int) -> None:
        self._told[copy] = (priority, trio.current_time())
        self._told.move_to_end(copy)
        while len(self._told) > _MOST_REMEMBERED:
            self._told.popitem(last=False)
