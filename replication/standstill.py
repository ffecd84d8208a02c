"""Notices that this process stood still: it was frozen, its machine was suspended, or its event loop was held up.

Every deadline that went by meanwhile strikes at once when it goes on. That says nothing about whoever was waited for: the answer
may lie in the socket, unread. So nobody is held to a deadline during which this process stood still.
"""

from math import inf

import trio
from attrs import define, field

BEAT = 0.5
"""Seconds between two looks at the clock."""
LATE = 1.0
"""A look that comes so many seconds late comes after a standstill."""


@define(eq=False)
class Standstill:
    """One per process; `run` must run for as long as anybody asks."""

    _looked: float = field(default=inf, init=False)
    _ended: float = field(default=-inf, init=False)

    def ended(self) -> float:
        """Return when this process went on after it last stood still, on Trio's clock; minus infinity if it never did.

        So it is from that very moment on, whichever task asks first then.
        """
        self._look()
        return self._ended

    def since(self, began: float) -> bool:
        """Say whether this process has stood still at any moment since `began`, on Trio's clock."""
        return self.ended() >= began

    def _look(self) -> None:
        now = trio.current_time()
        if now - self._looked > BEAT + LATE:
            self._ended = self._looked = now

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Look at the clock again and again, for ever. Ends by cancellation."""
        self._looked = trio.current_time()
        task_status.started()
        while True:
            await trio.sleep(BEAT)
            self._look()
            self._looked = trio.current_time()
