"""The ledger in memory, on Trio's clock: what the PostgreSQL one promises, with seeded outages. Every method is atomic."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from random import Random

import trio
from attrs import define, evolve, field

from replication.digests import Digest, blob_key
from replication.model import Blob, ClusterView, CopyTask, DeadObject, LocationState, NodeView, Placement
from replication.plan import precedence
from replication.ports import CopyOutcome, LedgerUnavailable


@define(eq=False)
class Task:
    """A row of the task table."""

    blob: int
    destination: str
    created: float
    priority: int
    due: float
    key: str | None = None
    upload: str | None = None
    lease: str | None = None
    attempts: int = 0
    error: str = ""


@define(eq=False)
class Dead:
    """A row of the table of dead objects."""

    id: int
    location: str
    key: str
    due: float
    attempts: int = 0
    error: str = ""


@define(eq=False)
class _Node:
    id: str
    preference: tuple[str, ...]
    seen: float


@define(eq=False)
class Truth:
    """The database itself; survives its nodes."""

    states: dict[str, LocationState]
    random: Random = field(factory=lambda: Random(0))
    blobs: dict[int, Blob] = field(factory=dict)
    required: dict[int, frozenset[str]] = field(factory=dict)
    placements: dict[tuple[int, str], Placement] = field(factory=dict)
    tasks: dict[tuple[int, str], Task] = field(factory=dict)
    dead: dict[int, Dead] = field(factory=dict)
    nodes: dict[str, _Node] = field(factory=dict)
    suspicions: list[tuple[tuple[int, str], str]] = field(factory=list)
    unavailable_rate: float = 0.0
    latency: float = 0.001
    recorded: Callable[[Blob, Placement], None] | None = None
    """Told of every placement at the moment it is recorded."""
    skew: float = 0.0
    """Seconds that have passed beside Trio's clock."""
    _serial: int = 0

    def now(self) -> float:
        """Return the database's time in seconds."""
        return trio.current_time() + self.skew

    def serial(self) -> int:
        """Return a number that was not given before."""
        self._serial += 1
        return self._serial

    def add_blob(
        self,
        digest: str,
        size: int,
        pieces: bytes | None,
        placed: Mapping[str, str],
        required: Iterable[str],
        priority: int = 0,
    ) -> Blob:
        """Commit a push: the blob, its placements (location to key) and its debt, in one step."""
        blob = Blob(self.serial(), digest, size, pieces)
        self.blobs[blob.id] = blob
        self.required[blob.id] = frozenset(required)
        for location, key in placed.items():
            self.place(blob, Placement(location, key))
        for location in sorted(self.required[blob.id] - placed.keys()):
            self.owe(blob.id, location, priority)
        return blob

    def place(self, blob: Blob, placement: Placement) -> None:
        """Record a placement."""
        self.placements[blob.id, placement.location] = placement
        if self.recorded is not None:
            self.recorded(blob, placement)

    def owe(self, blob: int, location: str, priority: int = 0) -> None:
        """Make a piece of debt due now."""
        now = self.now()
        task = self.tasks.get((blob, location))
        if task is None:
            self.tasks[blob, location] = Task(blob, location, now, priority, now)
        elif task.lease is None:
            task.due = now

    def drop_blob(self, blob: int) -> None:
        """Collect a blob: its rows go, its objects are dead."""
        for key in [k for k in self.placements if k[0] == blob]:
            self.bury(key[1], self.placements.pop(key).key)
        for key in [k for k in self.tasks if k[0] == blob]:
            task = self.tasks.pop(key)
            if task.key is not None:
                # Not before a copy that still runs must have noticed.
                self.bury(task.destination, task.key, after=300.0)
        del self.blobs[blob], self.required[blob]

    def bury(self, location: str, key: str, after: float = 0.0) -> None:
        """Make an object a dead one, due in `after` seconds."""
        serial = self.serial()
        self.dead[serial] = Dead(serial, location, key, self.now() + after)

    def sources(self, blob: int) -> tuple[Placement, ...]:
        """Return a blob's placements."""
        return tuple(placement for (owner, _), placement in self.placements.items() if owner == blob)


class MemoryLedger:
    """One node's way to the truth. `alive` false: the node was killed, nothing reaches the truth any more."""

    def __init__(self, truth: Truth, node: str, preference: tuple[str, ...]) -> None:
        self._truth = truth
        self._node = _Node(node, preference, float("-inf"))
        self.alive = True

    async def _call(self) -> None:
        """Take a round trip; the request may be lost on its way."""
        await trio.sleep(self._truth.latency)
        self._maybe_fail()

    def _maybe_fail(self) -> None:
        """Lose the request, or the answer."""
        if not self.alive or self._truth.random.random() < self._truth.unavailable_rate:
            raise LedgerUnavailable("the database did not answer")

    async def claim_copies(self, location: str, key_prefix: str, most: int, lease_seconds: float) -> Sequence[CopyTask]:
        await self._call()
        truth, now = self._truth, self._truth.now()
        due = [task for task in truth.tasks.values() if task.destination == location and task.due <= now]
        due.sort(key=lambda task: precedence(task.created, task.priority, truth.blobs[task.blob].size))
        claimed = [self._lease(task, key_prefix, lease_seconds) for task in due[:most]]
        self._maybe_fail()
        return claimed

    async def claim_copy(self, blob_id: int, location: str, key_prefix: str, lease_seconds: float) -> CopyTask | None:
        await self._call()
        task = self._truth.tasks.get((blob_id, location))
        held = task is None or (task.lease is not None and task.due > self._truth.now())
        claimed = None if task is None or held else self._lease(task, key_prefix, lease_seconds)
        self._maybe_fail()
        return claimed

    async def raise_priority(self, blob_id: int, location: str, priority: int) -> bool:
        await self._call()
        task = self._truth.tasks.get((blob_id, location))
        if task is not None:
            task.priority = max(task.priority, priority)
        self._maybe_fail()
        return task is not None

    def _lease(self, task: Task, key_prefix: str, lease_seconds: float) -> CopyTask:
        truth, now = self._truth, self._truth.now()
        blob = truth.blobs[task.blob]
        claimed_before = task.key is not None
        if task.key is None:
            task.key = blob_key(key_prefix, Digest.parse(blob.digest), f"{truth.serial():08x}")
        task.lease = f"lease-{truth.serial()}"
        task.due = now + lease_seconds
        sources = truth.sources(blob.id)
        age = now - task.created
        return CopyTask(
            blob, task.destination, task.key, sources, task.lease, task.upload, task.attempts, age, claimed_before
        )

    def _leased(self, lease: str) -> Task | None:
        now = self._truth.now()
        for task in self._truth.tasks.values():
            if task.lease == lease and task.due > now:
                return task
        return None

    async def renew(self, leases: Sequence[str], lease_seconds: float) -> frozenset[str]:
        await self._call()
        kept = set()
        for lease in leases:
            task = self._leased(lease)
            if task is not None:
                task.due = self._truth.now() + lease_seconds
                kept.add(lease)
        self._maybe_fail()
        return frozenset(kept)

    async def note_parts(self, task: CopyTask, upload: str) -> bool:
        await self._call()
        row = self._leased(task.lease)
        if row is not None:
            row.upload = upload
        self._maybe_fail()
        return row is not None

    async def finish_copy(self, task: CopyTask, pieces: bytes | None) -> CopyOutcome:
        await self._call()
        outcome = self._finish(task, pieces)
        self._maybe_fail()
        return outcome

    def _finish(self, task: CopyTask, pieces: bytes | None) -> CopyOutcome:
        truth, place = self._truth, (task.blob.id, task.destination)
        old = truth.placements.get(place)
        if old is not None and old.key == task.key:
            return CopyOutcome.PLACED
        row = truth.tasks.get(place)
        if row is None or row.key != task.key or (old is not None and not old.suspect):
            if row is not None and row.key == task.key:
                del truth.tasks[place]
            if not any(d.key == task.key and d.location == task.destination for d in truth.dead.values()):
                truth.bury(task.destination, task.key)
            return CopyOutcome.SUPERSEDED
        del truth.tasks[place]
        if old is not None:
            truth.bury(old.location, old.key)
        blob = truth.blobs[task.blob.id]
        if blob.pieces is None and pieces is not None:
            truth.blobs[task.blob.id] = blob = evolve(blob, pieces=pieces)
        truth.place(blob, Placement(task.destination, task.key))
        return CopyOutcome.PLACED

    async def fail_copy(self, task: CopyTask, error: str, retry_after: float) -> None:
        await self._call()
        row = self._leased(task.lease)
        if row is not None:
            row.lease, row.error = None, error
            row.attempts += 1
            row.due = self._truth.now() + retry_after
        self._maybe_fail()

    async def hand_back(self, leases: Sequence[str]) -> None:
        await self._call()
        for lease in leases:
            row = self._leased(lease)
            if row is not None:
                row.lease, row.due = None, self._truth.now()
        self._maybe_fail()

    async def mark_suspect(self, blob_id: int, location: str, key: str, reason: str) -> None:
        await self._call()
        truth, place = self._truth, (blob_id, location)
        placement = truth.placements.get(place)
        if placement is not None and placement.key == key:
            truth.placements[place] = evolve(placement, suspect=True)
            truth.suspicions.append((place, reason))
            if location in truth.required[blob_id]:
                truth.owe(blob_id, location)
        self._maybe_fail()

    async def next_due(self, locations: Sequence[str]) -> float | None:
        await self._call()
        truth = self._truth
        due = [t.due for t in truth.tasks.values() if t.destination in locations]
        due += [d.due for d in truth.dead.values() if d.location in locations]
        return max(0.0, min(due) - self._truth.now()) if due else None

    async def claim_dead(self, location: str, most: int, lease_seconds: float) -> Sequence[DeadObject]:
        await self._call()
        now = self._truth.now()
        due = [d for d in self._truth.dead.values() if d.location == location and d.due <= now][:most]
        for dead in due:
            dead.due = now + lease_seconds
        self._maybe_fail()
        return [DeadObject(d.id, d.location, d.key, d.attempts) for d in due]

    async def finish_dead(self, ids: Sequence[int]) -> None:
        await self._call()
        for serial in ids:
            self._truth.dead.pop(serial, None)
        self._maybe_fail()

    async def fail_dead(self, ids: Sequence[int], error: str, retry_after: float) -> None:
        await self._call()
        for serial in ids:
            dead = self._truth.dead.get(serial)
            if dead is not None:
                dead.attempts += 1
                dead.error = error
                dead.due = self._truth.now() + retry_after
        self._maybe_fail()

    async def heartbeat(self) -> ClusterView:
        await self._call()
        truth, now = self._truth, self._truth.now()
        self._node.seen = now
        truth.nodes[self._node.id] = self._node
        others = [NodeView(n.id, n.preference, now - n.seen) for n in truth.nodes.values() if n.id != self._node.id]
        self._maybe_fail()
        return ClusterView(tuple(others), dict(truth.states))
