# ruff: noqa: ASYNC110 - on a virtual clock polling costs nothing, and keeps the observer out of the code
"""Simulated clusters on a virtual clock, under seeded faults, held to the design's promises. A seed replays its failure."""

import os
from collections.abc import Awaitable, Callable
from random import Random

import pytest
import trio

from property_tests.chaos import PREFERENCES, Chaos, chaos, check_all_right, settle, simulate
from property_tests.cluster import Node, PromiseBroken, World
from property_tests.memory_engine import MIB, Faults
from replication.model import LocationState, Verdict
from replication.policy import Policy

SEEDS = range(int(os.environ.get("SIMULATION_FIRST_SEED", "0")), int(os.environ.get("SIMULATION_SEEDS", "12")))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_cluster_under_faults_keeps_its_promises(seed: int) -> None:
    """Whatever breaks, is lost or is changed: acknowledged blobs are pullable, bytes are right, no debt stays lost, all heals."""
    service = frozenset({"us", "ap"}) if seed % 2 else frozenset[str]()
    simulate(seed, chaos, later=("sa",) if seed % 3 else (), service=service)


def test_a_seed_replays() -> None:
    """The same seed gives the same calls to every store, so that a failure can be looked at again."""

    def calls() -> dict[str, list[tuple[str, str]]]:
        seen: dict[str, list[tuple[str, str]]] = {}

        async def scenario(world: World) -> None:
            await chaos(world)
            seen.update({name: store.calls for name, store in world.stores.items()})

        simulate(4, scenario, later=("sa",))
        return seen

    assert calls() == calls()


@pytest.mark.parametrize("free", ["no location", "a location", "a copy", "another namespace"])
def test_a_location_may_stay_only_for_what_is_forbidden_elsewhere(free: str) -> None:
    """The simulation accepts a refused removal for nothing else: here nobody moves anything, and it complains if somebody could."""

    async def scenario(world: World) -> None:
        truth, scene = world.truth, Chaos(world)
        truth.recorded = None  # the stores are empty
        truth.policies["team"] = Policy(None, frozenset({"eu"} if free == "a location" else {"eu", "ap"}))
        placed = {"us": "k", "eu": "k"} if free == "a copy" else {"us": "k"}
        namespaces = ["team", "open"] if free == "another namespace" else ["team"]
        truth.add_blob("sha256:0", 1, None, placed, owed=[], namespaces=namespaces)
        await trio.sleep(1)
        truth.states["us"] = LocationState.DRAINING
        truth.emptying["us"] = truth.now()
        world.excuse()
        scene.random = Random(0)  # which leaves what is being emptied so
        if free == "no location":
            await scene.end_maintenance()
            assert truth.states["us"] is LocationState.DRAINING
        else:
            with pytest.raises(PromiseBroken, match="cannot be removed"):
                await scene.end_maintenance()

    simulate(1, scenario)


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


def test_a_copy_that_failed_is_tried_again_when_it_is_due() -> None:
    """A second later, and not at the next poll: its location was looked at for the last time while it was still under way."""

    async def scenario(world: World) -> None:
        async def body(nodes: dict[str, Node]) -> None:
            await trio.sleep(5)
            world.stores["us"].set_faults(Faults(latency=0.05))
            blob = await nodes["us1"].push(1000)
            assert blob is not None
            world.stores["us"].set_faults(Faults(down=True))
            while nodes["us1"].scheduler.statistics.failed == 0:
                await trio.sleep(0.01)
            world.stores["us"].set_faults(Faults())
            with trio.fail_after(4):
                while not any(p.location == "eu" for p in world.truth.sources(blob.id)):
                    await trio.sleep(0.01)

        await _with_nodes(world, ["us1"], body)

    simulate(6, scenario, locations=("us", "eu"))


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
