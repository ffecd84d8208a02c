# ruff: noqa: ASYNC110 - on a virtual clock polling costs nothing, and keeps the observer out of the code
"""What a node has leased, and tasks that are claimed ahead of the streams that pay them."""

from collections.abc import Sequence
from random import Random

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from property_tests.chaos import PREFERENCES, simulate
from property_tests.cluster import Node, World
from property_tests.memory_engine import MIB, Faults
from property_tests.memory_ledger import Line, MemoryLedger
from property_tests.memory_truth import Truth
from replication.leases import Leases
from replication.model import CopyTask, LocationState
from replication.plan import AHEAD_BYTES, DEMANDED, worth_claiming

LEASE = 30.0


@given(st.lists(st.integers(0, 2 * AHEAD_BYTES), max_size=40), st.integers(0, 10), st.integers(0, 40))
def test_a_claim_takes_what_it_may_and_no_more(sizes: list[int], most: int, ahead: int) -> None:
    """All that there are streams for; beyond these the longest row of first tasks that are few and small enough."""
    taken = worth_claiming(sizes, most, ahead)
    assert taken >= min(most, len(sizes))
    assert taken <= min(most + ahead, len(sizes))
    assert sum(sizes[most:taken]) <= AHEAD_BYTES
    if taken < min(most + ahead, len(sizes)):
        assert sum(sizes[most : taken + 1]) > AHEAD_BYTES


class Desk:
    """Two nodes' ledgers over one truth, and the leases of the first."""

    def __init__(self) -> None:
        self.truth = Truth({"us": LocationState.ACTIVE, "eu": LocationState.ACTIVE}, random=Random(1))
        self.ledger, self.other = (MemoryLedger(Line(self.truth), name, ("us", "eu")) for name in ("n1", "n2"))
        self.failed = 0
        self.leases = Leases(self.ledger, lambda: LEASE, self.fail)

    def fail(self) -> None:
        self.failed += 1

    def push(self, name: str, size: int = 10) -> int:
        digest = f"sha256:{name.encode().hex():0>64}"
        return self.truth.add_blob(digest, size, None, {"us": f"k/{name}"}).id

    async def claim(self, most: int) -> Sequence[CopyTask]:
        asked = trio.current_time()
        tasks = await self.ledger.claim_copies("eu", "k/", most, LEASE)
        self.leases.hold(tasks, asked)
        return tasks


async def test_tasks_begin_in_the_order_of_the_queue(autojump_clock: MockClock) -> None:
    """What is urgent overtakes what was claimed before it."""
    desk = Desk()
    blobs = [desk.push(f"b{at}", size=at) for at in range(3)]
    await desk.claim(3)
    urgent = desk.push("urgent", size=1 << 20)
    await desk.ledger.raise_priority(urgent, "eu", DEMANDED)
    await desk.claim(1)
    begun = [held.task.blob.id for _ in range(4) if (held := desk.leases.begin("eu"))]
    assert begun == [urgent, *blobs]
    assert desk.leases.begin("eu") is None
    assert desk.leases.count() == {"eu": 4}


async def test_what_waits_too_long_goes_back(autojump_clock: MockClock) -> None:
    """A node that has no stream for what it claimed lets another node have it, and keeps what it is at."""
    desk = Desk()
    first, second = desk.push("a", size=1), desk.push("b", size=2)
    await desk.claim(2)
    held = desk.leases.begin("eu")
    assert held is not None
    assert held.task.blob.id == first
    assert await desk.leases.renew() == set()
    await trio.sleep(LEASE / 3)
    assert await desk.leases.renew() == {"eu"}
    assert [task.blob.id for task in await desk.other.claim_copies("eu", "k/", 10, LEASE)] == [second]
    await trio.sleep(LEASE * 0.9)
    assert await desk.other.claim_copies("eu", "k/", 1, LEASE) == []
    assert not held.scope.cancel_called


async def test_nothing_begins_under_a_lease_that_may_be_lost(autojump_clock: MockClock) -> None:
    """A task whose lease may have run out is another's."""
    desk = Desk()
    blob = desk.push("a")
    await desk.claim(1)
    await trio.sleep(LEASE + 1)
    assert desk.leases.begin("eu") is None
    (task,) = await desk.other.claim_copies("eu", "k/", 1, LEASE)
    assert task.blob.id == blob


async def test_a_copy_whose_lease_is_lost_is_stopped(autojump_clock: MockClock) -> None:
    """Also where the ledger cannot be asked for as long as a lease."""
    desk = Desk()
    desk.push("a")
    await desk.claim(1)
    held = desk.leases.begin("eu")
    assert held is not None
    desk.truth.unavailable_rate = 1.0
    for _ in range(3):
        await trio.sleep(LEASE / 3)
        await desk.leases.renew()
    assert desk.failed == 3
    assert held.scope.cancel_called


async def test_a_client_gets_what_waits_at_once(autojump_clock: MockClock) -> None:
    """A task that is asked for by name begins, also when it waits for a stream here; not twice, and not another's."""
    desk = Desk()
    waiting, free = desk.push("a", size=1), desk.push("b", size=2)
    await desk.claim(1)
    for blob in (waiting, free):
        held = await desk.leases.begin_at_once(blob, "eu", "k/")
        assert held is not None
        assert held.task.blob.id == blob
        assert await desk.leases.begin_at_once(blob, "eu", "k/") is None
    assert held is not None
    await desk.leases.abort(held)
    assert len(await desk.other.claim_copies("eu", "k/", 10, LEASE)) == 1


@pytest.mark.parametrize("location", ["eu", None])
async def test_a_node_that_ends_keeps_nothing(location: str | None, autojump_clock: MockClock) -> None:
    """What waits goes back unharmed when no copy may begin any more; at the end also what was begun."""
    desk = Desk()
    for at in range(5):
        desk.push(f"b{at}")
    await desk.claim(5)
    desk.leases.begin("eu")
    await desk.leases.hand_back(location)
    assert desk.leases.count_waiting("eu") == 0
    assert len(await desk.other.claim_copies("eu", "k/", 10, LEASE)) == (4 if location else 5)


def test_small_blobs_do_not_wait_for_a_far_database() -> None:
    """With the database 100 ms away three hundred blobs take seconds, and not three hundred round trips of a few streams."""

    async def scenario(world: World) -> None:
        node = Node(world, "us1", PREFERENCES["us1"], 7)
        async with trio.open_nursery() as nursery:
            await nursery.start(node.run)
            await node.watcher.first_round()
            await trio.sleep(12)
            world.truth.latency = 0.1
            blobs = [await node.push(1000) for _ in range(300)]
            began = trio.current_time()
            while not all(blob and (blob.id, "eu") in world.truth.placements for blob in blobs):
                await trio.sleep(0.05)
            # Four streams, each of which waited for a claim and a report for every blob, would take 15 seconds.
            assert trio.current_time() - began < 6
            nursery.cancel_scope.cancel()

    simulate(2, scenario, locations=("us", "eu"))


@pytest.mark.parametrize(
    ("size", "latency", "seconds"), [(1000, 0.1, (1.8, 4.0)), (MIB // 2, 0.1, (7.5, 10.0)), (1000, 0.019, (1.4, 2.5))]
)
def test_small_blobs_with_a_long_way_share_streams(size: int, latency: float, seconds: tuple[float, float]) -> None:
    """Three hundred blobs into a store 100 ms away take a quarter of the time if they are small; a near store gets four at once."""

    async def scenario(world: World) -> None:
        node = Node(world, "us1", PREFERENCES["us1"], 7)
        world.stores["eu"].set_faults(Faults(latency=latency))
        async with trio.open_nursery() as nursery:
            await nursery.start(node.run)
            await node.watcher.first_round()
            await trio.sleep(12)
            blobs = [await node.push(size) for _ in range(300)]
            began = trio.current_time()
            while not all(blob and (blob.id, "eu") in world.truth.placements for blob in blobs):
                await trio.sleep(0.01)
            assert seconds[0] <= trio.current_time() - began < seconds[1]
            nursery.cancel_scope.cancel()

    simulate(2, scenario, locations=("us", "eu"))


def test_what_waits_behind_slow_copies_is_not_kept_from_others() -> None:
    """A node whose streams are all at slow copies gives back what it claimed ahead, and claims no more until one is free."""

    async def scenario(world: World) -> None:
        node = Node(world, "us1", PREFERENCES["us1"], 7)
        async with trio.open_nursery() as nursery:
            await nursery.start(node.run)
            await node.watcher.first_round()
            await trio.sleep(12)
            world.stores["eu"].set_faults(Faults(bytes_per_second=MIB / 12))
            for _ in range(10):
                await node.push(4 * MIB)

            def leased() -> int:
                return sum(task.lease_until > trio.current_time() for task in world.truth.tasks.values())

            settings = node.scheduler.settings
            with trio.fail_after(2 / 3 * settings.lease_seconds + 1):
                while leased() < 10:
                    await trio.sleep(0.1)
                while leased() > settings.streams:
                    await trio.sleep(0.1)
            await trio.sleep(1)
            assert 0 < leased() <= settings.streams
            assert len(world.truth.tasks) == 10
            nursery.cancel_scope.cancel()

    simulate(2, scenario, locations=("us", "eu"))
