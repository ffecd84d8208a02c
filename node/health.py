"""What the health endpoints say: pure functions from facts in memory to Quay's JSON and status.

Source: Quay `health/healthcheck.py`, `health/services.py`, `endpoints/web.py`. The body is
`{"data": {"services": {name: bool}}, "status_code": N}`, N is 200 or 503 and is the status too. Where this registry differs:

- `/health/endtoend` looks at this node's *preferred* store only (Quay: every store of the preference list) unless
  `HEALTH_ENDTOEND_POLICY: any` says that one store which can serve is enough, at the watcher's board (Quay writes into every store
  for every probe), and turns 503 while the node drains.
- PostgreSQL and Redis are shared by all regions, so that leaving the balancer would not help: Redis never makes anything 503, the
  database only after `HEALTH_DATABASE_GRACE`. What does not count is shown all the same.
"""

from collections.abc import Mapping
from enum import Enum
from math import inf
from typing import Protocol

from attrs import Factory, field, frozen

from replication.model import Board, Drill, LocationHealth, Verdict

DISK_THRESHOLD = 0.01
"""Free fraction below which an instance is unhealthy (DISKSPACE_HEALTH_THRESHOLD)."""

DISK_WARNING_THRESHOLD = 0.1
"""Free fraction below which `/health/warning` says so (DISKSPACE_HEALTH_WARNING_THRESHOLD)."""

MISSED_PROBES = 3
"""A board is stale when the third probe in a row is missing: as many as it takes to call a location down."""

Json = dict[str, object]


class ServiceState(Enum):
    """What the supervisor says about one service of this node."""

    STARTING = "starting"
    RUNNING = "running"
    RESTARTING = "restarting"
    """It crashed and waits for its next start."""
    FAILED = "failed"
    """It will not be started again."""


@frozen
class ServiceFacts:
    """One supervised service. `reason` is its last crash, in one line."""

    state: ServiceState
    reason: str = ""
    restarts: int = 0


@frozen
class Reachability:
    """Whether a shared part answers, and since when (seconds on the caller's monotonic clock) it has been so."""

    ok: bool
    since: float
    reason: str = ""


@frozen
class DiskSpace:
    """Bytes of the file system that the node keeps temporary files in."""

    free: int
    total: int

    @property
    def free_fraction(self) -> float:
        """Return the free share, 0 to 1."""
        return self.free / self.total if self.total else 0.0


@frozen
class HealthFacts:
    """All that the endpoints may know. Times are seconds on the caller's monotonic clock, which `now` is too."""

    preference: tuple[str, ...]
    board: Board
    probe_period: float
    """Probe interval plus probe deadline, seconds."""
    database: Reachability
    policy: str = "preferred"
    """HEALTH_ENDTOEND_POLICY: "preferred" or "any"."""
    elsewhere: Mapping[str, Mapping[str, str]] = Factory(dict)
    """What other nodes said last of a location that is not well for them: location -> node -> verdict. Only shown."""
    measured: Board | None = None
    """The board without drills; None: it is the same."""
    drills: Mapping[str, Drill] = Factory(dict)
    """Locations that are treated as down for a while; load balancers hear of it only where a drill wants that."""
    database_grace: float | None = None
    """HEALTH_DATABASE_GRACE, seconds; None: the database's loss never counts."""
    redis: Reachability | None = None
    """None: the node runs without it."""
    services: Mapping[str, ServiceFacts] = Factory(dict)
    disk: DiskSpace | None = None
    draining: bool = False
    clock: str = ""
    """How far the machine's clock is off, in words, empty while it is right."""
    team_sync: str = ""
    """What keeps teams from following their groups, empty while nothing does."""
    collection_paused: str = ""
    """Why garbage collection is paused, empty while it is not."""
    node: str = field(default="")
    """The node's own name, for the expanded answer."""


class HealthSource(Protocol):
    """Who knows the facts: the supervisor. Answers from memory, at once."""

    def facts(self) -> HealthFacts:
        """Return the facts as they are now."""
        ...


@frozen
class Check:
    """One line of an answer. A check that does not count is shown but never makes the answer 503."""

    name: str
    ok: bool
    message: str = ""
    counts: bool = True


@frozen
class HealthAnswer:
    """An answer of a health endpoint, before it is JSON."""

    checks: tuple[Check, ...]

    @property
    def status(self) -> int:
        """200, or 503 if a check that counts is bad."""
        return 200 if all(check.ok or not check.counts for check in self.checks) else 503

    def body(self, *, expanded: bool = False, node: str = "") -> Json:
        """Return the JSON document. `expanded` adds reasons: for operators, never for everyone."""
        data: Json = {"services": {check.name: check.ok for check in self.checks}}
        if expanded:
            data["services_expanded"] = {check.name: _expanded(check) for check in self.checks}
            data["hostname"] = node
        return {"data": data, "status_code": self.status}


def _expanded(check: Check) -> Json:
    line: Json = {"status": check.ok}
    if check.message:
        line["message" if check.ok else "failure"] = check.message
    return line


def end_to_end(facts: HealthFacts, now: float) -> HealthAnswer:
    """Answer `/health/endtoend` and `/status`: whether a load balancer should send clients here."""
    return HealthAnswer(
        (
            Check("auth", ok=True),
            _database(facts, now),
            _redis(facts),
            _storage(facts, now),
            Check("accepting", ok=not facts.draining, message="draining" if facts.draining else ""),
        )
    )


def instance(facts: HealthFacts, now: float) -> HealthAnswer:
    """Answer `/health` and `/health/instance`: whether this process works. Draining is work, not illness."""
    services = (
        Check(f"service_{name}", ok=service.state in WORKING, message=_service_message(service))
        for name, service in sorted(facts.services.items())
    )
    return HealthAnswer(
        (Check("auth", ok=True), _database(facts, now), _disk("disk_space", facts, DISK_THRESHOLD), *services)
    )


def warning(facts: HealthFacts) -> HealthAnswer:
    """Answer `/health/warning`: what will be a failure soon.

    Garbage that is not collected, a clock that is wrong, and teams that do not follow their groups are shown while that is so.
    """
    shown = {"garbage_collection": facts.collection_paused, "clock": facts.clock, "team_sync": facts.team_sync}
    return HealthAnswer(
        (
            _disk("disk_space_warning", facts, DISK_WARNING_THRESHOLD),
            *(Check(name, ok=False, message=message, counts=False) for name, message in shown.items() if message),
        )
    )


def locations(facts: HealthFacts, now: float, *, expanded: bool = False) -> Json:
    """Answer `/api/v1/health/locations`: the board, preferred first. `expanded` adds whole reasons, which may name hosts."""
    order = {name: place for place, name in enumerate(facts.preference)}
    names = sorted({*facts.board, *facts.preference}, key=lambda name: (order.get(name, len(order)), name))
    return {"locations": [_location(facts, name, now, expanded=expanded) for name in names], "draining": facts.draining}


WORKING = frozenset({ServiceState.STARTING, ServiceState.RUNNING})


def _service_message(service: ServiceFacts) -> str:
    parts = [service.state.value]
    if service.restarts:
        parts.append(f"{service.restarts} restarts")
    if service.reason:
        parts.append(service.reason)
    return ", ".join(parts)


def _database(facts: HealthFacts, now: float) -> Check:
    reach = facts.database
    overdue = facts.database_grace is not None and now - reach.since > facts.database_grace
    return Check("database", ok=reach.ok, message=_reach_message(reach), counts=overdue)


def _redis(facts: HealthFacts) -> Check:
    if facts.redis is None:
        return Check("redis", ok=True, message="not configured", counts=False)
    return Check("redis", ok=facts.redis.ok, message=_reach_message(facts.redis), counts=False)


def _reach_message(reach: Reachability) -> str:
    return reach.reason if reach.ok or reach.reason else "unreachable"


def _stale(facts: HealthFacts, health: LocationHealth, now: float) -> bool:
    """`fresh_until` is one period after the latest good probe began; a store that fails is down by the third."""
    return now > health.fresh_until + (MISSED_PROBES - 1) * facts.probe_period


def _storage(facts: HealthFacts, now: float) -> Check:
    board = _told_balancers(facts)
    return _any_store(facts, board, now) if facts.policy == "any" else _preferred_store(facts, board, now)


def _told_balancers(facts: HealthFacts) -> Board:
    """Return the board as load balancers may know it: most drills are kept from them."""
    if facts.measured is None:
        return facts.board
    kept = {name for name, drill in facts.drills.items() if not drill.balancer}
    return {name: facts.measured[name] if name in kept else health for name, health in facts.board.items()}


def _any_store(facts: HealthFacts, board: Board, now: float) -> Check:
    ailing = [
        f"{name} is {health.verdict.value}: {health.reason}"
        for name, health in sorted(board.items())
        if health.verdict is not Verdict.HEALTHY or _stale(facts, health, now)
    ]
    serving = any(
        health.verdict in (Verdict.HEALTHY, Verdict.DEGRADED) and not _stale(facts, health, now)
        for health in board.values()
    )
    return Check("storage", ok=serving, message="; ".join(ailing))


def _preferred_store(facts: HealthFacts, board: Board, now: float) -> Check:
    preferred = facts.preference[0]
    health = board.get(preferred, LocationHealth(preferred))
    if health.verdict in (Verdict.DOWN, Verdict.UNKNOWN):
        return Check("storage", ok=False, message=f"{preferred} is {health.verdict.value}: {health.reason}")
    if _stale(facts, health, now):
        return Check("storage", ok=False, message=f"{preferred}: no good probe of late")
    others = [
        f"{name} is {other.verdict.value}: {other.reason}"
        for name, other in sorted(board.items())
        if name != preferred and other.verdict is not Verdict.HEALTHY
    ]
    return Check("storage", ok=True, message="; ".join(others))


def _disk(name: str, facts: HealthFacts, threshold: float) -> Check:
    if facts.disk is None:
        return Check(name, ok=True)
    free = facts.disk.free_fraction
    return Check(name, ok=free >= threshold, message=f"{free:.1%} free, threshold {threshold:.1%}")


def _location(facts: HealthFacts, name: str, now: float, *, expanded: bool) -> Json:
    health = facts.board.get(name, LocationHealth(name, since=now))
    line: Json = {
        "location": name,
        "preferred": name == facts.preference[0],
        "verdict": health.verdict.value,
        "since_seconds": round(max(0.0, now - health.since), 3),
        "latency_seconds": health.latency,
        "probe_good": health.probe_good,
        "probe_age_seconds": None if health.probed_at == -inf else round(max(0.0, now - health.probed_at), 3),
        "doubted_seconds": round(max(0.0, health.doubted_until - now), 3),
        "stale": _stale(facts, health, now),
        "reason": health.reason if expanded else _harmless(health.reason),
        "elsewhere": dict(facts.elsewhere.get(name, {})),
    }
    if (drill := facts.drills.get(name)) is not None:
        line["drill"] = {"seconds_left": round(drill.left, 3), "balancer": drill.balancer}
    return line


def _harmless(reason: str) -> str:
    """Return what everybody may read of a reason: hosts, buckets and paths come after its first colon."""
    return reason.partition(":")[0]
