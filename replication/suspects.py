"""Reports of bad copies on their way to the ledger, so that a stream which found one does not wait for the database."""

from typing import NamedTuple

import trio

from replication.model import Blob, Placement
from replication.plan import backoff
from replication.ports import Hints, Ledger, LedgerUnavailable, Placed, Wake

_MOST_WAITING = 10_000


class _Copy(NamedTuple):
    blob_id: int
    location: str
    key: str


class Suspects:
    """Remembers bad copies until the ledger has them. What does not fit is dropped and counted: the next reader finds it again."""

    def __init__(self, ledger: Ledger, hints: Hints) -> None:
        self._ledger = ledger
        self._hints = hints
        self._waiting: dict[_Copy, tuple[str, str]] = {}
        self._noted = trio.Event()
        self.dropped = 0
        self.marked = 0

    def note(self, blob: Blob, placement: Placement, reason: str) -> None:
        """Take in that a copy is missing or wrong. Never waits."""
        if placement.suspect:
            return
        copy = _Copy(blob.id, placement.location, placement.key)
        if len(self._waiting) >= _MOST_WAITING and copy not in self._waiting:
            self.dropped += 1
            return
        self._waiting[copy] = (blob.digest, reason)
        self._noted.set()

    async def run(self) -> None:
        """Write to the ledger for ever, and tell all nodes. Ends by cancellation."""
        failures = 0
        while True:
            await self._noted.wait()
            self._noted = trio.Event()
            while self._waiting:
                copy, (digest, reason) = next(iter(self._waiting.items()))
                try:
                    await self._ledger.mark_suspect(copy.blob_id, copy.location, copy.key, reason)
                except LedgerUnavailable:
                    failures += 1
                    await trio.sleep(backoff(failures, 0.5, cap=30.0))
                    continue
                failures = 0
                del self._waiting[copy]
                self.marked += 1
                self._hints.publish(Placed(digest, copy.location), Wake((copy.location,)))
