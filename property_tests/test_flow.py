"""Pieces that go from store to client in a thread: the same bytes in the same order as without, whatever fails on the way."""

import itertools
from collections.abc import Callable
from random import Random

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from property_tests.memory_engine import MIB, Faults
from property_tests.test_reader import Bench
from replication.flow import Flow
from replication.macs import PieceCheck
from replication.model import PIECE
from tests.copies import pieces_of

SIZE = 6 * MIB + 100


class Client:
    """Takes chunks, and in between what comes by its sink, as much of it as chance has it."""

    def __init__(self, bench: Bench, seed: int, most: int = PIECE) -> None:
        self.bench = bench
        self.random = Random(seed)
        self.most = most
        self.got = bytearray()
        self.flowed = self.told = 0
        self.busy = True
        self.on_piece: Callable[[], object] = lambda: None

    def send(self, data: memoryview) -> int:
        assert not self.busy, "somebody is in the middle of a chunk"
        count = min(len(data), self.random.randint(0, self.most))
        self.got += data[:count]
        self.flowed += count
        self.on_piece()
        return count

    def ready(self) -> bool:
        return self.random.random() < 0.5

    def sent(self, count: int) -> None:
        self.told += count

    async def read(self, start: int = 0, end: int | None = None) -> bytes:
        bench, last = self.bench, b""
        async with bench.reader.open_blob(bench.blob, bench.sources, start, end) as stream:
            async for chunk in stream:
                self.busy = True
                await trio.sleep(self.random.random() / 100)
                self.got += chunk
                last = bytes(chunk)
                stream.flow_into(self)
                self.busy = False
        assert self.told == self.flowed
        assert self.got.endswith(last), "the end of a blob is nobody's but the task's"
        return bytes(self.got)


@settings(max_examples=25)
@given(st.integers(0, SIZE), st.integers(0, SIZE), st.integers(0, 1000), st.sampled_from([1, 1000, PIECE, 2 * PIECE]))
async def test_any_range_is_right(first: int, second: int, seed: int, most: int) -> None:
    """Every range of a blob comes out as it went in, however much the client takes at a time."""
    bench = Bench(SIZE)
    start, end = min(first, second), max(first, second)
    assert await Client(bench, seed, most).read(start, end) == bench.data[start:end]


async def test_most_of_a_blob_flows(autojump_clock: MockClock) -> None:
    """A client that takes everything gets all but the first and the last pieces so."""
    bench = Bench(SIZE)
    client = Client(bench, 0)
    client.send = lambda data: _take_all(client, data)  # type: ignore[method-assign]
    assert await client.read() == bench.data
    assert client.flowed >= 4 * MIB


def _take_all(client: Client, data: memoryview) -> int:
    assert not client.busy
    client.got += data
    client.flowed += len(data)
    client.on_piece()
    return len(data)


@pytest.mark.parametrize("fault", ["lies", "down", "hangs", "ends"])
@pytest.mark.parametrize("seed", range(3))
async def test_a_source_that_fails_is_replaced_at_the_same_offset(
    fault: str, seed: int, autojump_clock: MockClock
) -> None:
    """Whatever a source does in the middle of a run, no byte is wrong, missing or sent twice."""
    bench = Bench(SIZE)
    client = Client(bench, seed)
    if fault == "lies":
        bench.spoil("us", 4 * MIB + 7)
    elif fault == "ends":
        bench.stores["us"].objects["k"] = bench.data[: 4 * MIB + seed]
    else:
        faults = Faults(down=True) if fault == "down" else Faults(hanging=True)
        client.on_piece = lambda: bench.stores["us"].set_faults(faults)
    assert await client.read() == bench.data
    assert client.flowed
    assert bench.opened("us") == bench.opened("eu") == 1
    assert bool(bench.suspects) is (fault in ("lies", "ends"))


@pytest.mark.parametrize("call", range(6))
@pytest.mark.parametrize("kind", ["chunks", "hashed", "flowing", "slow"])
async def test_nothing_is_lost_when_the_process_stands_still(kind: str, call: int, autojump_clock: MockClock) -> None:
    """Bytes that have come when the source's time is over are not a source's silence: they are handed on, or read again."""
    bench = Bench(SIZE, with_pieces=kind != "hashed")
    calls = itertools.count()

    async def stand_still() -> None:
        if next(calls) == call:
            autojump_clock.jump(60)
            # The scheduler sees that the time is over, and that the bytes are there.
            await trio.lowlevel.cancel_shielded_checkpoint()

    bench.engines["us"].received = stand_still  # type: ignore[method-assign]
    if kind in ("chunks", "hashed"):
        assert await bench.read() == bench.data
    else:
        assert await Client(bench, call, PIECE if kind == "flowing" else 1000).read() == bench.data
    assert next(calls) > call


def test_nothing_is_sent_after_the_end() -> None:
    """A thread that was left behind sends nothing any more, and changes nothing."""
    bench = Bench(SIZE)
    client = Client(bench, 0)
    client.busy = False
    flow = Flow(PieceCheck(pieces_of(bench.data)), 0, SIZE, 0, client)
    assert flow.take(memoryview(bench.data)[:PIECE]) in (True, False)
    flow.end()
    before = flow.offset, flow.rest, flow.count, bytes(client.got)
    client.busy = True
    assert not flow.take(memoryview(bench.data)[PIECE : 2 * PIECE])
    assert (flow.offset, flow.rest, flow.count, bytes(client.got)) == before


def test_wrong_bytes_are_never_sent() -> None:
    """A piece is verified before its first byte goes."""
    bench = Bench(SIZE)
    client = Client(bench, 0)
    flow = Flow(PieceCheck(pieces_of(bench.data)), 0, SIZE, 0, client)
    assert not flow.take(memoryview(bytes(PIECE)))
    assert (flow.wrong, flow.offset, flow.count) == (True, 0, 0)
