"""Hypothesis strategies for the core's values: placements, preferences, boards."""

from hypothesis import strategies as st

from replication.model import LocationHealth, Placement, Verdict

LOCATIONS = ("ap", "eu", "sa", "uk", "us")

locations = st.sampled_from(LOCATIONS)
latencies = st.none() | st.floats(0.0, 10.0)


@st.composite
def boards(draw: st.DrawFn) -> dict[str, LocationHealth]:
    """Any health of any of the locations; some have no line."""
    names = draw(st.sets(locations))
    return {
        name: LocationHealth(
            name,
            draw(st.sampled_from(Verdict)),
            latency=draw(latencies),
            probe_good=draw(st.booleans()),
            fresh_until=draw(st.floats(-10, 10)),
        )
        for name in sorted(names)
    }


preferences = st.permutations(LOCATIONS).flatmap(
    lambda order: st.integers(1, len(order)).map(lambda n: tuple(order[:n]))
)

placement_sets = st.dictionaries(locations, st.booleans()).map(
    lambda found: tuple(Placement(name, f"r/{name}", suspect) for name, suspect in sorted(found.items()))
)
