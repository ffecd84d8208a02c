# ruff: noqa: ASYNC110 - on a virtual clock polling costs nothing, and keeps the observer out of the code
"""Two minutes in which everything that can go wrong with a simulated cluster does, at random; then everything heals."""

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from random import Random
from typing import Any

import trio
from trio.testing import MockClock

from node.records.locations import Change
from property_tests.cluster import KEEP, Node, PromiseBroken, World
from property_tests.durable_pushes import push_durably
from property_tests.images import NAMES, Images, random_rules
from property_tests.memory_engine import LATEST, MIB, Faults, random_faults
from property_tests.memory_rounds import ask_for_round
from property_tests.memory_uploads import expire_uploads, instead_of_sql
from property_tests.uploads import Client
from replication.model import Blob, LocationState, Placement
from replication.policy import Durability, Policy
from replication.ports import Forget

PREFERENCES = {"us1": ("us", "eu", "ap"), "eu1": ("eu", "us", "ap"), "ap1": ("ap", "eu", "us")}
NAMESPACES = ("team", "shared", "strict")
_EMPTYING = (LocationState.DRAINING, LocationState.DRAINED)


async def wait_for_unavailable(world: World) -> None:
    """Make the ledger fail for a while, as a far database does."""
    world.truth.unavailable_rate = 0.3
    await trio.sleep(world.random.uniform(1, 20))
    world.truth.unavailable_rate = 0.0


def simulate(
    seed: int,
    scenario: Callable[[World], Awaitable[None]],
    locations: tuple[str, ...] = ("us", "eu", "ap"),
    later: tuple[str, ...] = (),
    service: frozenset[str] = frozenset(),
) -> None:
    """Run one scenario deterministically: the same seed gives the same schedule of tasks, faults and clients."""
    run: Any = trio._core._run
    run._ALLOW_DETERMINISTIC_SCHEDULING = True
    run._r.seed(seed)
    print(f"replay with SIMULATION_FIRST_SEED={seed} SIMULATION_SEEDS={seed + 1}")
    try:
        with instead_of_sql(Random(seed)):
            trio.run(scenario, World(Random(seed), locations, later, service), clock=MockClock(autojump_threshold=0))
    finally:
        run._ALLOW_DETERMINISTIC_SCHEDULING = False


async def settle(world: World, seconds: float = 3000.0) -> None:
    """Wait until everything required is there and everything dead is gone."""
    with trio.move_on_after(seconds):
        while not world.settled():
            await trio.sleep(1)
            world.check_debt()
        return
    raise PromiseBroken(f"not settled after {seconds} s: {world.unsettled()}")


async def audit(world: World, node: Node) -> None:
    """Read every copy by itself; what is bad is marked and healed."""
    for blob in list(world.truth.blobs.values()):
        for placement in world.truth.sources(blob.id):
            transfer = node.reader.begin(blob, [placement])
            if blob.pieces is not None or blob.size <= MIB:
                try:
                    await transfer.read_part(0, blob.size)
                except Exception as error:  # noqa: BLE001 - the reader has marked it; healing is what is checked
                    print(f"audit of {placement}: {error}")


def check_all_right(world: World) -> None:
    """Every recorded copy holds the right bytes, nothing else is in the stores, nothing dead came back."""
    for (blob, _), placement in world.truth.placements.items():
        if not world.right(blob, placement):
            raise PromiseBroken(f"{placement} is wrong at the end")
    known = {(p.location, p.key) for p in world.truth.placements.values()} | world.truth.left
    for name, store in world.stores.items():
        store.land()
        for key in [*store.objects, *(upload.key for upload in store.uploads.values())]:
            if "/_antipode/" not in key and (name, key) not in known:
                raise PromiseBroken(f"{name} still has {key}")


class Chaos:
    """Clients push, pull, wait and delete while stores, database, nodes and jobs fail and operators change things."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.moves = bool(world.later)
        """Whether operators change things."""
        self.random = world.random
        self.nodes: dict[str, Node] = {}
        self.blobs: list[Blob] = []
        self.gone: list[bytes] = []
        self.images = Images(world.truth, self.random)

    async def run(self) -> None:
        world = self.world
        for store in world.stores.values():
            store.late_rate = 0.5
        async with trio.open_nursery() as nursery:
            for name in PREFERENCES:
                await self.start(name, nursery)
            nursery.start_soon(self.janitor)
            world.hints.loss = 0.2
            with trio.move_on_after(120):
                async with trio.open_nursery() as troubles:
                    troubles.start_soon(self.clients, nursery)
                    troubles.start_soon(self.breaker)
                    troubles.start_soon(self.crasher, nursery)
                    if self.moves:
                        troubles.start_soon(self.operators)
                    troubles.start_soon(self.saboteur)
                    troubles.start_soon(self.observer)
            world.hints.loss = world.truth.unavailable_rate = 0.0
            for store in world.stores.values():
                store.set_faults(Faults())
            for name, node in self.nodes.items():
                node.fuse = None
                # One that was just being stopped takes on nothing any more.
                if not node.line.alive or node.scheduler.draining:
                    node.crash()
                    await self.start(name, nursery)
            await self.heal()
            nursery.cancel_scope.cancel()

    async def heal(self) -> None:
        """Wait for promise 4: what is required is present, right, and nothing else is there."""
        world = self.world
        await trio.sleep(30)
        await self.end_maintenance()
        # All is well: whatever can be had is there in time.
        if await self.push_durably(self.nodes["us1"], 300.0, Durability(1, True)) is False:
            raise PromiseBroken("a push waited in vain for all copies though nothing is wrong")
        await settle(world)
        await audit(world, self.nodes["us1"])
        await trio.sleep(5)
        await settle(world)
        # What a crashed writer still had in flight has landed by then, and is dead.
        await trio.sleep(2 * LATEST + KEEP)
        await settle(world)
        check_all_right(world)
        for blob in self.alive():
            await self.random.choice(list(self.nodes.values())).pull(blob)
        await trio.sleep(60)
        self.check_tees()

    def check_tees(self) -> None:
        """Nobody pulls any more, for a while: no tee runs, and no room of any node's spool is taken, however it ended."""
        running = [name for name, node in self.nodes.items() if node.tees.statistics().running]
        taken = [spool.used for spool in self.world.spools if spool.used]
        if running or taken:
            raise PromiseBroken(f"tees still run on {running}, and {taken} bytes are still taken")

    async def end_maintenance(self) -> None:
        """Bring every location into a state that lasts: active, or removed once nothing is only there.

        One stays on its way out for ever if policies let blobs be nowhere else; the removal must be refused for exactly these.
        """
        truth = self.world.truth
        for at in truth.states:
            if truth.states[at] is LocationState.PAUSED or self.random.random() < 0.5:
                self.changed(truth.change(at, LocationState.ACTIVE).outcome is Change.DONE)
        deadline = trio.current_time() + 3000
        while emptying := [at for at, state in truth.states.items() if state in _EMPTYING]:
            refused = {at: changed.blobs for at in emptying if (changed := truth.remove(at)).outcome is not Change.DONE}
            stuck = Counter(at for blob, at in truth.placements if at in emptying and self.is_nowhere_else(blob, at))
            if refused and refused == stuck:
                return
            if trio.current_time() > deadline:
                left = [(blob, at) for blob, at in truth.placements if at in emptying and not truth.outlives(blob, at)]
                raise PromiseBroken(f"{emptying} cannot be removed: {[(p, truth.facts(p[0])) for p in left]}")
            await trio.sleep(1)
            self.world.check_debt()

    def is_nowhere_else(self, blob: int, at: str) -> bool:
        """Return whether a blob is in one location only, and every other one that takes copies is forbidden to all who link it."""
        truth = self.world.truth
        elsewhere = {
            p.location for p in truth.sources(blob) if truth.states[p.location] is not LocationState.REMOVED
        } - {at}
        taking = {other for other, state in truth.states.items() if state is LocationState.ACTIVE} - {at}
        nevers = [policy.never for namespace, policy in truth.policies.items() if namespace in truth.links[blob]]
        forbidden = len(nevers) == len(truth.links[blob]) and all(taking <= never for never in nevers)
        return not elsewhere and forbidden

    def alive(self) -> list[Blob]:
        return [blob for blob in self.blobs if blob.id in self.world.truth.blobs]

    async def start(self, name: str, nursery: trio.Nursery) -> None:
        seed = self.random.randrange(1 << 30)
        self.nodes[name] = Node(self.world, name, PREFERENCES[name], seed, reconciles=True)
        await nursery.start(self.nodes[name].run)

    async def janitor(self) -> None:
        while True:
            await trio.sleep(5)
            expire_uploads(self.world.truth)

    async def clients(self, nursery: trio.Nursery) -> None:
        async with trio.open_nursery() as pushing:
            while True:
                await trio.sleep(self.random.expovariate(1.0))
                self.client(nursery, pushing)

    def client(self, nursery: trio.Nursery, pushing: trio.Nursery) -> None:
        node = self.random.choice(list(self.nodes.values()))
        blobs, choice = self.alive(), self.random.random()
        if len(self.blobs) < 30 and choice < 0.35:
            pushing.start_soon(self.push, node)
        elif blobs and choice < 0.45:
            self.collect(self.random.choice(blobs))
        elif choice < 0.5:
            self.images.act(self.random.choice(NAMESPACES))
        elif choice < 0.55:
            nursery.start_soon(self.push_durably, node, self.random.uniform(1, 60))
        elif blobs and choice < 0.7:
            location = self.random.choice(list(self.world.truth.states))
            nursery.start_soon(node.wait, self.random.choice(blobs), location, self.random.uniform(1, 60))
        elif blobs and choice < 0.78:
            nursery.start_soon(node.fetch, self.random.choice(blobs), self.random.uniform(0, 3))
        elif blobs:
            nursery.start_soon(node.pull, self.random.choice(blobs))

    async def push(self, node: Node) -> None:
        again = self.gone.pop() if self.gone and self.random.random() < 0.5 else None
        size = self.random.choice([0, 1, 1000, MIB - 1, MIB, MIB + 5, 3 * MIB + 17])
        namespace = self.random.choice(NAMESPACES)
        if self.random.random() < 0.2:
            blob = await node.push(size, with_pieces=False, data=again, namespace=namespace)
        else:
            data = self.random.randbytes(size) if again is None else again
            nodes = [node, *self.nodes.values()] if self.random.random() < 0.5 else [node]
            blob = await Client(lambda: self.living(nodes), self.random, namespace, data).push()
        if blob is not None and blob.id not in {known.id for known in self.blobs}:
            self.blobs.append(blob)

    def living(self, nodes: Sequence[Node]) -> Node:
        """Return one of these nodes, or who has come in its place."""
        return self.nodes[self.random.choice(nodes).name]

    async def push_durably(self, node: Node, seconds: float, durability: Durability | None = None) -> bool | None:
        """Push an image of one to three blobs of a namespace; without any, that is done at once."""
        namespace = self.random.choice(NAMESPACES)
        blobs = [blob for blob, links in self.world.truth.links.items() if namespace in links]
        some = self.random.sample(blobs, min(len(blobs), self.random.randint(1, 3)))
        asked = durability or self.random.choice(
            [Durability(copies) for copies in (1, 2, 2, 3)] + [Durability(1, True)]
        )
        return not some or await push_durably(node, namespace, self.random.choice(NAMES), some, asked, seconds)

    def collect(self, blob: Blob) -> None:
        """Nothing uses a blob any more, and its grace is over."""
        if self.world.truth.tags.uses(blob.id):
            return
        self.world.truth.drop_blob(blob.id, KEEP)
        self.gone.append(self.world.pushed[blob.id])
        self.world.hints.publish(Forget(None, blob.digest))

    async def breaker(self) -> None:
        while True:
            await trio.sleep(self.random.expovariate(1 / 6))
            store = self.world.stores[self.random.choice(list(self.world.stores))]
            store.set_faults(Faults() if store.faults.any else random_faults(self.random))
            if self.random.random() < 0.2:
                self.rot()
            if self.random.random() < 0.2:
                await wait_for_unavailable(self.world)

    def rot(self) -> None:
        """Damage or lose one copy of a blob that has another good one."""
        truth = self.world.truth
        # What rots after a copy was read and before the other one goes, nobody can know.
        candidates = [
            blob.id
            for blob in self.alive()
            if blob.size
            and len(self.copies(blob.id)) > 1
            and blob.id not in truth.trims
            and not any(truth.states[at] in _EMPTYING and truth.outlives(blob.id, at) for at in truth.good(blob.id))
        ]
        if not candidates:
            return
        blob = self.random.choice(candidates)
        placement = self.random.choice(self.copies(blob))
        store = self.world.stores[placement.location]
        if self.random.random() < 0.5:
            del store.objects[placement.key]
        else:
            data = store.objects[placement.key]
            store.objects[placement.key] = data[:-1] + bytes([data[-1] ^ 1])
        store.fault_epoch += 1
        self.world.rotten.add((placement.location, placement.key))

    def copies(self, blob: int) -> list[Placement]:
        """Return all copies with the right bytes that nobody distrusts, where they are there to stay."""
        truth = self.world.truth
        found = [p for p in truth.sources(blob) if truth.states[p.location] is not LocationState.REMOVED]
        return [p for p in found if not p.suspect and self.world.right(blob, p)]

    async def crasher(self, nursery: trio.Nursery) -> None:
        """Kill a node, at a moment or between two of its calls, or stop it in good order, and start it again."""
        while True:
            await trio.sleep(self.random.expovariate(1 / 20))
            name = self.random.choice(list(self.nodes))
            node, how = self.nodes[name], self.random.random()
            if how < 0.3:
                await node.stop()
            elif how < 0.8:
                node.fuse = self.random.randrange(1, 60)
                with trio.move_on_after(30):
                    while node.line.alive:
                        await trio.sleep(0.5)
            node.crash()
            await trio.sleep(self.random.expovariate(1 / 10))
            await self.start(name, nursery)

    async def operators(self) -> None:
        """Add, pause, drain, remove and bring back locations; change policies; ask for copies."""
        acts = [self.add, self.state, self.state, self.remove, self.policy, self.policy, self.wish]
        while True:
            await trio.sleep(self.random.expovariate(1 / 8))
            self.changed(self.random.choice(acts)())

    def changed(self, done: bool) -> None:
        if done:
            self.world.excuse()
            ask_for_round(self.world.truth)
            self.world.hints.publish(Forget())

    def add(self) -> bool:
        truth = self.world.truth
        new = [at for at in self.world.later if at not in truth.states]
        if new:
            truth.states[new[0]] = LocationState.ACTIVE
        return bool(new)

    def state(self) -> bool:
        at = self.random.choice(list(self.world.truth.states))
        wanted = self.random.choice([LocationState.ACTIVE, LocationState.PAUSED, LocationState.DRAINING])
        return self.world.truth.change(at, wanted).outcome is Change.DONE

    def remove(self) -> bool:
        emptying = [at for at, state in self.world.truth.states.items() if state in _EMPTYING]
        return bool(emptying) and self.world.truth.remove(self.random.choice(emptying)).outcome is Change.DONE

    def policy(self) -> bool:
        truth, random = self.world.truth, self.random
        never = frozenset(random.sample(list(self.world.stores), random.choice([0, 0, 1])))
        others = [at for at in self.world.stores if at not in never]
        required = frozenset(random.sample(others, random.randint(1, 2))) if random.random() < 0.6 else None
        truth.policies[random.choice(NAMESPACES)] = Policy(
            required, never, random_rules(random, list(self.world.stores))
        )
        return True

    def wish(self) -> bool:
        truth, blobs = self.world.truth, self.alive()
        if blobs:
            place = self.random.choice(blobs).id, self.random.choice(list(truth.states))
            truth.wishes[place] = truth.now() + self.random.uniform(10, 200)
        return bool(blobs)

    async def saboteur(self) -> None:
        """Lose jobs, and make some that nothing requires."""
        truth = self.world.truth
        while True:
            await trio.sleep(self.random.expovariate(1 / 15))
            if truth.tasks and self.random.random() < 0.7:
                truth.lose_task(*self.random.choice(sorted(truth.tasks)))
                self.world.excuse()
            elif self.alive():
                truth.owe(self.random.choice(self.alive()).id, self.random.choice(list(truth.states)))

    async def observer(self) -> None:
        while True:
            await trio.sleep(0.7)
            self.world.check_debt()
            self.world.check_kept()
            self.world.look_at_stores()
            for node in self.nodes.values():
                if node.line.alive:
                    node.check_board()


async def chaos(world: World) -> None:
    await Chaos(world).run()
