"""A node whose clock is off says so: every heartbeat tells it the database's time."""

import time

import pytest
from structlog.testing import capture_logs

from node.clock_offset import LONGEST_TRIP, WRONG, ClockOffset
from node.health import warning
from node.metrics_state import State, Totals
from tests.registry.world import Region


@pytest.mark.parametrize("off", [45.0, -45.0])
async def test_operators_see_a_clock_that_is_off(us: Region, off: float) -> None:
    """In the log once, as a metric, and at /health/warning, until it is right again; nothing is refused because of it."""
    node, clock = us.node, us.node.ledger.clock

    def seen() -> tuple[dict[str, str], float]:
        families = State(node, us.registry.memory, Totals(us.registry.database), "test").collect()
        (ahead,) = [s.value for f in families for s in f.samples if s.name == "antipode_clock_ahead_seconds"]
        answer = warning(node.facts())
        assert answer.status == 200
        return {check.name: check.message for check in answer.checks if not check.ok}, ahead

    await node.ledger.heartbeat()
    checks, ahead = seen()
    assert checks == {}
    assert abs(ahead) < WRONG
    with capture_logs() as logs:
        clock.clock = lambda: time.time() + off
        for _ in range(3):
            await node.ledger.heartbeat()
    (told,) = [line for line in logs if "clock is off" in line["event"]]
    assert told["log_level"] == "warning"
    assert abs(told["ahead"] - off) <= LONGEST_TRIP / 2
    checks, ahead = seen()
    assert abs(ahead - off) <= LONGEST_TRIP / 2
    assert ("s ahead of" if off > 0 else "s behind") in checks["clock"]
    with capture_logs() as logs:
        clock.clock = time.time
        await node.ledger.heartbeat()
    assert len([line for line in logs if "clock is right again" in line["event"]]) == 1
    checks, ahead = seen()
    assert checks == {}
    assert abs(ahead) < WRONG


@pytest.mark.parametrize(
    ("sent", "received", "ahead", "wrong"),
    [
        (100.0, 100.2, 0.1, False),
        (110.0, 110.2, 10.1, False),
        (110.2, 110.4, 10.3, True),
        (89.6, 89.8, -10.3, True),
        (109.0, 112.0, 10.5, False),
        (111.6, 114.6, 13.1, True),
    ],
)
def test_what_is_certain_counts(sent: float, received: float, ahead: float, wrong: bool) -> None:
    """The database's 100 s were at some moment of the trip: only what is off even at its better end is wrong."""
    offset = ClockOffset()
    offset.take(sent, 100.0, received)
    assert offset.ahead == pytest.approx(ahead)
    assert offset.wrong is wrong


def test_late_answers_and_clocks_that_are_set_tell_nothing() -> None:
    """Neither a trip that took too long nor one that ended before it began."""
    offset = ClockOffset()
    offset.take(100.0, 100.0, 100.5)
    offset.take(200.0, 100.0, 200.5 + LONGEST_TRIP)
    offset.take(200.0, 100.0, 199.0)
    assert offset.ahead == pytest.approx(0.25)
    assert not offset.wrong
