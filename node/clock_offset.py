"""How far this machine's clock is from the database's: registry tokens and presigned URLs bear its time, and others judge them."""

import time
from collections.abc import Callable

import structlog
from attrs import define, field

WRONG = 10.0
"""Seconds that are worth a word. Other nodes refuse tokens of one that is half a minute ahead (`auth.tokens.LEEWAY`)."""
LONGEST_TRIP = 5.0
"""Seconds: an answer that took longer tells too little of when it was given."""

_log = structlog.get_logger("antipode.clock")


@define(eq=False)
class ClockOffset:
    """One per node. `clock` tells POSIX seconds of this machine."""

    clock: Callable[[], float] = time.time
    ahead: float | None = None
    """Seconds that this clock was ahead of the database's (behind: less than zero) by the latest answer, within half its trip."""
    wrong: bool = False
    """Whether that is certainly more than `WRONG`."""
    _told: float = field(default=0.0, init=False)

    def take(self, sent: float, theirs: float, received: float) -> None:
        """Take in what the database's clock showed between two looks at this one; log a warning when that is far off."""
        trip = received - sent
        if not 0 <= trip <= LONGEST_TRIP:
            return  # The answer was late, or this clock was set meanwhile.
        self.ahead = (sent + received) / 2 - theirs
        self.wrong, before = abs(self.ahead) - trip / 2 > WRONG, self.wrong
        if self.wrong and (not before or abs(self.ahead - self._told) > WRONG):
            self._told = self.ahead
            _log.warning(
                "this machine's clock is off: tokens and URLs of this node may be refused",
                ahead=round(self.ahead, 3),
                within=round(trip / 2, 3),
            )
        elif before and not self.wrong:
            _log.info("this machine's clock is right again", ahead=round(self.ahead, 3), within=round(trip / 2, 3))

    def said(self) -> str:
        """Return how far it is off, in words."""
        ahead = self.ahead or 0.0
        where = "ahead of" if ahead > 0 else "behind"
        return f"{abs(ahead):.1f} s {where} the database's: tokens and URLs of this node may be refused"
