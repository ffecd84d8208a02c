"""Shares: of what many want at once nobody takes all, so that whoever comes next finds room. Who counts as one, and what one gets.

Places are held for as long as their holders like (a push that trickles, a reader that is slow), and nobody is thrown out. So others
find room only where some is kept: one may take a place while they hold fewer than three times as many as are free. One alone gets
three quarters, the next three quarters of the rest, and the last places go to those who have least. Switches share their memory
among ports so (dynamic thresholds: Choudhury and Hahne, IEEE/ACM Transactions on Networking 6(2), 1998).
"""

from collections.abc import Callable
from functools import lru_cache
from ipaddress import IPv6Address, IPv6Network

import structlog
import trio
from attrs import define, field, frozen

from node.web.proxies import NO_PROXIES, Proxies

GREED = 3
"""How many times as many places one may hold as are free."""

NOBODY = ""
"""Who takes places for everybody, such as a listed proxy: without a share of their own."""

UNLISTED = "if this is a balancer of yours, list it in TRUSTED_PROXY_CIDR: else all who come through it are one"
"""What the log says with an address that is held to what one may have."""

_SAID_EVERY = 60.0
_KEPT = 4096
_log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger("antipode.shares")


@frozen
class Share:
    """The decision: whether one gets another of so many places. Pure."""

    places: int

    @property
    def most(self) -> int:
        """How many one can hold at all: three quarters, rounded up."""
        return -(-self.places * GREED // (GREED + 1))

    def admits(self, held: int, taken: int) -> bool:
        """Tell whether who holds `held` of the `taken` places gets one more. Who holds none gets any that is free."""
        return held < GREED * (self.places - taken)


@define(eq=False)
class Places:
    """Places of one kind, and who holds how many of them. `kind` is what logs and metrics call them."""

    kind: str
    share: Share
    taken: int = 0
    full: int = 0
    """How often somebody was sent away because all places were taken."""
    bounded: int = 0
    """How often somebody was sent away who had their share, while there were others."""
    _held: dict[str, int] = field(factory=dict, init=False)
    _said: float = field(default=float("-inf"), init=False)

    def held_by(self, who: str) -> int:
        """Return how many places somebody holds."""
        return self._held.get(who, 0)

    def open_to(self, who: str) -> bool:
        """Tell whether `take` would give a place."""
        return self.share.admits(self._held.get(who, 0), self.taken)

    def take(self, who: str) -> bool:
        """Take a place for somebody, to be given back; False: there is none for them."""
        held = self._held.get(who, 0)
        if not self.share.admits(held, self.taken):
            return False
        self.taken += 1
        if who:
            self._held[who] = held + 1
        return True

    def give_back(self, who: str) -> None:
        """Give back one that was taken for `who`."""
        self.taken -= 1
        if who:
            held = self._held[who] - 1
            if held:
                self._held[who] = held
            else:
                del self._held[who]

    def refused(self, who: str) -> bool:
        """Note that somebody was sent away, and return whether that is because they have their share."""
        if self.taken >= self.share.places:
            self.full += 1
            return False
        self.bounded += 1
        now = trio.current_time()
        if now - self._said >= _SAID_EVERY:
            self._said = now
            _log.warning(
                "one holds their share; others have room",
                kind=self.kind,
                who=who,
                held=self.held_by(who),
                of=self.share.places,
                **({"hint": UNLISTED} if who.startswith("@") else {}),
            )
        return True


@define(eq=False)
class Sources:
    """Tells who an address is where nobody is logged in."""

    proxies: Proxies = NO_PROXIES
    of: Callable[[str], str] = field(init=False)
    """Return what counts as one: an IPv4 address, or the /64 that an IPv6 address is in. `NOBODY` for a listed proxy.

    No account has such a name.
    """

    def __attrs_post_init__(self) -> None:
        # Reading an address takes microseconds, and the same ones come again and again.
        self.of = lru_cache(maxsize=_KEPT)(self._of)

    def _of(self, address: str) -> str:
        if not address or self.proxies.trusts(address):
            return NOBODY
        if ":" not in address:
            return f"@{address}"
        try:
            # A host has as many addresses of its network as it likes. A scope is of this machine only.
            return f"@{IPv6Network((int(IPv6Address(address.partition('%')[0])), 64), strict=False)}"
        except ValueError:
            return f"@{address}"
