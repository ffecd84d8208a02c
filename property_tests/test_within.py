# ruff: noqa: ASYNC110 - on a virtual clock polling costs nothing, and keeps the observer out of the code
"""Copies that a store makes by itself: no byte passes through the node but those read back, and nothing wrong is recorded."""

import hashlib
from random import Random
from typing import Any

import pytest
import trio
from attrs import define
from trio.testing import MockClock

from engines.contract import EngineRefused, EngineUnavailable, ObjectFacts
from property_tests.memory_engine import LATEST, MIB, Faults, MemoryCopyingEngine, MemoryEngine, MemoryStore
from property_tests.memory_ledger import Line, MemoryLedger
from property_tests.memory_truth import Truth
from replication.copier import Copier, CopierSettings, CopyEnd, CopyReport
from replication.model import Blob, LocationState, Placement
from replication.offload import inline
from replication.parts import PartPool
from replication.reader import Reader
from replication.within import WithinLimits
from tests.copies import pieces_of

SIZE = 12 * MIB + 5
SERVICE = frozenset({"us", "eu"})


@define(eq=False)
class Bench:
    """Stores us and eu of one service, ap of another; eu owes a copy of a blob that us and ap have."""

    truth: Truth
    stores: dict[str, MemoryStore]
    engines: dict[str, MemoryEngine]
    ledger: MemoryLedger
    copier: Copier
    blob: Blob
    data: bytes
    suspects: list[str]

    async def pay(self) -> CopyReport:
        (task,) = await self.ledger.claim_copies("eu", "registry/", 1, 30.0)
        report = await self.copier.pay(task)
        if report.error:
            await self.ledger.fail_copy(task, report.error, 0.0)
        return report

    def calls(self, store: str, *names: str) -> int:
        return sum(call in names for call, _ in self.stores[store].calls)

    def check(self) -> None:
        """The copy is recorded, right, and leaves no open multi-part write behind."""
        placement = self.truth.placements[self.blob.id, "eu"]
        assert self.stores["eu"].objects[placement.key] == self.data
        assert self.stores["eu"].uploads == {}


def bench(*, whole: int = 1 << 30, pieces: bool = True, placed: tuple[str, ...] = ("us", "ap")) -> Bench:
    stores = {name: MemoryStore(name, Random(1)) for name in ("us", "eu", "ap")}
    engines: dict[str, MemoryEngine] = {
        name: MemoryCopyingEngine(store, SERVICE) if name in SERVICE else MemoryEngine(store)
        for name, store in stores.items()
    }
    truth = Truth(dict.fromkeys(stores, LocationState.ACTIVE))
    data = Random(3).randbytes(SIZE)
    for name in placed:
        stores[name].objects["registry/b"] = data
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    blob = truth.add_blob(
        digest, SIZE, pieces_of(data) if pieces else None, dict.fromkeys(placed, "registry/b"), ["eu"]
    )
    ledger = MemoryLedger(Line(truth), "eu1", ("eu", "us", "ap"))
    suspects: list[str] = []

    def report(
        location: str, ok: bool, latency: float | None = None, reason: str | None = None, lied: bool = False
    ) -> None:
        """Health is not the subject."""

    def suspect(blob: Blob, placement: Placement, reason: str) -> None:
        suspects.append(placement.location)

    reader = Reader(engines, report, suspect, offload=inline)
    copier = Copier(
        engines,
        reader,
        ledger,
        PartPool(16 * MIB),
        lambda placements: tuple(sorted(placements, key=lambda p: (p.suspect, p.location != "us"))),
        CopierSettings(part_size=2 * MIB, within=WithinLimits(whole=whole, part=3 * MIB, least=MIB)),
        offload=inline,
    )
    return Bench(truth, stores, engines, ledger, copier, blob, data, suspects)


async def test_one_call_and_reading_back(autojump_clock: MockClock) -> None:
    """A blob that fits is copied in one call; the source is not read, and what was copied is."""
    here = bench()
    assert (await here.pay()).end is CopyEnd.PLACED
    here.check()
    assert here.calls("us", "read", "open") == 0
    assert (here.calls("eu", "copy_object"), here.calls("eu", "read"), here.calls("eu", "put_part")) == (1, 7, 0)


async def test_larger_blobs_in_parts(autojump_clock: MockClock) -> None:
    """A blob beyond the limit of one call is copied in parts."""
    here = bench(whole=4 * MIB)
    assert (await here.pay()).end is CopyEnd.PLACED
    here.check()
    assert (here.calls("eu", "copy_part"), here.calls("us", "read", "open")) == (5, 0)


async def test_an_interrupted_copy_goes_on(autojump_clock: MockClock) -> None:
    """A try that is cut off leaves its parts to the next one."""
    here = bench(whole=4 * MIB)
    here.copier.settings = CopierSettings(part_size=2 * MIB, parts_per_blob=1, within=here.copier.settings.within)
    (task,) = await here.ledger.claim_copies("eu", "registry/", 1, 30.0)
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(here.copier.pay, task)
            while here.calls("eu", "copy_part") < 3:
                await trio.sleep(0.0005)
            scope.cancel()
    await here.ledger.hand_back([task.lease])
    assert (await here.pay()).end is CopyEnd.PLACED
    here.check()
    assert here.calls("eu", "copy_part") <= 6


async def test_a_blob_without_pieces(autojump_clock: MockClock) -> None:
    """Without pieces the digest is what is checked, and the pieces are learnt."""
    here = bench(pieces=False)
    assert (await here.pay()).end is CopyEnd.PLACED
    here.check()
    assert here.truth.blobs[here.blob.id].pieces == pieces_of(here.data)


async def test_a_wrong_source_is_found_out(autojump_clock: MockClock) -> None:
    """Where the store copied wrong bytes the blob is copied as usual, from another source, and the wrong one is suspect."""
    for whole in (4 * MIB, 1 << 30):
        for pieces in (True, False):
            here = bench(whole=whole, pieces=pieces)
            here.stores["us"].objects["registry/b"] = b"\0" * SIZE
            if (await here.pay()).end is not CopyEnd.PLACED:
                # Without pieces the liar is only known at the end of the read; the next try avoids it.
                assert not pieces
                here.truth.placements[here.blob.id, "us"] = Placement("us", "registry/b", suspect=True)
                assert (await here.pay()).end is CopyEnd.PLACED
            here.check()
            assert set(here.suspects) == {"us"}


async def test_unverified_work_is_never_taken_for_verified(autojump_clock: MockClock) -> None:
    """A try that is killed between the store's copy and the reading back proves nothing to one that copies as usual."""
    for whole in (4 * MIB, 1 << 30):
        here = bench(whole=whole)
        # A verified write of an earlier try is under way when the store copies something wrong.
        (task,) = await here.ledger.claim_copies("eu", "registry/", 1, 30.0)
        await here.ledger.note_parts(task, await here.engines["eu"].begin_parts(task.key))
        await here.ledger.hand_back([task.lease])
        here.stores["us"].objects["registry/b"] = b"\0" * SIZE
        (task,) = await here.ledger.claim_copies("eu", "registry/", 1, 30.0)
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(here.copier.pay, task)
                while not here.calls("eu", "read"):
                    await trio.sleep(0.0005)
                scope.cancel()
        assert len(here.stores["eu"].objects[task.key]) == SIZE
        await here.ledger.hand_back([task.lease])
        del here.truth.placements[here.blob.id, "us"]
        assert (await here.pay()).end is CopyEnd.PLACED
        here.check()


async def test_unverified_work_is_not_taken_for_verified_after_two_deaths(autojump_clock: MockClock) -> None:
    """Nor to the third, where the second begins to copy as usual, gives up what it has begun, and dies, too."""
    here = bench(whole=4 * MIB)
    here.stores["us"].objects["registry/b"] = b"\0" * SIZE
    for call in ("read", "put_part"):
        (task,) = await here.ledger.claim_copies("eu", "registry/", 1, 30.0)
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(here.copier.pay, task)
                while not here.calls("eu", call):
                    await trio.sleep(0.0005)
                scope.cancel()
        await here.ledger.hand_back([task.lease])
        here.truth.placements.pop((here.blob.id, "us"), None)
    # As a node of another part size does before it begins anew.
    here.stores["eu"].uploads.clear()
    assert (await here.pay()).end is CopyEnd.PLACED
    here.check()


@pytest.mark.parametrize("dies", [True, False])
async def test_a_copy_that_lands_late_hits_nothing(autojump_clock: MockClock, dies: bool) -> None:
    """The store copies wrong bytes long after whoever asked for it has died or given up: by then they are nobody's key."""
    here = bench()
    here.stores["us"].objects["registry/b"] = b"\0" * SIZE
    here.stores["eu"].late_rate = 1.0
    engine = here.engines["eu"]
    assert isinstance(engine, MemoryCopyingEngine)
    original = engine.copy_object

    async def slow(*arguments: Any) -> ObjectFacts:
        here.stores["eu"].faults = Faults(latency=3600)
        try:
            return await original(*arguments)
        finally:
            here.stores["eu"].faults = Faults()

    engine.copy_object = slow  # type: ignore[method-assign, assignment]
    (task,) = await here.ledger.claim_copies("eu", "registry/", 1, 30.0)
    with trio.move_on_after(1 if dies else 60):
        assert (await here.copier.pay(task)).end is CopyEnd.DESTINATION_FAILED
    await here.ledger.hand_back([task.lease])
    del here.truth.placements[here.blob.id, "us"]
    assert (await here.pay()).end is CopyEnd.PLACED
    here.check()
    await trio.sleep(LATEST)
    here.stores["eu"].land()
    here.check()
    live = here.truth.placements[here.blob.id, "eu"].key
    assert [dead.key for dead in here.truth.dead.values()] == [key for key in here.stores["eu"].objects if key != live]


async def test_a_refusal_is_remembered(autojump_clock: MockClock) -> None:
    """A store that may not copy from its neighbour is asked once; the blob is copied as usual."""
    here = bench()

    async def refuse(*_: object) -> None:
        raise EngineRefused("AccessDenied")

    here.engines["eu"].copy_object = refuse  # type: ignore[attr-defined]
    assert (await here.pay()).end is CopyEnd.PLACED
    here.check()
    assert here.copier._within._refused == {("us", "eu")}


async def test_a_store_that_fails_in_the_middle(autojump_clock: MockClock) -> None:
    """Where the store gives up between two parts, its work is abandoned and the blob is copied as usual."""
    here = bench(whole=4 * MIB)
    engine = here.engines["eu"]
    assert isinstance(engine, MemoryCopyingEngine)
    original, tries = engine.copy_part, 0

    async def flaky(*arguments: object) -> object:
        nonlocal tries
        tries += 1
        if tries == 3:
            raise EngineUnavailable("SlowDown")
        return await original(*arguments)  # type: ignore[arg-type]

    engine.copy_part = flaky  # type: ignore[method-assign, assignment]
    assert (await here.pay()).end is CopyEnd.PLACED
    here.check()


async def test_other_services_are_copied_as_usual(autojump_clock: MockClock) -> None:
    """A source of another service, and a blob so small that reading back costs as much, pass through the node."""
    here = bench(placed=("ap",))
    here.stores["ap"].set_faults(Faults(latency=0.001))
    assert (await here.pay()).end is CopyEnd.PLACED
    here.check()
    assert here.calls("eu", "copy_object", "copy_part") == 0


async def test_a_larger_part_size_leaves_no_parts_behind(autojump_clock: MockClock) -> None:
    """Where what was begun in parts is now small enough for one write, the parts are given up; also those that nobody noted."""
    for noted in (True, False):
        here = bench(placed=("ap",))
        (task,) = await here.ledger.claim_copies("eu", "registry/", 1, 30.0)
        upload = await here.engines["eu"].begin_parts(task.key)
        await here.engines["eu"].put_part(task.key, upload, 1, here.data[: 2 * MIB])
        if noted:
            await here.ledger.note_parts(task, upload)
        await here.ledger.hand_back([task.lease])
        here.copier.settings = CopierSettings(part_size=16 * MIB, within=here.copier.settings.within)
        assert (await here.pay()).end is CopyEnd.PLACED
        here.check()
