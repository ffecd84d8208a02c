"""Takes away copies that have to go, each only after a copy of the same blob that stays was read to its end and was right."""

from collections.abc import Awaitable, Callable, Iterable, Sequence

import structlog
import trio
from attrs import define, evolve, field, frozen

from replication.model import Blob, LocationState, Placement
from replication.plan import backoff
from replication.ports import LedgerUnavailable, Placed, Publish
from replication.proof import Proof
from replication.reconcile import BlobFacts, Settlement, settle
from replication.rounds import Applied, Candidate, Rounds, Spare

_log = structlog.get_logger("antipode.trimmer")


@frozen
class TrimSettings:
    """Durations in seconds, sizes in bytes."""

    keep: float = 1505.0
    """How long trimmed bytes stay: the lifetime of a presigned URL, and of what nodes remember."""
    at_once: int = 2
    """Blobs of which a copy is read at the same time."""
    batch: int = 20
    """Blobs taken in one statement."""
    remembered: int = 5000
    """Blobs that wait for their turn; what does not fit is found again by the next round."""
    lease_seconds: float = 300.0
    """How long other nodes leave a taken blob alone, and more for its size; so long waits a blob whose copies cannot be read."""
    slowest: int = 4 << 20
    """Bytes per second that a read is given at least before another node may begin the same."""


@frozen
class TrimTotals:
    """What a trimmer did."""

    trimmed: int = 0
    """Copies whose objects are dead now."""
    right: int = 0
    """Blobs of which a copy that stays was read and was right."""
    wrong: int = 0
    """Copies that were to stay and were not good: the spare one stays and heals them."""
    unread: int = 0
    """Blobs of which no copy that stays could be read: the spare one stays for now."""
    read_bytes: int = 0
    """Bytes of the blobs that were right."""


def keepers(facts: BlobFacts, trim: Iterable[str], down: frozenset[str]) -> frozenset[str]:
    """Return the locations whose copy may vouch for a blob that loses its copies in `trim`: good, allowed, and there to stay."""
    states = dict(facts.states)
    good = frozenset(at for at, ok in facts.placed.items() if ok)
    return frozenset(at for at in good - facts.forbidden - down - set(trim) if states.get(at) is LocationState.ACTIVE)


@define(eq=False)
class Trimmer:
    """One node's part in trimming. `offer` it what a round finds, and `run` it in a nursery, or let it `work` off what it has.

    `prove` reads one copy to its end, `choose` orders copies by how well this node reads them, `down` returns the locations that
    this node sees down.
    """

    rounds: Rounds
    publish: Publish
    prove: Callable[[Blob, Placement], Awaitable[Proof]]
    choose: Callable[[Iterable[Placement]], tuple[Placement, ...]]
    down: Callable[[], frozenset[str]]
    settings: TrimSettings
    totals: TrimTotals = TrimTotals()
    _waiting: dict[int, int] = field(factory=dict)
    _offered: trio.Event = field(factory=trio.Event)

    @property
    def waiting(self) -> int:
        """Return how many blobs wait for their turn."""
        return len(self._waiting)

    def offer(self, candidate: Candidate) -> None:
        """Take in that a copy of this blob may have to go. Never waits."""
        if len(self._waiting) < self.settings.remembered:
            self._waiting[candidate.blob_id] = candidate.size
            self._offered.set()

    async def run(self) -> None:
        """Trim for ever. Ends by cancellation; a database that is away is waited for."""
        failures = 0
        while True:
            await self._offered.wait()
            self._offered = trio.Event()
            try:
                await self.work()
                failures = 0
            except LedgerUnavailable as error:
                failures += 1
                _log.warning("trimming postponed: the database is away", reason=str(error))
                await trio.sleep(backoff(failures, 0.5, cap=30.0))

    async def work(self) -> int:
        """Work off what was offered; return how many copies went. Raises LedgerUnavailable: a later round offers what is left."""
        before = self.totals.trimmed
        while self._waiting:
            batch = dict(list(self._waiting.items())[: self.settings.batch])
            for blob in batch:
                del self._waiting[blob]
            lease = self.settings.lease_seconds + sum(batch.values()) / self.settings.slowest
            await self._trim(await self.rounds.claim_trims(sorted(batch), lease))
        return self.totals.trimmed - before

    async def _trim(self, spares: Sequence[Spare]) -> None:
        """Trim what can be trimmed of blobs that are ours for a while."""
        proven: list[tuple[Candidate, Settlement]] = []
        finished = [spare.blob.id for spare in spares]
        todo = iter(spares)

        async def worker() -> None:
            for spare in todo:
                made = settle(spare.candidate.facts, replicate=True, down=self.down())
                if not made.trim:
                    continue
                proof = await self._vouch(spare, made)
                if proof is Proof.RIGHT:
                    proven.append((spare.candidate, Settlement(trim=made.trim)))
                elif proof is Proof.UNREAD:
                    # It stays ours, so that nobody tries the same again at once.
                    finished.remove(spare.blob.id)

        async with trio.open_nursery() as nursery:
            for _ in range(min(self.settings.at_once, len(spares))):
                nursery.start_soon(worker)
        if proven:
            await self._apply(proven)
        if finished:
            await self.rounds.finish_trims(finished)

    async def _vouch(self, spare: Spare, made: Settlement) -> Proof:
        """Read copies that stay until one is right; a wrong one ends it, because then the spare copy must heal it."""
        facts = spare.candidate.facts
        kept = keepers(facts, made.trim, self.down())
        copies = sorted(self.choose(spare.placements), key=lambda copy: copy.location not in facts.required)
        for copy in copies:
            if copy.location not in kept:
                continue
            proof = await self.prove(spare.blob, copy)
            if proof is Proof.RIGHT:
                self._count(right=1, read_bytes=spare.blob.size)
                return proof
            if proof is Proof.WRONG:
                self._count(wrong=1)
                _log.warning(
                    "a copy stays though nothing requires it: the one that is to outlive it was read, and it is not good",
                    digest=spare.blob.digest,
                    bad=copy.location,
                    stays=list(made.trim),
                )
                return proof
        self._count(unread=1)
        return Proof.UNREAD

    async def _apply(self, proven: list[tuple[Candidate, Settlement]]) -> None:
        outcomes = await self.rounds.apply_settlements(proven, self.settings.keep)
        done = [pair for pair, outcome in zip(proven, outcomes, strict=True) if outcome is Applied.DONE]
        for candidate, made in done:
            self.publish(*(Placed(candidate.digest, at) for at in made.trim))
        trimmed = sum(len(made.trim) for _, made in done)
        self._count(trimmed=trimmed)
        if trimmed:
            _log.info("trimmed copies after reading one that stays", copies=trimmed, blobs=len(done))

    def _count(self, **more: int) -> None:
        self.totals = evolve(self.totals, **{name: getattr(self.totals, name) + by for name, by in more.items()})
