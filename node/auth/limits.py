"""Failed logins: counted per account and per address, and refused beyond a number until their time is over.

Every node counts in memory. Where there is a Redis, each failure is counted there, too, and the node remembers the number that
comes back: an attacker who goes from node to node gets one more try on each, and a Redis that is away makes nobody wait.
"""

import ipaddress
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence

import structlog
from attrs import define, evolve, field, frozen

from node.errors import TOOMANYREQUESTS, RegistryError
from node.shares import UNLISTED

WINDOW = 300.0
"""Seconds in which failures are counted together."""
_MOST_KEYS = 50_000
_log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger("antipode.access")


@frozen
class Limits:
    """Failures in a window after which logins are refused until it is over."""

    account: int = 10
    address: int = 100
    """Many people may share one: a company's way out, or a fleet of builders."""


Shared = Callable[[Sequence[str], float], Awaitable[Sequence[int] | None]]
"""Counts one more under each key, for so many seconds, and returns the numbers; None if nobody could be asked."""


async def alone(_keys: Sequence[str], _seconds: float) -> Sequence[int] | None:
    """Ask nobody."""
    return None


@frozen
class _Count:
    number: int
    until: float
    told: bool = False
    """Whether the log says that no more are let try."""


@define(eq=False)
class Failures:
    """The counts of this node. `clock` in seconds."""

    clock: Callable[[], float]
    shared: Shared = alone
    limits: Limits = Limits()
    what: str = "failed logins"
    _counts: "OrderedDict[str, _Count]" = field(factory=OrderedDict, init=False)

    def check(self, account: str, address: str) -> None:
        """Return if another try is allowed. Raises RegistryError (TOOMANYREQUESTS) with the time to wait."""
        now = self.clock()
        waits = [
            count.until - now
            for key, most in self._keys(account, address)
            if (count := self._counts.get(key)) is not None and count.number >= most and count.until > now
        ]
        if waits:
            # The same words whether there is such an account or not.
            raise RegistryError(
                TOOMANYREQUESTS, {"reason": "too many failed logins; wait"}, retry_after=max(1, round(max(waits)))
            )

    async def note(self, account: str, address: str) -> None:
        """Count a failure, as `check`."""
        now, keys = self.clock(), [key for key, _ in self._keys(account, address)]
        for key in keys:
            old = self._counts.pop(key, None)
            fresh = old is None or old.until <= now
            self._counts[key] = _Count(1, now + WINDOW) if fresh or old is None else evolve(old, number=old.number + 1)
        while len(self._counts) > _MOST_KEYS:
            self._counts.popitem(last=False)
        for key, number in zip(keys, await self.shared(keys, WINDOW) or (), strict=False):
            count = self._counts.get(key)
            if count is not None and number > count.number:
                self._counts[key] = evolve(count, number=number)
        self._tell(address)

    def _tell(self, address: str) -> None:
        """Say once a window that nobody may try any more from an address: it may be that of everybody, and nobody logs in then."""
        key = f"address:{network_of(address)}"
        count = self._counts.get(key)
        if count is None or count.told or count.number < self.limits.address:
            return
        self._counts[key] = evolve(count, told=True)
        _log.warning(
            "one address is held off",
            after=f"{count.number} {self.what}",
            address=network_of(address),
            seconds=round(count.until - self.clock()),
            hint=UNLISTED,
        )

    def _keys(self, account: str, address: str) -> tuple[tuple[str, int], ...]:
        return (
            (f"account:{account[:255]}", self.limits.account),
            (f"address:{network_of(address)}", self.limits.address),
        )


def network_of(address: str) -> str:
    """Return what one attacker has: an IPv4 address, or the /64 of an IPv6 one."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address[:64]
    return str(ipaddress.ip_network((parsed, 64), strict=False)) if parsed.version == 6 else str(parsed)
