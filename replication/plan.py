"""What to do next: which locations a node serves, how much to claim, who goes first, when to try again, what is stalled. Pure."""

from collections.abc import Collection, Mapping, Sequence

from attrs import frozen

from replication.model import ClusterView, LocationHealth, LocationState, Verdict

MIB = 1 << 20

SMALL = MIB // 4
FAR = 0.02
SHARED_BY = 4
"""As many copies of blobs up to `SMALL` bytes share a stream where a store is `FAR` seconds away or farther."""

STALLED_AFTER = 8
"""Tries that failed before a task counts as stalled: about four minutes of back-off. It is still retried."""

SILENT_AFTER = 10.0
"""Seconds: a node that has been silent for longer owns nothing."""

BACKOFF_BASE = 1.0
BACKOFF_CAP = 300.0

NORMAL = 0
WAITED_FOR = 10
"""Priority of what a client in that region has asked for."""
DEMANDED = 20
"""Priority of what somebody waits for by name: the wait API, durability on request."""

PRIORITY_SECONDS = 6 * 3600.0
"""One step of priority is worth having arrived so much earlier: ten outweigh the backlog of an outage over a weekend."""
SIZE_BYTES_PER_SECOND = 4 * MIB
MOST_SIZE_SECONDS = 300.0

AHEAD_BYTES = 32 * MIB
"""What one claim takes ahead of time at most: less than a second's work, which another node could not do meanwhile."""


@frozen
class Duties:
    """The locations that a node works for, its own preferred one first: where it pays copies, and where it deletes."""

    copies: tuple[str, ...]
    sweeps: tuple[str, ...]


def duties(
    preference: Sequence[str], known: Collection[str], cluster: ClusterView, silent_after: float, draining: bool = False
) -> Duties:
    """Return what this node serves: its own preferred location, and those that no living node prefers.

    `cluster.nodes` are the other nodes; one that has been silent for more than `silent_after` seconds, or is draining, owns
    nothing. `known` are the locations that this node's file has. Copies go to active locations only; deletes reach all but paused
    and removed ones. A node that is itself draining takes on nothing new.
    """
    if draining:
        return Duties((), ())
    owned = {
        node.preference[0]
        for node in cluster.nodes
        if node.preference and not node.draining and node.silent_for <= silent_after
    }
    mine = preference[0] if preference else None
    places = {location: place for place, location in enumerate(preference)}
    ordered = sorted(known, key=lambda location: (places.get(location, len(places)), location))
    served = [location for location in ordered if location == mine or location not in owned]
    return Duties(
        copies=tuple(location for location in served if cluster.states.get(location) is LocationState.ACTIVE),
        sweeps=tuple(
            location
            for location in served
            if cluster.states.get(location, LocationState.REMOVED) not in (LocationState.PAUSED, LocationState.REMOVED)
        ),
    )


def stream_share(size: int, distance: float | None) -> float:
    """Return how much of a stream the copy of a blob takes: all of it, or a quarter where a small one has a long way to go.

    `size` is in bytes, `distance` in seconds: there and back to the farther one of its two stores, None where that is unknown. Such
    a copy does nothing but wait nearly all the time: of 16 KiB from 100 ms away eight streams bring 60 in a second, and a backlog
    has hundreds of thousands of them.
    """
    return 1 / SHARED_BY if size <= SMALL and distance is not None and distance >= FAR else 1.0


def free_streams(
    location: str,
    served: Sequence[str],
    running: Mapping[str, float],
    health: LocationHealth,
    *,
    total: int,
    per_location: int,
) -> float:
    """Return how many more streams copies into `location` may take now.

    `running` is how many are taken, by destination. None is free into a location that is down, one where nothing is known, half
    of `per_location` where it is degraded. Every other served location that runs nothing keeps one of the `total` streams free for
    itself, and a location that runs nothing may always start one, so that none ever waits for another: the streams of a node are
    bounded by the greater of `total` and the number of served locations.
    """
    if health.verdict is Verdict.DOWN:
        return 0.0
    own = running.get(location, 0.0)
    most = {Verdict.HEALTHY: per_location, Verdict.DEGRADED: (per_location + 1) // 2}.get(health.verdict, 1)
    idle_others = sum(1 for other in served if other != location and not running.get(other))
    free = total - sum(running.values()) - idle_others
    if own == 0:
        free = max(free, 1.0)
    return max(0.0, min(most - own, free))


def worth_claiming(sizes: Sequence[int], most: int, ahead: int) -> int:
    """Return how many of the first tasks in the queue, of blobs of these sizes, one claim takes.

    `most` for now, and ahead of time up to `ahead` more whose bytes are few, so that no stream waits for the database between two
    small blobs. Never one behind another that it does not take.
    """
    extra = 0
    for at, size in enumerate(sizes[: most + ahead]):
        extra += size if at >= most else 0
        if extra > AHEAD_BYTES:
            return at
    return min(len(sizes), most + ahead)


def precedence(created: float, priority: int, size: int) -> float:
    """Return the place of a task in the queue: the least goes first. A constant of the task, so that a database can index it.

    `created` is when the debt arose (any clock, seconds), `priority` `NORMAL`, `WAITED_FOR`, `DEMANDED` or between, `size` the
    blob's bytes. Small before large and urgent before ordinary, but both only as if they had come earlier: a task is never
    overtaken by one that arose more than `MOST_SIZE_SECONDS + PRIORITY_SECONDS * (difference of priority)` later. So none starves.
    """
    return created - PRIORITY_SECONDS * priority + min(size / SIZE_BYTES_PER_SECOND, MOST_SIZE_SECONDS)


def backoff(attempts: int, jitter: float, base: float = BACKOFF_BASE, cap: float = BACKOFF_CAP) -> float:
    """Return the seconds to wait after `attempts` failures (1 is the first): doubling up to `cap`.

    `jitter` in [0, 1) spreads it over the upper half, so that what failed together does not come back together.
    """
    full = min(cap, base * 2.0 ** min(max(attempts - 1, 0), 32))
    return full * (0.5 + jitter / 2)


def is_stalled(attempts: int) -> bool:
    """Return whether a task that failed `attempts` times is to be shown as stalled. It is retried all the same."""
    return attempts >= STALLED_AFTER
