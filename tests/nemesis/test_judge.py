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


def spell(reach: Reach, began: float = 10.0, stopped: float = 20.0) -> Spell:
    return Spell(Fault(f"a {reach} fault", reach, _nothing), began, stopped)


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


def test_no_request_hangs() -> None:
    """A request that took longer than twenty seconds to fail is named, though its client succeeded in the end."""
    push = command("push", 11, 50)
    push.ok = True
    push.failures.append(Failure(11, 40, "no answer"))
    assert "waited 29.0 s" in not_excused(History([push]), [spell("store")])[0]


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
