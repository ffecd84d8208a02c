"""A simulated cluster: real watcher, reader, copier, sweeper and scheduler over memory stores, hints and ledger."""

import hashlib
from random import Random

import trio
from attrs import define, field

from property_tests.memory_engine import MIB, Faults, MemoryEngine, MemoryStore
from property_tests.memory_hints import MemoryHints
from property_tests.memory_ledger import MemoryLedger, Truth
from replication.copier import Copier, CopierSettings
from replication.digests import Digest, blob_key, pieces_of
from replication.health import HealthRules
from replication.model import Blob, LocationState, Placement
from replication.offload import inline
from replication.parts import PartPool
from replication.ports import Wake
from replication.reader import NoGoodSource, Reader
from replication.scheduler import Scheduler, SchedulerSettings
from replication.sources import choose_sources
from replication.suspects import Suspects
from replication.sweeper import Sweeper
from replication.targets import choose_targets
from replication.watcher import Watcher, probe_keys

MARKER = b"the right bucket"


class PromiseBroken(AssertionError):
    """One of the design's promises did not hold."""


@define(eq=False)
class World:
    """What outlives the nodes: stores, database, hints, and what was pushed."""

    random: Random
    locations: tuple[str, ...] = ("us", "eu", "ap")
    stores: dict[str, MemoryStore] = field(factory=dict)
    pushed: dict[int, bytes] = field(factory=dict)
    truth: Truth = field(init=False)
    hints: MemoryHints = field(init=False)

    def __attrs_post_init__(self) -> None:
        for name in self.locations:
            store = self.stores[name] = MemoryStore(name, Random(self.random.random()))
            store.objects["registry/_antipode/marker"] = MARKER
        self.truth = Truth(
            dict.fromkeys(self.locations, LocationState.ACTIVE),
            random=Random(self.random.random()),
            recorded=self.check_recorded,
        )
        self.hints = MemoryHints(Random(self.random.random()))

    def check_recorded(self, blob: Blob, placement: Placement) -> None:
        """Promise 2: at the moment a placement is recorded the store holds the right bytes under its key."""
        data = self.stores[placement.location].objects.get(placement.key)
        if data is None or not Digest.parse(blob.digest).matches(data):
            raise PromiseBroken(f"a wrong copy of {blob.digest} was recorded at {placement}")

    def check_debt(self) -> None:
        """Promises 3 and 4: whatever is required and not present has a task; no dead key is a live one."""
        for blob, required in self.truth.required.items():
            present = {p.location for p in self.truth.sources(blob) if not p.suspect}
            for location in required - present:
                if (blob, location) not in self.truth.tasks:
                    raise PromiseBroken(f"blob {blob} owes {location}, and nobody knows")
        live = {(p.location, p.key) for p in self.truth.placements.values()}
        for dead in self.truth.dead.values():
            if (dead.location, dead.key) in live:
                raise PromiseBroken(f"{dead} is live")

    def good_at(self, blob: int) -> list[str]:
        """Return the locations whose recorded copy is right and whose store is well."""
        return [
            p.location
            for p in self.truth.sources(blob)
            if not self.stores[p.location].faults.any
            and self.stores[p.location].objects.get(p.key) == self.pushed[blob]
        ]

    def settled(self) -> bool:
        """Return whether required equals present everywhere, nothing is suspect and nothing dead is left."""
        present = {
            blob: {p.location for p in self.truth.sources(blob) if not p.suspect} for blob in self.truth.required
        }
        return not self.truth.dead and all(present[b] >= r for b, r in self.truth.required.items())


class Node:
    """One node of the cluster; `run` until cancelled, `crash` cuts it off from the database first."""

    def __init__(self, world: World, name: str, preference: tuple[str, ...], seed: int) -> None:
        self.world = world
        self.name = name
        self.preference = preference
        self.scope = trio.CancelScope()
        self.random = Random(seed)
        self.engines = {name: MemoryEngine(store) for name, store in world.stores.items()}
        self.ledger = MemoryLedger(world.truth, self.name, self.preference)
        self.suspects = Suspects(self.ledger, world.hints)
        self.watcher = Watcher(
            self.engines,
            {name: probe_keys(engine.prefix, self.name, MARKER) for name, engine in self.engines.items()},
            HealthRules(),
            writable=lambda name: name in self.preference,
            changed=lambda _, after: self.scheduler.nudge(after.location),
        )
        self.reader = Reader(self.engines, self.watcher.report, self.suspects.note, offload=inline)
        self.copier = Copier(
            self.engines,
            self.reader,
            self.ledger,
            PartPool(8 * MIB),
            lambda placements: choose_sources(placements, self.preference, self.watcher.board),
            CopierSettings(part_size=MIB, parts_per_blob=2, write_deadline=15.0),
            offload=inline,
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

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        with self.scope:
            async with trio.open_nursery() as nursery:
                await nursery.start(self.watcher.run)
                nursery.start_soon(self.suspects.run)
                await nursery.start(self.scheduler.run)
                task_status.started()

    def crash(self) -> None:
        """Die without a word."""
        self.ledger.alive = False
        self.scope.cancel()

    async def push(self, size: int, with_pieces: bool = True) -> Blob | None:
        """Push a blob as a client would see it: None when it was refused."""
        world = self.world
        data = self.random.randbytes(size)
        digest = Digest("sha256", hashlib.sha256(data).hexdigest())
        for location in choose_targets(self.preference, world.truth.states, self.watcher.board):
            engine = self.engines[location]
            key = blob_key(engine.prefix, digest, f"{world.truth.serial():08x}")
            try:
                if (await engine.put(key, data)).size == size:
                    break
            except Exception as error:  # noqa: BLE001 - whatever the store does, the next one is tried
                self.watcher.report(location, ok=False, reason=str(error))
            world.truth.bury(location, key, after=60.0)
        else:
            return None
        pieces = pieces_of(data) if with_pieces else None
        blob = world.truth.add_blob(str(digest), size, pieces, {location: key}, world.locations)
        world.pushed[blob.id] = data
        world.hints.publish(Wake(tuple(sorted(world.truth.required[blob.id] - {location}))))
        return blob

    async def pull(self, blob: Blob) -> None:
        """Pull a blob and hold the node to promises 1 and 2."""
        world = self.world
        sources = choose_sources(world.truth.sources(blob.id), self.preference, self.watcher.board)
        reachable = {name: world.stores[name].fault_epoch for name in world.good_at(blob.id)}
        got = bytearray()
        wrong = None
        try:
            async with self.reader.open_blob(world.truth.blobs[blob.id], sources) as stream:
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


def random_faults(random: Random) -> Faults:
    """Return something that goes wrong with a store."""
    return random.choice(
        [
            Faults(down=True),
            Faults(hanging=True),
            Faults(latency=1.5),
            Faults(bytes_per_second=100e3),
            Faults(fail_rate=0.3),
            Faults(torn_rate=0.3),
            Faults(wrong_rate=0.3),
        ]
    )


async def wait_for_unavailable(world: World) -> None:
    """Make the ledger fail for a while, as a far database does."""
    world.truth.unavailable_rate = 0.3
    await trio.sleep(world.random.uniform(1, 20))
    world.truth.unavailable_rate = 0.0
