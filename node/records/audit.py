"""What an audit of a store needs: its copies in pages, and which of a list of keys the database knows. One statement each."""

from collections.abc import Collection, Sequence

from attrs import frozen

from node.records.postgres import Database
from replication.model import Blob, Placement


@frozen
class Copy:
    """A copy to be read, and how many other good copies its blob has."""

    blob: Blob
    placement: Placement
    others: int
    unread: bool = False
    """Whether nobody has read it since a rescue."""


async def list_copies(database: Database, location: str, after: int, most: int, fraction: float) -> Sequence[Copy]:
    """Return a page of the copies in a location, by blob id behind `after`; a random `fraction` (0 to 1) of them all."""
    rows = await database.fetch(
        """
        SELECT b.id, b.digest, b.size, b.pieces, p.key, p.state = 'suspect' AS suspect,
            EXISTS (SELECT FROM unverified_copy u
                WHERE u.blob_id = p.blob_id AND u.location_id = p.location_id AND u.key = p.key) AS unread,
            (SELECT count(*) FROM placement q WHERE q.blob_id = b.id AND q.location_id <> l.id AND q.state = 'present') AS others
        FROM location l JOIN placement p ON p.location_id = l.id JOIN blob b ON b.id = p.blob_id
        WHERE l.name = $1 AND p.blob_id > $2 AND ($4::float8 >= 1 OR random() < $4::float8) ORDER BY p.blob_id LIMIT $3
        """,
        location,
        after,
        most,
        fraction,
        deadline=30.0,
    )
    return [
        Copy(
            Blob(row["id"], row["digest"], row["size"], row["pieces"]),
            Placement(location, row["key"], row["suspect"]),
            row["others"],
            row["unread"],
        )
        for row in rows
    ]


async def count_copies(database: Database, location: str) -> tuple[int, int]:
    """Return how many copies a location holds, and their bytes."""
    row = await database.fetch_row(
        """
        SELECT count(*) AS copies, coalesce(sum(b.size), 0)::bigint AS bytes
        FROM location l JOIN placement p ON p.location_id = l.id JOIN blob b ON b.id = p.blob_id WHERE l.name = $1
        """,
        location,
        deadline=60.0,
    )
    assert row is not None
    return int(row["copies"]), int(row["bytes"])


async def unknown_keys(database: Database, location: str, keys: Collection[str]) -> frozenset[str]:
    """Return those of `keys` in a location that no copy, task, upload, manifest, journal or dead object has.

    Keys are committed before their first byte is written, so an object that was listed before this is asked is an orphan.
    """
    rows = await database.fetch(
        """
        SELECT k AS key FROM location l, unnest($2::text[]) k
        WHERE l.name = $1 AND NOT EXISTS (SELECT FROM placement p WHERE p.location_id = l.id AND p.key = k)
        AND NOT EXISTS (SELECT FROM task t WHERE t.location_id = l.id AND t.key = k)
        AND NOT EXISTS (SELECT FROM dead_object d WHERE d.location_id = l.id AND d.key = k)
        AND NOT EXISTS (SELECT FROM upload u WHERE u.location_id = l.id AND k IN (u.key, u.reserved_key, u.tail_key))
        AND NOT EXISTS (SELECT FROM manifest_object o WHERE o.location_id = l.id AND o.key = k)
        AND NOT EXISTS (SELECT FROM journal_object o WHERE o.location_id = l.id AND o.key = k)
        """,
        location,
        list(keys),
        deadline=30.0,
    )
    return frozenset(row["key"] for row in rows)


async def clear_suspicion(database: Database, blob_id: int, location: str, key: str) -> int:
    """Trust a suspect copy again that was read to the end and is right; return how many rows that changed, 0 or 1."""
    rows = await database.fetch(
        "WITH known AS (SELECT id FROM blob WHERE id = $1 FOR NO KEY UPDATE) "
        "UPDATE placement p SET state = 'present', reason = NULL FROM location l, known "
        "WHERE p.blob_id = known.id AND l.id = p.location_id AND l.name = $2 AND p.key = $3 AND p.state = 'suspect' RETURNING 1",
        blob_id,
        location,
        key,
    )
    return len(rows)


async def note_verified(database: Database, blob_id: int, location: str, key: str) -> None:
    """Strike a copy off the list of those that nobody has read since a rescue."""
    await database.fetch(
        "DELETE FROM unverified_copy u USING location l "
        "WHERE l.name = $2 AND u.location_id = l.id AND u.blob_id = $1 AND u.key = $3",
        blob_id,
        location,
        key,
    )
