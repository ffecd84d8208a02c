"""Who waits for images keeps the database from nobody: few looks are out at once, however many images are waited for."""

import pytest
import trio
import trio.testing

from node.shares import Places, Share
from node.waiting import Subject, Vanished, Waiting
from property_tests.memory_hints import MemoryHints
from replication.closure import Closure


async def test_few_look_at_once(autojump_clock: trio.testing.MockClock) -> None:
    """Questions about a hundred images are asked a few at a time, and all are answered."""
    out, most, looks = 0, 0, 0

    async def look(_subject: Subject) -> Closure | None:
        nonlocal out, most, looks
        out, looks = out + 1, looks + 1
        most = max(most, out)
        await trio.sleep(0.1)
        out -= 1
        return None

    waiting = Waiting(look, MemoryHints(), Places("waits", Share(1000)))

    async def wait(number: int) -> None:
        with pytest.raises(Vanished):
            await waiting.until(Subject("team/app", f"sha256:{number:064x}"), lambda _: False, 60.0, "alice")

    async with trio.open_nursery() as nursery:
        for number in range(100):
            nursery.start_soon(wait, number)
    assert (most, looks) == (8, 100)
    assert waiting.waiters == 0
