"""The regions of `tests/registry/world.py`."""

from tests.registry.conftest import database, migrated_uri, us, world

__all__ = ["database", "migrated_uri", "us", "world"]
