"""The ledger over PostgreSQL keeps the contract that the simulation's keeps."""

import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import cast
from uuid import UUID, uuid5

import pytest
from attrs import define, evolve, field

from engines.crossing import open_bridge
from node.records.ledger import PostgresLedger
from node.records.members import Membership, enrol_locations
from node.records.migrate import migrate
from node.records.postgres import Database, Row, open_database
from replication.macs import PieceProofs
from replication.model import ClusterView, LocationState, Placement
from tests.ledger_contract import LEASE, LedgerContract

LOCATIONS = ("us", "eu", "ap")
_NAMES = UUID(int=0)


class PostgresBench:
    """See `tests.ledger_contract.Bench`. Time passes by moving every time in the tables into the past."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._names: dict[UUID, str] = {}

    def ledger(self, node: str = "n1", preference: tuple[str, ...] = LOCATIONS) -> "NamedLedger":
        member = Membership(uuid5(_NAMES, node), preference, LOCATIONS, "test")
        self._names[member.id] = node
        return NamedLedger(database=self._database, member=member, names=self._names)

    async def push(
        self,
        digest: str,
        size: int,
        pieces: bytes | None,
        placed: Mapping[str, str],
        owed: Sequence[str],
        priority: int,
    ) -> int:
        full = None if pieces is None else (pieces * (-(-size // (1 << 20))))[: 16 * -(-size // (1 << 20))]
        rows = await self._database.fetch(
            "INSERT INTO blob (digest, size, pieces) VALUES ($1, $2, $3) RETURNING id", digest, size, full
        )
        blob = int(rows[0]["id"])
        for location, key in placed.items():
            await self._database.fetch(
                "INSERT INTO placement (blob_id, location_id, key) SELECT $1, id, $3 FROM location WHERE name = $2",
                blob,
                location,
                key,
            )
        for location in owed:
            await self._database.fetch(
                "INSERT INTO task (blob_id, location_id, size, priority) SELECT $1, id, $3, $4 FROM location WHERE name = $2",
                blob,
                location,
                size,
                priority,
            )
        return blob

    async def drop(self, blob_id: int) -> None:
        await self._database.fetch(
            """
            WITH lost AS (DELETE FROM placement WHERE blob_id = $1 RETURNING location_id, key),
            undone AS (DELETE FROM task WHERE blob_id = $1 RETURNING location_id, key)
            INSERT INTO dead_object (location_id, key)
            SELECT location_id, key FROM lost UNION SELECT location_id, key FROM undone WHERE key IS NOT NULL
            ON CONFLICT DO NOTHING
            """,
            blob_id,
        )
        await self._database.fetch("DELETE FROM blob WHERE id = $1", blob_id)

    async def forget_task(self, blob_id: int, location: str) -> None:
        await self._database.fetch(
            "DELETE FROM task t USING location l WHERE l.id = t.location_id AND t.blob_id = $1 AND l.name = $2",
            blob_id,
            location,
        )

    async def owe(self, blob_id: int, location: str) -> None:
        await self._database.fetch(
            "INSERT INTO task (blob_id, location_id, size) SELECT b.id, l.id, b.size FROM blob b, location l "
            "WHERE b.id = $1 AND l.name = $2",
            blob_id,
            location,
        )

    async def bury(self, location: str, key: str) -> None:
        await self._database.fetch(
            "INSERT INTO dead_object (location_id, key) SELECT id, $2 FROM location WHERE name = $1", location, key
        )

    async def set_state(self, location: str, state: LocationState) -> None:
        await self._database.fetch("UPDATE location SET state = $2 WHERE name = $1", location, state.value)

    async def placements(self, blob_id: int) -> frozenset[Placement]:
        rows = await self._database.fetch(
            "SELECT l.name, p.key, p.state FROM placement p JOIN location l ON l.id = p.location_id WHERE p.blob_id = $1",
            blob_id,
        )
        return frozenset(Placement(row["name"], row["key"], row["state"] == "suspect") for row in rows)

    async def pieces(self, blob_id: int) -> bytes | None:
        rows = await self._database.fetch("SELECT pieces FROM blob WHERE id = $1", blob_id)
        pieces: bytes | None = rows[0]["pieces"]
        return pieces

    async def owed(self, blob_id: int) -> Mapping[str, str]:
        rows = await self._database.fetch(
            "SELECT l.name, t.last_error FROM task t JOIN location l ON l.id = t.location_id WHERE t.blob_id = $1",
            blob_id,
        )
        return {row["name"]: row["last_error"] or "" for row in rows}

    async def dead(self) -> frozenset[tuple[str, str]]:
        rows = await self._database.fetch(
            "SELECT l.name, d.key FROM dead_object d JOIN location l ON l.id = d.location_id"
        )
        return frozenset((row["name"], row["key"]) for row in rows)

    async def pass_time(self, seconds: float) -> None:
        await self._database.fetch(
            """
            WITH tasks AS (
                UPDATE task SET due_at = due_at - $1 * interval '1 second', created_at = created_at - $1 * interval '1 second',
                    lease_until = lease_until - $1 * interval '1 second'),
            dead AS (UPDATE dead_object SET not_before = not_before - $1 * interval '1 second')
            UPDATE node SET seen_at = seen_at - $1 * interval '1 second'
            """,
            seconds,
        )


class NamedLedger(PostgresLedger):
    """A ledger whose heartbeat shows the bench's names of nodes, not their ids."""

    def __init__(self, *, database: Database, member: Membership, names: Mapping[UUID, str]) -> None:
        super().__init__(database=database, member=member)
        self.names = names

    async def heartbeat(self) -> ClusterView:
        seen = await super().heartbeat()
        return evolve(seen, nodes=tuple(evolve(node, id=self.names[UUID(node.id)]) for node in seen.nodes))


@pytest.fixture
async def bench(database_uri: str) -> AsyncIterator[PostgresBench]:
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(open_bridge())
        database = await stack.enter_async_context(open_database(database_uri, most=4))
        await migrate(database)
        await enrol_locations(database, list(LOCATIONS), LOCATIONS)
        yield PostgresBench(database)


class TestPostgresLedger(LedgerContract):
    """The suite, as it is."""


@define
class Explaining:
    """A database that tells how it would find what a statement asks for, and finds nothing."""

    inner: Database
    plans: list[str] = field(factory=list)

    async def fetch(self, sql: str, *args: object) -> Sequence[Row]:
        plan = "EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF)"
        self.plans.append("\n".join(row["QUERY PLAN"] for row in await self.inner.fetch(f"{plan} {sql}", *args)))
        return []


async def test_a_backlog_does_not_make_claims_and_reports_dear(database_uri: str) -> None:
    """What is claimed, and what is recorded, is found by indexes, however much is owed."""
    async with open_bridge(), open_database(database_uri) as database:
        await migrate(database)
        await enrol_locations(database, list(LOCATIONS), LOCATIONS)
        for sql in (
            "INSERT INTO blob (digest, size) SELECT 'sha256:' || lpad(n::text, 64, '0'), n FROM generate_series(1, 20000) n",
            "INSERT INTO placement (blob_id, location_id, key) SELECT b.id, l.id, digest FROM blob b, location l WHERE name = 'us'",
            "INSERT INTO task (blob_id, location_id, size) SELECT b.id, l.id, b.size FROM blob b, location l WHERE l.name = 'eu'",
            "ANALYZE",
        ):
            await database.fetch(sql, deadline=60.0)
        member = Membership(uuid5(_NAMES, "n1"), LOCATIONS, LOCATIONS, "test")
        (task, *_) = await PostgresLedger(database=database, member=member).claim_copies("eu", "k/", 8, LEASE)
        explaining = Explaining(database)
        ledger = PostgresLedger(database=cast("Database", explaining), member=member)
        await ledger.claim_copies("eu", "k/", 8, LEASE, 32)
        await ledger.claim_copy(task.blob.id + 1, "eu", "k/", LEASE)
        await ledger.finish_copies([(evolve(task, lease="none"), PieceProofs())])
        assert len(explaining.plans) == 3
        for plan in explaining.plans:
            assert not re.findall(r"Seq Scan on (?:task|placement|blob)\b.*", plan), plan
