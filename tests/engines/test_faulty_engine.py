"""The fault engine puts its faults where it is told, and nowhere else."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
from attrs import evolve

from engines import parse_engine
from engines.contract import EngineUnavailable
from tests.faulty_engine import Break, FaultyEngine, LoseAnswer, Refuse, Slow, Stall, Wrong

DATA = bytes(range(100))


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[FaultyEngine]:
    spec = evolve(parse_engine("LocalStorage", {"storage_path": str(tmp_path)}), wrap=FaultyEngine)
    async with spec.open() as opened:
        assert isinstance(opened, FaultyEngine)
        await opened.put("k", DATA)
        yield opened


async def test_break_at_a_byte(engine: FaultyEngine) -> None:
    """Bytes before the fault come through, the piece that holds it does not."""
    engine.plan("open", Break(at=50))
    async with engine.open("k") as reader:
        assert await reader.receive(50) == DATA[:50]
        with pytest.raises(EngineUnavailable):
            await reader.receive(1)
    engine.plan("read", Break(at=50))
    assert await engine.read("k", 0, 50) == DATA[:50]
    with pytest.raises(EngineUnavailable):
        await engine.read("k", 0, 51)


async def test_wrong_byte(engine: FaultyEngine) -> None:
    """Exactly one byte is wrong, at its place in the object whatever the range."""
    engine.plan("open", Wrong(at=42))
    engine.plan("read", Wrong(at=42))
    async with engine.open("k", 40) as reader:
        got = await reader.receive(10)
    assert [place for place in range(10) if got[place] != DATA[40 + place]] == [2]
    assert await engine.read("k", 43, 10) == DATA[43:53]
    engine.plan("put", Wrong(at=0))
    await engine.put("other", b"\x00")
    assert await engine.read("other", 0, 1) == b"\xff"


async def test_one_call_only(engine: FaultyEngine) -> None:
    """A fault for the k-th call leaves the others alone."""
    engine.plan("head", Refuse(), call=1)
    await engine.head("k")
    with pytest.raises(EngineUnavailable):
        await engine.head("k")
    await engine.head("k")
    assert engine.calls.count(("head", "k")) == 3


async def test_lost_answer(engine: FaultyEngine) -> None:
    """The store did it, the caller does not know."""
    engine.plan("put", LoseAnswer(), call=0)
    with pytest.raises(EngineUnavailable):
        await engine.put("new", b"x")
    assert (await engine.head("new")).size == 1


async def test_stall_and_slow(autojump_clock: trio.testing.MockClock) -> None:
    """Silence and slowness take exactly the time that was asked for."""
    # Its disk answers in no virtual time, so nothing may wait for it while the clock is free to jump.
    bottom = FaultyEngine(None)  # type: ignore[arg-type]  # never reached
    bottom.plan("head", Refuse())
    engine = FaultyEngine(bottom)
    for fault, seconds in ((Stall(seconds=7), 7), (Slow(seconds=3), 3)):
        engine.plan_all(fault)
        began = trio.current_time()
        with pytest.raises(EngineUnavailable):
            await engine.head("k")
        assert trio.current_time() - began == pytest.approx(seconds)


async def test_all_down_and_well_again(engine: FaultyEngine) -> None:
    """A store that is down fails everything, and works when it is back."""
    engine.plan_all(Refuse())
    with pytest.raises(EngineUnavailable):
        await engine.list_keys("")
    engine.clear()
    assert (await engine.list_keys("")).keys == ("k",)
