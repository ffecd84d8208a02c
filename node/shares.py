"""Shares: of what many want at once nobody takes all, so that whoever comes next finds room. Who counts as one, and what one gets.

Places are held for as long as their holders like (a push that trickles, a reader that is slow), and nobody is thrown out. So others
find room only where some is kept: one may take a place while they hold fewer than three times as many as are free. One alone gets
three quarters, the next three quarters of the rest, and the last places go to those who have least. Switches share their
memory among ports so (dynamic thresholds: Choudhury and Hahne, IEEE/ACM Transactions on Networking 6(2), 1998). An owner's robots
count together, too, by a wider measure: they are as many as the owner likes, and each of them keeps a share of its own.
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

GREED_TOGETHER = 15
"""The same for an owner with all their robots, who would take all by having some more of them: together a sixteenth is left."""

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

    @property
    def most_together(self) -> int:
        """How many an owner and their robots can hold, rounded up."""
        return -(-self.places * GREED_TOGETHER // (GREED_TOGETHER + 1))

    def admits(self, held: int, taken: int) -> bool:
        """Tell whether who holds `held` of the `taken` places gets one more. Who holds none gets any that is free."""
        return held < GREED * (self.places - taken)

    def admits_together(self, held: int, taken: int) -> bool:
        """Tell whether an owner gets one more who, with all their robots, holds `held` of the `taken` places."""
        return held < GREED_TOGETHER * (self.places - taken)


def owner_of(who: str) -> str:
    """Return whose robot an account is, or else who it is."""
    return who.partition("+")[0] if "+" in who else who


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
    _robots: dict[str, int] = field(factory=dict, init=False)
    """Owner -> how many of these their robots hold."""
    _said: float = field(default=float("-inf"), init=False)

    def held_by(self, who: str) -> int:
        """Return how many places somebody holds."""
        return self._held.get(who, 0)

    def working_on(self, who: str) -> tuple[int, str]:
        """Return how many places keep somebody from another, and whose they are, for people."""
        held = self.held_by(who)
        if not self.share.admits(held, self.taken):
            return held, "yours"
        owner = owner_of(who)
        return self._together(owner), f"{owner} and its robots"

    def open_to(self, who: str) -> bool:
        """Tell whether `take` would give a place."""
        share, taken = self.share, self.taken
        if not share.admits(self._held.get(who, 0), taken):
            return False
        # Where there are no robots who is alone has less than they may have together.
        return not self._robots or share.admits_together(self._together(owner_of(who)), taken)

    def take(self, who: str) -> bool:
        """Take a place for somebody, to be given back; False: there is none for them."""
        if not self.open_to(who):
            return False
        self.taken += 1
        if who:
            self._held[who] = self._held.get(who, 0) + 1
            if "+" in who:
                owner = owner_of(who)
                self._robots[owner] = self._robots.get(owner, 0) + 1
        return True

    def give_back(self, who: str) -> None:
        """Give back one that was taken for `who`."""
        self.taken -= 1
        if who:
            _one_less(self._held, who)
            if "+" in who:
                _one_less(self._robots, owner_of(who))

    def _together(self, owner: str) -> int:
        return self._held.get(owner, 0) + self._robots.get(owner, 0)

    def refused(self, who: str) -> bool:
        """Note that somebody was sent away, and return whether that is because they have their share."""
        if self.taken >= self.share.places:
            self.full += 1
            return False
        self.bounded += 1
        now = trio.current_time()
        if now - self._said >= _SAID_EVERY:
            self._said = now
            held, whose = self.working_on(who)
            _log.warning(
                "one holds their share; others have room",
                kind=self.kind,
                who=who if whose == "yours" else whose,
                held=held,
                of=self.share.places,
                **({"hint": UNLISTED} if who.startswith("@") else {}),
            )
        return True


def _one_less(counts: dict[str, int], who: str) -> None:
    left = counts[who] - 1
    if left:
        counts[who] = left
    else:
        del counts[who]


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
