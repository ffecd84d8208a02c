"""Bytes per second per location, or from one location to another: token buckets on Trio's clock."""

import trio

from engines.trace import waiting


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
            with waiting("gate"):
                await trio.sleep_until(begin)


class FailoverCap:
    """At most `rate` bytes per second from each other location to the readers near `preferred`; what `preferred` sends is free."""

    def __init__(self, preferred: str, rate: int | None) -> None:
        self._preferred = preferred
        self._rate = rate
        self._pairs: dict[str, Bandwidth] = {}

    async def take(self, location: str, nbytes: int) -> None:
        """Wait until so many bytes that were read from `location` may be handed on."""
        if location != self._preferred and self._rate is not None:
            await self._pairs.setdefault(location, Bandwidth(self._rate)).take(nbytes)

    def change(self, rate: int | None) -> None:
        """Use another rate from now on."""
        self._rate = rate
        for pair in self._pairs.values():
            pair.rate = rate
