"""What a registry request needs, in one value: the node's parts as the pull and push planes see them."""

from collections.abc import Callable, Mapping

import trio
from attrs import define, field

from engines.clock import trio_clock
from engines.contract import Engine
from node.acknowledged import Acknowledged
from node.alike import Alike
from node.answers import Request
from node.auditlog import AuditLog
from node.auth.access import Access
from node.cache import Cache, Freshness
from node.config.settings import Settings
from node.forgetting import Forgetting
from node.gates import Gates
from node.names import namespace_of
from node.pull.lasting import Ground
from node.records.auditlog import Line
from node.records.manifests import FoundManifest, Look, TagAsked, find_by_tags
from node.records.postgres import Database
from node.records.pulls import FoundBlob
from node.records.replicas import Replicas
from node.shares import Sources
from node.together import Together
from node.waiting import Waiting
from node.web.proxies import Proxies
from replication.macs import MacKeys
from replication.model import Board, ClusterView, LocationState, Placement
from replication.parts import PartPool
from replication.patience import Patience
from replication.policy import Policy
from replication.ports import Forget, Hint, Hints, Placed
from replication.reader import Reader
from replication.scheduler import Scheduler
from replication.sources import standing
from replication.tees import Tees
from replication.upload_spool import UploadSpool
from replication.wanted import Wanted
from replication.watcher import Watcher

MIB = 1 << 20
# Full, they hold 27 MiB, which with the node's own 115 stays below 150 (tests/test_memory.py). More would bring little: of the blob
# requests in production traces the latest 5 000 blobs answer 52 %, the latest 20 000 answer 57 % (Anwar et al., FAST'18).
_MANIFEST_BYTES = 8 * MIB
_SMALL_BLOB_BYTES = 4 * MIB
_LINKS = 6_000
_ENTRY = 416
"""What an entry costs besides its bytes: key, times and places. Many tiny ones must not cost more than a few large ones."""


def _bytes(value: bytes) -> int:
    return len(value) + _ENTRY


def _links(found: FoundBlob) -> int:
    """Weigh a blob in entries: what is kept of a large one's pieces is as long as many others together."""
    return 1 + (len(found.blob.pieces or b"") + len(found.blob.macs or b"")) // _ENTRY


@define(eq=False)
class Memory:
    """What the pull plane remembers. Bytes are immutable; links and placements live for `METADATA_STALENESS` at most."""

    freshness: Freshness
    manifest_bytes: Cache[str, bytes] = field(factory=lambda: Cache(_MANIFEST_BYTES, weigh=_bytes))
    small_blobs: Cache[str, bytes] = field(factory=lambda: Cache(_SMALL_BLOB_BYTES, weigh=_bytes))
    reading: dict[str, trio.Event] = field(factory=dict)
    """Small blobs that somebody reads from a store just now: set when that has ended, well or not."""
    manifests: Cache[tuple[str, str], FoundManifest] = field(factory=lambda: Cache(_LINKS))
    """(repository, digest) -> what it has, without the bytes."""
    blobs: Cache[tuple[str, str], FoundBlob] = field(factory=lambda: Cache(_LINKS, weigh=_links))
    """(repository, digest) -> the blob and its placements."""
    policies: Cache[str, tuple[int, Policy]] = field(factory=lambda: Cache(_LINKS))
    """namespace -> version and policy; every commit checks the version, so an old one is only a detour."""
    last_digest: Cache[tuple[str, str], str] = field(factory=lambda: Cache(_LINKS))
    """(repository, tag) -> where it pointed last, only to spare the bytes a journey."""
    pulled: Cache[str, str] = field(factory=lambda: Cache(_LINKS))
    """repository -> the manifest that was pulled last, only to know what will be asked for with a blob."""


@define(eq=False)
class Registry:
    """The parts that answers are made of. Everything in it may be used by any number of requests at once."""

    settings: Settings
    access: Access
    """Who may do what."""
    current: Callable[[], Settings]
    """The settings as the latest SIGHUP left them: for what a running node takes over."""
    database: Database
    engines: Mapping[str, Engine]
    watcher: Watcher
    reader: Reader
    tees: Tees
    macs: MacKeys
    """What the pieces of a new blob get MACs by."""
    wanted: Wanted
    hints: Hints
    forgetting: Forgetting
    pool: PartPool
    patience: Patience
    upload_spool: UploadSpool
    gates: Gates
    auditlog: AuditLog
    waiting: Waiting
    """Who waits for an image to arrive."""
    durable: Waiting
    """Pushes that wait for their copies: as many as DURABILITY_WAITERS, whoever else waits."""
    scheduler: Scheduler
    """Knows what the last heartbeat brought."""
    states: Callable[[], Mapping[str, LocationState]]
    """The locations' states as it brought them."""
    instance: str
    """This process's id, new at every start."""
    clock: Callable[[], float]
    """POSIX seconds, for presigned URLs."""
    memory: Memory
    acknowledged: Acknowledged
    note_redirect: Callable[[str, str, Placement], None] = lambda _repository, _digest, _placement: None
    """Told of every copy that a client is sent to. Must not wait."""
    replicas: Replicas | None = None
    """Who is asked first for digests, where the database has read replicas."""
    tags: Together[TagAsked, Look] = field(init=False)
    """Looks tags up, all that wait at the same moment in one statement."""
    manifests: Alike[Look] = field(factory=Alike, init=False)
    blobs: Alike[FoundBlob | None] = field(factory=Alike, init=False)
    """Look digests up, those that wait for the same one at the same moment once."""
    sources: Sources = field(init=False)
    """Who an address is where nobody is logged in."""

    now: Callable[[], float] = field(factory=trio_clock, init=False)
    """Trio's clock."""
    _ground: Ground | None = field(default=None, init=False)
    _seen: tuple[Board | None, ClusterView | None] = field(default=(None, None), init=False)
    """What `_ground` was last found to be true of."""

    def __attrs_post_init__(self) -> None:
        self.tags = Together(lambda asked: find_by_tags(self.database, asked))
        self.sources = Sources(Proxies(self.settings.edge.trusted_proxies))

    def sharer(self, account: str, client: str) -> str:
        """Return who takes places for a request: an account, or where nobody is logged in, the address that it comes from."""
        return account or self.sources.of(client)

    def ground(self, now: float) -> Ground:
        """Return what pulls are decided by now (Trio's clock): the same object for as long as that is the same."""
        ground, measured, cluster = self._ground, self.watcher.measured_at(now), self.scheduler.cluster
        hints, seen = self.memory.freshness.noted, self._seen
        if ground is not None and measured is seen[0] and cluster is seen[1] and hints == ground.hints:
            return ground
        # A drill ends although no heartbeat says so.
        self._seen = (None if cluster is None or cluster.drills else measured, cluster)
        board, states = self.watcher.board_at(now), self.states()
        found = Ground(standing(board, self.settings.preference, now), states, hints)
        if ground is None or found != ground:
            ground = self._ground = found
        return ground

    def line(self, request: Request, action: str, repository: str, **detail: object) -> Line:
        """Return the audit log's line about a request."""
        namespace = namespace_of(repository, self.settings.library_namespace)
        return Line(action, request.who, namespace, repository, detail, request.client, self.instance, request.id)

    async def forget_everywhere(self, repository: str, digest: str | None) -> None:
        """Make all nodes forget what has just been deleted before the client hears of it; bounded."""
        self.memory.freshness.note(Forget(repository, digest), trio.current_time())
        await self.forgetting.everywhere(repository, digest)

    def tell(self, *hints: Hint) -> None:
        """Tell all nodes what has just been committed, and forget at once what this one remembers of it."""
        now = trio.current_time()
        for hint in hints:
            if isinstance(hint, Forget | Placed):
                self.memory.freshness.note(hint, now)
        self.hints.publish(*hints)
