"""A stateful model of one node: push, copy, fail, recover and pull in any order, with the real reader, copier and decisions."""

from collections.abc import Awaitable, Callable
from random import Random

import trio
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from trio.testing import MockClock

from property_tests.cluster import Node, World
from property_tests.memory_engine import MIB, Faults
from replication.copier import CopyEnd
from replication.model import Blob

LOCATIONS = ("us", "eu", "ap")
sizes = st.sampled_from([0, 1, 1000, MIB, MIB + 1, 2 * MIB + 5])
faults = st.sampled_from([Faults(down=True), Faults(hanging=True), Faults(wrong_rate=1.0), Faults(torn_rate=1.0)])


class PromiseOne(RuleBasedStateMachine):
    """`Node.pull` raises PromiseBroken when a blob cannot be pulled though a good copy's store is well, or has wrong bytes."""

    @initialize(seed=st.integers(0, 1000))
    def begin(self, seed: int) -> None:
        self.clock = MockClock(autojump_threshold=0)
        self.world = World(Random(seed), LOCATIONS)
        self.node = Node(self.world, "us1", LOCATIONS, seed)
        self.blobs: list[Blob] = []

    def run(self, work: Callable[[], Awaitable[None]]) -> None:
        trio.run(work, clock=self.clock)

    @rule(size=sizes, with_pieces=st.booleans())
    def push(self, size: int, with_pieces: bool) -> None:
        async def work() -> None:
            blob = await self.node.push(size, with_pieces)
            if blob is None:
                assert all(store.faults.any for store in self.world.stores.values()), "refused though a store was well"
            else:
                self.blobs.append(blob)

        self.run(work)

    @rule(location=st.sampled_from(LOCATIONS))
    def copy(self, location: str) -> None:
        async def work() -> None:
            for task in await self.node.ledger.claim_copies(location, "registry/", 2, 30.0):
                report = await self.node.copier.pay(task)
                if report.end is not CopyEnd.PLACED:
                    await self.node.ledger.fail_copy(task, report.error, 0.0)

        self.run(work)

    @rule(location=st.sampled_from(LOCATIONS), fault=faults)
    def fail(self, location: str, fault: Faults) -> None:
        self.world.stores[location].set_faults(fault)

    @rule(location=st.sampled_from(LOCATIONS))
    def recover(self, location: str) -> None:
        self.world.stores[location].set_faults(Faults())

    @rule()
    def probe(self) -> None:
        async def work() -> None:
            async with trio.open_nursery() as nursery:
                await nursery.start(self.node.watcher.run)
                await self.node.watcher.first_round()
                nursery.cancel_scope.cancel()

        self.run(work)

    @precondition(lambda self: self.blobs)
    @rule(data=st.data())
    def lose_an_object(self, data: st.DataObject) -> None:
        blob = data.draw(st.sampled_from(self.blobs))
        placement = data.draw(st.sampled_from(self.world.truth.sources(blob.id)))
        self.world.stores[placement.location].objects.pop(placement.key, None)

    @rule()
    def tell_the_ledger_of_bad_copies(self) -> None:
        async def work() -> None:
            with trio.move_on_after(5):
                await self.node.suspects.run()

        self.run(work)

    @precondition(lambda self: self.blobs)
    @rule(data=st.data())
    def pull(self, data: st.DataObject) -> None:
        blob = data.draw(st.sampled_from(self.blobs))

        async def work() -> None:
            await self.node.pull(blob)

        self.run(work)

    @invariant()
    def no_debt_is_lost(self) -> None:
        if hasattr(self, "world"):
            self.world.check_debt()


TestPromiseOne = PromiseOne.TestCase
