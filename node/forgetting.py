"""Deletes that every node has seen before they are answered: a `Forget` with a token, and a `Heard` from each live node.

A hint takes a millisecond or two, but a client that deletes in one region and reads in another at once can be quicker. So the
answer to a delete waits for the other live nodes, never longer than a bound: a node that hangs holds nobody up, and what it
remembers is out of date by itself after METADATA_STALENESS. Where hints have no way out, nobody waits; nor once nobody at all has
answered, until somebody is heard again.

Beside Redis there is a second way, PostgreSQL's NOTIFY: what has just committed a delete can carry the word of it, too. Who hears
of it by one way answers by that way, and the first answer counts: a Redis that hangs costs a delete nothing.
"""

from collections.abc import Awaitable, Callable, Sequence

import structlog
import trio
from attrs import define, field

from replication.ports import Forget, Heard, Hints

_log = structlog.get_logger("antipode.hints")

PATIENCE = 1.0
"""Seconds that a delete waits for the other nodes."""


@define(eq=False)
class _Round:
    missing: set[str]
    done: trio.Event = field(factory=trio.Event)


class Forgetting:
    """One per node. `ways` lead to the other nodes, and `connected` says whether any of them stands.

    `others` asks which nodes live now, besides this one, whose id is `me`.
    """

    def __init__(
        self,
        ways: Sequence[Hints],
        me: str,
        others: Callable[[], Awaitable[frozenset[str]]],
        connected: Callable[[], bool] = lambda: True,
    ) -> None:
        self._ways = ways
        self._me = me
        self._others = others
        self._connected = connected
        self._rounds: dict[str, _Round] = {}
        self._count = 0
        self._silence = False

    async def everywhere(self, repository: str, digest: str | None) -> bool:
        """Make all nodes forget, and wait for them, PATIENCE at most. False: not all have said that they have."""
        others = await self._others()
        if not others:
            self._publish(Forget(repository, digest))
            return True
        self._count += 1
        token, this = f"{self._me}.{self._count}", _Round(set(others))
        self._rounds[token] = this
        connected = self._connected()
        try:
            self._publish(Forget(repository, digest, token))
            with trio.move_on_after(PATIENCE if connected and not self._silence else 0):
                await this.done.wait()
        finally:
            del self._rounds[token]
        # Where they had no way out, nobody's silence says anything.
        self._silence = connected and this.missing == set(others)
        if this.missing:
            _log.info("a delete was answered before every node had heard of it", nodes=sorted(this.missing))
        return not this.missing

    def _publish(self, hint: Forget) -> None:
        for way in self._ways:
            way.publish(hint)

    def obeyed(self, hint: Forget, way: Hints) -> None:
        """Say that this node has forgotten, to whoever asked, by the way that the question came."""
        if hint.token is not None and not hint.token.startswith(f"{self._me}."):
            way.publish(Heard(hint.token, self._me))

    def heard(self, hint: Heard) -> None:
        """Take in that a node has forgotten."""
        self._silence = False
        this = self._rounds.get(hint.token)
        if this is not None:
            this.missing.discard(hint.node)
            if not this.missing:
                this.done.set()
