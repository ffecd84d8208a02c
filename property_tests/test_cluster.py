# ruff: noqa: ASYNC110 - on a virtual clock polling costs nothing, and keeps the observer out of the code
"""Simulated clusters on a virtual clock, under seeded faults, held to the design's promises. A seed replays its failure."""

import os
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from property_tests.cluster import Node, PromiseBroken, World, random_faults, wait_for_unavailable
from property_tests.memory_engine import MIB, Faults
from replication.model import Blob, Verdict

SEEDS = range(int(os.environ.get("SIMULATION_FIRST_SEED", "0")), int(os.environ.get("SIMULATION_SEEDS", "12")))
PREFERENCES = {"us1": ("us", "eu", "ap"), "eu1": ("eu", "us", "ap"), "ap1": ("ap", "eu", "us")}


def simulate(
    seed: int, scenario: Callable[[World], Awaitable[None]], locations: tuple[str, ...] = ("us", "eu", "ap")
) -> None:
    """Run one scenario deterministically: the same seed gives the same schedule of tasks, faults and clients."""
    run: Any = trio._core._run
    run._ALLOW_DETERMINISTIC_SCHEDULING = True
    run._r.seed(seed)
    print(f"replay with SIMULATION_FIRST_SEED={seed} SIMULATION_SEEDS={seed + 1}")
    try:
        trio.run(scenario, World(Random(seed), locations), clock=MockClock(autojump_threshold=0))
    finally:
        run._ALLOW_DETERMINISTIC_SCHEDULING = False


async def settle(world: World, seconds: float = 2000.0) -> None:
    """Wait until everything required is there and everything dead is gone."""
    with trio.move_on_after(seconds):
        while not world.settled():
            await trio.sleep(1)
            world.check_debt()
        return
    left = [f"{t.destination}: attempts {t.attempts}, {t.error}" for t in world.truth.tasks.values()]
    raise PromiseBroken(f"not settled after {seconds} s: tasks {left}, dead {list(world.truth.dead.values())}")


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
    """Every required copy holds the right bytes, nothing else is in the stores, nothing dead came back."""
    for (blob, location), placement in world.truth.placements.items():
        if world.stores[location].objects.get(placement.key) != world.pushed[blob]:
            raise PromiseBroken(f"{placement} is wrong at the end")
    live = {(p.location, p.key) for p in world.truth.placements.values()}
    for name, store in world.stores.items():
        for key in store.objects:
            if "/_antipode/" not in key and (name, key) not in live:
                raise PromiseBroken(f"{name} still has {key}")


class Chaos:
    """Pushes, pulls, breaks and crashes at random for two minutes; then everything heals."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.random = world.random
        self.nodes: dict[str, Node] = {}
        self.blobs: list[Blob] = []

    async def run(self) -> None:
        world = self.world
        async with trio.open_nursery() as nursery:
            for name in PREFERENCES:
                await self.start(name, nursery)
            world.hints.loss = 0.2
            with trio.move_on_after(120):
                async with trio.open_nursery() as troubles:
                    troubles.start_soon(self.clients, nursery)
                    troubles.start_soon(self.breaker)
                    troubles.start_soon(self.crasher, nursery)
            world.hints.loss = world.truth.unavailable_rate = 0.0
            for store in world.stores.values():
                store.set_faults(Faults())
            for name in PREFERENCES:
                if not self.nodes[name].ledger.alive:
                    await self.start(name, nursery)
            await self.heal()
            nursery.cancel_scope.cancel()

    async def heal(self) -> None:
        """Wait for promise 4: what is required is present, right, and nothing else is there."""
        await trio.sleep(30)
        await settle(self.world)
        await audit(self.world, self.nodes["us1"])
        await trio.sleep(5)
        await settle(self.world)
        # Objects that a crashed writer still had in flight are dead a minute later.
        await trio.sleep(120)
        await settle(self.world)
        check_all_right(self.world)
        for blob in self.blobs:
            await self.random.choice(list(self.nodes.values())).pull(blob)

    async def start(self, name: str, nursery: trio.Nursery) -> None:
        self.nodes[name] = Node(self.world, name, PREFERENCES[name], self.random.randrange(1 << 30))
        await nursery.start(self.nodes[name].run)

    async def clients(self, nursery: trio.Nursery) -> None:
        while True:
            await trio.sleep(self.random.expovariate(1.0))
            node = self.random.choice(list(self.nodes.values()))
            if len(self.blobs) < 25 and self.random.random() < 0.4:
                size = self.random.choice([0, 1, 1000, MIB - 1, MIB, MIB + 5, 3 * MIB + 17])
                blob = await node.push(size, with_pieces=self.random.random() < 0.8)
                if blob is not None:
                    self.blobs.append(blob)
            elif self.blobs:
                nursery.start_soon(node.pull, self.random.choice(self.blobs))
            self.world.check_debt()

    async def breaker(self) -> None:
        while True:
            await trio.sleep(self.random.expovariate(1 / 6))
            store = self.world.stores[self.random.choice(self.world.locations)]
            store.set_faults(Faults() if store.faults.any else random_faults(self.random))
            if self.random.random() < 0.2:
                rot(self.world, self.random)
            if self.random.random() < 0.2:
                await wait_for_unavailable(self.world)

    async def crasher(self, nursery: trio.Nursery) -> None:
        while True:
            await trio.sleep(self.random.expovariate(1 / 20))
            name = self.random.choice(list(self.nodes))
            self.nodes[name].crash()
            await trio.sleep(self.random.expovariate(1 / 10))
            await self.start(name, nursery)


async def chaos(world: World) -> None:
    await Chaos(world).run()


def rot(world: World, random: Random) -> None:
    """Damage or lose one copy of a blob that has another good one."""
    candidates = [b for b in world.truth.blobs if world.truth.blobs[b].size and len(copies(world, b)) > 1]
    if candidates:
        blob = random.choice(sorted(candidates))
        location, key = random.choice(copies(world, blob))
        if random.random() < 0.5:
            del world.stores[location].objects[key]
        else:
            data = world.stores[location].objects[key]
            world.stores[location].objects[key] = data[:-1] + bytes([data[-1] ^ 1])
        world.stores[location].fault_epoch += 1


def copies(world: World, blob: int) -> list[tuple[str, str]]:
    """Return the (location, key) of all copies with the right bytes."""
    return [
        (p.location, p.key)
        for p in world.truth.sources(blob)
        if world.stores[p.location].objects.get(p.key) == world.pushed[blob]
    ]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_cluster_under_faults_keeps_its_promises(seed: int) -> None:
    """Whatever breaks: acknowledged blobs are pullable, bytes are right, no debt is lost, all heals, all that is dead goes."""
    simulate(seed, chaos)


def test_a_seed_replays() -> None:
    """The same seed gives the same calls to every store, so that a failure can be looked at again."""

    def calls() -> dict[str, list[tuple[str, str]]]:
        seen: dict[str, list[tuple[str, str]]] = {}

        async def scenario(world: World) -> None:
            await chaos(world)
            seen.update({name: store.calls for name, store in world.stores.items()})

        simulate(4, scenario)
        return seen

    assert calls() == calls()


async def _with_nodes(world: World, names: list[str], body: Callable[[dict[str, Node]], Awaitable[None]]) -> None:
    async with trio.open_nursery() as nursery:
        nodes = {name: Node(world, name, PREFERENCES[name], 7) for name in names}
        for node in nodes.values():
            await nursery.start(node.run)
        for node in nodes.values():
            await node.watcher.first_round()
        await body(nodes)
        nursery.cancel_scope.cancel()


def test_a_small_blob_arrives_well_below_a_second() -> None:
    """Woken by the push, not by a poll."""

    async def scenario(world: World) -> None:
        async def body(nodes: dict[str, Node]) -> None:
            await trio.sleep(5)
            blob = await nodes["us1"].push(1000)
            assert blob is not None
            began = trio.current_time()
            while {p.location for p in world.truth.sources(blob.id)} != {"us", "eu", "ap"}:
                await trio.sleep(0.01)
            assert trio.current_time() - began < 0.2

        await _with_nodes(world, ["us1", "eu1", "ap1"], body)

    simulate(1, scenario)


@pytest.mark.parametrize("faults", [Faults(hanging=True), Faults(latency=1.9), Faults(bytes_per_second=20e3)])
def test_one_bad_location_never_delays_another(faults: Faults) -> None:
    """While `ap` is bad, one node alone, with many blobs owed to both, brings all of them to `eu` in good time."""

    async def scenario(world: World) -> None:
        async def body(nodes: dict[str, Node]) -> None:
            await trio.sleep(12)
            world.stores["ap"].set_faults(faults)
            blobs = [await nodes["us1"].push(100_000) for _ in range(30)]
            with trio.fail_after(3):
                while not all(b and (b.id, "eu") in world.truth.placements for b in blobs):
                    await trio.sleep(0.05)

        await _with_nodes(world, ["us1"], body)

    simulate(2, scenario)


def test_a_cut_off_copy_goes_on_where_it_was() -> None:
    """A copy whose node dies half-way is finished by another node, without fetching again what the destination has."""

    async def scenario(world: World) -> None:
        async def body(nodes: dict[str, Node]) -> None:
            world.stores["us"].set_faults(Faults(bytes_per_second=2e6))
            blob = await nodes["us1"].push(12 * MIB)
            assert blob is not None
            while sum(len(u.parts) for u in world.stores["eu"].uploads.values()) < 5:
                await trio.sleep(0.1)
            nodes["eu1"].crash()
            await trio.sleep(0.1)
            before = world.stores["eu"].calls.count(("put_part", next(iter(world.stores["eu"].uploads.values())).key))
            await settle(world)
            (key,) = [p.key for p in world.truth.sources(blob.id) if p.location == "eu"]
            puts = world.stores["eu"].calls.count(("put_part", key))
            assert before >= 5
            assert puts <= 12 + 2  # two parts were in flight when the node died
            assert world.stores["eu"].objects[key] == world.pushed[blob.id]

        await _with_nodes(world, ["us1", "eu1"], body)

    simulate(3, scenario, locations=("us", "eu"))


def verdicts(node: Node) -> dict[str, Verdict]:
    return {name: health.verdict for name, health in node.watcher.board.items()}


def test_a_dead_store_is_down_within_seconds_and_comes_back() -> None:
    """Hanging: down within ten seconds. Well again: healthy after the quiet spell, and what it missed is there."""

    async def scenario(world: World) -> None:
        async def body(nodes: dict[str, Node]) -> None:
            world.stores["eu"].set_faults(Faults(hanging=True))
            await trio.sleep(10)
            assert verdicts(nodes["us1"]) == {"us": Verdict.HEALTHY, "eu": Verdict.DOWN, "ap": Verdict.HEALTHY}
            await nodes["us1"].push(1000)
            world.stores["eu"].set_faults(Faults())
            await trio.sleep(25)
            assert set(verdicts(nodes["us1"]).values()) == {Verdict.HEALTHY}
            await settle(world, 60)

        await _with_nodes(world, ["us1"], body)

    simulate(5, scenario)


def test_a_deleted_blob_goes_everywhere() -> None:
    """Deletes reach every store, also one that was down at the time."""

    async def scenario(world: World) -> None:
        async def body(nodes: dict[str, Node]) -> None:
            blob = await nodes["us1"].push(1000)
            assert blob is not None
            await settle(world)
            world.stores["eu"].set_faults(Faults(down=True))
            world.truth.drop_blob(blob.id)
            nodes["us1"].scheduler.nudge()
            await trio.sleep(300)
            assert [d.location for d in world.truth.dead.values()] == ["eu"]
            world.stores["eu"].set_faults(Faults())
            await settle(world)
            check_all_right(world)

        await _with_nodes(world, ["us1"], body)

    simulate(6, scenario)
