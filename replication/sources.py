"""Pull-source selection: which copies of a blob to read, best first, and whether a client may be sent to one. Pure."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import inf

from attrs import evolve

from replication.model import PIECE, Blob, Board, LocationHealth, LocationState, Placement, Verdict

VERDICT_ORDER = {verdict: rank for rank, verdict in enumerate(Verdict)}


def health_of(board: Board, location: str) -> LocationHealth:
    """Return the board's line for `location`, UNKNOWN where it has none."""
    return board.get(location) or LocationHealth(location)


def choose_sources(placements: Iterable[Placement], preference: Sequence[str], board: Board) -> tuple[Placement, ...]:
    """Return all copies of a blob in the order in which they should be tried.

    Suspect copies come last. Then health decides (healthy, degraded, unknown, down), then whether it is this node's preferred
    location (the first of `preference`), then the measured latency, then the place in `preference`, then the name. The order is
    total, so the same copies and board give the same answer however they are listed, and another copy moves no two others.
    """
    copies = tuple(placements)
    if len(copies) < 2:
        return copies
    rank = _ranking(preference, board)
    return tuple(sorted(copies, key=lambda copy: (copy.suspect, rank(copy.location), copy.key)))


def _ranking(preference: Sequence[str], board: Board) -> Callable[[str], tuple[int, bool, float, int, str]]:
    places = {location: place for place, location in enumerate(preference)}

    def rank(location: str) -> tuple[int, bool, float, int, str]:
        health = health_of(board, location)
        place = places.get(location, len(places))
        latency = inf if health.latency is None else health.latency
        return VERDICT_ORDER[health.verdict], place != 0, latency, place, location

    return rank


Standing = tuple[tuple[str, Verdict, bool], ...]
"""Locations, the best first, each with its verdict and whether clients may be sent there."""


def standing(board: Board, preference: Sequence[str], now: float) -> Standing:
    """Return what the order of copies and `may_redirect` depend on: while it is the same, so are they, for all that a board knows.

    A board is another one after every probe, its standing hardly ever.
    """
    rank = _ranking(preference, board)
    return tuple((name, board[name].verdict, _takes_clients(board[name], now)) for name in sorted(board, key=rank))


def readable(placements: Iterable[Placement], states: Mapping[str, LocationState]) -> tuple[Placement, ...]:
    """Return the copies that may be read at all: those in locations that are not out of service. One without a state is not."""
    return tuple(placement for placement in placements if not _is_out(states.get(placement.location)))


def in_service(board: Board, states: Mapping[str, LocationState]) -> Board:
    """Return the board as operators want it seen: what is out of service is down there, however well it answers probes."""
    return {
        name: evolve(health, verdict=Verdict.DOWN, probe_good=False, reason=f"{states[name].value} by the operators")
        if _is_out(states.get(name))
        else health
        for name, health in board.items()
    }


def _is_out(state: LocationState | None) -> bool:
    """Return whether operators want nothing read from a location in this state, or written to it."""
    # Every pull asks, and looking a member of an enumeration up in a set calls Python's code for its hash.
    return state is LocationState.PAUSED or state is LocationState.REMOVED


def may_redirect(placement: Placement, board: Board, now: float) -> bool:
    """Return whether a client may be sent to this copy instead of being served by the node.

    Only if it is not suspect, its location is not down, and the location's latest probe was good and is not overdue at `now`:
    one failed or late probe is enough to say no, because nobody fails over for a client that was sent away. So are wrong bytes
    that any node got from there of late: nobody verifies what a client reads from a store itself.
    """
    return not placement.suspect and _takes_clients(health_of(board, placement.location), now)


def _takes_clients(health: LocationHealth, now: float) -> bool:
    return (
        health.probe_good
        and now <= health.fresh_until
        and now > health.doubted_until
        and health.verdict in (Verdict.HEALTHY, Verdict.DEGRADED)
    )


def lacks(placements: Iterable[Placement], location: str) -> bool:
    """Return whether `location` has no copy that is trusted."""
    return not any(placement.location == location and not placement.suspect for placement in placements)


def may_tee(
    blob: Blob,
    placements: Iterable[Placement],
    preferred: str,
    state: LocationState | None,
    board: Board,
    *,
    least: int,
    most: int,
) -> bool:
    """Return whether a pull that the node streams should bring the blob to the preferred store on the way.

    Only a blob with pieces of at least `least` bytes that the store lacks, and only into a store that operators want (active) and
    that is well. `most` is the size of the spool: with room for no piece there is no tee.
    """
    return (
        blob.pieces is not None
        and blob.size >= max(least, 1)
        and most >= PIECE
        and lacks(placements, preferred)
        and state is LocationState.ACTIVE
        and health_of(board, preferred).verdict in (Verdict.HEALTHY, Verdict.DEGRADED)
    )
