"""What the other nodes say of the locations: hints, which are shown and bring a probe forward, and never are a verdict."""

from collections.abc import Callable, Collection, Mapping
from math import inf

import trio
from attrs import define, field

from replication.model import Verdict
from replication.ports import Seen

LIES = "lies"
"""What is said of a location that sent wrong bytes, beside the verdicts."""

_MOST = 1000


@define(eq=False)
class Elsewhere:
    """Takes in `Seen` hints. `look` probes a location now; `doubt` lets no client be sent there for a while."""

    _node: str
    _look: Callable[[str], None]
    _doubt: Callable[[str], None]
    _said: dict[str, dict[str, str]] = field(factory=dict, init=False)
    _down_since: dict[tuple[str, str], float] = field(factory=dict, init=False)
    """(location, node) -> when it was first heard to be down there, on Trio's clock."""

    def heard(self, hint: Seen) -> None:
        """Take one hint in. Never waits."""
        if hint.node == self._node:
            return
        if hint.verdict == LIES:
            self._doubt(hint.location)
            return
        said = self._said.setdefault(hint.location, {})
        said.pop(hint.node, None)
        if hint.verdict == Verdict.DOWN.value:
            self._down_since.setdefault((hint.location, hint.node), trio.current_time())
        else:
            self._down_since.pop((hint.location, hint.node), None)
        if hint.verdict != Verdict.HEALTHY.value:
            self._look(hint.location)
            said[hint.node] = hint.verdict
            while len(said) > _MOST:
                oldest = next(iter(said))
                del said[oldest]
                self._down_since.pop((hint.location, oldest), None)

    def said(self, living: Callable[[str], bool] = lambda _: True) -> Mapping[str, Mapping[str, str]]:
        """Return what was said last of each location that is not well, by location and node; only of nodes that live."""
        found = {
            location: {node: verdict for node, verdict in nodes.items() if living(node)}
            for location, nodes in self._said.items()
        }
        return {location: nodes for location, nodes in found.items() if nodes}

    def down_since(self, location: str, ids: Collection[str]) -> float | None:
        """Return since when all of these nodes say that a location is down, on Trio's clock; None if one does not, or of none."""
        heard = [
            min(
                (since for (at, name), since in self._down_since.items() if at == location and id_.startswith(name)),
                default=inf,
            )
            for id_ in ids
        ]
        since = max(heard, default=inf)
        return None if since == inf else since
