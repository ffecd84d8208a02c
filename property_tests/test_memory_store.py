"""The simulated store does to writes whose client went away what stores do: some come all the same, later."""

from random import Random

import trio
from trio.testing import MockClock

from property_tests.memory_engine import LATEST, MemoryEngine, MemoryStore


async def test_what_was_under_way_may_still_come(autojump_clock: MockClock) -> None:
    """A part comes while its write is open, and not into one that was given up; a finish and a delete come, too."""
    store = MemoryStore("us", Random(0), late_rate=1.0)
    engine = MemoryEngine(store)
    kept, given_up = [await engine.begin_parts(key) for key in ("kept", "given up")]
    with trio.CancelScope() as gone:
        gone.cancel()
        await engine.put_part("kept", kept, 1, b"data")
    with trio.CancelScope() as gone:
        gone.cancel()
        await engine.put_part("given up", given_up, 1, b"data")
    await engine.abandon_parts("given up", given_up)
    await trio.sleep(LATEST)
    parts = await engine.list_parts("kept", kept)
    assert [part.size for part in parts] == [4]
    with trio.CancelScope() as gone:
        gone.cancel()
        await engine.finish_parts("kept", kept, parts)
    assert store.objects == {}
    await trio.sleep(LATEST)
    assert (await engine.head("kept")).size == 4
    assert not store.uploads
    with trio.CancelScope() as gone:
        gone.cancel()
        await engine.delete("kept")
    await trio.sleep(LATEST)
    store.land()
    assert store.objects == {}
