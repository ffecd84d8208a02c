"""What a repair after a restore needs: which blobs an unknown object may be, adopting it, and what is lost. One statement each."""

from collections.abc import Mapping, Sequence

from attrs import frozen

from node.records.postgres import Database, Row
from replication.model import Blob

GONE = "gone: "
"""How the reason of a copy begins whose object a repair did not find."""


async def read_markers(database: Database) -> Mapping[str, str]:
    """Return what the marker object of every location must hold, by name."""
    return {row["name"]: str(row["marker"]) for row in await database.fetch("SELECT name, marker FROM location")}


async def empty_locations(database: Database) -> Sequence[str]:
    """Return the locations that the records place nothing in, by name."""
    rows = await database.fetch(
        "SELECT l.name FROM location l WHERE NOT EXISTS (SELECT FROM placement p WHERE p.location_id = l.id) ORDER BY 1"
    )
    return [row["name"] for row in rows]


async def count_dead(database: Database) -> int:
    """Return how many objects wait to be deleted."""
    row = await database.fetch_row("SELECT count(*) AS dead FROM dead_object", deadline=60.0)
    assert row is not None
    return int(row["dead"])


async def candidates_for(
    database: Database, location: str, digest: str | None, size: int, most: int = 100
) -> Sequence[Blob]:
    """Return the blobs of this size, and digest where the key says one, that have no good copy in a location."""
    rows = await database.fetch(
        """
        SELECT b.id, b.digest FROM blob b WHERE b.size = $3 AND ($2::text IS NULL OR b.digest = $2)
        AND ($2 IS NOT NULL OR NOT EXISTS (SELECT FROM placement q WHERE q.blob_id = b.id AND q.state = 'present'))
        AND NOT EXISTS (
            SELECT FROM placement p JOIN location l ON l.id = p.location_id
            WHERE p.blob_id = b.id AND l.name = $1 AND p.state = 'present')
        ORDER BY b.id LIMIT $4
        """,
        location,
        digest,
        size,
        most,
        deadline=30.0,
    )
    return [Blob(row["id"], row["digest"], size) for row in rows]


async def adopt_object(database: Database, blob_id: int, location: str, key: str) -> bool:
    """Record that an object holds a blob's bytes, which the caller has hashed. False: a good copy has come meanwhile.

    What it replaces becomes a dead object; the object itself never does.
    """
    row = await database.fetch_row(
        """
        WITH here AS (SELECT id FROM location WHERE name = $2),
        known AS (SELECT id FROM blob WHERE id = $1 FOR NO KEY UPDATE),
        before AS MATERIALIZED (
            SELECT p.location_id, p.key FROM known JOIN placement p ON p.blob_id = known.id JOIN here ON here.id = p.location_id
            WHERE p.key <> $3 FOR NO KEY UPDATE OF p),
        placed AS (
            INSERT INTO placement AS p (blob_id, location_id, key) SELECT known.id, here.id, $3 FROM known, here
            WHERE (SELECT count(*) FROM before) >= 0
            ON CONFLICT (blob_id, location_id) DO UPDATE SET key = $3, state = 'present', reason = NULL, created_at = now()
            WHERE p.state = 'suspect' RETURNING key),
        paid AS (
            DELETE FROM task t USING here WHERE t.blob_id = $1 AND t.location_id = here.id AND EXISTS (SELECT FROM placed)
            AND (t.lease_until IS NULL OR t.lease_until < now()) RETURNING t.location_id, t.key),
        dead AS (
            INSERT INTO dead_object (location_id, key, not_before)
            SELECT location_id, key, now() + interval '1 day' FROM (
                SELECT * FROM before WHERE EXISTS (SELECT FROM placed) UNION SELECT * FROM paid WHERE key IS NOT NULL) keys
            ON CONFLICT DO NOTHING)
        SELECT EXISTS (SELECT FROM placed) AS placed
        """,
        blob_id,
        location,
        key,
    )
    assert row is not None
    return bool(row["placed"])


@frozen
class LostBlob:
    """A blob without any copy left, and what needs it: `repository:tag`, at most ten of them; repositories where no tag does."""

    id: int
    digest: str
    size: int
    needed_by: tuple[str, ...]


_NEEDED_BY = """
    ARRAY(
        SELECT r.name || ':' || t.name FROM blob_tags(b.id) t JOIN repository r ON r.id = t.repository_id
        ORDER BY 1 LIMIT 10) AS tags, ARRAY(
        SELECT r.name FROM repository_blob rb JOIN repository r ON r.id = rb.repository_id WHERE rb.blob_id = b.id
        ORDER BY 1 LIMIT 10) AS repositories
"""


def _lost(row: Row) -> LostBlob:
    return LostBlob(row["id"], row["digest"], row["size"], tuple(row["tags"]) or tuple(row["repositories"]))


async def remove_lost(database: Database, after: int, most: int = 100) -> Sequence[LostBlob]:
    """Take the copies out of the records whose blobs have only ones that a repair did not find; return these blobs, by id.

    A page behind the blob id `after`. A client that pushes such a blob again is told to upload it.
    """
    rows = await database.fetch(
        f"""
        WITH lost AS MATERIALIZED (
            SELECT b.id, b.digest, b.size FROM blob b WHERE b.id > $1
            AND EXISTS (SELECT FROM placement p WHERE p.blob_id = b.id AND p.state = 'suspect' AND p.reason LIKE $3 || '%')
            AND NOT EXISTS (SELECT FROM placement p WHERE p.blob_id = b.id
                AND (p.state = 'present' OR p.reason IS NULL OR p.reason NOT LIKE $3 || '%'))
            ORDER BY b.id LIMIT $2 FOR NO KEY UPDATE OF b),
        removed AS (
            DELETE FROM placement p USING lost WHERE p.blob_id = lost.id AND p.state = 'suspect'
            RETURNING p.location_id, p.key),
        dead AS (
            INSERT INTO dead_object (location_id, key, not_before)
            SELECT location_id, key, now() + interval '1 day' FROM removed ON CONFLICT DO NOTHING)
        SELECT b.*, {_NEEDED_BY} FROM lost b ORDER BY b.id
        """,  # noqa: S608  # a constant of this module
        after,
        most,
        GONE,
        deadline=30.0,
    )
    return [_lost(row) for row in rows]


async def without_copies(database: Database, after: int, most: int = 100) -> Sequence[LostBlob]:
    """Return the blobs that repositories have and no store does, by id: a page behind the blob id `after`."""
    rows = await database.fetch(
        f"""
        SELECT b.id, b.digest, b.size, {_NEEDED_BY} FROM blob b WHERE b.id > $1
        AND NOT EXISTS (SELECT FROM placement p WHERE p.blob_id = b.id)
        AND EXISTS (SELECT FROM repository_blob rb WHERE rb.blob_id = b.id) ORDER BY b.id LIMIT $2
        """,  # noqa: S608  # a constant of this module
        after,
        most,
        deadline=60.0,
    )
    return [_lost(row) for row in rows]


async def count_unverified(database: Database) -> int:
    """Return how many copies nobody has read since a rescue took them from the journals."""
    row = await database.fetch_row(
        "SELECT count(*) AS copies FROM unverified_copy u JOIN placement p "
        "ON p.blob_id = u.blob_id AND p.location_id = u.location_id AND p.key = u.key",
        deadline=60.0,
    )
    assert row is not None
    return int(row["copies"])
