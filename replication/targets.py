"""Where to write: the locations that may take a new blob, best first. Pure."""

from collections.abc import Collection, Mapping, Sequence

from replication.model import Board, LocationState
from replication.sources import VERDICT_ORDER, health_of


def choose_targets(
    preference: Sequence[str],
    states: Mapping[str, LocationState],
    board: Board,
    allowed: Collection[str] | None = None,
) -> tuple[str, ...]:
    """Return the locations of `preference` to write to, in the order in which they should be tried.

    Only active ones (a location without a state is not active) and, where `allowed` is given, only these: what a namespace
    forbids is never written to, not even as a last resort. Healthy before degraded before unknown before down, then the order of
    `preference`: a location that is down stays in the list, because trying it is better than refusing a push.
    """
    usable = [
        location
        for location in dict.fromkeys(preference)
        if states.get(location) is LocationState.ACTIVE and (allowed is None or location in allowed)
    ]
    return tuple(sorted(usable, key=lambda location: VERDICT_ORDER[health_of(board, location).verdict]))
