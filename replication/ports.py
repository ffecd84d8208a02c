"""What the core needs from outside, as protocols: the `Ledger` (the truth about debt) and `Hints` (what may be lost).

The PostgreSQL ledger is `node/records/ledger.py`; the in-memory one for simulations is `property_tests/memory_ledger.py`. Both
pass one contract suite. Every method is one unit of work: it happened whole or not at all, and raises `LedgerUnavailable`
when it cannot know or cannot reach the truth.
"""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from enum import Enum
from typing import Protocol

from attrs import frozen

from replication.macs import PieceProofs
from replication.model import ClusterView, CopyTask, DeadObject


class LedgerUnavailable(Exception):
    """The database did not answer in time or could not be reached. The work may or may not have been recorded."""


class CopyOutcome(Enum):
    """What became of a finished copy."""

    PLACED = "placed"
    """The placement is recorded, the debt is paid."""
    SUPERSEDED = "superseded"
    """Somebody else's copy was recorded first, or the blob is gone: our object is now a dead object."""


class Ledger(Protocol):
    """Claims, placements and debt."""

    async def claim_copies(
        self, location: str, key_prefix: str, most: int, lease_seconds: float, ahead: int = 0
    ) -> Sequence[CopyTask]:
        """Lease up to `most` due tasks whose destination is `location`, in the order of `plan.precedence`.

        Up to `ahead` more are leased as `plan.worth_claiming` has it.

        A task without a key gets `{key_prefix}{algorithm}/{first two hex}/{hex}.{nonce}`, committed with the claim.
        Tasks whose lease ran out are due again.
        """
        ...

    async def claim_copy(self, blob_id: int, location: str, key_prefix: str, lease_seconds: float) -> CopyTask | None:
        """Lease the task of exactly this blob and destination, also one that waits out a back-off: somebody needs it now.

        None: nothing is owed there, the copy has arrived, or another claim holds it.
        """
        ...

    async def raise_priority(self, blob_id: int, location: str, priority: int) -> bool:
        """Let the task of this blob and destination go before others (`plan.precedence`); never lowers. False: there is no task."""
        ...

    async def renew(self, leases: Sequence[str], lease_seconds: float) -> frozenset[str]:
        """Extend these leases; return those that are still ours. Whoever lost one stops at once."""
        ...

    async def note_parts(self, task: CopyTask, upload: str) -> bool:
        """Remember the multi-part id begun under the task's key, so that another try goes on. False: the lease is lost."""
        ...

    async def change_key(self, task: CopyTask) -> str | None:
        """Give the task a new key, with no multi-part id noted, and return it. None: the lease is lost.

        The old one becomes a dead object that is deleted when whatever was sent there has landed.
        """
        ...

    async def finish_copies(self, finished: Sequence[tuple[CopyTask, PieceProofs]]) -> Sequence[CopyOutcome]:
        """Record for each that `task.destination` holds verified bytes under `task.key`, and that the debt is paid.

        Both in one transaction; the outcomes are in the same order. The proofs are recorded: pieces for a blob that had none, MACs
        in place of older ones. A suspect placement that a copy replaces becomes a dead object. Repeating it after success, also
        under a lease that is lost, returns PLACED and changes nothing: the copy may be suspect by then, and owed anew. A key
        that is placed never becomes a dead object.
        """
        ...

    async def fail_copy(self, task: CopyTask, error: str, retry_after: float, unreached: Sequence[str] = ()) -> None:
        """Give the task back, due in `retry_after` seconds, one attempt more, with its last error in plain sight.

        `unreached`: the locations but for which this try might not have failed.
        """
        ...

    async def hand_back(self, leases: Sequence[str]) -> None:
        """Give tasks back unharmed: due at once, no attempt counted. For a node that stops."""
        ...

    async def mark_suspect(self, blob_id: int, location: str, key: str, reason: str) -> None:
        """Record that the copy under this key failed a read or had wrong bytes, and make its location's debt due at once.

        A placement that has another key by now is left alone.
        """
        ...

    async def next_due(self, locations: Sequence[str]) -> float | None:
        """Seconds until the earliest task or dead object of these locations is due (0 if one is), None if there is none.

        What is leased is due when its lease runs out.
        """
        ...

    async def claim_dead(self, location: str, most: int, lease_seconds: float) -> Sequence[DeadObject]:
        """Lease up to `most` dead objects of `location` whose time has come."""
        ...

    async def finish_dead(self, ids: Sequence[int]) -> None:
        """The store confirmed that these are gone."""
        ...

    async def fail_dead(self, ids: Sequence[int], error: str, retry_after: float) -> None:
        """The store did not; try again in `retry_after` seconds."""
        ...

    async def heartbeat(self) -> ClusterView:
        """Say that this node lives, and return what the others and the operators say."""
        ...


@frozen
class Wake:
    """Work for these locations has just been committed (empty: for any)."""

    locations: tuple[str, ...] = ()


@frozen
class Forget:
    """What caches may hold about these is out of date. `digest` of None: all of the repository; both None: everything."""

    repository: str | None = None
    digest: str | None = None
    token: str | None = None
    """Whoever obeys answers with `Heard(token)`."""


@frozen
class Heard:
    """The node `node` has obeyed the `Forget` with this token."""

    token: str
    node: str


@frozen
class Placed:
    """A blob's placements changed (a copy arrived, a copy became suspect)."""

    digest: str
    location: str


@frozen
class Seen:
    """What the node `node` thinks of a location: a verdict by name, or that wrong bytes came from there ("lies")."""

    location: str
    verdict: str
    node: str


@frozen
class News:
    """Something that nodes keep in memory changed in the database: `topic` says what. Whoever keeps it reads it again."""

    topic: str


Hint = Wake | Forget | Placed | Heard | Seen | News


class HintSource(Protocol):
    """One subscription. Iterating ends when the subscription is closed."""

    def __aiter__(self) -> "HintSource":
        """Return itself."""
        ...

    async def __anext__(self) -> Hint:
        """Wait for the next hint."""
        ...


class Hints(Protocol):
    """Hints between all nodes, at most once, in no promised order. Losing all of them loses nothing but time."""

    def publish(self, *hints: Hint) -> None:
        """Send to all nodes, this one included. Never waits, never raises; what the buffer cannot take is dropped and counted."""
        ...

    def subscribe(self) -> AbstractAsyncContextManager[HintSource]:
        """Receive every hint from now on. After a gap (connection lost) a `Forget()` of everything and a `Wake()` come first."""
        ...


class Publish(Protocol):
    """Tells all nodes (`Hints.publish`). Must not wait."""

    def __call__(self, *hints: Hint) -> None:
        """Send."""
        ...
