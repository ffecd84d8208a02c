"""Properties of what to do next: who serves what, how much at once, who goes first, when again."""

from hypothesis import given
from hypothesis import strategies as st

from property_tests.strategies import LOCATIONS, locations, preferences
from replication.model import ClusterView, LocationHealth, LocationState, NodeView, Verdict
from replication.plan import (
    BACKOFF_CAP,
    FAR,
    MOST_SIZE_SECONDS,
    PRIORITY_SECONDS,
    SHARED_BY,
    SMALL,
    backoff,
    duties,
    free_streams,
    is_stalled,
    precedence,
    stream_share,
)

nodes = st.lists(
    st.builds(NodeView, st.text(min_size=1, max_size=3), preferences, st.floats(0, 60), st.booleans()), max_size=5
)
all_active = dict.fromkeys(LOCATIONS, LocationState.ACTIVE)


@given(preferences, nodes, st.dictionaries(locations, st.sampled_from(LocationState)))
def test_every_location_is_served_by_somebody(
    preference: tuple[str, ...], others: list[NodeView], states: dict[str, LocationState]
) -> None:
    """An active location is served by this node unless a living node that is not draining prefers it; its own always."""
    mine = duties(preference, LOCATIONS, ClusterView(tuple(others), states), silent_after=10.0)
    for name in LOCATIONS:
        owned = any(n.preference[0] == name and n.silent_for <= 10 and not n.draining for n in others)
        active = states.get(name) is LocationState.ACTIVE
        assert (name in mine.copies) == (active and (name == preference[0] or not owned))
    assert set(mine.copies) <= set(mine.sweeps)
    if preference[0] in mine.sweeps:
        assert mine.sweeps[0] == preference[0]


def test_a_draining_node_takes_on_nothing() -> None:
    """It leaves all locations to the others."""
    assert duties(("us",), LOCATIONS, ClusterView((), all_active), 10.0, draining=True).sweeps == ()


taken_streams = st.dictionaries(locations, st.integers(0, 6 * SHARED_BY).map(lambda shares: shares / SHARED_BY))


@given(taken_streams, st.sampled_from(Verdict), st.integers(1, 10), st.integers(1, 10))
def test_copies_keep_to_the_limits(running: dict[str, float], verdict: Verdict, total: int, per_location: int) -> None:
    """Never beyond the location's limit or into one that is down; beyond the node's streams only the first of an idle one."""
    room = free_streams("us", LOCATIONS, running, LocationHealth("us", verdict), total=total, per_location=per_location)
    own = running.get("us", 0)
    assert room >= 0
    if verdict is Verdict.DOWN:
        assert room == 0
    else:
        assert room == 0 or own + room <= per_location
        assert room == 0 or room + sum(running.values()) <= total or (own == 0 and room == 1)
        assert own > 0 or room >= 1


@given(st.integers(1, 10), st.integers(1, 10), st.lists(locations, min_size=1, max_size=60))
def test_no_location_waits_for_another(total: int, per_location: int, order: list[str]) -> None:
    """However greedily some claim, a served location that runs nothing can always start, and streams stay bounded."""
    running: dict[str, float] = {}
    for name in order:
        health = LocationHealth(name, Verdict.HEALTHY)
        running[name] = running.get(name, 0) + free_streams(
            name, LOCATIONS, running, health, total=total, per_location=per_location
        )
        assert sum(running.values()) <= max(total, len(LOCATIONS))
        assert running[name] >= 1


@given(st.integers(0, 1 << 40), st.none() | st.floats(0, 10))
def test_only_what_waits_shares_a_stream(size: int, distance: float | None) -> None:
    """A copy is never more than a stream, and less only if its blob is small and its way long; an unknown way is not."""
    share = stream_share(size, distance)
    assert share in (1.0, 1 / SHARED_BY)
    assert (share < 1) == (size <= SMALL and distance is not None and distance >= FAR)


tasks = st.tuples(st.floats(0, 1e6), st.integers(0, 2), st.integers(0, 1 << 45))


@given(tasks, tasks)
def test_nothing_starves(task: tuple[float, int, int], later: tuple[float, int, int]) -> None:
    """A task is overtaken only by what arose within a bounded time after it."""
    steps = max(0, later[1] - task[1])
    if later[0] > task[0] + MOST_SIZE_SECONDS + PRIORITY_SECONDS * steps + 1:
        assert precedence(*task) < precedence(*later)


@given(st.floats(0, 1e6), st.integers(0, 2), st.integers(0, 1 << 29), st.integers(1, 1 << 29))
def test_small_before_large_and_urgent_before_ordinary(created: float, priority: int, size: int, more: int) -> None:
    """Of tasks of one age and priority the smaller goes first; of tasks of one age the more urgent, whatever the size."""
    assert precedence(created, priority, size) <= precedence(created, priority, size + more)
    assert precedence(created, priority + 1, 1 << 50) < precedence(created, priority, 0)


@given(st.integers(1, 10_000), st.floats(0, 0.999))
def test_backoff_grows_to_its_cap_and_never_stops(attempts: int, jitter: float) -> None:
    """Between half and all of a doubling that ends at the cap: retried for ever, never at once."""
    seconds = backoff(attempts, jitter)
    assert 0.5 <= seconds <= BACKOFF_CAP
    assert backoff(attempts + 1, jitter) >= seconds


def test_what_keeps_failing_is_stalled() -> None:
    """Not at the first failure, and not only after hours."""
    assert not is_stalled(1)
    assert is_stalled(10)
