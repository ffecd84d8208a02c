"""Which request the running task works for, and what that request waited for: it goes along with every task that it starts.

The lowest room knows it, because stores are told the request's id; it knows neither HTTP nor logs.
"""

from contextvars import ContextVar
from types import TracebackType
from typing import Literal, get_args

import trio

Wait = Literal["database", "store", "gate", "client"]
"""What a request may wait for. `gate` is its turn: a gate of the node, memory for parts, a cap of bandwidth; `client` is bytes of
its body, or that the client takes the answer's."""

LATELY = 60.0
"""Seconds."""

WAITS: tuple[Wait, ...] = get_args(Wait)


class Trace:
    """One request: its id, and how long it has waited for what. Tasks that wait for the same at the same time count once."""

    __slots__ = ("_slow", "_waits", "id")

    def __init__(self, request_id: str) -> None:
        self.id = request_id
        self._waits: dict[Wait, list[float]] = {}
        # wait -> seconds that are over, tasks that wait now, when the first of these began
        self._slow: list[tuple[float, float]] = []
        # When a slow answer came, and how many seconds it took

    def begin(self, wait: Wait) -> None:
        """Note that a task of this request begins to wait."""
        kept = self._waits.get(wait)
        if kept is None:
            self._waits[wait] = [0.0, 1, trio.current_time()]
            return
        if not kept[1]:
            kept[2] = trio.current_time()
        kept[1] += 1

    def end(self, wait: Wait) -> None:
        """Note that a task of this request has done waiting."""
        kept = self._waits[wait]
        kept[1] -= 1
        if not kept[1]:
            kept[0] += trio.current_time() - kept[2]

    def seconds(self, wait: Wait) -> float:
        """Return how long so far."""
        kept = self._waits.get(wait)
        if kept is None:
            return 0.0
        return kept[0] + (trio.current_time() - kept[2] if kept[1] else 0.0)

    def note_slow(self, seconds: float) -> None:
        """Note that an answer which should be quick took so long: the database's."""
        self._slow.append((trio.current_time(), seconds))

    def slow_lately(self) -> float:
        """Return how many seconds slow answers took that came within the last minute."""
        if not self._slow:
            return 0.0
        since = trio.current_time() - LATELY
        self._slow = [each for each in self._slow if each[0] > since]
        return sum(seconds for _, seconds in self._slow)


_current: ContextVar[Trace | None] = ContextVar("trace", default=None)


def current_trace() -> Trace | None:
    """Return the request that this task works for; None where it works for nobody in particular."""
    return _current.get()


class tracing:  # noqa: N801  # as `waiting`
    """Work for a request in the block: this task and all that it starts there."""

    __slots__ = ("_token", "_trace")

    def __init__(self, trace: Trace) -> None:
        self._trace = trace

    def __enter__(self) -> None:
        """Begin."""
        self._token = _current.set(self._trace)

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        """Work again for whom it worked before."""
        _current.reset(self._token)


class waiting:  # noqa: N801  # a context manager that reads as a word
    """Count the time of the block as waiting; costs next to nothing, and nothing where no request is traced."""

    __slots__ = ("_trace", "_wait")

    def __init__(self, wait: Wait) -> None:
        self._wait = wait
        self._trace: Trace | None = None

    def __enter__(self) -> None:
        """Begin."""
        self._trace = _current.get()
        if self._trace is not None:
            self._trace.begin(self._wait)

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        """End, however the block ended."""
        if self._trace is not None:
            self._trace.end(self._wait)
