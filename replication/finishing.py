"""Tells the ledger of finished copies, those that end within the same moment together: small blobs end by the hundred a second."""

from collections.abc import Callable, Hashable

import trio
from attrs import define, field

from replication.macs import PieceProofs
from replication.model import CopyTask
from replication.ports import CopyOutcome, Ledger, LedgerUnavailable

MOST = 64
"""Copies in one report."""
LINGER = 0.05
"""Seconds that a finished copy waits for others which are about to end."""


@define(eq=False)
class _Batch:
    copies: dict[Hashable, tuple[CopyTask, PieceProofs]] = field(factory=dict)
    outcomes: dict[Hashable, CopyOutcome] = field(factory=dict)
    error: LedgerUnavailable | None = None
    full: trio.Event = field(factory=trio.Event)
    over: trio.Event = field(factory=trio.Event)


class Finishing:
    """Finishes copies. `more` says whether others are under way, of which one may end soon: for these a copy waits, never long.

    Whoever finds no report being put together begins one, and sends it for all who have joined by then.
    """

    def __init__(self, ledger: Ledger, more: Callable[[], bool]) -> None:
        self._ledger = ledger
        self._more = more
        self._open: _Batch | None = None

    def look(self) -> None:
        """Send what waits if nothing else is under way any more. Never waits."""
        if self._open is not None and not self._more():
            self._open.full.set()

    async def finish(self, task: CopyTask, proofs: PieceProofs) -> CopyOutcome:
        """Record a copy (`Ledger.finish_copies`). Raises LedgerUnavailable."""
        place = (task.blob.id, task.destination)
        while True:
            batch = self._open
            if batch is None or place in batch.copies:
                batch = self._open = _Batch({place: (task, proofs)})
                await self._send(batch)
            else:
                await self._join(batch, place, (task, proofs))
            if batch.error is not None:
                raise batch.error
            if place in batch.outcomes:
                return batch.outcomes[place]

    async def _join(self, batch: _Batch, place: Hashable, copy: tuple[CopyTask, PieceProofs]) -> None:
        batch.copies[place] = copy
        if len(batch.copies) >= MOST:
            self._close(batch)
        self.look()
        try:
            await batch.over.wait()
        except trio.Cancelled:
            batch.copies.pop(place, None)
            raise

    async def _send(self, batch: _Batch) -> None:
        """Let others join for a moment, and tell the ledger. Cancelled before it was told, the others begin anew."""
        try:
            with trio.move_on_after(LINGER):
                self.look()
                await batch.full.wait()
            self._close(batch)
            copies = dict(batch.copies)
            outcomes = await self._ledger.finish_copies(list(copies.values()))
            batch.outcomes = dict(zip(copies, outcomes, strict=True))
        except LedgerUnavailable as error:
            batch.error = error
        finally:
            self._close(batch)
            batch.over.set()

    def _close(self, batch: _Batch) -> None:
        batch.full.set()
        if self._open is batch:
            self._open = None
