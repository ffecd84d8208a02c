"""What reconciliation needs from outside, as one protocol: rounds over all blobs that the nodes do together, page by page.

The PostgreSQL one is `node/records/reconcile.py`; the in-memory one for simulations is `property_tests/memory_rounds.py`. Both pass
one contract suite. Every method is one unit of work, as in `ports.py`, and raises `LedgerUnavailable` likewise.
"""

from collections.abc import Sequence
from enum import Enum
from typing import Protocol

from attrs import field, frozen

from replication.model import Blob, Placement
from replication.reconcile import BlobFacts, Settlement


@frozen
class Candidate:
    """A blob that may have to be settled. `document` is its facts as the ledger spells them: opaque, handed back as it is."""

    blob_id: int
    digest: str
    size: int
    facts: BlobFacts
    document: str = field(repr=False)


@frozen
class CandidatePage:
    """Those of `looked_at` blobs that may have to be settled. `last` is the last blob's id, None where no more follow."""

    candidates: tuple[Candidate, ...]
    looked_at: int
    last: int | None


@frozen
class Spare:
    """A blob that the caller alone looks at for a while, because a copy of it may have to go: what is known of it now."""

    candidate: Candidate
    blob: Blob
    placements: tuple[Placement, ...]


@frozen
class Unproven:
    """A blob that the caller alone looks at for a while, because it is in locations that are being emptied, `leaving`.

    No other copy of it was made or read since. `placements` are all that may be read now.
    """

    blob: Blob
    placements: tuple[Placement, ...]
    leaving: frozenset[str]


@frozen
class UnprovenPage:
    """Some of these blobs. `last` is the last blob's id that was looked at, None where no more follow."""

    items: tuple[Unproven, ...]
    last: int | None


class Applied(Enum):
    """What became of a settlement."""

    DONE = "done"
    BUSY = "busy"
    """Somebody works on the blob at this moment; it is left to the next round."""
    CHANGED = "changed"
    """The facts it was decided on hold no more; likewise."""


class PageKind(Enum):
    """What the next piece of the shared round is."""

    TAGS = "tags"
    """Every tag of a namespace with a policy: compile it."""
    BLOBS = "blobs"
    REST = "rest"
    """Nothing for this node now: others are at it, or the round is over and the next one not due."""


@frozen
class ClaimedPage:
    """A piece of the round, leased to the caller: the blobs with ids in (after, last]. `hurry`: somebody waits for the round."""

    kind: PageKind
    after: int
    last: int
    hurry: bool


class Rounds(Protocol):
    """The rounds of one database."""

    async def claim_page(self, most: int, between_rounds: float) -> ClaimedPage:
        """Take the next piece of the round: up to `most` blobs, leased for a minute; then another node may take it.

        Rounds follow each other after `between_rounds` seconds, at once where somebody asked for one.
        """
        ...

    async def finish_page(self, page: ClaimedPage) -> None:
        """Say that a piece is done."""
        ...

    async def find_candidates(self, after: int, upto: int | None, most: int, *, replicate: bool) -> CandidatePage:
        """Look at up to `most` blobs with ids in (after, upto] and return those that are not simply as they must be.

        With `replicate` these are blobs with a copy or a task where nothing is required, or without either where something is;
        without it, those without a good copy in a location that stays.
        """
        ...

    async def apply_settlements(
        self, settlements: Sequence[tuple[Candidate, Settlement]], keep_seconds: float
    ) -> Sequence[Applied]:
        """Apply decisions, each whole or not at all, and say for each what became of it.

        Objects that lose their row become dead objects whose bytes stay for `keep_seconds`: longer than anybody may still read
        them.
        """
        ...

    async def claim_trims(self, blobs: Sequence[int], lease_seconds: float) -> Sequence[Spare]:
        """Take these blobs, to look whether a copy of them can go, and return those that nobody else has taken.

        They are free again after `lease_seconds`, or with `finish_trims`. While collection is paused there are none to be had.
        """
        ...

    async def finish_trims(self, blobs: Sequence[int]) -> None:
        """Give taken blobs back."""
        ...

    async def claim_unproven(self, after: int, most: int, lease_seconds: float, slowest: int) -> UnprovenPage:
        """Take up to `most` blobs with ids above `after` that are to leave a location and have copies elsewhere that nobody read.

        They are free again after `lease_seconds` and one more for each `slowest` bytes of them all, or with `finish_trims`. Blobs
        that somebody else has are passed over, and so are those without another good copy: they are copied first.
        """
        ...

    async def note_proven(self, copies: Sequence[tuple[int, Placement]]) -> None:
        """Write down that these copies (blob id, placement) were read to their end now, and were right."""
        ...

    async def compile_tags(self) -> int:
        """Give every tag the locations of its namespace's policy; return how many changed."""
        ...

    async def forget_wishes(self) -> None:
        """Drop copies that were asked for once and whose time is over; what they brought is trimmed like any other copy."""
        ...

    async def note_drained(self) -> Sequence[str]:
        """Make draining locations drained where each blob has a copy elsewhere that was made or read since; and back where not.

        Returns the names of those that became drained.
        """
        ...

    async def purge_removed(self) -> int:
        """Take away a batch of the rows of removed locations; return how many went, 0 when none are left."""
        ...
