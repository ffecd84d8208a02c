"""A simulated cluster: real watcher, reader, copier, sweeper, scheduler, reconciler and waits over memory stores, hints, ledger."""

import hashlib
from collections.abc import Callable, Iterable
from random import Random

import trio
from attrs import define, field

from node.shares import NOBODY, Places, Share
from node.waiting import Subject, Vanished, Waiting
from property_tests.closures import closure_of_blob, closure_of_image
from property_tests.memory_engine import MIB, MemoryCopyingEngine, MemoryEngine, MemoryStore
from property_tests.memory_hints import MemoryHints
from property_tests.memory_ledger import Line, MemoryLedger
from property_tests.memory_rounds import MemoryRounds
from property_tests.memory_truth import COUNTING, Truth
from property_tests.tees import tees_of
from property_tests.uploads import push_plane
from replication.arrival import Status, arrival
from replication.closure import Closure
from replication.copier import Copier, CopierSettings
from replication.digests import Digest, blob_key
from replication.drainer import Drainer, DrainSettings
from replication.health import HealthRules
from replication.macs import MacKey, MacKeys
from replication.model import Blob, LocationState, Placement, Verdict
from replication.offload import inline
from replication.parts import PartPool
from replication.patience import Patience
from replication.ports import LedgerUnavailable, Wake
from replication.proof import Prover
from replication.reader import NoGoodSource, Reader
from replication.reconcile import settle
from replication.reconciler import Reconciler, ReconcilerSettings
from replication.scheduler import Scheduler, SchedulerSettings
from replication.sources import choose_sources
from replication.spool import Spool
from replication.suspects import Suspects
from replication.sweeper import Sweeper
from replication.targets import choose_targets
from replication.trimmer import Trimmer, TrimSettings
from replication.watcher import Watcher, probe_keys
from replication.within import WithinLimits
from tests.copies import pieces_of

KEY = MacKey(b"cluster.", b"k" * 32)
MARKER = b"the right bucket"
KEEP = 125.0
"""Seconds that the bytes of trimmed and collected copies stay."""


class PromiseBroken(AssertionError):
    """One of the design's promises did not hold."""


@define(eq=False)
class World:
    """What outlives the nodes: stores, database, hints, and what was pushed. `later` are stores whose location is added later.

    `service` are stores that are buckets of one service, which copies between them by itself.
    """

    random: Random
    locations: tuple[str, ...] = ("us", "eu", "ap")
    later: tuple[str, ...] = ()
    service: frozenset[str] = frozenset()
    stores: dict[str, MemoryStore] = field(factory=dict)
    pushed: dict[int, bytes] = field(factory=dict)
    excused: set[tuple[int, str]] = field(factory=set)
    """Debt without a task that the reconciler has to find: a job was lost, or a policy or a location's state changed."""
    silent: dict[str, tuple[int, float]] = field(factory=dict)
    """Stores of which nothing can be had, with their epoch of faults, and since when that was seen."""
    spools: list[Spool] = field(factory=list)
    """Where the tees of all nodes that ever ran keep what they fetch."""
    rotten: set[tuple[str, str]] = field(factory=set)
    """Copies that were damaged or lost behind everybody's back, as (location, key)."""
    truth: Truth = field(init=False)
    hints: MemoryHints = field(init=False)

    def __attrs_post_init__(self) -> None:
        for name in (*self.locations, *self.later):
            # Stores of both kinds.
            store = self.stores[name] = MemoryStore(name, Random(self.random.random()), all_or_none=name != "eu")
            store.objects["registry/_antipode/marker"] = MARKER
            store.deleting = self._guard(name)
        self.truth = Truth(
            dict.fromkeys(self.locations, LocationState.ACTIVE),
            random=Random(self.random.random()),
            recorded=self.check_recorded,
        )
        self.hints = MemoryHints(Random(self.random.random()))

    def _guard(self, location: str) -> Callable[[str], None]:
        def check(key: str) -> None:
            if any(p.location == location and p.key == key for p in self.truth.placements.values()):
                raise PromiseBroken(f"a delete hits the live copy {key} in {location}")

        return check

    def check_recorded(self, blob: Blob, placement: Placement) -> None:
        """Promise 2: at the moment a placement is recorded the store holds the right bytes under its key."""
        data = self.stores[placement.location].objects.get(placement.key)
        if data is None or not Digest.parse(blob.digest).matches(data):
            raise PromiseBroken(f"a wrong copy of {blob.digest} was recorded at {placement}")
        self.pushed.setdefault(blob.id, data)

    def _untold(self) -> set[tuple[int, str]]:
        """Return the debt that no task says."""
        truth = self.truth
        return {
            (blob, at)
            for blob in truth.blobs
            for at in truth.required(blob) - truth.good(blob)
            if (blob, at) not in truth.tasks
        }

    def excuse(self) -> None:
        """Something has just changed what is owed: the reconciler has to find out."""
        self.excused |= self._untold()

    def check_debt(self) -> None:
        """Promises 3 and 4: what is required and not present has a task; promise 7: no dead key is a live one."""
        untold = self._untold()
        self.excused &= untold
        if untold - self.excused:
            raise PromiseBroken(f"{untold - self.excused} is owed, and nobody knows")
        live = {(p.location, p.key) for p in self.truth.placements.values()}
        for dead in self.truth.dead.values():
            if (dead.location, dead.key) in live:
                raise PromiseBroken(f"{dead} is live")
        for task in self.truth.tasks.values():
            if task.attempts and not task.error:
                raise PromiseBroken(f"nobody can see why {task} fails")

    def check_kept(self) -> None:
        """Promise 1: of every blob that was acknowledged and not collected there is a right copy on record."""
        for blob in self.truth.blobs:
            copies = (p for p in self.truth.sources(blob) if self.truth.states[p.location] is not LocationState.REMOVED)
            if not any(self.right(blob, copy) for copy in copies):
                raise PromiseBroken(f"blob {blob} is lost: {self.truth.facts(blob)}")

    def look_at_stores(self) -> None:
        """Note which stores are silent."""
        for name, store in self.stores.items():
            if not (store.faults.down or store.faults.hanging):
                self.silent.pop(name, None)
            elif self.silent.get(name, (None, 0.0))[0] != store.fault_epoch:
                self.silent[name] = store.fault_epoch, trio.current_time()

    def good_at(self, blob: int) -> list[str]:
        """Return the locations whose recorded copy is right and whose store is well."""
        return [
            p.location
            for p in self.truth.sources(blob)
            if not self.stores[p.location].faults.any and self.right(blob, p)
        ]

    def right(self, blob: int, placement: Placement) -> bool:
        """Return whether a copy's bytes are there, and right."""
        return self.stores[placement.location].objects.get(placement.key) == self.pushed[blob]

    def unsettled(self) -> str | None:
        """Return what is not as it must be at rest, None when required equals present everywhere and nothing is left to do."""
        truth = self.truth
        if truth.dead or truth.tasks or truth.uploads:
            return (
                f"tasks {list(truth.tasks.values())}, dead {list(truth.dead.values())}, {list(truth.uploads.values())}"
            )
        if truth.tags.stale(truth.policies):
            return "a tag's locations are not what its policy says"
        for blob in truth.blobs:
            required, forbidden, good = truth.required(blob), truth.forbidden(blob), truth.good(blob)
            spare = {p.location for p in truth.sources(blob)} - required
            staying = {at for at in spare if truth.states[at] not in COUNTING or not required}
            # What is about to go does not count: a copy where it is forbidden is not given up for one that is being drained.
            kept = {at for at in good - forbidden if truth.states[at] is LocationState.ACTIVE}
            if not required <= good or spare - staying or (spare & forbidden and kept):
                return (
                    f"blob {blob}: required {sorted(required)}, placed {truth.sources(blob)}, never {sorted(forbidden)}"
                )
            if not settle(truth.facts(blob), replicate=True).settled:
                return f"blob {blob} would be settled: {settle(truth.facts(blob), replicate=True)}"
        return None

    def settled(self) -> bool:
        """Return whether everything is as it must be at rest."""
        return self.unsettled() is None


class Node:
    """One node of the cluster; `run` until cancelled, `crash` cuts it off from the database first."""

    def __init__(
        self, world: World, name: str, preference: tuple[str, ...], seed: int, *, reconciles: bool = False
    ) -> None:
        self.world = world
        self.name = name
        self.preference = preference
        self.reconciles = reconciles
        self.scope = trio.CancelScope()
        self.random = Random(seed)
        self.fuse: int | None = None
        """Calls of the database and the stores until it dies."""
        self.ended = trio.Event()
        self.engines = {
            name: MemoryCopyingEngine(store, world.service) if name in world.service else MemoryEngine(store)
            for name, store in world.stores.items()
        }
        for engine in self.engines.values():
            engine.called = self.burn
        self.line = Line(world.truth, step=self.burn)
        self.ledger = MemoryLedger(self.line, self.name, self.preference)
        self.suspects = Suspects(self.ledger, world.hints)
        patience = Patience()
        self.watcher = Watcher(
            self.engines,
            {name: probe_keys(engine.prefix, self.name, MARKER) for name, engine in self.engines.items()},
            HealthRules(),
            writable=lambda name: name in self.preference,
            changed=lambda _, after: self.scheduler.nudge(after.location),
            heard=patience.probed,
        )
        self.reader = Reader(self.engines, self.watcher.report, self.suspects.note, offload=inline, macs=MacKeys([KEY]))
        self.pool = pool = PartPool(8 * MIB)
        self.copier = Copier(
            self.engines,
            self.reader,
            self.ledger,
            pool,
            lambda placements: choose_sources(placements, self.preference, self.watcher.board),
            CopierSettings(
                part_size=MIB,
                parts_per_blob=2,
                write_deadline=15.0,
                # What is larger than a part and fits in two is copied in one call, the rest in parts.
                within=WithinLimits(whole=2 * MIB, part=MIB, least=MIB + 1),
            ),
            offload=inline,
            shared=lambda digest: self.tees.running(digest),
        )
        self.scheduler = Scheduler(
            self.ledger,
            world.hints,
            self.copier,
            Sweeper(self.engines, self.ledger, self.random.random),
            lambda: self.watcher.board,
            self.preference,
            {name: engine.prefix for name, engine in self.engines.items()},
            SchedulerSettings(streams=4, streams_per_location=4),
            self.random.random,
        )
        rounds = MemoryRounds(self.line)
        prover = Prover(self.reader, pool, {}, lambda: MIB, lambda: 2)
        self.trimmer = Trimmer(
            rounds,
            world.hints.publish,
            prover.prove,
            self._choose,
            self._down,
            TrimSettings(keep=KEEP, lease_seconds=60.0),
        )
        drainer = Drainer(rounds, prover.prove, self._choose, self._down, DrainSettings(batch=4, lease_seconds=60.0))
        self.reconciler = Reconciler(
            rounds,
            world.hints,
            ReconcilerSettings(page=4, keep=KEEP, between_rounds=30.0),
            self.trimmer,
            drainer,
        )
        self.tees = tees_of(self)
        self.plane = push_plane(self, pool, patience)
        self.waiting = Waiting(self._look, world.hints, Places("waits", Share(100)))
        self.durable = Waiting(self._look_at_image, world.hints, Places("pushes", Share(100)))
        self.seen: dict[str, tuple[dict[int, set[str]], frozenset[str]]] = {}
        """Of images that pushes wait for: where the right bytes were when the database was asked last, and where all must be."""

    def _choose(self, placements: Iterable[Placement]) -> tuple[Placement, ...]:
        return choose_sources(placements, self.preference, self.watcher.board)

    def _down(self) -> frozenset[str]:
        return frozenset(name for name, line in self.watcher.board.items() if line.verdict is Verdict.DOWN)

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        with self.scope:
            async with trio.open_nursery() as nursery:
                await nursery.start(self.watcher.run)
                nursery.start_soon(self.suspects.run)
                await nursery.start(self.scheduler.run)
                await nursery.start(self.tees.run)
                await nursery.start(self.plane.spool.run)
                if self.reconciles:
                    await nursery.start(self.reconciler.run)
                    await nursery.start(self.waiting.run)
                    await nursery.start(self.durable.run)
                task_status.started()
        self.ended.set()

    def burn(self) -> None:
        """Come one call nearer to the end."""
        if self.fuse is not None:
            self.fuse -= 1
            if self.fuse == 0:
                self.crash()

    def crash(self) -> None:
        """Die without a word."""
        self.line.alive = False
        self.plane.crash()
        self.scope.cancel()

    async def stop(self) -> None:
        """Stop as an operator stops it: it takes on nothing new, and gives back what it has leased."""
        self.scheduler.draining = True
        await trio.sleep(self.random.uniform(0, 4))
        self.scope.cancel()
        await self.ended.wait()

    async def push(
        self, size: int, with_pieces: bool = True, *, data: bytes | None = None, namespace: str = "team"
    ) -> Blob | None:
        """Push a blob as a client would see it: None when it was refused."""
        world, truth = self.world, self.world.truth
        data = self.random.randbytes(size) if data is None else data
        digest = Digest("sha256", hashlib.sha256(data).hexdigest())
        allowed = truth.states.keys() - truth.policy(namespace).never
        for location in choose_targets(self.preference, truth.states, self.watcher.board, allowed):
            engine = self.engines[location]
            key = blob_key(engine.prefix, digest, f"{truth.serial():08x}")
            try:
                if (await engine.put(key, data)).size == len(data):
                    break
            except trio.Cancelled:
                # The client went away. The upload's row knows the key, and buries it when its time is over.
                truth.bury(location, key, after=60.0)
                raise
            except Exception as error:  # noqa: BLE001 - whatever the store does, the next one is tried
                self.watcher.report(location, ok=False, reason=str(error))
            truth.bury(location, key, after=60.0)
        else:
            return None
        if truth.states[location] is LocationState.REMOVED or location in truth.policy(namespace).never:
            # The upload's row went with the location, or the policy changed meanwhile: the client begins again.
            truth.bury(location, key)
            return None
        pieces = pieces_of(data) if with_pieces else None
        blob = truth.add_blob(str(digest), len(data), pieces, {location: key}, namespaces=[namespace])
        world.pushed[blob.id] = data
        world.hints.publish(Wake(tuple(sorted(truth.required(blob.id) - {location}))))
        return blob

    async def pull(self, blob: Blob) -> None:
        """Pull a blob and hold the node to promises 1 and 2."""
        world = self.world
        sources = choose_sources(world.truth.sources(blob.id), self.preference, self.watcher.board)
        reachable = {name: world.stores[name].fault_epoch for name in world.good_at(blob.id)}
        got = bytearray()
        wrong = None
        try:
            async with self.tees.open_blob(world.truth.blobs[blob.id], sources) as stream:
                async for chunk in stream:
                    got += chunk
        except NoGoodSource as error:
            wrong = str(error)
        # Without pieces wrong bytes are noticed before the last chunk goes out: the client sees a broken transfer.
        wrong_piece = blob.pieces is not None and not world.pushed[blob.id].startswith(bytes(got))
        if wrong_piece or (wrong is None and bytes(got) != world.pushed[blob.id]):
            raise PromiseBroken(f"wrong bytes of {blob} were served")
        still = [name for name, epoch in reachable.items() if world.stores[name].fault_epoch == epoch]
        if still and bytes(got) != world.pushed[blob.id] and (blob.pieces is not None or len(sources) == 1):
            raise PromiseBroken(f"{blob.digest} could not be pulled though {still} were well: {wrong}")

    async def fetch(self, blob: Blob, seconds: float) -> None:
        """Bring a blob to the preferred store because a client waits for it, who goes away after so many seconds."""
        with trio.move_on_after(seconds):
            await self.scheduler.pay_at_once(blob.id, self.preference[0])

    async def _look(self, subject: Subject) -> Closure | None:
        await self.line.call()
        blob = int(subject.repository)
        seen = closure_of_blob(self.world.truth, blob) if blob in self.world.truth.blobs else None
        self.line.done()
        return seen

    async def _look_at_image(self, subject: Subject) -> Closure | None:
        await self.line.call()
        truth = self.world.truth
        seen = closure_of_image(truth, subject.digest)
        if seen is not None:
            required, never = truth.rules(subject.repository)
            staying = {at for at, state in truth.states.items() if state in COUNTING} - never
            self.seen[subject.digest] = (
                {
                    blob: {p.location for p in truth.sources(blob) if p.location in staying and self._right(blob, p)}
                    for blob in truth.tags.manifests[subject.digest].blobs
                },
                required & staying,
            )
        self.line.done()
        return seen

    def _right(self, blob: int, placement: Placement) -> bool:
        """Return whether a copy is right, or nobody can know yet that it is not."""
        return self.world.right(blob, placement) or (placement.location, placement.key) in self.world.rotten

    async def wait(self, blob: Blob, location: str, seconds: float) -> None:
        """Wait until a blob is in a location, and hold the node to promise 11."""
        world, subject = self.world, Subject(str(blob.id), blob.digest, locations=(location,))

        def status(closure: Closure) -> Status:
            if location not in closure.places:
                return Status.NOT_REQUIRED
            return arrival(closure, location, self.watcher.board, trio.current_time()).status

        try:
            seen = await self.waiting.until(
                subject, lambda closure: status(closure) in (Status.PRESENT, Status.IMPOSSIBLE), seconds, NOBODY
            )
        except (Vanished, LedgerUnavailable):
            return
        placement = world.truth.placements.get((blob.id, location))
        if status(seen) is not Status.PRESENT or placement is None or placement.suspect:
            return
        if not world.right(blob.id, placement) and (location, placement.key) not in world.rotten:
            raise PromiseBroken(f"{blob.digest} was said to be present in {location} and was not")

    def check_board(self) -> None:
        """Promise 11: no probe vouches for a store of which nothing could be had since before the probe."""
        for line in self.watcher.board.values():
            _, since = self.world.silent.get(line.location, (0, float("inf")))
            if line.fresh_until - HealthRules().freshness > since:
                raise PromiseBroken(f"{self.name} vouches for {line.location}, silent since {since}: {line}")
