"""The ledger in memory: what the PostgreSQL one promises, with seeded outages. Every method is atomic."""

from collections.abc import Callable, Sequence

import trio
from attrs import define, evolve, field

from property_tests.memory_truth import NodeRow, Task, Truth
from replication.digests import Digest, blob_key
from replication.macs import PieceProofs
from replication.model import ClusterView, CopyTask, DeadObject, LocationState, NodeView, Placement
from replication.plan import precedence, worth_claiming
from replication.ports import CopyOutcome, LedgerUnavailable

FINISH_GRACE = 60.0
"""Seconds that an object which lost its place to another, or came too late, stays."""


@define(eq=False)
class Line:
    """One node's way to the truth. `alive` false: the node was killed, nothing reaches the truth any more."""

    truth: Truth
    alive: bool = True
    step: Callable[[], None] = field(default=lambda: None)
    """Called before and after every unit of work."""

    async def call(self) -> None:
        """Take a round trip; the request may be lost on its way."""
        self.step()
        await trio.sleep(self.truth.latency)
        self._maybe_fail()

    def done(self) -> None:
        """The work is done; its answer may be lost."""
        self.step()
        self._maybe_fail()

    def _maybe_fail(self) -> None:
        if not self.alive or self.truth.random.random() < self.truth.unavailable_rate:
            raise LedgerUnavailable("the database did not answer")


class MemoryLedger:
    """See `replication.ports.Ledger`."""

    def __init__(self, line: Line, node: str, preference: tuple[str, ...]) -> None:
        self._line = line
        self._truth = line.truth
        self._node = NodeRow(node, preference, float("-inf"))

    async def claim_copies(
        self, location: str, key_prefix: str, most: int, lease_seconds: float, ahead: int = 0
    ) -> Sequence[CopyTask]:
        await self._line.call()
        truth, now = self._truth, self._truth.now()
        due = [task for task in truth.tasks.values() if task.destination == location and task.due <= now]
        claimed = self._claim(due, key_prefix, most, lease_seconds, ahead)
        self._line.done()
        return claimed

    async def claim_copy(self, blob_id: int, location: str, key_prefix: str, lease_seconds: float) -> CopyTask | None:
        await self._line.call()
        task = self._truth.tasks.get((blob_id, location))
        claimed = self._claim([] if task is None else [task], key_prefix, 1, lease_seconds)
        self._line.done()
        return claimed[0] if claimed else None

    def _claim(
        self, tasks: Sequence[Task], key_prefix: str, most: int, lease_seconds: float, ahead: int = 0
    ) -> list[CopyTask]:
        truth, now = self._truth, self._truth.now()
        free = [
            task
            for task in tasks
            if task.lease_until <= now and truth.states.get(task.destination) is LocationState.ACTIVE
        ]
        free.sort(key=self._place)
        claimed = []
        for task in free[: worth_claiming([truth.blobs[task.blob].size for task in free], most, ahead)]:
            if task.destination in truth.good(task.blob) | truth.forbidden(task.blob):
                self._strike(task)
            else:
                claimed.append(self._lease(task, key_prefix, lease_seconds))
        return claimed

    def _place(self, task: Task) -> float:
        return precedence(task.created, task.priority, self._truth.blobs[task.blob].size)

    def _strike(self, task: Task) -> None:
        """Strike off what is paid, or must not be paid."""
        truth = self._truth
        del truth.tasks[task.blob, task.destination]
        if task.key is not None and not self._placed(task.destination, task.key):
            truth.bury(task.destination, task.key)

    def _placed(self, location: str, key: str) -> bool:
        return any(p.location == location and p.key == key for p in self._truth.placements.values())

    async def raise_priority(self, blob_id: int, location: str, priority: int) -> bool:
        await self._line.call()
        task = self._truth.tasks.get((blob_id, location))
        if task is not None:
            task.priority = max(task.priority, priority)
        self._line.done()
        return task is not None

    def _lease(self, task: Task, key_prefix: str, lease_seconds: float) -> CopyTask:
        truth, now = self._truth, self._truth.now()
        blob = truth.blobs[task.blob]
        claimed_before = task.key is not None
        if task.key is None:
            task.key = blob_key(key_prefix, Digest.parse(blob.digest), f"{truth.serial():08x}")
        task.lease = f"lease-{truth.serial()}"
        task.lease_until = now + lease_seconds
        sources = truth.sources(blob.id)
        age = now - task.created
        return CopyTask(
            blob, task.destination, task.key, sources, task.lease, task.upload, task.attempts, age, claimed_before,
            self._place(task),
        )  # fmt: skip

    def _leased(self, lease: str) -> Task | None:
        return next((task for task in self._truth.tasks.values() if task.lease == lease), None)

    async def renew(self, leases: Sequence[str], lease_seconds: float) -> frozenset[str]:
        await self._line.call()
        kept = set()
        for lease in leases:
            task = self._leased(lease)
            if task is not None:
                task.lease_until = self._truth.now() + lease_seconds
                kept.add(lease)
        self._line.done()
        return frozenset(kept)

    async def note_parts(self, task: CopyTask, upload: str) -> bool:
        await self._line.call()
        row = self._leased(task.lease)
        if row is not None:
            row.upload = upload
        self._line.done()
        return row is not None

    async def change_key(self, task: CopyTask) -> str | None:
        await self._line.call()
        row = self._leased(task.lease)
        if row is not None:
            assert row.key is not None
            if not self._placed(row.destination, row.key):
                self._truth.bury(row.destination, row.key, FINISH_GRACE)
            row.key = f"{row.key.rpartition('.')[0]}.{self._truth.serial():08x}"
            row.upload = None
        self._line.done()
        return None if row is None else row.key

    async def finish_copies(self, finished: Sequence[tuple[CopyTask, PieceProofs]]) -> Sequence[CopyOutcome]:
        await self._line.call()
        outcomes = [self._finish(task, proofs) for task, proofs in finished]
        self._line.done()
        return outcomes

    def _finish(self, task: CopyTask, proofs: PieceProofs) -> CopyOutcome:
        truth, place = self._truth, (task.blob.id, task.destination)
        old, row = truth.placements.get(place), truth.tasks.get(place)
        blob = truth.blobs.get(task.blob.id)
        if blob is not None:
            blob = evolve(blob, pieces=blob.pieces or proofs.pieces, macs=proofs.macs or blob.macs)
            truth.blobs[blob.id] = blob
        # Whoever struck the task has buried its key: only a task that is still there makes it a placement.
        mine = row is not None and row.key == task.key
        # A repeat of what is recorded says nothing new: since then the copy may have been distrusted, and be owed anew.
        repeated = old is not None and old.key == task.key
        placed = blob is not None and mine and (old is None or old.suspect)
        if row is not None and (row.lease == task.lease or row.key == task.key):
            del truth.tasks[place]
            if row.key is not None and row.key != task.key:
                truth.bury(task.destination, row.key, FINISH_GRACE)
        if repeated:
            return CopyOutcome.PLACED
        if not placed:
            truth.bury(task.destination, task.key, FINISH_GRACE)
            return CopyOutcome.SUPERSEDED
        assert blob is not None
        if old is not None:
            truth.bury(old.location, old.key, FINISH_GRACE)
        truth.place(blob, Placement(task.destination, task.key))
        return CopyOutcome.PLACED

    async def fail_copy(self, task: CopyTask, error: str, retry_after: float, unreached: Sequence[str] = ()) -> None:  # noqa: ARG002 - shown to people only
        await self._line.call()
        row = self._leased(task.lease)
        if row is not None:
            row.lease, row.lease_until, row.error = None, float("-inf"), error
            row.attempts += 1
            row.due = self._truth.now() + retry_after
        self._line.done()

    async def hand_back(self, leases: Sequence[str]) -> None:
        await self._line.call()
        for lease in leases:
            row = self._leased(lease)
            if row is not None:
                row.lease, row.lease_until = None, float("-inf")
                row.due = min(row.due, self._truth.now())
        self._line.done()

    async def mark_suspect(self, blob_id: int, location: str, key: str, reason: str) -> None:
        await self._line.call()
        placement = self._truth.placements.get((blob_id, location))
        if placement is not None and placement.key == key:
            self._truth.suspect(blob_id, location, reason)
        self._line.done()

    async def next_due(self, locations: Sequence[str]) -> float | None:
        await self._line.call()
        truth = self._truth
        due = [max(t.due, t.lease_until) for t in truth.tasks.values() if t.destination in locations]
        due += [d.due for d in truth.dead.values() if d.location in locations]
        return max(0.0, min(due) - self._truth.now()) if due else None

    async def claim_dead(self, location: str, most: int, lease_seconds: float) -> Sequence[DeadObject]:
        await self._line.call()
        now = self._truth.now()
        due = [d for d in self._truth.dead.values() if d.location == location and d.due <= now][:most]
        for dead in due:
            dead.due = now + lease_seconds
        self._line.done()
        return [DeadObject(d.id, d.location, d.key, d.attempts) for d in due]

    async def finish_dead(self, ids: Sequence[int]) -> None:
        await self._line.call()
        for serial in ids:
            self._truth.dead.pop(serial, None)
        self._line.done()

    async def fail_dead(self, ids: Sequence[int], error: str, retry_after: float) -> None:
        await self._line.call()
        for serial in ids:
            dead = self._truth.dead.get(serial)
            if dead is not None:
                dead.attempts += 1
                dead.error = error
                dead.due = self._truth.now() + retry_after
        self._line.done()

    async def heartbeat(self) -> ClusterView:
        await self._line.call()
        truth, now = self._truth, self._truth.now()
        self._node.seen = now
        truth.nodes[self._node.id] = self._node
        others = [NodeView(n.id, n.preference, now - n.seen) for n in truth.nodes.values() if n.id != self._node.id]
        self._line.done()
        return ClusterView(tuple(others), dict(truth.states))
