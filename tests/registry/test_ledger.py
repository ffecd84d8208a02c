"""The PostgreSQL ledger keeps the contract that the simulation's keeps."""

from collections.abc import Mapping, Sequence
from uuid import uuid4

import pytest
from attrs import define, field

from node.records.ledger import PostgresLedger
from node.records.members import Membership, enrol_locations
from node.records.postgres import Database
from replication.model import LocationState, Placement
from replication.ports import Ledger
from tests.ledger_contract import LedgerContract

LOCATIONS = ("us", "eu", "ap")
_TIMES = {
    "task": ("due_at", "lease_until", "created_at", "failing_since"),
    "dead_object": ("not_before",),
    "node": ("seen_at", "started_at"),
    "blob": ("created_at",),
    "placement": ("created_at",),
}


@define
class PostgresBench:
    """See `tests.ledger_contract.Bench`. Time passes by moving everything that has one into the past."""

    database: Database
    _ledgers: dict[str, PostgresLedger] = field(factory=dict)

    def ledger(self, node: str = "n1", preference: tuple[str, ...] = LOCATIONS) -> Ledger:
        if node not in self._ledgers:
            member = Membership(uuid4(), preference, LOCATIONS, "test")
            self._ledgers[node] = PostgresLedger(database=self.database, member=member)
        return self._ledgers[node]

    async def push(
        self,
        digest: str,
        size: int,
        pieces: bytes | None,
        placed: Mapping[str, str],
        owed: Sequence[str],
        priority: int,
    ) -> int:
        row = await self.database.fetch_row(
            """
            WITH b AS (INSERT INTO blob (digest, size, pieces) VALUES ($1, $2, $3) RETURNING id),
            p AS (
                INSERT INTO placement (blob_id, location_id, key)
                SELECT b.id, l.id, u.key FROM b, unnest($4::text[], $5::text[]) u (name, key) JOIN location l USING (name)),
            t AS (
                INSERT INTO task (blob_id, location_id, size, priority)
                SELECT b.id, l.id, $2, $7 FROM b, location l WHERE l.name = ANY($6::text[]))
            SELECT id FROM b
            """,
            digest,
            size,
            pieces,
            list(placed),
            list(placed.values()),
            list(owed),
            priority,
        )
        assert row is not None
        return int(row["id"])

    async def drop(self, blob_id: int) -> None:
        await self.database.fetch(
            """
            WITH p AS (DELETE FROM placement WHERE blob_id = $1 RETURNING location_id, key),
            t AS (DELETE FROM task WHERE blob_id = $1 RETURNING location_id, key)
            INSERT INTO dead_object (location_id, key)
            SELECT * FROM p UNION SELECT * FROM t WHERE key IS NOT NULL ON CONFLICT DO NOTHING
            """,
            blob_id,
        )
        await self.database.fetch("DELETE FROM blob WHERE id = $1", blob_id)

    async def bury(self, location: str, key: str) -> None:
        await self.database.fetch(
            "INSERT INTO dead_object (location_id, key) SELECT id, $2 FROM location WHERE name = $1", location, key
        )

    async def set_state(self, location: str, state: LocationState) -> None:
        await self.database.fetch("UPDATE location SET state = $2 WHERE name = $1", location, state.value)

    async def placements(self, blob_id: int) -> frozenset[Placement]:
        rows = await self.database.fetch(
            "SELECT l.name, p.key, p.state = 'suspect' AS suspect FROM placement p JOIN location l ON l.id = p.location_id "
            "WHERE p.blob_id = $1",
            blob_id,
        )
        return frozenset(Placement(row["name"], row["key"], row["suspect"]) for row in rows)

    async def pieces(self, blob_id: int) -> bytes | None:
        row = await self.database.fetch_row("SELECT pieces FROM blob WHERE id = $1", blob_id)
        return None if row is None else row["pieces"]

    async def owed(self, blob_id: int) -> Mapping[str, str]:
        rows = await self.database.fetch(
            "SELECT l.name, coalesce(t.last_error, '') AS error FROM task t JOIN location l ON l.id = t.location_id "
            "WHERE t.blob_id = $1",
            blob_id,
        )
        return {row["name"]: row["error"] for row in rows}

    async def dead(self) -> frozenset[tuple[str, str]]:
        rows = await self.database.fetch(
            "SELECT l.name, d.key FROM dead_object d JOIN location l ON l.id = d.location_id"
        )
        return frozenset((row["name"], row["key"]) for row in rows)

    async def pass_time(self, seconds: float) -> None:
        for table, columns in _TIMES.items():
            changes = ", ".join(f"{column} = {column} - $1 * interval '1 second'" for column in columns)
            await self.database.fetch(f"UPDATE {table} SET {changes}", seconds)  # noqa: S608  # the names above


@pytest.fixture
async def bench(database: Database) -> PostgresBench:
    await enrol_locations(database, LOCATIONS, LOCATIONS)
    return PostgresBench(database)


class TestPostgresLedger(LedgerContract):
    """On the database's own clock."""
