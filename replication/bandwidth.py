"""Bytes per second per location: a token bucket on Trio's clock."""

import trio


class Bandwidth:
    """At most `rate` bytes per second on average, in bursts of one second's worth; None is unlimited. First come, first served."""

    def __init__(self, rate: int | None) -> None:
        self.rate = rate
        self._free_at = float("-inf")

    async def take(self, nbytes: int) -> None:
        """Wait until `nbytes` may be moved. More than a burst is allowed at once and paid for by whoever comes next."""
        rate = self.rate
        if rate is None:
            return
        now = trio.current_time()
        begin = max(self._free_at, now - 1.0)
        self._free_at = begin + nbytes / rate
        if begin > now:
            await trio.sleep_until(begin)
