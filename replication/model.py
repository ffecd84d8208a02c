"""The vocabulary as values: blobs, placements, copy tasks, dead objects, the health board and the cluster as one node sees it.

Times named `*_at`, `since` and `now` are seconds on the caller's monotonic clock (Trio's) unless a docstring says otherwise;
ages are seconds.
"""

from collections.abc import Mapping
from enum import Enum

from attrs import field, frozen

PIECE = 1 << 20
"""A piece is one MiB of a blob at an absolute offset, the last one may be shorter."""

PIECE_DIGEST = 16
"""Bytes kept of each piece's SHA-256."""


class Verdict(Enum):
    """What the watcher thinks of a location. The order is the order of preference."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"
    UNKNOWN = "unknown"
    """Nothing was seen of it yet."""
    DOWN = "down"


class LocationState(Enum):
    """What the operators want of a location (column `location.state`)."""

    ACTIVE = "active"
    PAUSED = "paused"
    DRAINING = "draining"
    DRAINED = "drained"
    REMOVED = "removed"


@frozen
class Blob:
    """A blob's identity. `pieces` is `PIECE_DIGEST` bytes per piece in order, or None for a blob adopted without them.

    `macs` is what spares hashing them (`replication/macs.py`), or None where there is nothing, or hashing is the purpose.
    """

    id: int
    digest: str
    size: int
    pieces: bytes | None = field(default=None, repr=False)
    macs: bytes | None = field(default=None, repr=False)


@frozen
class Placement:
    """The fact that a location holds a blob under a key. A suspect copy failed a read or had wrong bytes."""

    location: str
    key: str
    suspect: bool = False


@frozen
class LocationHealth:
    """One line of the board. `latency` is a smoothed time to first byte in seconds."""

    location: str
    verdict: Verdict = Verdict.UNKNOWN
    since: float = 0.0
    reason: str = "not probed yet"
    latency: float | None = None
    probe_good: bool = False
    """Whether the latest finished probe was good."""
    fresh_until: float = float("-inf")
    """When the latest good probe becomes overdue: one probe interval plus one probe deadline after it began."""
    probed_at: float = float("-inf")
    """When the latest finished probe began."""
    doubted_until: float = float("-inf")
    """Wrong bytes came from there: until then nobody is sent where no node looks at the bytes."""
    distance: float | None = None
    """The least time to first byte of the last minutes, in seconds: the way there and back (`replication/distance.py`)."""


Board = Mapping[str, LocationHealth]
"""The health of every location this node knows, by name. A location that is absent counts as UNKNOWN."""


@frozen
class CopyTask:
    """A claimed piece of debt: copy `blob` to `destination` under `key`. The lease is ours until it is renewed or lost."""

    blob: Blob
    destination: str
    key: str
    """Committed to the database before its first byte is written; never used for anything else."""
    placements: tuple[Placement, ...]
    """Where the blob is now, the destination's own suspect copy included."""
    lease: str
    """An opaque token that proves the claim; every claim has a new one."""
    upload: str | None = None
    """The store's multi-part id that an earlier try began under `key`, if any."""
    attempts: int = 0
    """Tries that failed before this one."""
    age: float = 0.0
    """Seconds since the debt arose, by the database's clock."""
    claimed_before: bool = False
    """Whether an earlier holder had the same key: it may have begun something there and died before it could say so."""
    place: float = 0.0
    """Its `plan.precedence`: the least goes first."""


@frozen
class DeadObject:
    """An object to be deleted, and the open multi-part write under its key to be abandoned, if any."""

    id: int
    location: str
    key: str
    attempts: int = 0


@frozen
class NodeView:
    """A node as the shared table shows it: its preference list, and seconds since its last heartbeat."""

    id: str
    preference: tuple[str, ...]
    silent_for: float
    draining: bool = False


@frozen
class Drill:
    """A location that all nodes treat as down for `left` more seconds; `balancer`: load balancers are told so, too."""

    left: float
    balancer: bool = False
    ran: float = 0.0
    """Seconds since it began."""


@frozen
class ClusterView:
    """What a heartbeat brings back: the other nodes, the locations' states, and drills by location."""

    nodes: tuple[NodeView, ...]
    states: Mapping[str, LocationState]
    drills: Mapping[str, Drill] = field(factory=dict)
    now: float | None = None
    """The shared table's clock, POSIX seconds, where it has one."""
