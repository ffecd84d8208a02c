"""The health endpoints' decisions, as pure functions of facts."""

import pytest
from attrs import evolve

from node.health import (
    DiskSpace,
    HealthAnswer,
    HealthFacts,
    Reachability,
    ServiceFacts,
    ServiceState,
    end_to_end,
    instance,
    locations,
    warning,
)
from replication.model import LocationHealth, Verdict

NOW = 1000.0
PERIOD = 4.0


def location(
    name: str, verdict: Verdict = Verdict.HEALTHY, *, fresh_until: float = NOW + 1, reason: str = ""
) -> LocationHealth:
    return LocationHealth(name, verdict, NOW - 60, reason, 0.02, verdict is not Verdict.DOWN, fresh_until)


FACTS = HealthFacts(
    preference=("us", "eu"),
    board={"us": location("us"), "eu": location("eu")},
    probe_period=PERIOD,
    database=Reachability(ok=True, since=0.0),
    redis=Reachability(ok=True, since=0.0),
    services={"watcher": ServiceFacts(ServiceState.RUNNING)},
    disk=DiskSpace(free=50, total=100),
    node="us-1",
)


def shown(answer: HealthAnswer, name: str) -> bool:
    (ok,) = [check.ok for check in answer.checks if check.name == name]
    return ok


def test_all_is_well() -> None:
    """Nothing wrong is 200 everywhere."""
    assert [answer.status for answer in (end_to_end(FACTS, NOW), instance(FACTS, NOW), warning(FACTS))] == [200] * 3


@pytest.mark.parametrize(
    ("verdict", "status"),
    [(Verdict.HEALTHY, 200), (Verdict.DEGRADED, 200), (Verdict.DOWN, 503), (Verdict.UNKNOWN, 503)],
)
def test_preferred_store(verdict: Verdict, status: int) -> None:
    """A preferred store that is down, or of which nothing is known yet, is 503; a degraded one is not."""
    answer = end_to_end(evolve(FACTS, board={**FACTS.board, "us": location("us", verdict)}), NOW)
    assert (answer.status, shown(answer, "storage")) == (status, status == 200)


@pytest.mark.parametrize(
    ("us", "eu", "status"),
    [
        (Verdict.DOWN, Verdict.HEALTHY, 200),
        (Verdict.DOWN, Verdict.DEGRADED, 200),
        (Verdict.DOWN, Verdict.DOWN, 503),
        (Verdict.UNKNOWN, Verdict.DOWN, 503),
        (Verdict.HEALTHY, Verdict.DOWN, 200),
    ],
)
def test_any_store_will_do(us: Verdict, eu: Verdict, status: int) -> None:
    """Where any store is enough, only the loss of all of them is 503; operators read of each that ails."""
    board = {"us": location("us", us, reason="on fire"), "eu": location("eu", eu)}
    answer = end_to_end(evolve(FACTS, board=board, policy="any"), NOW)
    assert (answer.status, shown(answer, "storage")) == (status, status == 200)
    assert ("on fire" in str(answer.body(expanded=True))) == (us is not Verdict.HEALTHY)


def test_any_store_must_have_been_probed() -> None:
    """A verdict that no probe confirms any more is nobody's reason to send clients here."""
    board = {name: location(name, fresh_until=NOW - 3 * PERIOD) for name in ("us", "eu")}
    assert end_to_end(evolve(FACTS, board=board, policy="any"), NOW).status == 503


def test_preferred_store_missing_from_the_board() -> None:
    """A preferred store that the watcher does not know is not healthy."""
    assert end_to_end(evolve(FACTS, board={"eu": location("eu")}), NOW).status == 503


@pytest.mark.parametrize("verdict", list(Verdict))
def test_another_store(verdict: Verdict) -> None:
    """A store that is not the preferred one is no reason to leave the balancer; operators read about it."""
    answer = end_to_end(evolve(FACTS, board={**FACTS.board, "eu": location("eu", verdict, reason="slow disk")}), NOW)
    assert answer.status == 200
    expanded = answer.body(expanded=True)["data"]
    assert isinstance(expanded, dict)
    assert ("slow disk" in str(expanded["services_expanded"])) == (verdict is not Verdict.HEALTHY)


@pytest.mark.parametrize(
    ("overdue", "status"), [(-1.0, 200), (2 * PERIOD, 200), (2 * PERIOD + 0.1, 503), (float("inf"), 503)]
)
def test_stale_board(overdue: float, status: int) -> None:
    """A verdict that no probe confirmed for as long as it takes to call a store down is never shown as healthy."""
    answer = end_to_end(evolve(FACTS, board={"us": location("us", fresh_until=NOW - overdue)}), NOW)
    assert answer.status == status
    assert locations(evolve(FACTS, board={"us": location("us", fresh_until=NOW - overdue)}), NOW)["locations"]


def test_redis_never_counts() -> None:
    """Redis is shown as it is, and its loss never makes an answer 503."""
    answer = end_to_end(evolve(FACTS, redis=Reachability(ok=False, since=0.0)), NOW)
    assert (answer.status, shown(answer, "redis")) == (200, False)
    assert shown(end_to_end(evolve(FACTS, redis=None), NOW), "redis")


@pytest.mark.parametrize(
    ("grace", "lost_for", "status"), [(None, 1e9, 200), (30.0, 29.0, 200), (30.0, 31.0, 503), (0.0, 0.1, 503)]
)
def test_database_grace(grace: float | None, lost_for: float, status: int) -> None:
    """The database's loss is shown at once and counts only after the grace, where one is configured."""
    facts = evolve(FACTS, database=Reachability(ok=False, since=NOW - lost_for), database_grace=grace)
    for answer in (end_to_end(facts, NOW), instance(facts, NOW)):
        assert (answer.status, shown(answer, "database")) == (status, False)


def test_long_reachable_database_within_grace() -> None:
    """A database that has been well for longer than the grace is not overdue."""
    assert end_to_end(evolve(FACTS, database_grace=30.0), NOW).status == 200


def test_draining() -> None:
    """A node that drains sends the balancer's clients away, but is not ill."""
    facts = evolve(FACTS, draining=True)
    assert (end_to_end(facts, NOW).status, instance(facts, NOW).status) == (503, 200)


@pytest.mark.parametrize(
    ("state", "status"),
    [
        (ServiceState.STARTING, 200),
        (ServiceState.RUNNING, 200),
        (ServiceState.RESTARTING, 503),
        (ServiceState.FAILED, 503),
    ],
)
def test_services(state: ServiceState, status: int) -> None:
    """A service that does not run makes the instance ill."""
    answer = instance(
        evolve(FACTS, services={"watcher": ServiceFacts(state), "janitor": ServiceFacts(ServiceState.RUNNING)}), NOW
    )
    assert (answer.status, shown(answer, "service_watcher"), shown(answer, "service_janitor")) == (
        status,
        status == 200,
        True,
    )


@pytest.mark.parametrize(
    ("free", "warned", "ill"), [(100, 200, 200), (99, 503, 200), (10, 503, 200), (9, 503, 503), (0, 503, 503)]
)
def test_disk_space(free: int, warned: int, ill: int) -> None:
    """Little disk space is a warning below a tenth, an illness below a hundredth."""
    facts = evolve(FACTS, disk=DiskSpace(free, 1000))
    assert (warning(facts).status, instance(facts, NOW).status) == (warned, ill)


def test_body() -> None:
    """The body has Quay's shape; reasons and the node's name are only in the expanded one."""
    facts = evolve(FACTS, database=Reachability(ok=False, since=0.0, reason="timed out"))
    plain = end_to_end(facts, NOW).body()
    assert plain == {
        "data": {"services": {"auth": True, "database": False, "redis": True, "storage": True, "accepting": True}},
        "status_code": 200,
    }
    expanded = end_to_end(facts, NOW).body(expanded=True, node="us-1")["data"]
    assert isinstance(expanded, dict)
    assert expanded["services_expanded"]["database"] == {"status": False, "failure": "timed out"}
    assert expanded["hostname"] == "us-1"


def test_locations() -> None:
    """The board lists the preference in its order, then the rest by name, with all that is known; hosts are for operators."""
    board = {name: location(name, reason="EngineUnavailable: host-7 is gone") for name in ("zz", "aa", "eu")}
    board["eu"] = evolve(board["eu"], probed_at=NOW - 1.5, doubted_until=NOW + 30)
    facts = evolve(FACTS, board=board, elsewhere={"eu": {"eu-1": "down"}})
    lines = locations(facts, NOW)["locations"]
    assert isinstance(lines, list)
    assert [line["location"] for line in lines] == ["us", "eu", "aa", "zz"]
    assert (lines[0]["verdict"], lines[0]["stale"], lines[0]["probe_age_seconds"]) == ("unknown", True, None)
    assert lines[1] == {
        "location": "eu",
        "preferred": False,
        "verdict": "healthy",
        "since_seconds": 60.0,
        "latency_seconds": 0.02,
        "probe_good": True,
        "probe_age_seconds": 1.5,
        "doubted_seconds": 30.0,
        "stale": False,
        "reason": "EngineUnavailable",
        "elsewhere": {"eu-1": "down"},
    }
    assert "host-7" not in str(lines)
    assert "host-7" in str(locations(facts, NOW, expanded=True))
