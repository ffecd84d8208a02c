"""The judge excuses what a fault explains and nothing else: histories and faults made by hand."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.nemesis.faults import Fault, Reach, Spell
from tests.nemesis.ground import Ground
from tests.nemesis.history import Failure, History, Operation
from tests.nemesis.judge import Tried, not_excused, summary


@asynccontextmanager
async def _nothing(_ground: Ground) -> AsyncIterator[None]:
    yield


def spell(reach: Reach, began: float = 10.0, stopped: float = 20.0, alone: frozenset[str] = frozenset()) -> Spell:
    return Spell(Fault(f"a {reach} fault", reach, _nothing), began, stopped, alone)


def bare(door: str, began: float, ended: float) -> Operation:
    pull = Operation("pull", "reader", door, "a/b", None, began, ended=ended, retries=False)
    pull.failures.append(Failure(began, ended, "reset"))
    return pull


def command(kind: str, began: float, ended: float) -> Operation:
    return Operation("push" if kind == "push" else "pull", "writer", "redirects", "a/b", "tag", began, ended=ended)


@pytest.mark.parametrize(
    ("reach", "door", "began", "excused"),
    [
        ("store", "redirects", 11, True),
        ("store", "redirects", 14.9, True),
        ("store", "redirects", 15.1, False),
        ("store", "streams", 11, False),
        ("bytes", "redirects", 19, True),
        ("bytes", "streams", 11, False),
        ("node", "streams", 12, True),
        ("node", "streams", 13.5, False),
        ("freeze", "streams", 11, False),
        ("drain", "streams", 11, False),
        ("database", "streams", 11, False),
        ("redis", "redirects", 11, False),
    ],
)
def test_a_single_try_may_fail_only_at_first(reach: Reach, door: str, began: float, excused: bool) -> None:
    """Redirected pulls for a probe interval and deadline, requests to a dead node until the balancer has left it, else none."""
    assert (not_excused(History([bare(door, began, began + 0.1)]), [spell(reach)]) == []) is excused


def test_what_was_under_way_when_the_fault_began_may_fail() -> None:
    """A download that a store broke off began before; one that had ended before did not fail by it."""
    assert not_excused(History([bare("redirects", 7, 10.5)]), [spell("store")]) == []
    assert not_excused(History([bare("redirects", 7, 9.5)]), [spell("store")])


def test_one_of_two_faults_is_enough_of_an_excuse() -> None:
    """Each failure is held against every fault that happened."""
    spells = [spell("redis"), spell("store", 20, 30)]
    assert not_excused(History([bare("redirects", 22, 23)]), spells) == []
    assert not_excused(History([bare("redirects", 12, 13)]), spells)


@pytest.mark.parametrize(
    ("reach", "began", "excused"),
    [("node", 11, False), ("store", 11, False), ("region", 11, False), ("database", 11, True), ("database", 22, False)],
)
def test_commands_fail_only_without_a_database(reach: Reach, began: float, excused: bool) -> None:
    """With the retries that a client has by default no other fault makes a command fail."""
    assert (not_excused(History([command("push", began, began + 1)]), [spell(reach)]) == []) is excused


def unavailable(digest: str, began: float, *, registry: bool = True) -> Operation:
    """Return a pull whose last request was told that no store which has this blob can be reached."""
    pull = command("pull", began - 1, began + 0.2)
    body = (
        f'{{"errors": [{{"code": "UNAVAILABLE", "detail": {{"digest": "{digest}", "sources": {{"eu": "refused"}}}}}}]}}'
    )
    where = "registry" if registry else "eu"
    pull.failures.append(Failure(began, began + 0.1, f"GET /v2/a/b/blobs/{digest} at {where}: 503 {body}"))
    return pull


@pytest.mark.parametrize(
    ("digest", "began", "excused"),
    [
        ("sha256:only", 22, True),
        ("sha256:elsewhere", 22, False),
        ("sha256:only", 18, False),
        ("sha256:only", 31, False),
    ],
)
def test_nobody_has_what_only_a_lost_store_has(digest: str, began: float, excused: bool) -> None:
    """After another fault a blob may be in one store only: then its pulls fail, as long as that is out of reach, and no others."""
    spells = [spell("region"), spell("store", 20, 30, frozenset({"sha256:only"}))]
    assert (not_excused(History([unavailable(digest, began)]), spells) == []) is excused
    # A single fault excuses none of it, nor any other failure of such a blob's pull.
    assert not_excused(History([unavailable(digest, began)]), spells[1:])
    assert not_excused(History([unavailable(digest, began, registry=False)]), spells)
    streamed = unavailable(digest, began)
    streamed.failures.append(Failure(began + 0.1, began + 0.2, f"GET /v2/a/b/blobs/{digest} at registry: broke off"))
    assert not_excused(History([streamed]), spells)


@pytest.mark.parametrize("reach", ["node", "freeze", "region", "drain", "store"])
def test_a_manifest_that_a_lost_node_had_is_no_excuse(reach: Reach) -> None:
    """Docker gives a push up whose manifest, which it sends once, got no answer: so the balancer must have sent it again."""
    push = command("push", 9, 10.1)
    push.failures.append(Failure(9.9, 10.1, "PUT /v2/a/b/manifests/latest: closed"))
    assert not_excused(History([push]), [spell(reach)])


def test_no_request_hangs() -> None:
    """A request that took longer than twenty seconds to fail is named, though its client succeeded in the end."""
    push = command("push", 11, 50)
    push.ok = True
    push.failures.append(Failure(11, 40, "no answer"))
    assert "waited 29.0 s" in not_excused(History([push]), [spell("store")])[0]


@pytest.mark.parametrize(
    ("door", "began", "excused"), [("redirects", 12, True), ("redirects", 16, False), ("streams", 12, False)]
)
def test_a_store_that_hangs_keeps_whom_it_was_sent(door: str, began: float, excused: bool) -> None:
    """A client that was sent to a store before its loss could be known waits there as long as it likes."""
    assert (not_excused(History([bare(door, began, began + 60)]), [spell("store")]) == []) is excused


def test_a_body_may_take_its_time() -> None:
    """What counts is how long nothing happened: bytes that flow, however slowly, are no wait."""
    push = command("push", 11, 50)
    push.ok = True
    push.failures.append(Failure(11, 50, "503", moved=35))
    assert not_excused(History([push]), [spell("store")]) == []
    push.failures.append(Failure(11, 56, "503", moved=35))
    assert "waited 21.0 s" in not_excused(History([push]), [spell("store")])[0]


def test_the_line_says_what_was_counted() -> None:
    """Single tries are counted by door, and redirected ones by when they began."""
    good = bare("redirects", 16, 16.5)
    good.ok, good.failures = True, []
    history = History([bare("redirects", 11, 12), good, bare("streams", 11, 11.5), command("push", 12, 14)])
    line = summary("it", history, [spell("store")], 20.0, 1.5, [])
    assert line.redirected_early == Tried(1, 1)
    assert line.redirected == Tried(1, 0)
    assert line.streamed == Tried(1, 1)
    assert line.pushes == Tried(1, 1)
    assert line.fail_over == pytest.approx(1.0)
