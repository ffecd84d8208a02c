"""The registry's accounts on a real database, and regions that ask for them."""

from tests.registry.conftest import database, migrated_uri, world

__all__ = ["database", "migrated_uri", "world"]
