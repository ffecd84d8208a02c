"""How far away a store is: the least time that an answer of late has taken. A store that is busy is slow, but no farther. Pure."""

from math import inf

from attrs import frozen

WINDOW = 300.0
"""Seconds: what was measured is remembered for so long at least; for twice as long at most, while more comes."""


@frozen
class Distance:
    """The least latency of this window and of the one before it, in seconds."""

    since: float = -inf
    """When this window began."""
    least: float | None = None
    before: float | None = None

    @property
    def seconds(self) -> float | None:
        """Return the time to the store and back, None while nothing was measured."""
        return min((latency for latency in (self.least, self.before) if latency is not None), default=None)

    def after(self, latency: float, now: float) -> "Distance":
        """Return what is known after an answer whose first byte came `latency` seconds after the request, at `now`."""
        age = now - self.since
        if age >= WINDOW:
            return Distance(now, latency, self.least if age < 2 * WINDOW else None)
        return Distance(self.since, latency if self.least is None else min(self.least, latency), self.before)
