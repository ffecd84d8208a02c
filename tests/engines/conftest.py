"""Fixtures of the engine tests: the bridge, which fails the test for whatever asyncio complains about."""

import gc
from collections.abc import AsyncIterator

import pytest

from engines.crossing import Bridge, Trouble, open_bridge


@pytest.fixture
async def bridge() -> AsyncIterator[Bridge]:
    """An open bridge; nothing may have been reported to its loop when the test ends."""
    troubles: list[Trouble] = []
    async with open_bridge(troubles.append) as opened:
        yield opened
        # What a test forgot to close complains when it is collected.
        gc.collect()
    assert troubles == []
