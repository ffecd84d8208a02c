"""The rounds of reconciliation in memory: what the PostgreSQL ones promise, with the ledger's seeded outages."""

from collections.abc import Sequence

from property_tests.memory_ledger import Line
from property_tests.memory_truth import COUNTING, Truth
from replication.model import LocationState, Placement
from replication.reconcile import BlobFacts, Settlement
from replication.rounds import (
    Applied,
    Candidate,
    CandidatePage,
    ClaimedPage,
    PageKind,
    Spare,
    Unproven,
    UnprovenPage,
)

LEASE_SECONDS = 60.0


class MemoryRounds:
    """See `replication.rounds.Rounds`."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._truth: Truth = line.truth

    async def claim_page(self, most: int, between_rounds: float) -> ClaimedPage:
        await self._line.call()
        page = self._claim(most, between_rounds)
        self._line.done()
        return page

    def _claim(self, most: int, between_rounds: float) -> ClaimedPage:
        at, now = self._truth.round, self._truth.now()
        if at.phase == "rest":
            if at.number >= at.hurry_before and now < at.until:
                return self._page(PageKind.REST)
            at.number, at.phase, at.after, at.until = at.number + 1, "tags", 0, float("-inf")
        if at.phase == "tags":
            if now < at.until:
                return self._page(PageKind.REST)
            at.until = now + LEASE_SECONDS
            return self._page(PageKind.TAGS)
        late = [after for after, (_, until) in at.pages.items() if until < now]
        if late:
            after = min(late)
            at.pages[after] = at.pages[after][0], now + LEASE_SECONDS
            return self._page(PageKind.BLOBS, after, at.pages[after][0])
        ids = sorted(blob for blob in self._truth.blobs if blob > at.after)[:most]
        if not ids:
            if not at.pages:
                at.phase, at.completed, at.until = "rest", at.number, now + between_rounds
            return self._page(PageKind.REST)
        after, at.after = at.after, ids[-1]
        at.pages[after] = ids[-1], now + LEASE_SECONDS
        return self._page(PageKind.BLOBS, after, ids[-1])

    def _page(self, kind: PageKind, after: int = 0, last: int = 0) -> ClaimedPage:
        at = self._truth.round
        return ClaimedPage(kind, after, last, at.number < at.hurry_before)

    async def finish_page(self, page: ClaimedPage) -> None:
        await self._line.call()
        at = self._truth.round
        if page.kind is not PageKind.TAGS:
            at.pages.pop(page.after, None)
        elif at.phase == "tags":
            at.phase, at.after, at.until = "blobs", 0, float("-inf")
        self._line.done()

    async def find_candidates(self, after: int, upto: int | None, most: int, *, replicate: bool) -> CandidatePage:
        await self._line.call()
        truth = self._truth
        ids = sorted(blob for blob in truth.blobs if blob > after and (upto is None or blob <= upto))[:most]
        looked = [(truth.blobs[number], truth.facts(number)) for number in ids]
        found = tuple(
            Candidate(blob.id, blob.digest, blob.size, facts, "")
            for blob, facts in looked
            if (_is_off(facts) if replicate else not _stays(facts))
        )
        last = ids[-1] if len(ids) == most and ids[-1] != upto else None
        self._line.done()
        return CandidatePage(found, len(ids), last)

    async def apply_settlements(
        self, settlements: Sequence[tuple[Candidate, Settlement]], keep_seconds: float
    ) -> Sequence[Applied]:
        await self._line.call()
        outcomes = [self._apply(candidate, made, keep_seconds) for candidate, made in settlements]
        self._line.done()
        return outcomes

    def _apply(self, candidate: Candidate, made: Settlement, keep: float) -> Applied:
        truth, blob = self._truth, candidate.blob_id
        if blob not in truth.blobs:
            return Applied.BUSY
        if truth.facts(blob) != candidate.facts:
            return Applied.CHANGED
        for at in made.owe:
            truth.owe(blob, at)
        for at in made.strike:
            key = truth.tasks.pop((blob, at)).key
            if key is not None and not any(p.location == at and p.key == key for p in truth.placements.values()):
                truth.bury(at, key, keep)
        for at in made.trim:
            truth.bury(at, truth.placements.pop((blob, at)).key, keep)
        return Applied.DONE

    async def claim_trims(self, blobs: Sequence[int], lease_seconds: float) -> Sequence[Spare]:
        await self._line.call()
        truth, now, taken = self._truth, self._truth.now(), []
        for blob in (truth.blobs[number] for number in blobs if number in truth.blobs):
            if truth.trims.get(blob.id, float("-inf")) < now and truth.sources(blob.id):
                truth.trims[blob.id] = now + lease_seconds
                candidate = Candidate(blob.id, blob.digest, blob.size, truth.facts(blob.id), "")
                taken.append(Spare(candidate, blob, truth.sources(blob.id)))
        self._line.done()
        return taken

    async def finish_trims(self, blobs: Sequence[int]) -> None:
        await self._line.call()
        for blob in blobs:
            self._truth.trims.pop(blob, None)
        self._line.done()

    async def claim_unproven(self, after: int, most: int, lease_seconds: float, slowest: int) -> UnprovenPage:
        await self._line.call()
        truth, now, items = self._truth, self._truth.now(), []
        readable = (LocationState.ACTIVE, LocationState.DRAINING, LocationState.DRAINED)
        looked, size, last = 0, 0, after
        for number in sorted(blob for blob in truth.blobs if blob > after):
            copies = tuple(copy for copy in truth.sources(number) if truth.states[copy.location] in readable)
            leaving = {
                copy.location
                for copy in copies
                if truth.states[copy.location] is not LocationState.ACTIVE and not truth.outlives(number, copy.location)
            }
            if not any({copy.location for copy in copies if not copy.suspect} - {at} for at in leaving):
                continue
            looked, last = looked + 1, number
            size += truth.blobs[number].size
            if truth.trims.get(number, float("-inf")) < now:
                items.append(Unproven(truth.blobs[number], copies, frozenset(leaving)))
            if looked == most:
                break
        for item in items:
            truth.trims[item.blob.id] = now + lease_seconds + size / slowest
        self._line.done()
        return UnprovenPage(tuple(items), last if looked == most else None)

    async def note_proven(self, copies: Sequence[tuple[int, Placement]]) -> None:
        await self._line.call()
        truth = self._truth
        for blob, copy in copies:
            known = truth.placements.get((blob, copy.location))
            if known is not None and known.key == copy.key and not known.suspect:
                truth.proven[blob, copy.location] = copy.key, truth.now()
        self._line.done()

    async def compile_tags(self) -> int:
        await self._line.call()
        changed = self._truth.compile_tags()
        self._line.done()
        return changed

    async def forget_wishes(self) -> None:
        await self._line.call()
        now = self._truth.now()
        self._truth.wishes = {place: until for place, until in self._truth.wishes.items() if until >= now}
        self._line.done()

    async def note_drained(self) -> Sequence[str]:
        await self._line.call()
        drained = self._truth.note_drained()
        self._line.done()
        return drained

    async def purge_removed(self) -> int:
        await self._line.call()
        gone = self._truth.purge_removed()
        self._line.done()
        return gone


def ask_for_round(truth: Truth) -> None:
    """Make the nodes hurry until a whole round was done that begins after this."""
    truth.round.hurry_before = truth.round.number + 2


def _is_off(facts: BlobFacts) -> bool:
    good = {at for at, ok in facts.placed.items() if ok}
    tasks, placed = set(facts.tasks), set(facts.placed)
    return not (facts.required <= good | tasks and placed | tasks <= facts.required and not tasks & good)


def _stays(facts: BlobFacts) -> bool:
    states = dict(facts.states)
    return any(ok and states[at] in COUNTING for at, ok in facts.placed.items())
