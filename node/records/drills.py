"""Drills as rows: begun if nothing speaks against it, renewed, ended. One statement each."""

from enum import Enum
from uuid import UUID

from attrs import frozen

from node.records.postgres import Database


class Begun(Enum):
    """What became of the wish to begin a drill."""

    BEGUN = "begun"
    UNKNOWN = "there is no such location"
    NOT_ACTIVE = "the location is not active"
    ALONE = "no other location is active: nothing could be served"
    ANOTHER = "another drill runs"
    ONLY_COPIES = "blobs have their only copy there"


@frozen
class Beginning:
    """The outcome; `blobs` is how many have their only good copy there."""

    outcome: Begun
    blobs: int = 0


_JUDGED = """
        WITH here AS (SELECT id, state, only_at(id) AS blobs FROM location WHERE name = $1),
        judged AS (
            SELECT here.*, CASE
                WHEN here.state <> 'active' THEN 'NOT_ACTIVE'
                WHEN NOT EXISTS (SELECT FROM location l WHERE l.state = 'active' AND l.id <> here.id) THEN 'ALONE'
                WHEN EXISTS (SELECT FROM drill d WHERE d.until > now()) THEN 'ANOTHER'
                ELSE 'BEGUN' END AS outcome FROM here)
"""


async def may_begin(database: Database, location: str) -> Beginning:
    """Say whether a drill of `location` could begin now; changes nothing."""
    row = await database.fetch_row(
        f"{_JUDGED} SELECT blobs, CASE WHEN outcome = 'BEGUN' AND blobs > 0 THEN 'ONLY_COPIES' ELSE outcome END AS outcome "  # noqa: S608
        "FROM judged",
        location,
    )
    return Beginning(Begun.UNKNOWN) if row is None else Beginning(Begun[row["outcome"]], row["blobs"])


async def begin_drill(database: Database, drill: UUID, location: str, seconds: float, *, balancer: bool) -> Beginning:
    """Begin a drill of `location` that ends in so many seconds unless it is renewed, whatever has its only copy there."""
    row = await database.fetch_row(
        f"""
        {_JUDGED},
        made AS (
            INSERT INTO drill (id, location_id, balancer, until)
            SELECT $2, id, $4, now() + $3 * interval '1 second' FROM judged WHERE outcome = 'BEGUN' AND in_time($0)
            ON CONFLICT (single) DO UPDATE SET id = excluded.id, location_id = excluded.location_id, balancer = excluded.balancer,
                begun_at = now(), until = excluded.until WHERE drill.until < now() RETURNING id)
        SELECT blobs, CASE WHEN outcome = 'BEGUN' AND NOT EXISTS (SELECT FROM made) THEN 'ANOTHER' ELSE outcome END AS outcome
        FROM judged
        """,  # noqa: S608  # a constant of this module
        location,
        drill,
        seconds,
        balancer,
    )
    return Beginning(Begun.UNKNOWN) if row is None else Beginning(Begun[row["outcome"]], row["blobs"])


async def renew_drill(database: Database, drill: UUID, seconds: float) -> bool:
    """Let a drill go on for so many seconds from now; False: it has ended, or another one runs."""
    return bool(
        await database.fetch(
            "UPDATE drill SET until = now() + $2 * interval '1 second' WHERE id = $1 AND until > now() RETURNING 1",
            drill,
            seconds,
        )
    )


async def end_drill(database: Database, drill: UUID) -> None:
    """End a drill now. Harmless if it has ended."""
    await database.fetch("DELETE FROM drill WHERE id = $1", drill)


async def where_placed(database: Database, digest: str) -> tuple[str, ...]:
    """Return the locations that have a good copy of a blob, the oldest copy first."""
    rows = await database.fetch(
        "SELECT l.name FROM blob b JOIN placement p ON p.blob_id = b.id JOIN location l ON l.id = p.location_id "
        "WHERE b.digest = $1 AND p.state = 'present' ORDER BY p.created_at",
        digest,
    )
    return tuple(row["name"] for row in rows)


async def debt_of(database: Database, location: str) -> int:
    """Return how many copies are owed to a location."""
    row = await database.fetch_row(
        "SELECT count(*) AS owed FROM task t JOIN location l ON l.id = t.location_id WHERE l.name = $1", location
    )
    assert row is not None
    return int(row["owed"])
