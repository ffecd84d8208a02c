"""The copies that one transfer may read, as they prove themselves: who is next, who was dropped, and why."""

from collections.abc import Iterable, Iterator

from attrs import define, field

from replication.model import Placement


class NoGoodSource(Exception):
    """No copy of a blob could be read to the end. `reasons` says per location what was wrong with it.

    `unreached` are the locations that failed: nobody knows what they hold, while the other copies are missing or wrong.
    """

    def __init__(self, digest: str, reasons: tuple[tuple[str, str], ...], unreached: tuple[str, ...] = ()) -> None:
        self.digest = digest
        self.reasons = reasons
        self.unreached = unreached
        told = "; ".join(f"{location}: {reason}" for location, reason in reasons) or "there is no copy"
        super().__init__(f"no good source for {digest}: {told}")


@define(eq=False)
class Candidate:
    """One copy, and how it did so far."""

    placement: Placement
    failures: int = 0
    patient: bool = False
    """It was too slow for the usual deadlines: the next try gives it smaller pieces of work and more time."""
    dropped: bool = False
    reason: str = ""
    unreached: bool = False
    """It could not be read, which says nothing of what it holds."""


@define(eq=False)
class Roster:
    """The candidates of one transfer, best first, shared by everything that reads for it.

    A source that failed goes behind those that did not, so that each part of a copy does not fall into the same hole again; one
    that is missing or lied is dropped for good.
    """

    candidates: list[Candidate] = field(factory=list)

    @classmethod
    def of(cls, sources: Iterable[Placement]) -> "Roster":
        """Return a roster of `sources`, which are in the order in which they should be tried."""
        return cls([Candidate(placement) for placement in sources])

    def tries(self) -> Iterator[Candidate]:
        """Yield candidates to try for one piece of work, until the caller has it: each once, and what was only slow once more.

        Looks at the roster anew at every step, so what other readers of the same transfer learnt meanwhile counts.
        """
        tried: dict[int, bool] = {}
        while True:
            fresh = [c for c in self.candidates if not c.dropped and id(c) not in tried]
            slow = [c for c in self.candidates if not c.dropped and c.patient and tried.get(id(c)) is False]
            candidate = min(fresh, key=lambda c: c.failures, default=None) or next(iter(slow), None)
            if candidate is None:
                return
            tried[id(candidate)] = candidate.patient
            yield candidate

    def failed(self, candidate: Candidate, reason: str, *, slow: bool = False) -> None:
        """Note that a candidate failed; `slow` when it may only need more time."""
        candidate.failures += 1
        candidate.reason = reason
        candidate.unreached = True
        candidate.patient = candidate.patient or slow

    def drop(self, candidate: Candidate, reason: str, *, unreached: bool = False) -> None:
        """Never use this candidate again in this transfer."""
        candidate.dropped = True
        candidate.reason = reason
        candidate.unreached = unreached

    def left(self) -> int:
        """Return how many candidates may still be used."""
        return sum(1 for candidate in self.candidates if not candidate.dropped)

    def best(self) -> str | None:
        """Return the location of the copy that proved itself best so far, None if all were dropped."""
        left = [c for c in self.candidates if not c.dropped]
        return min(left, key=lambda c: c.failures).placement.location if left else None

    def reasons(self) -> tuple[tuple[str, str], ...]:
        """Return per location what was wrong with it."""
        return tuple((c.placement.location, c.reason) for c in self.candidates)

    def unreached(self) -> tuple[str, ...]:
        """Return the locations of which nobody could see what they hold."""
        return tuple(c.placement.location for c in self.candidates if c.unreached)
