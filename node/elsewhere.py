"""What the other nodes say of the locations: hints, which are shown and bring a probe forward, and never are a verdict."""

from collections.abc import Callable, Mapping

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

    def heard(self, hint: Seen) -> None:
        """Take one hint in. Never waits."""
        if hint.node == self._node:
            return
        if hint.verdict == LIES:
            self._doubt(hint.location)
            return
        said = self._said.setdefault(hint.location, {})
        said.pop(hint.node, None)
        if hint.verdict != Verdict.HEALTHY.value:
            self._look(hint.location)
            said[hint.node] = hint.verdict
            while len(said) > _MOST:
                del said[next(iter(said))]

    def said(self, living: Callable[[str], bool] = lambda _: True) -> Mapping[str, Mapping[str, str]]:
        """Return what was said last of each location that is not well, by location and node; only of nodes that live."""
        found = {
            location: {node: verdict for node, verdict in nodes.items() if living(node)}
            for location, nodes in self._said.items()
        }
        return {location: nodes for location, nodes in found.items() if nodes}
