"""Spans of blobs that a thread hands from store to store: real stores, with faults in front of them."""

import uuid
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest
import trio
from attrs import define, field

from engines.contract import MIB, ChunkMaker, EngineUnavailable, Inflow, StreamingEngine
from engines.crossing import open_bridge
from replication.destination import WriteFailed
from replication.macs import MacKey, MacKeys, ProofMaker
from replication.model import Blob, Placement
from replication.parts import PartPool
from replication.reader import NoGoodSource, Reader, ReaderSettings, Transfer
from replication.relay import IN_FLIGHT, Relay
from tests.engines.stores import spec_of
from tests.engines.test_contract import pattern
from tests.faults import FaultyStore, MakeFaulty
from tests.services import Store

SIZE = 3 * MIB + 5
SILENCE = 5.0
"""Seconds after which a store that says nothing is given up: one that works on a busy machine says something sooner."""
DATA = pattern(SIZE)
KEY = MacKey(b"01234567", b"k" * 32)
_MAKER = ProofMaker(KEY)
_MAKER.add(DATA)
BLOB = Blob(1, "sha256:" + "0" * 64, SIZE, _MAKER.proofs().pieces, _MAKER.proofs().macs)


@define
class Bench:
    """Two sources, `us` behind faults, and a destination behind faults, `eu`."""

    engines: dict[str, StreamingEngine]
    us: FaultyStore
    eu: FaultyStore
    pool: PartPool = field(factory=lambda: PartPool(2 * IN_FLIGHT))
    suspected: list[str] = field(factory=list)
    reported: list[tuple[str, bool]] = field(factory=list)
    placements: list[Placement] = field(factory=list)

    def transfer(self, *order: str, blob: Blob = BLOB) -> Transfer:
        """Return a transfer from these locations."""

        def report(
            location: str, ok: bool, latency: float | None = None, reason: str | None = None, lied: bool = False
        ) -> None:
            self.reported.append((location, lied))

        reader = Reader(
            self.engines,
            report,
            lambda _blob, placement, _reason: self.suspected.append(placement.location),
            ReaderSettings(stall=SILENCE),
            macs=MacKeys([KEY]),
        )
        return reader.begin(blob, [next(p for p in self.placements if p.location == at) for at in order])

    async def bring(self, transfer: Transfer) -> bytes | None:
        """Relay the blob; return what the destination has then."""
        relay, key = Relay(self.engines, self.pool), f"{self.engines['eu'].prefix}{uuid.uuid4()}"
        engine = relay.destination("eu", transfer)
        if engine is None:
            return None

        async def send(chunks: ChunkMaker, patience: float) -> bool:
            await engine.put_stream(key, SIZE, chunks, patience)
            return True

        if not await relay.bring(transfer, 0, SIZE, send):
            return None
        return await self.engines["eu"].read(key, 0, SIZE)


@pytest.fixture
async def bench(faulty_store: MakeFaulty, s3_stores: dict[str, Store], storage_path: str) -> AsyncIterator[Bench]:
    """Everything well, and the blob at both sources."""
    us, eu = await faulty_store("us"), await faulty_store("eu")
    async with (
        open_bridge(),
        spec_of(us.store, f"{storage_path}/a", write_timeout=SILENCE).open() as first,
        spec_of(s3_stores["us"], f"{storage_path}/b").open() as second,
        spec_of(eu.store, f"{storage_path}/c", write_timeout=SILENCE).open() as destination,
    ):
        engines = {"us": first, "ap": second, "eu": destination}
        bench = Bench({name: engine for name, engine in engines.items() if isinstance(engine, StreamingEngine)}, us, eu)
        for name in ("us", "ap"):
            bench.placements.append(Placement(name, f"{engines[name].prefix}{uuid.uuid4()}"))
            await engines[name].put(bench.placements[-1].key, DATA)
        yield bench


async def test_bytes_arrive(bench: Bench) -> None:
    """What arrives is what the source has; nothing is reported, and the memory is free again."""
    assert await bench.bring(bench.transfer("us", "ap")) == DATA
    assert bench.suspected == []
    assert bench.pool.statistics().held == 0


async def test_a_bit_that_changes_on_the_way_to_the_destination_is_noticed(bench: Bench) -> None:
    """What did not arrive as it was sent is no copy: neither compared by the source's MD5 nor in the way that follows on that."""
    bench.eu.flips = True
    for _ in range(2):
        assert await bench.bring(bench.transfer("us", "ap")) is None
    assert (await bench.engines["eu"].list_keys(bench.engines["eu"].prefix)).keys == ()
    assert (bench.reported, bench.suspected) == ([], [])


async def test_a_source_that_lies_is_replaced(bench: Bench) -> None:
    """A wrong byte in the middle goes no further: the copy is suspect, and the next source is read from the beginning."""
    wrong = DATA[: 2 * MIB] + b"?" + DATA[2 * MIB + 1 :]
    await bench.engines["us"].put(bench.placements[0].key, wrong)
    assert await bench.bring(bench.transfer("us", "ap")) == DATA
    assert bench.suspected == ["us"]
    assert bench.reported == [("us", True)]


async def test_a_source_that_has_nothing_is_replaced(bench: Bench) -> None:
    """A missing object says that the copy is bad, and nothing about its store."""
    await bench.engines["us"].delete(bench.placements[0].key)
    assert await bench.bring(bench.transfer("us", "ap")) == DATA
    assert bench.suspected == ["us"]
    assert bench.reported == []


@pytest.mark.parametrize("fault", ["reset", "silent"])
async def test_a_source_that_fails_in_the_middle_is_replaced(bench: Bench, fault: str) -> None:
    """One that resets its connections or falls silent after a MiB is replaced by the next, and reported."""
    async with trio.open_nursery() as nursery:

        async def break_in_the_middle() -> None:
            begun = bench.us.answered
            while bench.us.answered < begun + MIB:
                await trio.lowlevel.checkpoint()
            bench.us.break_("reset" if fault == "reset" else "silent")

        nursery.start_soon(break_in_the_middle)
        assert await bench.bring(bench.transfer("us", "ap")) == DATA
    assert bench.reported == [("us", False)]
    assert bench.suspected == []


@define
class _Keyless:
    """An engine whose credentials cannot be had now, as where those of a role come from a service that is away."""

    _inner: StreamingEngine
    asked: trio.Event = field(factory=trio.Event)
    silent: bool = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def inflow(self, *_: object, **__: object) -> Inflow:
        self.asked.set()
        if self.silent:
            await trio.sleep_forever()
        raise EngineUnavailable("no credentials")


async def test_a_source_without_credentials_is_replaced(bench: Bench) -> None:
    """One that cannot even be asked is replaced by the next, and reported."""
    bench.engines["us"] = cast("StreamingEngine", _Keyless(bench.engines["us"]))
    assert await bench.bring(bench.transfer("us", "ap")) == DATA
    assert bench.reported == [("us", False)]
    assert bench.suspected == []


async def test_a_relay_ends_before_its_source_is_asked(bench: Bench) -> None:
    """Cancelled while it waits for credentials, as a copy whose lease is lost, it ends like any other task."""
    keyless = _Keyless(bench.engines["us"], silent=True)
    bench.engines["us"] = cast("StreamingEngine", keyless)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.bring, bench.transfer("us", "ap"))
        await keyless.asked.wait()
        nursery.cancel_scope.cancel()
    assert bench.pool.statistics().held == 0


async def test_no_source_is_left(bench: Bench) -> None:
    """Where all sources fail it is NoGoodSource, which says why, and the destination has nothing."""
    bench.us.break_("reset")
    await bench.engines["ap"].delete(bench.placements[1].key)
    with pytest.raises(NoGoodSource, match="ap: ObjectMissing"):
        await bench.bring(bench.transfer("us", "ap"))
    assert (await bench.engines["eu"].list_keys(bench.engines["eu"].prefix)).keys == ()


async def test_a_silent_destination_is_not_blamed_on_the_source(bench: Bench) -> None:
    """What the destination does wrong is raised, and says nothing about the sources."""
    bench.eu.break_("hang")
    transfer = bench.transfer("us", "ap")
    with trio.fail_after(60), pytest.raises(EngineUnavailable):
        await bench.bring(transfer)
    assert bench.reported == []
    assert transfer.roster.best() == "us"


async def test_a_deadline_that_the_source_spent_is_the_sources(bench: Bench, nursery: trio.Nursery) -> None:
    """A write that is given up while its source is waited for is no failure of the destination."""
    bench.us.break_("silent")
    bench.us.asked = bytearray()
    relay, transfer = Relay(bench.engines, bench.pool), bench.transfer("us", "ap")
    transfer.roster.candidates[0].patient = True
    tried = 0

    async def give_up_once_asked(scope: trio.CancelScope) -> None:
        while not bench.us.asked:  # noqa: ASYNC110 - the proxy tells nobody
            await trio.sleep(0.01)
        scope.cancel()

    async def send(chunks: ChunkMaker, patience: float) -> bool:
        nonlocal tried
        tried += 1
        with trio.move_on_after(60) as scope:
            if tried == 1:
                nursery.start_soon(give_up_once_asked, scope)
            return (
                await bench.engines["eu"].put_stream(f"{bench.engines['eu'].prefix}k", SIZE, chunks, patience)
            ).size > 0
        raise WriteFailed("late")

    assert await relay.bring(transfer, 0, SIZE, send)
    assert tried == 2
    assert bench.reported == [("us", False)]


@pytest.mark.parametrize("after", [0, 1, 2])
async def test_what_is_fetched_anyway_is_not_fetched_twice(bench: Bench, after: int) -> None:
    """A relay gives way to a fetch of the same blob that begins meanwhile, unless half of its span has come: then it goes on."""
    relay, transfer, asked = Relay(bench.engines, bench.pool), bench.transfer("us", "ap"), 0
    key = f"{bench.engines['eu'].prefix}{uuid.uuid4()}"

    def shared() -> bool:
        nonlocal asked
        asked += 1
        return asked > after

    async def send(chunks: ChunkMaker, patience: float) -> bool:
        return (await bench.engines["eu"].put_stream(key, SIZE, chunks, patience)).size == SIZE

    assert await relay.bring(transfer, 0, SIZE, send, shared) is (True if after == 2 else None)
    assert (await bench.engines["eu"].list_keys(key)).keys == ((key,) if after == 2 else ())
    assert bench.reported == []


async def test_only_what_can_be_verified_and_streamed_is_relayed(bench: Bench) -> None:
    """Without pieces nothing can be verified on the way: such a blob goes through memory."""
    assert await bench.bring(bench.transfer("us", blob=Blob(1, BLOB.digest, SIZE))) is None
