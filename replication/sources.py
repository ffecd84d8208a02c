"""Pull-source selection: which copies of a blob to read, best first, and whether a client may be sent to one. Pure."""

from collections.abc import Iterable, Sequence
from math import inf

from replication.model import Board, LocationHealth, Placement, Verdict

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
    places = {location: place for place, location in enumerate(preference)}

    def rank(placement: Placement) -> tuple[bool, int, bool, float, int, str, str]:
        health = health_of(board, placement.location)
        place = places.get(placement.location, len(places))
        return (
            placement.suspect,
            VERDICT_ORDER[health.verdict],
            place != 0,
            inf if health.latency is None else health.latency,
            place,
            placement.location,
            placement.key,
        )

    return tuple(sorted(placements, key=rank))


def may_redirect(placement: Placement, board: Board, now: float) -> bool:
    """Return whether a client may be sent to this copy instead of being served by the node.

    Only if it is not suspect, its location is not down, and the location's latest probe was good and is not overdue at `now`:
    one failed or late probe is enough to say no, because nobody fails over for a client that was sent away.
    """
    health = health_of(board, placement.location)
    return (
        not placement.suspect
        and health.probe_good
        and now <= health.fresh_until
        and health.verdict in (Verdict.HEALTHY, Verdict.DEGRADED)
    )
