"""Slow requests, one line each: where the time went."""

import structlog
from attrs import evolve

from engines.trace import WAITS
from node.web.access import Exchange, Observe, Told, told_again, unobserved

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger("antipode.slow")


class SlowRequests:
    """Observes requests as they end, logs the slow ones, and hands all of them on."""

    def __init__(self, threshold: float, then: Observe = unobserved) -> None:
        """Take how many seconds are slow (SLOW_REQUEST_THRESHOLD), and who else observes."""
        self._threshold = threshold
        self._then = then

    def again(self, exchange: Exchange) -> Told:
        """Return what takes in requests that end like this one."""
        then = told_again(self._then, exchange)

        def told(made: str, client: str, seconds: float) -> None:
            if seconds < self._threshold:
                then(made, client, seconds)
            else:
                self(evolve(exchange, id=made, client=client), seconds)

        return told

    def __call__(self, exchange: Exchange, seconds: float) -> None:
        """Take one ended request in. Never waits."""
        if seconds >= self._threshold:
            fields = where_it_went(exchange, seconds)
            # A slow client is news for whoever looks for it, a slow registry for everybody.
            tell = log.info if seconds - exchange.trace.seconds("client") < self._threshold else log.warning
            tell("slow request", **{**exchange.fields(seconds), **fields})
        self._then(exchange, seconds)


def where_it_went(exchange: Exchange, seconds: float) -> dict[str, float]:
    """Return the seconds that a request waited for each part, and `elsewhere`: its own work and what it was asked to wait for.

    Waits for different parts may overlap, so their sum can be more than the whole.
    """
    waited: dict[str, float] = {wait: round(exchange.trace.seconds(wait), 6) for wait in WAITS}
    return {**waited, "elsewhere": round(max(0.0, seconds - sum(waited.values())), 6)}
