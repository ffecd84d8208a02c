"""What clients wait for reaches the ledger: once, soon, and whatever the database does meanwhile."""

from random import Random

import trio
from trio.testing import MockClock

from property_tests.memory_hints import MemoryHints
from property_tests.memory_ledger import Line, MemoryLedger
from property_tests.memory_truth import Truth
from replication.model import LocationState
from replication.plan import DEMANDED, WAITED_FOR
from replication.ports import Wake
from replication.wanted import Wanted


class Counting(MemoryLedger):
    raised = 0

    async def raise_priority(self, blob_id: int, location: str, priority: int) -> bool:
        self.raised += 1
        return await super().raise_priority(blob_id, location, priority)


async def test_a_pull_raises_its_copy_once(autojump_clock: MockClock) -> None:
    """However many ask, the ledger is told once a minute, through its outages; a higher priority at once; and nodes are woken."""
    truth = Truth(dict.fromkeys(("us", "eu"), LocationState.ACTIVE))
    blob = truth.add_blob("sha256:" + "1" * 64, 5, None, {"us": "k"}, ["eu"])
    ledger, hints = Counting(Line(truth), "eu1", ("eu", "us")), MemoryHints(Random(0))
    wanted = Wanted(ledger, hints)
    truth.unavailable_rate = 1.0
    async with trio.open_nursery() as nursery, hints.subscribe() as subscription:
        nursery.start_soon(wanted.run)
        for _ in range(100):
            wanted.note(blob, "eu")
        await trio.sleep(20)
        assert truth.tasks[blob.id, "eu"].priority == 0
        truth.unavailable_rate = 0.0
        await trio.sleep(40)
        assert truth.tasks[blob.id, "eu"].priority == WAITED_FOR
        while await anext(subscription) != Wake(("eu",)):
            pass
        told = ledger.raised
        for _ in range(100):
            wanted.note(blob, "eu")
        await trio.sleep(10)
        assert ledger.raised == told
        wanted.note(blob, "eu", DEMANDED)
        wanted.note(blob, "us")
        await trio.sleep(1)
        assert truth.tasks[blob.id, "eu"].priority == DEMANDED
        assert wanted.raised == 2
        assert ledger.raised == told + 2
        await trio.sleep(61)
        wanted.note(blob, "eu", DEMANDED)
        await trio.sleep(1)
        assert ledger.raised == told + 3
        nursery.cancel_scope.cancel()
