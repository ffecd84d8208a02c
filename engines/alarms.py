"""Deadlines of waits that nearly always end long before them: one task looks after all.

A cancel scope for each takes fifty calls of Python, as many as a statement to the database on Trio's side.
"""

from collections.abc import Callable
from math import inf

import trio
from attrs import define, field

from engines.clock import trio_clock


@define(eq=False)
class Waiter:
    """A task of Trio's that waits until it is woken, as often as it likes."""

    _parked: trio.lowlevel.Task | None = field(default=None, init=False)

    async def park(self) -> None:
        """Wait for `wake`."""
        self._parked = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(self._abort)

    def wake(self) -> None:
        """Let it go on; nothing where it does not wait. From the thread of its loop."""
        if self._parked is not None:
            trio.lowlevel.reschedule(self._parked)
            self._parked = None

    def _abort(self, _: object) -> trio.lowlevel.Abort:
        self._parked = None
        return trio.lowlevel.Abort.SUCCEEDED


@define(eq=False)
class Alarms:
    """Wakes whoever has waited long enough. `run` must run beside `wait`."""

    _until: dict[Waiter, float] = field(factory=dict, init=False)
    _first: float = field(default=inf, init=False)
    """None of them is due sooner."""
    _sleep: trio.CancelScope = field(factory=trio.CancelScope, init=False)
    """Ends then."""
    _now: Callable[[], float] = field(factory=trio_clock, init=False)

    async def wait(self, waiter: Waiter, seconds: float) -> None:
        """Return when somebody wakes the waiter, or when that takes too long."""
        until = self._now() + seconds
        self._until[waiter] = until
        if until < self._first:
            self._first = self._sleep.deadline = until
        try:
            await waiter.park()
        finally:
            del self._until[waiter]

    async def run(self) -> None:
        """Look after them, for ever."""
        while True:
            with trio.CancelScope(deadline=self._first) as self._sleep:
                await trio.sleep_forever()
            now = self._now()
            for waiter, until in self._until.items():
                if until <= now:
                    waiter.wake()
            self._first = min((until for until in self._until.values() if until > now), default=inf)
