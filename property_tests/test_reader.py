"""The verified fail-over reader against stores that fail, stall and lie: right bytes or an error, and no byte read in vain."""

import hashlib
from random import Random

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from property_tests.memory_engine import MIB, Faults, MemoryEngine, MemoryStore
from property_tests.test_macs import KEY, proofs_of
from replication.macs import MacKey, MacKeys
from replication.model import Blob, Placement
from replication.offload import inline
from replication.reader import NoGoodSource, Reader

NAMES = ("us", "eu", "ap")


class Bench:
    """Three stores with one blob, and what the reader told about them."""

    def __init__(self, size: int, with_pieces: bool = True, key: MacKey | None = KEY) -> None:
        self.data = Random(size).randbytes(size)
        digest = f"sha256:{hashlib.sha256(self.data).hexdigest()}"
        self.blob = Blob(1, digest, size, *(attrs.astuple(proofs_of(self.data, key)) if with_pieces else ()))
        self.stores = {name: MemoryStore(name, Random(1), objects={"k": self.data}) for name in NAMES}
        self.engines = {name: MemoryEngine(store) for name, store in self.stores.items()}
        self.sources = [Placement(name, "k") for name in NAMES]
        self.reported: list[tuple[str, bool]] = []
        self.got = bytearray()
        self.suspects: list[tuple[str, str]] = []
        self.reader = Reader(self.engines, self.report, self.suspect, offload=inline, macs=MacKeys([KEY]))

    def report(
        self, location: str, ok: bool, latency: float | None = None, reason: str | None = None, lied: bool = False
    ) -> None:
        assert ok is (reason is None)
        assert not (ok and lied)
        assert latency is None or latency >= 0
        self.reported.append((location, ok))

    def suspect(self, blob: Blob, placement: Placement, reason: str) -> None:
        assert blob is self.blob
        self.suspects.append((placement.location, reason))

    def spoil(self, location: str, place: int) -> None:
        data = self.stores[location].objects["k"]
        self.stores[location].objects["k"] = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]

    async def read(self, start: int = 0, end: int | None = None) -> bytes:
        self.got.clear()
        async with self.reader.open_blob(self.blob, self.sources, start, end) as stream:
            async for chunk in stream:
                assert len(chunk) <= MIB
                self.got += chunk
        return bytes(self.got)

    def opened(self, location: str) -> int:
        return sum(call == "open" for call, _ in self.stores[location].calls)


SIZE = 3 * MIB + 100


@given(st.integers(0, SIZE), st.integers(0, SIZE), st.booleans())
async def test_any_range_is_right(first: int, second: int, with_pieces: bool) -> None:
    """Every range of a blob comes out as it went in, with and without pieces."""
    bench = Bench(SIZE, with_pieces)
    start, end = min(first, second), max(first, second)
    assert await bench.read(start, end) == bench.data[start:end]


async def test_a_lying_source_is_replaced_at_the_same_offset(autojump_clock: MockClock) -> None:
    """Wrong bytes in the third piece: two pieces from the first source, the rest from the next, the liar is suspect."""
    bench = Bench(SIZE)
    bench.spoil("us", 2 * MIB + 7)
    assert await bench.read() == bench.data
    assert bench.suspects == [("us", "piece 2 is wrong")]
    assert ("us", False) in bench.reported
    assert (bench.opened("us"), bench.opened("eu"), bench.opened("ap")) == (1, 1, 0)


async def test_a_copy_that_is_known_to_be_bad_says_nothing_new_of_its_store(autojump_clock: MockClock) -> None:
    """One damaged blob that is asked for again and again, or tried to be healed, must not keep clients from all the others."""
    for with_pieces in (True, False):
        bench = Bench(SIZE, with_pieces)
        bench.spoil("us", 7)
        bench.sources = [Placement("us", "k", suspect=True)]
        with pytest.raises(NoGoodSource):
            await bench.read()
        transfer = bench.reader.begin(bench.blob, bench.sources)
        with pytest.raises(NoGoodSource):
            await transfer.read_part(0, SIZE)
        assert ("us", False) not in bench.reported


async def test_a_missing_copy_is_suspect_and_says_nothing_of_its_store(autojump_clock: MockClock) -> None:
    """The next source serves; the store that answered so clearly is not called ill."""
    bench = Bench(SIZE)
    del bench.stores["us"].objects["k"]
    assert await bench.read() == bench.data
    assert [name for name, _ in bench.suspects] == ["us"]
    assert ("us", False) not in bench.reported


async def test_a_truncated_copy_is_suspect(autojump_clock: MockClock) -> None:
    """An object that ends early is a wrong copy, at a piece's end as well as inside one."""
    for length in (MIB, MIB + 5, 0):
        bench = Bench(SIZE)
        bench.stores["us"].objects["k"] = bench.data[:length]
        assert await bench.read() == bench.data
        assert [name for name, _ in bench.suspects] == ["us"]


async def test_a_stalling_source_is_left_after_the_stall_time(autojump_clock: MockClock) -> None:
    """A hanging store costs the stall time once, and nobody is suspected."""
    bench = Bench(SIZE)
    bench.stores["us"].set_faults(Faults(hanging=True))
    began = autojump_clock.current_time()
    assert await bench.read() == bench.data
    assert 5.0 <= autojump_clock.current_time() - began < 6.0
    assert bench.suspects == []
    assert ("us", False) in bench.reported


async def test_a_slow_only_source_still_serves(autojump_clock: MockClock) -> None:
    """A store that needs longer than the stall time for a MiB, but is never silent for so long, is enough."""
    bench = Bench(SIZE)
    for name in NAMES:
        bench.stores[name].set_faults(Faults(bytes_per_second=100e3))
    assert await bench.read() == bench.data


async def test_without_pieces_a_wrong_blob_breaks_off(autojump_clock: MockClock) -> None:
    """A full read of a wrong copy without pieces never gives its last chunk, and its only source is suspect."""
    bench = Bench(SIZE, with_pieces=False)
    bench.spoil("us", 5)
    with pytest.raises(NoGoodSource, match="another digest"):
        await bench.read()
    assert len(bench.got) == 3 * MIB
    assert [name for name, _ in bench.suspects] == ["us"]


async def test_a_small_blob_without_pieces_fails_over(autojump_clock: MockClock) -> None:
    """What fits into memory is verified before its first byte goes out."""
    bench = Bench(1000, with_pieces=False)
    bench.spoil("us", 5)
    assert await bench.read() == bench.data


async def test_all_sources_bad_tells_why_for_each(autojump_clock: MockClock) -> None:
    """The error names every source and what was wrong with it."""
    bench = Bench(SIZE)
    del bench.stores["us"].objects["k"]
    bench.stores["eu"].set_faults(Faults(down=True))
    bench.spoil("ap", 0)
    bench.sources.append(Placement("mars", "k"))
    with pytest.raises(NoGoodSource) as caught:
        await bench.read()
    reasons = dict(caught.value.reasons)
    assert "no object" in reasons["us"]
    assert "out of order" in reasons["eu"]
    assert "piece 0 is wrong" in reasons["ap"]
    assert "no such location" in reasons["mars"]


async def test_a_small_range_reads_its_piece_and_no_more(autojump_clock: MockClock) -> None:
    """Ten bytes over a piece's end take two pieces; ten bytes without pieces take ten."""
    bench = Bench(SIZE)
    assert await bench.read(MIB - 5, MIB + 5) == bench.data[MIB - 5 : MIB + 5]
    assert sum(call == "receive" for call, _ in bench.stores["us"].calls) == 2


async def test_what_the_body_raises_comes_out_as_it_is() -> None:
    """An error of the reader's user is not wrapped into a group."""
    bench = Bench(SIZE)
    with pytest.raises(KeyError):
        async with bench.reader.open_blob(bench.blob, bench.sources):
            raise KeyError("mine")


async def test_a_part_is_verified(autojump_clock: MockClock) -> None:
    """A part with a wrong piece is fetched from the next source, and the transfer does not ask the liar again."""
    bench = Bench(SIZE)
    bench.spoil("us", MIB)
    transfer = bench.reader.begin(bench.blob, bench.sources)
    assert await transfer.read_part(0, 2 * MIB) == bench.data[: 2 * MIB]
    assert await transfer.read_part(2 * MIB, MIB + 100) == bench.data[2 * MIB :]
    assert sum(call == "read" for call, _ in bench.stores["us"].calls) == 1
    with pytest.raises(ValueError, match="whole pieces"):
        await transfer.read_part(5, MIB)
