"""The keys that MACs of pieces are made with, shared by all nodes. One statement each."""

from collections.abc import Sequence

from attrs import field, frozen

from node.records.postgres import Database


@frozen
class MacKeyRow:
    """A key: the id that MACs carry, and its secret as it is kept."""

    id: bytes
    secret: bytes = field(repr=False)


async def read_mac_keys(database: Database) -> Sequence[MacKeyRow]:
    """Return all keys, the oldest first."""
    return [MacKeyRow(**row) for row in await database.fetch("SELECT id, secret FROM mac_key ORDER BY made_at, id")]


async def add_mac_key(database: Database, key: MacKeyRow) -> None:
    """Let every node have a key."""
    await database.fetch("INSERT INTO mac_key (id, secret) VALUES ($1, $2)", key.id, key.secret)
