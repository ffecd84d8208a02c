"""Deletes that every node has seen before they are answered: a `Forget` with a token, and a `Heard` from each live node.

A hint takes a millisecond or two, but a client that deletes in one region and reads in another at once can be quicker. So the
answer to a delete waits for the other live nodes, never longer than a bound: a node that hangs holds nobody up, and what it
remembers is out of date by itself after METADATA_STALENESS.
"""

from collections.abc import Callable

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
    """One per node. `others` names the nodes that live now, besides this one, whose id is `me`."""

    def __init__(self, hints: Hints, me: str, others: Callable[[], frozenset[str]]) -> None:
        self._hints = hints
        self._me = me
        self._others = others
        self._rounds: dict[str, _Round] = {}
        self._count = 0

    async def everywhere(self, repository: str, digest: str | None) -> bool:
        """Make all nodes forget, and wait for them, PATIENCE at most. False: not all have said that they have."""
        others = self._others()
        if not others:
            self._hints.publish(Forget(repository, digest))
            return True
        self._count += 1
        token, this = f"{self._me}.{self._count}", _Round(set(others))
        self._rounds[token] = this
        try:
            self._hints.publish(Forget(repository, digest, token))
            with trio.move_on_after(PATIENCE):
                await this.done.wait()
        finally:
            del self._rounds[token]
        if this.missing:
            _log.info("a delete was answered before every node had heard of it", nodes=sorted(this.missing))
        return not this.missing

    def obeyed(self, hint: Forget) -> None:
        """Say that this node has forgotten, to whoever asked."""
        if hint.token is not None and not hint.token.startswith(f"{self._me}."):
            self._hints.publish(Heard(hint.token, self._me))

    def heard(self, hint: Heard) -> None:
        """Take in that a node has forgotten."""
        this = self._rounds.get(hint.token)
        if this is not None:
            this.missing.discard(hint.node)
            if not this.missing:
                this.done.set()
