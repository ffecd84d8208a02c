"""The regions of `tests/registry/world.py`, and a clock that the database's own times are moved along."""

import pytest

from node.records.collect import CollectRules
from node.records.postgres import Database
from tests.collection.clock import HOUR, Later, pass_time
from tests.registry.conftest import database, migrated_uri, us, world

__all__ = ["database", "migrated_uri", "us", "world"]


@pytest.fixture
def rules() -> CollectRules:
    """The usual times: three days of grace, one of retention, two weeks for tags."""
    return CollectRules(grace=72 * HOUR, retention=24 * HOUR, tag_expiration=14 * 24 * HOUR)


@pytest.fixture
def later(database: Database) -> Later:
    """A function that lets hours go by."""

    async def move(hours: float) -> None:
        await pass_time(database, hours * HOUR)

    return move
