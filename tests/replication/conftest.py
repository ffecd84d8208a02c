"""Fixtures of the replication tests."""

from collections.abc import AsyncIterator

import pytest

from tests.replication.world import World, open_world


@pytest.fixture
async def world(database_uri: str) -> AsyncIterator[World]:
    """A fresh database with three locations, us and eu by default."""
    async with open_world(database_uri) as made:
        yield made
