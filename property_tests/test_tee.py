# ruff: noqa: ASYNC110 - on a virtual clock polling costs nothing, and keeps the observer out of the code
"""Tees on a virtual clock: one fetch per blob and node, whoever is slow, leaves, lies, dies or runs out of room."""

import hashlib
import os
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import pytest
import trio
from attrs import define, field
from trio.testing import MockClock

from property_tests.cluster import Node, World
from property_tests.memory_engine import MIB, Faults, MemoryEngine
from replication.copier import Copier, CopierSettings
from replication.model import Blob, Placement
from replication.offload import inline
from replication.parts import PartPool
from replication.reader import NoGoodSource
from replication.sources import choose_sources, may_tee
from replication.spool import Spool
from replication.tee import TeeSettings
from replication.tees import Tees
from tests.copies import pieces_of

SIZE = 24 * MIB + 100


class Counting(MemoryEngine):
    """Counts the bytes that are read."""

    sent = 0

    async def step(self, call: str, key: str, nbytes: int = 0) -> None:
        await super().step(call, key, nbytes)
        if call in ("receive", "read"):
            self.sent += nbytes


@define(eq=False)
class Bench:
    """A node in eu whose store lacks a blob that us (and, second best, ap) has."""

    node: Node
    tees: Tees
    blob: Blob
    data: bytes
    spool: Spool
    pool: PartPool
    cap: list[tuple[str, int]] = field(factory=list)

    @property
    def sources(self) -> tuple[Placement, ...]:
        return choose_sources(self.node.world.truth.sources(self.blob.id), ("eu", "us", "ap"), self.node.watcher.board)

    def sent(self, location: str) -> int:
        engine = self.node.engines[location]
        assert isinstance(engine, Counting)
        return engine.sent

    def crossed(self) -> int:
        """Bytes that were read from elsewhere."""
        return self.sent("us") + self.sent("ap")

    async def pull(self, start: int = 0, end: int | None = None, pause: float = 0.0) -> None:
        """Read as a client does, a chunk every `pause` seconds, and insist on the right bytes."""
        stop = self.blob.size if end is None else end
        got = bytearray()
        async with self.tees.open_blob(self.blob, self.sources, start, end) as stream:
            async for chunk in stream:
                got += chunk
                await trio.sleep(pause)
        assert bytes(got) == self.data[start:stop]

    async def copied(self) -> None:
        """Wait until the local store has the blob."""
        truth = self.node.world.truth
        with trio.fail_after(600):
            while (self.blob.id, "eu") not in truth.placements or self.tees.statistics().running:
                await trio.sleep(0.1)
        placement = truth.placements[self.blob.id, "eu"]
        assert self.node.world.stores["eu"].objects[placement.key] == self.data


@asynccontextmanager
async def running(
    *,
    room: int = 64 * MIB,
    size: int = SIZE,
    owed: bool = True,
    settings: TeeSettings | None = None,
    folder: Path | None = None,
    memory: int = 64 * MIB,
) -> AsyncIterator[Bench]:
    world = World(Random(1))
    node = Node(world, "eu1", ("eu", "us", "ap"), 1)
    node.engines.update({name: Counting(store) for name, store in world.stores.items()})
    for name in ("us", "ap"):
        world.stores[name].set_faults(Faults(latency=0.08, bytes_per_second=20e6))
    data = Random(2).randbytes(size)
    # Not a task's business yet: the scheduler must not be quicker than the pull.
    blob = await _place(node, data, owed=owed)
    spool, pool = Spool(folder, room, inline), PartPool(memory)
    copier = Copier(
        node.engines,
        node.reader,
        node.ledger,
        pool,
        lambda placements: choose_sources(placements, node.preference, node.watcher.board),
        CopierSettings(part_size=5 * MIB),
        offload=inline,
        shared=lambda digest: tees.running(digest),
    )
    node.scheduler._copier = copier

    def worth(blob: Blob, sources: tuple[Placement, ...]) -> bool:
        state = world.truth.states["eu"]
        return may_tee(blob, sources, "eu", state, node.watcher.board, least=16 * 1024, most=spool.most)

    async def pace(location: str, nbytes: int) -> None:
        bench.cap.append((location, nbytes))
        await trio.lowlevel.checkpoint()

    tees = Tees(
        node.reader,
        spool,
        worth,
        lambda blob: node.scheduler.pay_at_once(blob.id, "eu"),
        pace,
        pool.hold,
        settings,
        inline,
    )
    bench = Bench(node, tees, blob, data, spool, pool)
    async with trio.open_nursery() as nursery:
        await nursery.start(node.run)
        await node.watcher.first_round()
        await nursery.start(tees.run)
        while not node.scheduler.duties.copies:
            await trio.sleep(0.1)
        yield bench
        nursery.cancel_scope.cancel()


async def _place(node: Node, data: bytes, *, owed: bool) -> Blob:
    world = node.world
    for name in ("us", "ap"):
        world.stores[name].objects["registry/blob"] = data
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    placed = {"us": "registry/blob", "ap": "registry/blob"}
    blob = world.truth.add_blob(digest, len(data), pieces_of(data), placed, ["eu"] if owed else [])
    if owed:
        # In a back-off, where only a claim by name finds it.
        world.truth.tasks[blob.id, "eu"].due = world.truth.now() + 3600
    world.pushed[blob.id] = data
    return blob


async def test_many_pulls_are_one_fetch(autojump_clock: MockClock) -> None:
    """However many pull a missing blob at once, each byte crosses the ocean once, and the local store has the blob afterwards."""
    async with running() as bench:
        async with trio.open_nursery() as clients:
            for number in range(20):
                clients.start_soon(bench.pull, 0, None, 0.01 * number)
        await bench.copied()
        assert bench.crossed() == SIZE
        assert bench.tees.statistics().begun == 1
        assert bench.spool.used == 0
        await bench.pull()
        assert bench.crossed() == SIZE


async def test_ranges_share_the_fetch(autojump_clock: MockClock) -> None:
    """Ranges, far ones too, come from the same fetch: what a client waits for is fetched before the rest."""
    async with running() as bench:
        async with trio.open_nursery() as clients:
            for start, end in [(0, None), (20 * MIB + 5, 21 * MIB), (7, 8), (SIZE - 1, SIZE), (12 * MIB, SIZE), (5, 5)]:
                clients.start_soon(bench.pull, start, end)
        await bench.copied()
        assert bench.crossed() == SIZE


async def test_a_client_that_leaves_stops_nothing(autojump_clock: MockClock) -> None:
    """The fetch belongs to the node: when a client leaves, another one and the copy get everything, and nothing is read twice."""
    async with running() as bench:
        async with trio.open_nursery() as clients:
            clients.start_soon(bench.pull)
            with trio.move_on_after(0.5):
                await bench.pull()
                pytest.fail("the client should have left before the end")
        await bench.copied()
        assert bench.crossed() == SIZE


async def test_when_all_clients_leave_the_copy_goes_on(autojump_clock: MockClock) -> None:
    """A blob that somebody wanted once is in the local store afterwards."""
    async with running() as bench:
        with trio.move_on_after(0.3):
            await bench.pull(pause=1)
        await bench.copied()
        assert bench.crossed() == SIZE


async def test_without_debt_the_fetch_ends_with_its_clients(autojump_clock: MockClock) -> None:
    """Where no copy is owed pulls share a fetch all the same, and it ends when the last one leaves."""
    async with running(owed=False) as bench:
        async with trio.open_nursery() as clients:
            clients.start_soon(bench.pull)
            clients.start_soon(bench.pull)
        assert bench.crossed() == SIZE
        await trio.sleep(30)
        assert bench.tees.statistics().running == 0
        with trio.move_on_after(0.3):
            await bench.pull(pause=1)
        await trio.sleep(30)
        assert bench.tees.statistics().running == 0
        assert bench.crossed() < 2 * SIZE
        assert (bench.blob.id, "eu") not in bench.node.world.truth.placements


async def test_a_slow_client_slows_nobody(autojump_clock: MockClock) -> None:
    """While one client takes minutes, others have the blob in seconds, also when the spool is smaller than the blob."""
    async with running(room=8 * MIB) as bench:
        async with trio.open_nursery() as clients:
            clients.start_soon(bench.pull, 0, None, 10.0)
            began = trio.current_time()
            await bench.pull()
            assert trio.current_time() - began < 10
        await bench.copied()
        # The slow one had to read most of it by itself.
        assert SIZE < bench.crossed() <= 2 * SIZE + 2 * MIB
        assert bench.tees.statistics().left == 1


async def test_a_blob_larger_than_the_spool(autojump_clock: MockClock) -> None:
    """Pieces that all have passed make room for the next: a small spool carries a large blob once."""
    async with running(room=12 * MIB) as bench:
        async with trio.open_nursery() as clients:
            for _ in range(3):
                clients.start_soon(bench.pull)
        await bench.copied()
        assert bench.crossed() == SIZE


async def test_a_full_spool_is_not_noticed(autojump_clock: MockClock) -> None:
    """When there is no room at all the client goes on from the sources, and the copy is made."""
    async with running(room=2 * MIB) as bench:
        bench.spool.used = 2 * MIB
        await bench.pull()
        bench.spool.used -= 2 * MIB
        await bench.copied()
        assert bench.tees.statistics().last_break == "the spool is full"


async def test_a_fetch_takes_its_memory_from_the_pool(autojump_clock: MockClock) -> None:
    """What a fetch and its copy hold at once is bounded by the pool that all copies and uploads share, however small."""
    async with running(memory=6 * MIB) as bench:
        held: list[int] = []

        async def look() -> None:
            while True:
                held.append(bench.pool.statistics().held)
                await trio.sleep(0.01)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(look)
            await bench.pull()
            await bench.copied()
            nursery.cancel_scope.cancel()
        assert 3 * MIB in held
        assert max(held) <= 6 * MIB
        # Nobody waited for memory that somebody held who waited for them.
        assert bench.crossed() == SIZE
        assert bench.tees.statistics().left == 0


async def test_clients_do_not_wait_for_memory(autojump_clock: MockClock) -> None:
    """Where uploads hold all memory for long a client reads from the sources, and the copy is made when there is some again."""
    async with running() as bench:
        async with bench.pool.hold(64 * MIB):
            began = trio.current_time()
            await bench.pull()
            assert trio.current_time() - began < 10
            assert bench.tees.statistics().left == 1
        await bench.copied()


async def test_a_part_is_in_memory_once(autojump_clock: MockClock) -> None:
    """A part that a copy takes out of the spool takes its own size of memory and a piece, at no time twice as much."""
    async with running(owed=False) as bench, trio.open_nursery() as clients:
        clients.start_soon(bench.pull, 0, None, 1.0)
        while (tee := bench.tees.running(bench.blob.digest)) is None:
            await trio.sleep(0.1)
        asked = 0
        # The fetch has its own buffers, and is over by then.
        await trio.sleep(10)

        async def memory() -> None:
            nonlocal asked
            asked += 1
            await trio.lowlevel.checkpoint()
            tracemalloc.start()

        try:
            data = await tee.part(0, 16 * MIB, memory)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert data == bench.data[: 16 * MIB]
        assert asked == 1
        assert peak < 16 * MIB + 3 * MIB


async def test_a_source_that_dies_is_replaced(autojump_clock: MockClock) -> None:
    """A source that dies in the middle is replaced by the next one, and what has arrived is not fetched again."""
    async with running() as bench:
        async with trio.open_nursery() as clients:
            for _ in range(5):
                clients.start_soon(bench.pull)
            await trio.sleep(0.6)
            bench.node.world.stores["us"].set_faults(Faults(hanging=True))
        await bench.copied()
        assert bench.sent("ap") > 0
        assert bench.crossed() <= SIZE + 8 * MIB


async def _expect_no_source(bench: Bench) -> None:
    with pytest.raises(NoGoodSource):
        await bench.pull()


async def test_when_all_sources_die_clients_hear_of_it(autojump_clock: MockClock) -> None:
    """When no source is left a pull ends with their reasons, and the debt stays."""
    async with running() as bench:
        async with trio.open_nursery() as clients:
            clients.start_soon(_expect_no_source, bench)
            await trio.sleep(0.5)
            for name in ("us", "ap"):
                bench.node.world.stores[name].set_faults(Faults(down=True))
        assert (bench.blob.id, "eu") in bench.node.world.truth.tasks


async def test_a_lying_source_is_found_out(autojump_clock: MockClock) -> None:
    """A wrong piece reaches neither client nor store; the copy that has it is suspect."""
    async with running() as bench:
        data = bytearray(bench.data)
        data[9 * MIB] ^= 1
        bench.node.world.stores["us"].objects["registry/blob"] = bytes(data)
        async with trio.open_nursery() as clients:
            for _ in range(4):
                clients.start_soon(bench.pull)
        await bench.copied()
        assert {place for place, _ in bench.node.world.truth.suspicions} == {(bench.blob.id, "us")}


async def test_a_disk_that_lies_is_not_noticed(autojump_clock: MockClock, tmp_path: Path) -> None:
    """A piece that the spool's disk spoils is read from the source again."""
    async with running(folder=tmp_path, owed=False) as bench:
        tasks = bench.tees
        async with bench.tees.open_blob(bench.blob, bench.sources) as stream:
            got = bytes(await anext(stream))
            await trio.sleep(20)
            tee = tasks.running(bench.blob.digest)
            assert tee is not None
            assert tee._file._file is not None
            os.pwrite(tee._file._file.fileno(), b"\0" * SIZE, 0)
            async for chunk in stream:
                got += chunk
        assert got == bench.data


async def test_nothing_is_left_in_the_folder(autojump_clock: MockClock, tmp_path: Path) -> None:
    """The spool has no names: at no time is there a file that a crash could leave behind."""
    async with running(folder=tmp_path) as bench, bench.tees.open_blob(bench.blob, bench.sources) as stream:
        async for _ in stream:
            assert os.listdir(tmp_path) == []  # noqa: PTH208 - blocking either way
            assert bench.spool.used > 0 or stream.location == "us"
    assert bench.spool.used == 0


async def test_an_interrupted_tee_is_an_ordinary_copy(autojump_clock: MockClock) -> None:
    """When the tees' service ends midway its client goes on, the lease is given back, and the copy goes on after its parts."""
    async with running() as bench:
        truth = bench.node.world.truth
        async with trio.open_nursery() as clients:
            clients.start_soon(bench.pull, 0, None, 0.05)
            while not any(upload.parts for upload in bench.node.world.stores["eu"].uploads.values()):
                await trio.sleep(0.01)
            assert bench.tees._nursery is not None
            bench.tees._nursery.cancel_scope.cancel()
            await trio.sleep(0.5)
            assert truth.tasks[bench.blob.id, "eu"].lease is None
        assert truth.tasks[bench.blob.id, "eu"].upload is not None
        bench.node.scheduler.nudge("eu")
        await bench.copied()
        assert bench.node.scheduler.statistics.kept_bytes > 0


async def test_the_running_copy_joins_the_fetch(autojump_clock: MockClock) -> None:
    """A copy that runs already takes its further parts from the fetch of a pull that comes later."""
    async with running() as bench:
        bench.node.world.truth.tasks[bench.blob.id, "eu"].due = 0.0
        bench.node.scheduler.nudge("eu")
        while not bench.crossed():
            await trio.sleep(0.01)
        await bench.pull()
        await bench.copied()
        # What was under way when the pull came is fetched twice, the rest once.
        assert bench.crossed() <= SIZE + 4 * 5 * MIB


async def test_small_blobs_and_ill_stores_are_not_teed(autojump_clock: MockClock) -> None:
    """Small blobs, a store that is down and one that operators paused are read past."""
    async with running(size=1000) as bench:
        await bench.pull()
        assert bench.tees.statistics().begun == 0
    async with running() as bench:
        bench.node.world.stores["eu"].set_faults(Faults(down=True))
        await trio.sleep(20)
        await bench.pull()
        assert bench.tees.statistics().begun == 0


async def test_what_comes_from_elsewhere_is_paced(autojump_clock: MockClock) -> None:
    """Every byte of a tee passes the cap between two locations once; what the local store sends passes none."""
    async with running() as bench:
        await bench.pull()
        await bench.copied()
        assert sum(nbytes for location, nbytes in bench.cap if location != "eu") == SIZE
        bench.cap.clear()
        await bench.pull()
        assert {location for location, _ in bench.cap} == {"eu"}
