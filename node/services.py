"""Keeps a node's services running: each in a scope of its own, restarted after a bug where that is safe, and in plain sight.

The rules:

1. Known overload (a store or the database is slow or away) is the service's own business: it backs off inside and goes on.
2. What escapes is a bug. It is logged with its cause, shown on the board, and the service's scope starts afresh after a
   pause that doubles with each failure up to a cap; after a quiet spell the pause begins small again.
3. Where a restart is not safe, or no more are allowed, the node ends: `ServiceFailed` leaves its nursery.
4. Cancellation is how a service ends. It is never an error and nothing is logged.
"""

from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any, Protocol

import structlog
import trio
from attrs import define, field, frozen

from node.health import ServiceFacts, ServiceState

log = structlog.get_logger("antipode.services")


class NodeFailure(Exception):
    """An expected reason for the node to end or not to start. `str(error)` is one line for the operator; exit code 1."""


class ServiceFailed(NodeFailure):
    """A service failed and must not, or cannot, be started again. The cause is chained."""


@frozen
class ServiceStatus:
    """One line of the board. `since` is Trio's clock in seconds; `last_error` is one line, None while nothing went wrong."""

    name: str
    state: ServiceState
    since: float
    restarts: int = 0
    last_error: str | None = None


@frozen
class RestartPolicy:
    """What to do when a bug escapes a service. Seconds.

    The pause before restart n of a row is `first_pause` times two to the power n - 1, at most `longest_pause`. A service
    that ran for `quiet` without failing begins a new row. `most` bounds the restarts of one row, None does not.
    """

    restart: bool = True
    first_pause: float = 0.5
    longest_pause: float = 30.0
    quiet: float = 60.0
    most: int | None = None
    may_end: bool = False
    """Whether the service may return; otherwise that is a failure like any other."""

    def pause(self, failures: int) -> float | None:
        """Return the seconds to wait after the `failures`-th failure of a row, None if the service must not start again."""
        if not self.restart or (self.most is not None and failures > self.most):
            return None
        # Beyond 2**60 a float multiplication is still exact enough and the cap has long been reached.
        return min(self.longest_pause, self.first_pause * 2.0 ** min(failures - 1, 60))


ALWAYS_RESTART = RestartPolicy()
"""For services that hold nothing between two runs."""

NEVER_RESTART = RestartPolicy(restart=False)
"""For services whose loss leaves a node that only looks alive."""


@define
class ServiceBoard:
    """What every service of this node is doing. Written by `supervise`, read by `/health/instance`."""

    _lines: dict[str, ServiceStatus] = field(factory=dict)

    def note(self, status: ServiceStatus) -> None:
        """Replace the line of one service."""
        self._lines[status.name] = status

    def remove(self, name: str) -> None:
        """Take a service off the board: it ended as it should."""
        self._lines.pop(name, None)

    def statuses(self) -> Mapping[str, ServiceStatus]:
        """Return every service's line by name, as it is now."""
        return dict(self._lines)

    def facts(self) -> dict[str, ServiceFacts]:
        """Return what `/health/instance` shows of every service, by name."""
        return {
            name: ServiceFacts(line.state, line.last_error or "", line.restarts) for name, line in self._lines.items()
        }


class Service(Protocol):
    """A service: runs until it is cancelled, and says through `task_status.started(value)` when it is ready."""

    def __call__(self, *, task_status: trio.TaskStatus[Any]) -> Awaitable[None]:
        """Run."""
        ...


def one_line(error: BaseException) -> str:
    """Return what happened in one line of at most 500 characters; of a group, its members."""
    if isinstance(error, BaseExceptionGroup):
        return "; ".join(one_line(member) for member in error.exceptions)[:500]
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:500] if text else type(error).__name__


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for member in error.exceptions:
            yield from _leaves(member)
    else:
        yield error


@define
class _Supervised:
    """One service's line on the board, and how often it failed."""

    name: str
    board: ServiceBoard
    policy: RestartPolicy
    restarts: int = 0
    row: int = 0
    """Failures in a row."""
    last_error: str | None = None

    def enter(self, state: ServiceState) -> None:
        """Change the state, from now on."""
        self.board.note(ServiceStatus(self.name, state, trio.current_time(), self.restarts, self.last_error))

    def after(self, error: BaseException, ran: float) -> float:
        """Return the pause before the next start, after `error` ended a run of `ran` seconds. Raises when there is none."""
        self.last_error = one_line(error)
        expected = [leaf for leaf in _leaves(error) if isinstance(leaf, NodeFailure)]
        if expected:
            self.enter(ServiceState.FAILED)
            # The operator needs its one line, not where in the program it came from.
            raise expected[0] from None
        self.row = 1 if ran >= self.policy.quiet else self.row + 1
        pause = self.policy.pause(self.row)
        log.error("service failed", service=self.name, failures=self.row, restart_after=pause, exc_info=error)
        if pause is None:
            self.enter(ServiceState.FAILED)
            raise ServiceFailed(f"the service {self.name} failed: {self.last_error}") from error
        self.enter(ServiceState.RESTARTING)
        return pause


async def _run_once(
    service: Service, supervised: _Supervised, ready: Callable[[object], None]
) -> ExceptionGroup[Exception] | None:
    """Run the service in a scope of its own until it ends; return what escaped it. Cancellation and interrupts pass."""
    try:
        async with trio.open_nursery() as nursery:

            async def run(task_status: trio.TaskStatus[Any]) -> None:
                await service(task_status=task_status)

            value = await nursery.start(run)
            supervised.enter(ServiceState.RUNNING)
            ready(value)
    except BaseExceptionGroup as group:
        bugs, others = group.split(Exception)
        if bugs is None:
            raise
        if others is not None and others.split(trio.Cancelled)[1] is not None:
            raise
        # Cancelled from outside at the same moment: the pause that follows will find that out, and the bug is not lost.
        return bugs
    return None


async def supervise(
    name: str,
    service: Service,
    *,
    board: ServiceBoard,
    restart: RestartPolicy = ALWAYS_RESTART,
    task_status: trio.TaskStatus[Any] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run `service` until it is cancelled, starting it again after a bug as `restart` says.

    Reports started, with the service's own value, when the service first does. A service that returns has failed, unless
    `restart.may_end`.

    Raises:
        ServiceFailed: it failed and must not start again.
        NodeFailure: the service itself raised it: an expected failure that no restart mends.

    """
    supervised = _Supervised(name, board, restart)
    said_ready = False

    def ready(value: object) -> None:
        nonlocal said_ready
        if not said_ready:
            said_ready = True
            task_status.started(value)

    try:
        while True:
            supervised.enter(ServiceState.STARTING)
            began = trio.current_time()
            failure = await _run_once(service, supervised, ready)
            if failure is None and restart.may_end:
                break
            pause = supervised.after(
                failure or RuntimeError("the service ended by itself"), trio.current_time() - began
            )
            await trio.sleep(pause)
            supervised.restarts += 1
    except NodeFailure:
        # Its line stays for whoever looks while the node ends.
        raise
    except BaseException:
        board.remove(name)
        raise
    board.remove(name)
