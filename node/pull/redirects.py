"""Redirects that are given again: who asks for the same copies, while nothing else is known of the stores, gets the same answer.

To find the best copy and to write the answer's head down takes 15 us, to see that all is as it was 3.
"""

from collections.abc import Mapping

from attrs import define, field, frozen

from node.answers import Answer
from node.cache import Cache
from node.records.pulls import FoundBlob
from replication.model import Board, LocationState, Placement

_MOST = 1024


@frozen(eq=False)
class Grounds:
    """What the copy that a client is sent to was chosen by: whoever chooses by the very same chooses the same."""

    found: FoundBlob
    """The blob and its copies, as memory has them."""
    board: Board
    states: Mapping[str, LocationState]

    def same(self, other: "Grounds") -> bool:
        """Tell whether these are the very same things, which nobody changes."""
        return self.found is other.found and self.board is other.board and self.states is other.states


@frozen(eq=False)
class Redirect:
    """Where a client is sent, by which URL, and the answer that says so."""

    placement: Placement
    url: str
    answer: Answer


@define(eq=False)
class Redirects:
    """The latest ones of a node."""

    _given: Cache[tuple[str, str], tuple[Grounds, Redirect]] = field(factory=lambda: Cache(_MOST), init=False)

    def get(self, repository: str, grounds: Grounds) -> Redirect | None:
        """Return what was given on these grounds; None where the last one was given on others."""
        kept = self._given.get((repository, grounds.found.blob.digest))
        return kept[1] if kept is not None and kept[0].same(grounds) else None

    def keep(self, repository: str, grounds: Grounds, redirect: Redirect) -> None:
        """Remember what is given."""
        self._given.keep((repository, grounds.found.blob.digest), (grounds, redirect), 0.0)
