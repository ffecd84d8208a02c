"""How far away a store is: the least latency of the last minutes."""

from math import inf

from hypothesis import given
from hypothesis import strategies as st

from replication.distance import WINDOW, Distance

answers = st.lists(st.tuples(st.floats(0, 2 * WINDOW), st.floats(0.001, 5)), max_size=40)


@given(answers)
def test_a_busy_store_is_no_farther(given_answers: list[tuple[float, float]]) -> None:
    """It is the least of what was measured within a window, and of nothing that is much older."""
    distance, now, seen = Distance(), 0.0, list[tuple[float, float]]()
    for pause, latency in given_answers:
        now += pause
        distance = distance.after(latency, now)
        seen.append((now, latency))
        assert distance.seconds is not None
        assert distance.seconds <= min(latency for at, latency in seen if now - at < WINDOW)
        assert distance.seconds >= min(latency for at, latency in seen if now - at <= 3 * WINDOW)


def test_nothing_is_known_before_the_first_answer() -> None:
    """Not even that it is near."""
    assert Distance().seconds is None
    assert Distance().after(inf, 0.0).seconds == inf
