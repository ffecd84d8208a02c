"""Properties of the health state machine: bounds for going down and coming back, no flapping, no stale praise."""

from hypothesis import given
from hypothesis import strategies as st

from replication.health import HealthRules, Record, line, new_record, probed, settled_until, witnessed
from replication.model import Verdict

RULES = HealthRules()


def probe(record: Record, now: float, ok: bool, latency: float = 0.01) -> Record:
    return probed(record, RULES, began=now - 0.01, now=now, ok=ok, latency=latency if ok else None, reason="broken")


def run(outcomes: list[bool], record: Record | None = None, start: float = 0.0) -> tuple[Record, list[Verdict], float]:
    """Probe every interval; return the record, the verdict after each probe, and the time."""
    record, verdicts, now = record or new_record("us", start), [], start
    for ok in outcomes:
        now += RULES.interval
        record = probe(record, now, ok)
        verdicts.append(record.health.verdict)
    return record, verdicts, now


outcomes = st.lists(st.booleans(), max_size=60)


@given(outcomes)
def test_three_failures_in_a_row_are_down_and_fewer_never(history: list[bool]) -> None:
    """A location falls exactly with the third failure in a row, never before."""
    _, verdicts, _ = run(history)
    before = Verdict.UNKNOWN
    for place, verdict in enumerate(verdicts):
        streak = history[max(0, place - 2) : place + 1] == [False] * 3
        if streak:
            assert verdict is Verdict.DOWN
        if verdict is Verdict.DOWN and before is not Verdict.DOWN:
            assert streak
        before = verdict


@given(outcomes)
def test_whatever_happened_quiet_heals(history: list[bool]) -> None:
    """After eight quiet spells of good probes at most every location is healthy again."""
    record, _, now = run(history)
    spells = int(8 * RULES.recovery_quiet / RULES.interval) + 2
    _, verdicts, _ = run([True] * spells, record, now)
    assert verdicts[-1] is Verdict.HEALTHY


@given(outcomes)
def test_no_flapping(history: list[bool]) -> None:
    """It comes back only after a quiet spell, so a fall and a return are never closer than that."""
    _, verdicts, _ = run(history)
    for place in range(1, len(verdicts)):
        if verdicts[place - 1] is Verdict.DOWN and verdicts[place] is not Verdict.DOWN:
            quiet = int(RULES.recovery_quiet / RULES.interval)
            assert all(history[place - quiet + 1 : place + 1])
            assert all(v is Verdict.DOWN for v in verdicts[place - quiet : place])


def test_a_location_that_falls_again_and_again_waits_longer() -> None:
    """Each fall soon after a return doubles the quiet spell, up to eight times."""
    record, now, spells = new_record("us", 0.0), 0.0, []
    for _ in range(5):
        record, _, now = run([False] * 3, record, now)
        fell = now
        while record.health.verdict is Verdict.DOWN:
            record, _, now = run([True], record, now)
        spells.append(now - fell)
    assert spells == [10, 20, 40, 80, 80]


@given(st.lists(st.integers(0, 50), min_size=1, max_size=10))
def test_a_burst_of_broken_streams_is_one_failure(bursts: list[int]) -> None:
    """However many transfers break between two good probes, live traffic alone takes nothing down."""
    record, _, now = run([True])
    for burst in bursts:
        for _ in range(burst):
            record = witnessed(record, RULES, now=now, ok=False, reason="reset")
        now += RULES.interval
        assert record.health.verdict is not Verdict.DOWN
        record = probe(record, now, ok=True)


@given(outcomes, st.floats(0, 100), st.floats(0, 100))
def test_a_settled_line_stays(history: list[bool], later: float, wait: float) -> None:
    """Until the moment that is told, time alone changes nothing about a location."""
    record, _, now = run(history)
    seen = now + later
    until = settled_until(record, seen)
    assert until >= seen or until == float("-inf")
    if seen + wait <= until:
        assert line(record, RULES, seen + wait) == line(record, RULES, seen)


@given(outcomes, st.floats(0, 100))
def test_a_stale_probe_is_never_healthy(history: list[bool], later: float) -> None:
    """Once the latest good probe is overdue the board says healthy no more, and after a while that it does not know."""
    record, _, now = run(history)
    shown = line(record, RULES, now + later)
    if now + later > record.health.fresh_until:
        assert shown.verdict is not Verdict.HEALTHY
    if later > 4 * RULES.freshness:
        assert shown.verdict in (Verdict.UNKNOWN, Verdict.DOWN)


@given(outcomes)
def test_one_failed_probe_forbids_redirects(history: list[bool]) -> None:
    """`probe_good` is the latest probe's outcome and nothing else."""
    record, _, _ = run(history)
    assert record.health.probe_good == (history[-1] if history else False)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_since_and_reason_tell_about_the_verdict(history: list[tuple[bool, bool]]) -> None:
    """`since` moves exactly when the verdict changes, and there is always a reason."""
    record, now = new_record("us", 0.0), 0.0
    for is_probe, ok in history:
        before, now = record.health, now + RULES.interval
        record = probe(record, now, ok) if is_probe else witnessed(record, RULES, now=now, ok=ok, reason="reset")
        after = record.health
        assert after.since == (before.since if after.verdict is before.verdict else now)
        assert after.reason


def test_a_slow_location_is_degraded_until_it_is_quick_again() -> None:
    """A smoothed latency over the limit is degraded; under four fifths of it healthy."""
    record, now = new_record("us", 0.0), 0.0
    for _ in range(10):
        now += RULES.interval
        record = probe(record, now, ok=True, latency=1.5)
    assert record.health.verdict is Verdict.DEGRADED
    assert "slow" in record.health.reason
    for _ in range(10):
        now += RULES.interval
        record = probe(record, now, ok=True, latency=0.1)
    assert record.health.verdict is Verdict.HEALTHY
