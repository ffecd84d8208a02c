"""Supervised services: what restarts, what ends the node, and what the board shows meanwhile. On the virtual clock."""

from collections.abc import Iterator
from typing import Any

import pytest
import structlog
import trio
from structlog.testing import LogCapture

from node.health import ServiceState
from node.services import (
    NEVER_RESTART,
    NodeFailure,
    RestartPolicy,
    ServiceBoard,
    ServiceFailed,
    supervise,
)

ALWAYS = RestartPolicy(first_pause=1, longest_pause=8, quiet=60)


@pytest.fixture(autouse=True)
def logged() -> Iterator[LogCapture]:
    capture = LogCapture()
    before = structlog.get_config()
    structlog.configure(processors=[capture], cache_logger_on_first_use=False)
    yield capture
    structlog.configure(**before)


class Script:
    """A service that starts, runs for the next number of seconds and then fails; for ever after the last one."""

    def __init__(self, *runs: float, error: Exception | None = None) -> None:
        self.runs = list(runs)
        self.error = error or ValueError("a bug")
        self.started: list[float] = []
        self.ended = 0

    async def __call__(self, *, task_status: trio.TaskStatus[Any]) -> None:
        self.started.append(trio.current_time())
        task_status.started(f"run {len(self.started)}")
        try:
            if self.runs:
                await trio.sleep(self.runs.pop(0))
                raise self.error
            await trio.sleep_forever()
        finally:
            self.ended += 1


def state(board: ServiceBoard, name: str = "copier") -> ServiceState:
    return board.statuses()[name].state


async def test_a_running_service_is_on_the_board_and_reports_its_value(autojump_clock: trio.testing.MockClock) -> None:
    """The caller gets what the service started with, and the board shows it as running since then."""
    board = ServiceBoard()
    async with trio.open_nursery() as nursery:
        await trio.sleep(5)

        async def start(task_status: trio.TaskStatus[Any]) -> None:
            await supervise("copier", Script(), board=board, task_status=task_status)

        assert await nursery.start(start) == "run 1"
        line = board.statuses()["copier"]
        assert (line.state, line.since, line.restarts, line.last_error) == (ServiceState.RUNNING, 5.0, 0, None)
        nursery.cancel_scope.cancel()


async def test_a_bug_restarts_the_service_with_growing_pauses(
    autojump_clock: trio.testing.MockClock, logged: LogCapture
) -> None:
    """The pause doubles with every failure of a row, up to the cap, and each failure is logged with its cause."""
    service = Script(0, 0, 0, 0, 0)
    board = ServiceBoard()
    with trio.move_on_after(1000):
        await supervise("copier", service, board=board, restart=ALWAYS)
    starts = [start - service.started[0] for start in service.started]
    assert starts == [0, 1, 3, 7, 15, 23]
    assert service.ended == 6
    entries = [entry for entry in logged.entries if entry["event"] == "service failed"]
    assert [entry["restart_after"] for entry in entries] == [1, 2, 4, 8, 8]
    assert "a bug" in repr(entries[0]["exc_info"])


async def test_a_quiet_spell_begins_a_new_row(autojump_clock: trio.testing.MockClock) -> None:
    """A service that ran well for long is restarted after the first, short pause again."""
    service = Script(0, 0, 100, 0)
    with trio.move_on_after(1000):
        await supervise("copier", service, board=ServiceBoard(), restart=ALWAYS)
    starts = [start - service.started[0] for start in service.started]
    assert starts == [0, 1, 3, 104, 106]


async def test_the_board_says_restarting_and_why(autojump_clock: trio.testing.MockClock) -> None:
    """Between two runs the board shows that the service is restarting, how often it was, and its last error in one line."""
    board = ServiceBoard()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: supervise("copier", Script(10, 10), board=board, restart=ALWAYS))
        await trio.sleep(10.5)
        assert state(board) is ServiceState.RESTARTING
        await trio.sleep(1)
        assert state(board) is ServiceState.RUNNING
        line = board.statuses()["copier"]
        assert (line.restarts, line.last_error) == (1, "ValueError: a bug")
        assert board.facts()["copier"].reason == "ValueError: a bug"
        nursery.cancel_scope.cancel()


async def test_a_service_that_must_not_restart_ends_the_node(
    autojump_clock: trio.testing.MockClock, logged: LogCapture
) -> None:
    """Where a restart is not safe the failure leaves with its cause, and the board says failed."""
    board = ServiceBoard()
    with pytest.raises(ServiceFailed, match="the service copier failed: ValueError: a bug") as caught:
        await supervise("copier", Script(1), board=board, restart=NEVER_RESTART)
    assert isinstance(caught.value.__cause__, ExceptionGroup)
    assert state(board) is ServiceState.FAILED
    assert [entry["log_level"] for entry in logged.entries] == ["error"]


async def test_restarts_are_counted_out(autojump_clock: trio.testing.MockClock) -> None:
    """A policy with a most number of restarts ends the node after that many in a row."""
    service = Script(0, 0, 0, 0)
    with pytest.raises(ServiceFailed):
        await supervise("copier", service, board=ServiceBoard(), restart=RestartPolicy(most=2))
    assert len(service.started) == 3


async def test_an_expected_failure_is_not_restarted(autojump_clock: trio.testing.MockClock, logged: LogCapture) -> None:
    """A NodeFailure is for the operator: it leaves as itself, at once, without a traceback in the log."""
    board = ServiceBoard()
    service = Script(0, 0, error=NodeFailure("port 8080 is taken"))
    with pytest.raises(NodeFailure, match=r"^port 8080 is taken$"):
        await supervise("web", service, board=board, restart=ALWAYS)
    assert len(service.started) == 1
    assert state(board, "web") is ServiceState.FAILED
    assert logged.entries == []


async def test_a_failure_before_it_started_counts_too(autojump_clock: trio.testing.MockClock) -> None:
    """A service that fails while starting is restarted, and its caller waits until it has started."""

    class Late(Script):
        async def __call__(self, *, task_status: trio.TaskStatus[Any]) -> None:
            if len(self.started) < 2:
                self.started.append(trio.current_time())
                raise OSError("not yet")
            await super().__call__(task_status=task_status)

    board, service = ServiceBoard(), Late()
    async with trio.open_nursery() as nursery:

        async def start(task_status: trio.TaskStatus[Any]) -> None:
            await supervise("watcher", service, board=board, restart=ALWAYS, task_status=task_status)

        began = trio.current_time()
        await nursery.start(start)
        assert trio.current_time() - began == 3
        assert state(board, "watcher") is ServiceState.RUNNING
        nursery.cancel_scope.cancel()


async def test_returning_is_a_failure_unless_allowed(autojump_clock: trio.testing.MockClock) -> None:
    """A service has no end of its own, except where the policy says so: then supervision ends with it."""

    async def brief(*, task_status: trio.TaskStatus[Any]) -> None:
        task_status.started()

    board = ServiceBoard()
    with pytest.raises(ServiceFailed, match="ended by itself"):
        await supervise("brief", brief, board=board, restart=NEVER_RESTART)
    await supervise("brief", brief, board=board, restart=RestartPolicy(may_end=True))
    assert board.statuses() == {}


@pytest.mark.parametrize("when", [0.5, 1.5], ids=["running", "between two runs"])
async def test_cancellation_is_no_error(
    autojump_clock: trio.testing.MockClock, logged: LogCapture, when: float
) -> None:
    """A cancelled service ends at once, leaves the board and logs nothing of its own end."""
    board = ServiceBoard()
    with trio.move_on_after(when) as scope:
        await supervise("copier", Script(1), board=board, restart=RestartPolicy(first_pause=10))
    assert scope.cancelled_caught
    assert board.statuses() == {}
    assert len(logged.entries) == (0 if when < 1 else 1)


async def test_a_bug_during_cancellation_is_not_lost(
    autojump_clock: trio.testing.MockClock, logged: LogCapture
) -> None:
    """A service whose clean-up fails while it is cancelled ends cancelled, and its bug is in the log."""

    async def clumsy(*, task_status: trio.TaskStatus[Any]) -> None:
        task_status.started()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            try:
                await trio.sleep_forever()
            finally:
                raise KeyError("clean-up")

    with trio.move_on_after(1) as scope:
        await supervise("clumsy", clumsy, board=ServiceBoard(), restart=ALWAYS)
    assert scope.cancelled_caught
    assert len(logged.entries) == 1
    assert "clean-up" in repr(logged.entries[0]["exc_info"])


async def test_an_interrupt_is_not_swallowed(autojump_clock: trio.testing.MockClock) -> None:
    """KeyboardInterrupt goes through supervision; no policy restarts after it."""

    async def interrupted(*, task_status: trio.TaskStatus[Any]) -> None:
        task_status.started()
        raise KeyboardInterrupt

    with pytest.RaisesGroup(KeyboardInterrupt):
        await supervise("web", interrupted, board=ServiceBoard(), restart=ALWAYS)
