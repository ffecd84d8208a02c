"""Has an image arrived? From a closure's facts and the health board to one answer, never a better one than the facts bear. Pure."""

from collections.abc import Mapping, Sequence
from enum import Enum

from attrs import evolve, frozen

from replication.closure import Closure, ClosureBlob, Debt, Place
from replication.model import Board, LocationState, Verdict
from replication.plan import is_stalled
from replication.sources import health_of

_ALL_SAY_SO = "every node that copies there says so"


class Status(Enum):
    """What can be said of a closure in a location."""

    PRESENT = "present"
    """Every blob has a verified copy there."""
    PENDING = "pending"
    """Copies are on their way, or next in line."""
    STALLED = "stalled"
    """They are owed and retried, but nothing moves at the moment."""
    NOT_REQUIRED = "not_required"
    """No policy and nobody wants them there, so nothing will come."""
    IMPOSSIBLE = "impossible"
    """The policy forbids the location, or a blob has no copy left anywhere."""


SETTLED = frozenset({Status.PRESENT, Status.NOT_REQUIRED, Status.IMPOSSIBLE})
"""Waiting longer would not change these by itself."""


@frozen
class Arrival:
    """The answer. Sizes in bytes, `estimate` in seconds from now, `since` in POSIX seconds."""

    status: Status
    blobs: int
    size: int
    missing_blobs: int = 0
    missing_bytes: int = 0
    estimate: float | None = None
    """None where nobody has measured the copies into this location, or nothing is coming."""
    queue_position: int | None = None
    bytes_ahead: int | None = None
    reason: str = ""
    """A sentence for people about anything but present and pending."""
    last_error: str | None = None
    since: float | None = None
    """Since when it has been stalled, or since when the copy that fails has been failing."""

    @property
    def settled(self) -> bool:
        """Return whether waiting longer would not change it by itself."""
        return self.status in SETTLED


def arrival(closure: Closure, location: str, board: Board, now: float) -> Arrival:
    """Return what can be said of `closure` in `location`, one of its places.

    `board` is what the answering node sees of the stores, its times and `now` on one clock: it counts where that node may be the
    one that copies. A *never* is said even of blobs that are there, because they are about to go.
    """
    place = closure.places[location]
    missing = closure.lacking(location)
    known = Arrival(
        Status.PRESENT,
        blobs=len(closure.blobs),
        size=sum(blob.size for blob in closure.blobs),
        missing_blobs=len(missing),
        missing_bytes=sum(blob.size for blob in missing),
    )
    if place.forbidden:
        reason = f"the namespace's policy says never {location}"
        return evolve(known, status=Status.IMPOSSIBLE, reason=reason)
    if not missing:
        return known
    lost = [blob.digest for blob in missing if not blob.held]
    if lost:
        return evolve(known, status=Status.IMPOSSIBLE, reason=f"no copy is left anywhere of {_some(lost)}")
    if not place.counts:
        reason = f"{location} is {place.state.value} and takes no new copies"
        return evolve(known, status=Status.NOT_REQUIRED, reason=reason)
    unwanted = [blob.digest for blob in missing if location not in blob.needs or not blob.needs[location].required]
    if unwanted:
        reason = f"no policy requires {_some(unwanted)} in {location}; request=true asks for it once"
        return evolve(known, status=Status.NOT_REQUIRED, reason=reason)
    return _coming(
        evolve(known, queue_position=place.queue_position, bytes_ahead=place.bytes_ahead),
        closure,
        place,
        as_copiers_see(board, place.copiers, now - closure.now),
        now,
    )


def as_copiers_see(board: Board, copiers: Sequence[Mapping[str, float] | None], offset: float) -> Board:
    """Return the board as those see it who copy: down is what all of them see down, and nothing else.

    `copiers` are the words of `Place.copiers`; `offset` is what makes their POSIX seconds the board's. Where nobody is known to
    copy, or one of them does not say what it sees, it is the board that is given.
    """
    said = [word for word in copiers if word is not None]
    if not said or len(said) < len(copiers):
        return board
    down = {name: max(word[name] for word in said) for name in said[0] if all(name in word for word in said)}
    lines = {name: line for name, line in board.items() if line.verdict is not Verdict.DOWN}
    for name, since in down.items():
        line = health_of(board, name)
        lines[name] = (
            line
            if line.verdict is Verdict.DOWN
            else evolve(line, verdict=Verdict.DOWN, since=since + offset, reason=_ALL_SAY_SO)
        )
    return lines


def _coming(known: Arrival, closure: Closure, place: Place, board: Board, now: float) -> Arrival:
    """Return `known` as stalled or pending: everything that is missing is owed."""
    missing = closure.lacking(place.name)
    failing = _longest_failing(missing, place.name)
    if failing is not None:
        known = evolve(known, last_error=failing.last_error, since=failing.failing_since)
    health = health_of(board, place.name)
    if place.state is LocationState.PAUSED:
        return evolve(known, status=Status.STALLED, reason=f"{place.name} is paused for maintenance")
    if health.verdict is Verdict.DOWN:
        return evolve(
            known,
            status=Status.STALLED,
            reason=f"{place.name} is down",
            last_error=health.reason,
            since=closure.now - (now - health.since),
        )
    for blob in missing:
        stuck = _unreachable(blob, board)
        if stuck is not None:
            reason, error, since = stuck
            began = None if since is None else closure.now - (now - since)
            return evolve(
                known, status=Status.STALLED, reason=reason, last_error=error or known.last_error, since=began
            )
    if failing is not None and is_stalled(failing.attempts):
        reason = f"copying failed {failing.attempts} times in a row; it is still retried"
        return evolve(known, status=Status.STALLED, reason=reason)
    rate = place.throughput
    estimate = (known.missing_bytes + place.bytes_ahead) / rate if rate else None
    return evolve(known, status=Status.PENDING, estimate=estimate)


def _unreachable(blob: ClosureBlob, board: Board) -> tuple[str, str | None, float | None] | None:
    """Return why no good copy of a blob can be read now, the last error, and since when on the board's clock; None if one can."""
    good = [location for location, ok in sorted(blob.held.items()) if ok]
    if not good:
        return (
            f"the copies of {blob.digest} in {', '.join(sorted(blob.held))} are suspect, and there is no other",
            None,
            None,
        )
    lines = [health_of(board, location) for location in good]
    if any(line.verdict is not Verdict.DOWN for line in lines):
        return None
    latest = max(lines, key=lambda line: line.since)
    return f"the only copies of {blob.digest} are in {', '.join(good)}, which is down", latest.reason, latest.since


def _longest_failing(missing: Sequence[ClosureBlob], location: str) -> Debt | None:
    """Return the debt that has failed most often in a row, the first of them if there are several."""
    debts = [need.debt for blob in missing if (need := blob.needs.get(location)) is not None and need.debt is not None]
    failing = [debt for debt in debts if debt.attempts]
    return min(failing, key=lambda debt: (-debt.attempts, debt.failing_since or 0.0), default=None)


def _some(digests: Sequence[str]) -> str:
    more = len(digests) - 1
    return digests[0] if not more else f"{digests[0]} and {more} more"
