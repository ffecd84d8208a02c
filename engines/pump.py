"""What runs the asyncio side's callbacks on top of Trio: all that are ready in one go.

The library's own loop takes one callback, asks Trio for its turn, and takes the next, and keeps every timer that was cancelled
until its time comes. A statement is a dozen callbacks and four timers: two thirds of what a crossing cost were these turns.

While nothing is ready the loop's task has no part in a crossing at all: what somebody makes ready is run by whoever did, so a
statement takes two turns of Trio's and not four.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from contextvars import Context
from heapq import heapify, heappop, heappush
from itertools import count
from math import inf
from typing import Any, TypeVar

import trio
from attrs import define, field
from sniffio import thread_local
from trio_asyncio import TrioEventLoop

from engines.clock import trio_clock

AT_ONCE = 64
"""Callbacks between two turns of everybody else."""
_CANCELLED = 100
"""Timers that were cancelled and are kept, at least, before the others are sorted out."""

T = TypeVar("T")


def install(loop: TrioEventLoop) -> "Pump":
    """Let a loop that has just been opened run its callbacks in this way, and return what does."""
    before, pump = loop._q_send, Pump(loop)  # noqa: SLF001  # there is no public place for any of these, and the version is pinned
    loop._q_send = pump  # noqa: SLF001
    loop._main_loop_one = pump.run  # noqa: SLF001
    loop._timer_handle_cancelled = pump.forget  # noqa: SLF001
    loop._cancel_timers = pump.cancel_timers  # noqa: SLF001
    loop._io_task = pump.watch  # noqa: SLF001
    loop.call_soon = pump.call_soon
    loop.call_later = pump.call_later
    # Asked by every callback, future and task, and answered by C.
    loop.get_debug = bool
    # The loop waits in its old queue just now.
    before.send_nowait(asyncio.Handle(lambda: None, (), loop))
    return pump


@define(eq=False)
class Pump:
    """The queue and the timers of one loop, and what takes from them."""

    _loop: TrioEventLoop
    _ready: deque[asyncio.Handle] = field(factory=deque, init=False)
    _timers: list[tuple[float, int, asyncio.TimerHandle]] = field(factory=list, init=False)
    _numbers: "count[int]" = field(factory=count, init=False)
    _now: Callable[[], float] = field(factory=trio_clock, init=False)
    _cancelled: int = field(default=0, init=False)
    """Timers among those that were cancelled."""
    _parked: trio.lowlevel.Task | None = field(default=None, init=False)
    """The loop's own, while nothing is ready."""
    _here: bool = field(default=False, init=False)
    """Whether somebody else runs what becomes ready."""
    _sleep: trio.CancelScope = field(factory=trio.CancelScope, init=False)
    """Ends when the first of the timers is due, or sooner."""

    def send_nowait(self, handle: asyncio.Handle) -> None:
        """Take a callback or a timer in. As the library calls it, from any task of the loop's thread."""
        if isinstance(handle, asyncio.TimerHandle):
            self._set(handle.when(), handle)
            return
        self._ready.append(handle)
        if not self._here:
            self._wake()

    def call_soon(self, callback: Callable[..., object], *args: Any, context: Context | None = None) -> asyncio.Handle:
        """Take a callback in, as the loop does in nine calls."""
        handle = asyncio.Handle(callback, args, self._loop, context)
        self._ready.append(handle)
        if not self._here:
            self._wake()
        return handle

    def call_later(
        self, delay: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """Take a timer in that is due in so many seconds, likewise."""
        when = self._now() + delay
        handle = asyncio.TimerHandle(when, callback, args, self._loop, context)
        self._set(when, handle)
        return handle

    def start(self, begin: Callable[[], T]) -> T:
        """Return what `begin` returns; what it makes ready is run by then. From a task of the loop's thread."""
        if self._parked is None:
            return begin()
        self._here = True
        try:
            begun = begin()
            self._run_plain()
        finally:
            self._here = False
            if self._ready:
                self._wake()
        return begun

    async def watch(self, fd: Any, handle: Any, wait_ready: Callable[[Any], Awaitable[None]]) -> None:
        """Run a callback whenever there is something to read or to write. As the library calls it, in a task of its own."""
        with handle._scope:  # noqa: SLF001
            try:
                while not handle.cancelled():
                    try:
                        await wait_ready(fd)
                    except OSError:
                        # It was taken away and closed in one go.
                        if not handle.cancelled():
                            raise
                    if not handle.cancelled():
                        self.start(handle._run)  # noqa: SLF001
                        if self._ready:
                            await self._loop.synchronize()
            except Exception as error:  # noqa: BLE001  # the loop's to report
                handle._raise(error)  # noqa: SLF001

    def _set(self, when: float, handle: asyncio.TimerHandle) -> None:
        heappush(self._timers, (when, next(self._numbers), handle))
        if when < self._sleep.deadline:
            self._sleep.deadline = when

    def _wake(self) -> None:
        if self._parked is not None:
            trio.lowlevel.reschedule(self._parked)
            self._parked = None

    def forget(self, _: asyncio.TimerHandle) -> None:
        """Take notice that a timer has been cancelled."""
        self._cancelled += 1
        if self._cancelled > max(_CANCELLED, len(self._timers) // 2):
            self._timers = [timer for timer in self._timers if not timer[2].cancelled()]
            heapify(self._timers)
            self._cancelled = 0

    def cancel_timers(self) -> None:
        """Cancel all timers: the loop closes."""
        timers, self._timers = self._timers, []
        for _, _, handle in timers:
            handle.cancel()

    async def run(self, no_wait: bool = False) -> None:  # as the library calls it
        """Run what is ready until a timer is due; with `no_wait` once. Raises WouldBlock where that finds nothing."""
        now = self._loop.time()
        while self._timers and self._timers[0][0] <= now:
            self._ready.append(heappop(self._timers)[2])
        if no_wait:
            if not self._ready:
                raise trio.WouldBlock
            await self._run_some()
            return
        # One scope for as many callbacks as there are until then: to make one costs as much as a callback.
        with trio.CancelScope(deadline=self._timers[0][0] if self._timers else inf) as self._sleep:
            while True:
                await self._run_some()
                if self._ready:
                    await trio.lowlevel.checkpoint()
                else:
                    self._parked = trio.lowlevel.current_task()
                    await trio.lowlevel.wait_task_rescheduled(self._not_parked)

    def _not_parked(self, _: Any) -> trio.lowlevel.Abort:
        self._parked = None
        return trio.lowlevel.Abort.SUCCEEDED

    async def _run_some(self) -> None:
        self._run_plain()
        if self._ready and getattr(self._ready[0], "_started", None) is not None:
            # A function of Trio's side: a task of its own.
            handle: Any = self._ready.popleft()
            self._start(handle)
            with trio.CancelScope(shield=True):
                await handle._started.wait()  # noqa: SLF001

    def _run_plain(self) -> None:
        """Run what is ready, up to a function of Trio's side."""
        library, thread_local.name = thread_local.name, "asyncio"
        try:
            for _ in range(AT_ONCE):
                if not self._ready or getattr(self._ready[0], "_started", None) is not None:
                    return
                handle = self._ready.popleft()
                if not handle._cancelled:  # noqa: SLF001
                    handle._run()  # noqa: SLF001
        finally:
            thread_local.name = library

    def _start(self, handle: Any) -> None:
        handle._context.run(self._loop._nursery.start_soon, handle._run, name=handle._callback)  # noqa: SLF001
