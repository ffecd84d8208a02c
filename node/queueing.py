"""How long a queue lasts, from how fast it has moved lately. Pure."""

from collections import deque

from attrs import define, field

WINDOW = 10.0
"""Seconds that the rate is measured over: long enough to see past a pause of a busy machine."""
_SLICE = 1.0


@define(eq=False)
class Movement:
    """Counts who leaves a full room, second by second. All times are one clock's, in seconds."""

    since: float
    """When the room became full."""
    moved: float = field(init=False)
    """When somebody left last; the beginning counts."""
    _left: deque[tuple[float, int]] = field(factory=deque, init=False)

    def __attrs_post_init__(self) -> None:
        self.moved = self.since

    def left(self, now: float) -> None:
        """Note that somebody left."""
        self.moved = now
        if self._left and now - self._left[-1][0] < _SLICE:
            began, count = self._left[-1]
            self._left[-1] = began, count + 1
        else:
            self._left.append((now, 1))
        while now - self._left[0][0] > WINDOW:
            self._left.popleft()

    def expected(self, ahead: int, now: float) -> float:
        """Return how long somebody waits who comes behind `ahead` others; 0 while that cannot be known yet."""
        measured = min(WINDOW, now - self.since)
        if measured < WINDOW / 2:
            return 0.0
        counted = sum(count for began, count in self._left if now - began <= WINDOW)
        return (ahead + 1) * measured / counted if counted else float("inf")
