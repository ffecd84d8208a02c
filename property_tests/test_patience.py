"""How long a silent store is waited for, on a virtual clock; and kept uploads in little room, or on a disk that fails."""

from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from engines.contract import EngineUnavailable
from replication.patience import SILENCE, Patience
from replication.spool import Spool
from replication.upload_spool import NotKept, UploadSpool

MIB = 1 << 20

probes = st.lists(st.tuples(st.floats(0.1, 4.0), st.booleans()), max_size=20)


@given(probes, st.floats(0.0, 30.0))
def test_given_up_exactly_when_silent_and_ill(history: list[tuple[float, bool]], needed: float) -> None:
    """A call is ended at the first moment at which the store's latest probe is bad and the call has been silent for long enough."""
    ends: float | None = None
    now, ill = 0.0, False
    for wait, ok in [*history, (1000.0, True)]:
        if ill and ends is None and max(now, SILENCE) < now + wait:
            ends = max(now, SILENCE)
        now, ill = now + wait, not ok

    async def scenario() -> float | None:
        patience = Patience()

        async def probe() -> None:
            for wait, ok in history:
                await trio.sleep(wait)
                patience.probed("us", ok)
            await trio.sleep(1000.0)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(probe)
            began = trio.current_time()
            try:
                with patience.waiting("us"):
                    await trio.sleep(needed)
            except EngineUnavailable:
                return trio.current_time() - began
            finally:
                nursery.cancel_scope.cancel()
        return None

    found = trio.run(scenario, clock=MockClock(autojump_threshold=0))
    if ends is None or needed < ends - 0.01:
        assert found is None
    elif needed > ends + 0.01:
        assert found == pytest.approx(ends, abs=0.01)


async def test_signs_of_life_count(autojump_clock: MockClock) -> None:
    """A store that fails its probes and still sends is waited for as long as it sends."""
    patience = Patience()
    patience.probed("us", ok=False)
    last = 0.0

    async def receive() -> None:
        nonlocal last
        with patience.waiting("us") as wait:
            for _ in range(10):
                await trio.sleep(SILENCE - 1)
                wait.alive()
            last = trio.current_time()
            await trio.sleep_forever()

    with pytest.raises(EngineUnavailable):
        await receive()
    assert trio.current_time() - last == pytest.approx(SILENCE)


async def test_one_store_says_nothing_of_another(autojump_clock: MockClock) -> None:
    """A store that is ill ends no wait for another one, and one that is well again ends none at all."""
    patience = Patience()
    patience.probed("us", ok=False)
    with patience.waiting("eu"):
        await trio.sleep(100)
    patience.probed("us", ok=True)
    with patience.waiting("us"):
        await trio.sleep(100)


chunks = st.lists(st.integers(0, 700_000), max_size=30)


@given(chunks, st.integers(0, 6), st.booleans())
def test_all_or_nothing_is_kept(sizes: list[int], room: int, flush: bool) -> None:
    """What is kept is every byte in order or, beyond the room, nothing; the room is never exceeded and comes back."""

    async def inline(_nbytes: int, work: object) -> object:
        assert callable(work)
        return work()

    async def scenario() -> None:
        spool = Spool(None, room * MIB, inline)  # type: ignore[arg-type]  # of any result's type
        uploads = UploadSpool(spool)
        kept = uploads.keep()
        assert (kept is None) is (room == 0)
        if kept is None:
            return
        whole = b""
        for number, size in enumerate(sizes):
            data = bytes([number % 251]) * size
            await kept.append(data)
            whole += data
            if flush:
                await kept.flush()
            assert uploads.used <= room * MIB
        await kept.flush()
        if len(whole) <= room * MIB:
            assert kept.whole
            read = b"".join([await kept.read(start, 300_000) for start in range(0, len(whole), 300_000)])
            assert read == whole
        else:
            assert not kept.whole
            assert uploads.used == 0
            with pytest.raises(NotKept):
                await kept.read(0, 1)
        await kept.close()
        assert uploads.used == 0

    trio.run(scenario)


async def test_a_folder_that_is_gone(tmp_path: Path) -> None:
    """Where the disk takes nothing an upload goes on without, its room comes back, and its next bytes cost nothing."""
    uploads = UploadSpool(Spool(tmp_path / "gone", 100 * MIB))
    kept = uploads.keep()
    assert kept is not None
    await kept.append(bytes(3 * MIB))
    assert (kept.whole, uploads.used, kept.size) == (False, 0, 0)
    await kept.append(bytes(3 * MIB))
    assert kept.size == 0
