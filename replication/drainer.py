"""Reads copies of what is in a location that is being emptied, so that nothing goes with it because another copy had rotted."""

from collections.abc import Awaitable, Callable, Iterable, Sequence

import structlog
import trio
from attrs import define, evolve, frozen

from replication.model import Blob, Placement
from replication.plan import backoff
from replication.ports import LedgerUnavailable
from replication.proof import Proof
from replication.rounds import Rounds, Unproven

_log = structlog.get_logger("antipode.drainer")


@frozen
class DrainSettings:
    """Durations in seconds, sizes in bytes."""

    batch: int = 100
    """Blobs taken in one statement."""
    at_once: int = 4
    """Blobs of which a copy is read at the same time."""
    rest: float = 15.0
    """Between two looks at everything that is being emptied."""
    lease_seconds: float = 300.0
    """How long other nodes leave taken blobs alone, and more for their size; so long waits a blob whose copies cannot be read."""
    slowest: int = 4 << 20
    """Bytes per second that a read is given at least before another node may begin the same."""


@frozen
class DrainTotals:
    """What a drainer read: copies that were right, wrong (they are suspect now, and healed), and not to be had."""

    right: int = 0
    wrong: int = 0
    unread: int = 0
    read_bytes: int = 0
    """Bytes of those that were right."""


def enough(proven: Iterable[str], leaving: Iterable[str]) -> bool:
    """Return whether each of the locations that a blob is leaving would be outlived by a copy in another one of `proven`."""
    held = frozenset(proven)
    return all(held - {at} for at in leaving)


def to_read(item: Unproven, order: Sequence[Placement], down: frozenset[str]) -> tuple[Placement, ...]:
    """Return the copies that may vouch for a blob, in the order in which they are asked: those that stay, first."""
    useful = [copy for copy in order if not copy.suspect and copy.location not in down]
    useful = [copy for copy in useful if item.leaving - {copy.location}]
    return tuple(sorted(useful, key=lambda copy: copy.location in item.leaving))


@define(eq=False)
class Drainer:
    """One node's part in emptying locations: `run` it in a nursery, or let it `work` off what there is.

    `prove` reads one copy to its end, `choose` orders copies by how well this node reads them, `down` returns the locations that
    this node sees down. What was read is on record, blob by blob, so that any node goes on from there.
    """

    rounds: Rounds
    prove: Callable[[Blob, Placement], Awaitable[Proof]]
    choose: Callable[[Iterable[Placement]], tuple[Placement, ...]]
    down: Callable[[], frozenset[str]]
    settings: DrainSettings
    totals: DrainTotals = DrainTotals()

    async def run(self) -> None:
        """Look after what is being emptied for ever. Ends by cancellation; a database that is away is waited for."""
        failures = 0
        while True:
            try:
                await self.work()
                failures, pause = 0, self.settings.rest
            except LedgerUnavailable as error:
                failures += 1
                _log.warning("reading for a drain postponed: the database is away", reason=str(error))
                pause = backoff(failures, 0.5, cap=30.0)
            await trio.sleep(pause)

    async def work(self) -> int:
        """Read what nobody has read, once through; return how many copies were right. Raises LedgerUnavailable."""
        before, after = self.totals.right, 0
        settings = self.settings
        while True:
            page = await self.rounds.claim_unproven(after, settings.batch, settings.lease_seconds, settings.slowest)
            await self._read(page.items)
            if page.last is None:
                return self.totals.right - before
            after = page.last

    async def _read(self, items: Sequence[Unproven]) -> None:
        proven: list[tuple[int, Placement]] = []
        finished: list[int] = []
        todo = iter(items)

        async def worker() -> None:
            for item in todo:
                right, unread = await self._vouch(item)
                proven.extend((item.blob.id, copy) for copy in right)
                if not unread:
                    finished.append(item.blob.id)

        async with trio.open_nursery() as nursery:
            for _ in range(min(self.settings.at_once, len(items))):
                nursery.start_soon(worker)
        if items:
            # What could not be read stays ours, so that nobody tries the same again at once.
            await self.rounds.note_proven(proven)
            await self.rounds.finish_trims(finished)

    async def _vouch(self, item: Unproven) -> tuple[list[Placement], bool]:
        """Read copies of a blob until it outlives what it leaves; return the right ones, and whether some could not be read."""
        right: list[Placement] = []
        unread = False
        for copy in to_read(item, self.choose(item.placements), self.down()):
            if enough((other.location for other in right), item.leaving):
                break
            proof = await self.prove(item.blob, copy)
            self._count(proof, item.blob.size)
            if proof is Proof.RIGHT:
                right.append(copy)
            elif proof is Proof.UNREAD:
                unread = True
            else:
                _log.warning(
                    "a copy that was to outlive others is not good: it is healed first",
                    digest=item.blob.digest,
                    bad=copy.location,
                    leaving=sorted(item.leaving),
                )
        return right, unread

    def _count(self, proof: Proof, size: int) -> None:
        totals = evolve(self.totals, **{proof.value: getattr(self.totals, proof.value) + 1})
        self.totals = evolve(totals, read_bytes=totals.read_bytes + (size if proof is Proof.RIGHT else 0))
