"""Reports of bad copies: never waited for, repeated until the ledger has them, told to all nodes."""

from random import Random

import trio
from trio.testing import MockClock

from property_tests.memory_hints import MemoryHints
from property_tests.memory_ledger import Line, MemoryLedger
from property_tests.memory_truth import Truth
from replication import suspects as room
from replication.model import Blob, LocationState, Placement
from replication.ports import Forget, Hint, Placed, Wake
from replication.suspects import Suspects


class Bench:
    def __init__(self) -> None:
        self.truth = Truth(dict.fromkeys(("us", "eu"), LocationState.ACTIVE))
        self.hints = MemoryHints(Random(0))
        self.suspects = Suspects(MemoryLedger(Line(self.truth), "n1", ("us", "eu")), self.hints)
        self.heard: list[Hint] = []

    def push(self, name: str) -> Blob:
        return self.truth.add_blob(f"sha256:{name * 64}", 10, b"", {"us": f"{name}.us", "eu": f"{name}.eu"}, [])

    def suspect(self, blob: Blob, location: str) -> bool:
        return self.truth.placements[blob.id, location].suspect

    async def run(self, nursery: trio.Nursery) -> None:
        async def listen(task_status: trio.TaskStatus[None]) -> None:
            async with self.hints.subscribe() as subscription:
                task_status.started()
                async for hint in subscription:
                    # Every subscription begins with "everything may have changed".
                    if hint not in (Forget(), Wake()):
                        self.heard.append(hint)

        await nursery.start(listen)
        nursery.start_soon(self.suspects.run)


async def test_a_bad_copy_becomes_suspect_and_all_are_told(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    """The ledger has it, the debt is due, every node drops what it remembers, and the location is woken."""
    bench = Bench()
    await bench.run(nursery)
    blob = bench.push("a")
    bench.suspects.note(blob, Placement("eu", "a.eu"), "wrong bytes")
    await trio.sleep(1)
    assert bench.suspect(blob, "eu")
    assert not bench.suspect(blob, "us")
    assert (blob.id, "eu") in bench.truth.tasks
    assert bench.heard == [Placed(blob.digest, "eu"), Wake(("eu",))]
    assert (bench.suspects.marked, bench.suspects.dropped) == (1, 0)


async def test_it_is_repeated_until_the_ledger_has_it(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    """While the database is away reports wait; none is lost and none is told twice."""
    bench = Bench()
    bench.truth.unavailable_rate = 1.0
    await bench.run(nursery)
    blobs = [bench.push(name) for name in "abc"]
    for blob in blobs:
        for _ in range(3):
            bench.suspects.note(blob, Placement("eu", bench.truth.placements[blob.id, "eu"].key), "wrong bytes")
    await trio.sleep(100)
    assert not any(bench.suspect(blob, "eu") for blob in blobs)
    bench.truth.unavailable_rate = 0.0
    await trio.sleep(60)
    assert all(bench.suspect(blob, "eu") for blob in blobs)
    assert bench.suspects.marked == 3


async def test_what_is_suspect_already_is_no_news(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    """A reader of a copy that is known to be bad does not report it again."""
    bench = Bench()
    await bench.run(nursery)
    bench.suspects.note(bench.push("a"), Placement("eu", "a.eu", suspect=True), "wrong bytes")
    await trio.sleep(1)
    assert (bench.suspects.marked, bench.heard) == (0, [])


async def test_a_copy_that_was_replaced_meanwhile_stays_good(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    """A report about an old key says nothing of the new one."""
    bench = Bench()
    await bench.run(nursery)
    blob = bench.push("a")
    bench.suspects.note(blob, Placement("eu", "an older key"), "wrong bytes")
    await trio.sleep(1)
    assert not bench.suspect(blob, "eu")


async def test_memory_is_bounded(autojump_clock: MockClock) -> None:
    """What does not fit is dropped and counted; the next reader finds it again."""
    bench = Bench()
    for number in range(room._MOST_WAITING + 5):
        bench.suspects.note(Blob(number, "sha256:" + "0" * 64, 1), Placement("eu", f"k{number}"), "missing")
    assert bench.suspects.dropped == 5
    bench.suspects.note(Blob(0, "sha256:" + "0" * 64, 1), Placement("eu", "k0"), "missing again")
    assert bench.suspects.dropped == 5
