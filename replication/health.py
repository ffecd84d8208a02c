"""The state machine of a location's health: probe results and what live traffic saw in, a line of the board out. Pure.

A line goes down after `failures_to_fall` failures in a row and comes back after a quiet spell without any; a location that falls
again soon after it came back must be quiet for longer, up to eight times as long. What live traffic sees counts as one failure
between two probes at most, so that a hiccup which breaks many streams at once is one failure and not many.
"""

from collections.abc import Mapping
from math import inf

from attrs import evolve, field, frozen

from replication.distance import Distance
from replication.model import Board, LocationHealth, Verdict


@frozen
class HealthRules:
    """When a verdict changes. Seconds."""

    interval: float = 2.0
    """From the beginning of one probe to the beginning of the next."""
    deadline: float = 2.0
    """A probe that takes longer has failed."""
    failures_to_fall: int = 3
    recovery_quiet: float = 10.0
    slow: float = 1.0
    """A smoothed latency above this is degraded; it must sink below four fifths of it to count as quick again."""
    smoothing: float = 0.3
    """The weight of the newest measurement."""
    doubt: float = 60.0
    """How long no client is sent to a location after wrong bytes came from there."""

    @property
    def freshness(self) -> float:
        """How long after it began a good probe vouches for the location."""
        return self.interval + self.deadline


@frozen
class Record:
    """All that is remembered of one location. `health` is the line of the board as of the latest event."""

    health: LocationHealth
    failures: int = 0
    """Failures in a row."""
    traffic_counted: bool = False
    """Whether live traffic has already counted as a failure since the latest probe."""
    last_failure: float = field(default=float("-inf"))
    last_failure_reason: str = ""
    fell_at: float = field(default=float("-inf"))
    recovered_at: float = field(default=float("-inf"))
    strikes: int = 0
    """Falls that followed a recovery too soon."""
    slow: bool = False
    distance: Distance = field(factory=Distance)


MOST_STRIKES = 3
_SOON = 6.0


def new_record(location: str, now: float) -> Record:
    """Return the record of a location of which nothing was seen yet."""
    return Record(LocationHealth(location, since=now))


def _quiet(record: Record, rules: HealthRules) -> float:
    return rules.recovery_quiet * float(2**record.strikes)


def _with_verdict(record: Record, verdict: Verdict, reason: str, now: float) -> Record:
    health = record.health
    since = health.since if health.verdict is verdict else now
    return evolve(record, health=evolve(health, verdict=verdict, reason=reason, since=since))


def _with_latency(record: Record, rules: HealthRules, latency: float | None, now: float) -> Record:
    if latency is None:
        return record
    before = record.health.latency
    smoothed = latency if before is None else before + rules.smoothing * (latency - before)
    slow = smoothed > (rules.slow * 0.8 if record.slow else rules.slow)
    distance = record.distance.after(latency, now)
    health = evolve(record.health, latency=smoothed, distance=distance.seconds)
    return evolve(record, slow=slow, distance=distance, health=health)


def _failed(record: Record, rules: HealthRules, now: float, reason: str) -> Record:
    record = evolve(record, failures=record.failures + 1, last_failure=now, last_failure_reason=reason)
    verdict = record.health.verdict
    if verdict is Verdict.DOWN:
        return _with_verdict(record, Verdict.DOWN, reason, now)
    if record.failures >= rules.failures_to_fall:
        soon = now - record.recovered_at < _SOON * _quiet(record, rules)
        strikes = min(record.strikes + 1, MOST_STRIKES) if soon else 0
        return _with_verdict(evolve(record, fell_at=now, strikes=strikes), Verdict.DOWN, reason, now)
    if verdict is Verdict.UNKNOWN:
        return _with_verdict(record, Verdict.UNKNOWN, reason, now)
    return _with_verdict(record, Verdict.DEGRADED, reason, now)


def _good(record: Record, rules: HealthRules, now: float) -> Record:
    record = evolve(record, failures=0)
    quiet_for = now - record.last_failure
    if record.health.verdict is Verdict.DOWN:
        if quiet_for < _quiet(record, rules):
            reason = f"answers again for {quiet_for:.0f} of {_quiet(record, rules):.0f} s; {record.last_failure_reason}"
            return _with_verdict(record, Verdict.DOWN, reason, now)
        record = evolve(record, recovered_at=now)
    elif quiet_for < rules.recovery_quiet:
        return _with_verdict(record, Verdict.DEGRADED, f"a failure was seen: {record.last_failure_reason}", now)
    if record.slow:
        return _with_verdict(record, Verdict.DEGRADED, f"slow: {record.health.latency or 0.0:.2f} s", now)
    return _with_verdict(record, Verdict.HEALTHY, "answers", now)


def probed(
    record: Record,
    rules: HealthRules,
    *,
    began: float,
    now: float,
    ok: bool,
    latency: float | None = None,
    reason: str = "",
) -> Record:
    """Return the record after a probe that began at `began` and ended at `now`; `latency` is its time to first byte."""
    record = evolve(record, traffic_counted=False, health=evolve(record.health, probed_at=began))
    if not ok:
        record = evolve(record, health=evolve(record.health, probe_good=False))
        return _failed(record, rules, now, reason or "probe failed")
    record = _with_latency(record, rules, latency, now)
    fresh_until = began + rules.freshness
    record = evolve(record, health=evolve(record.health, probe_good=True, fresh_until=fresh_until))
    return _good(record, rules, now)


def witnessed(
    record: Record,
    rules: HealthRules,
    *,
    now: float,
    ok: bool,
    latency: float | None = None,
    reason: str = "",
    lied: bool = False,
) -> Record:
    """Return the record after live traffic succeeded or failed at the location; `lied` says that its bytes were wrong.

    Success tells the latency and nothing else: a store may serve what it has cached and be ill. A probe decides.
    """
    if ok:
        return _with_latency(record, rules, latency, now)
    if lied:
        record = doubted(record, rules, now)
    if record.traffic_counted:
        return evolve(record, last_failure=now, last_failure_reason=reason)
    return _failed(evolve(record, traffic_counted=True), rules, now, reason or "a transfer failed")


def doubted(record: Record, rules: HealthRules, now: float) -> Record:
    """Return the record after this node, or another, got wrong bytes from the location. That alone changes no verdict."""
    return evolve(record, health=evolve(record.health, doubted_until=now + rules.doubt))


def settled_until(record: Record, now: float) -> float:
    """Return until when the `line` of `now` stays as it is, if no new record comes; -inf where that is no later than `now`."""
    health = record.health
    if health.verdict in (Verdict.DOWN, Verdict.UNKNOWN):
        return inf
    return health.fresh_until if now <= health.fresh_until else -inf


def line(record: Record, rules: HealthRules, now: float) -> LocationHealth:
    """Return the line of the board at `now`: an overdue probe is never healthy, and a long overdue one tells nothing any more."""
    health = record.health
    if health.verdict in (Verdict.DOWN, Verdict.UNKNOWN) or now <= health.fresh_until:
        return health
    overdue = now - health.fresh_until
    if overdue > rules.failures_to_fall * rules.freshness:
        return evolve(health, verdict=Verdict.UNKNOWN, reason=f"probe overdue for {overdue:.0f} s")
    if health.verdict is Verdict.HEALTHY:
        return evolve(health, verdict=Verdict.DEGRADED, reason=f"probe overdue for {overdue:.1f} s")
    return health


def down_for(board: Board, now: float) -> Mapping[str, float]:
    """Return for how many seconds each location that is down has been so."""
    return {name: now - health.since for name, health in board.items() if health.verdict is Verdict.DOWN}


def why_down(board: Board) -> Mapping[str, str]:
    """Return the reason of each location that is down."""
    return {name: health.reason for name, health in board.items() if health.verdict is Verdict.DOWN}
