"""Debt in plain sight: copies that keep failing, blobs that nothing can move, and what is running. One statement each."""

from collections.abc import Mapping, Sequence

from attrs import frozen

from node.records.postgres import Database
from replication.plan import SILENT_AFTER, STALLED_AFTER

_SECONDS = 30.0


@frozen
class StalledCopy:
    """A copy that failed at least `STALLED_AFTER` times in a row. It is still retried. Ages in seconds."""

    digest: str
    size: int
    location: str
    failures: int
    error: str
    failing_for: float
    """Since the first failure."""
    retry_in: float
    """Until the next try; 0 if it is due, or running."""
    repository: str | None
    """One of the repositories that link the blob."""


async def list_stalled(database: Database, location: str | None, most: int) -> Sequence[StalledCopy]:
    """Return up to `most` stalled copies, of one location if it is given, longest failing first."""
    rows = await database.fetch(
        f"""
        SELECT b.digest, b.size, l.name AS location, t.attempts, coalesce(t.last_error, '') AS last_error,
            extract(epoch FROM now() - coalesce(t.failing_since, t.created_at))::float8 AS failing_for,
            greatest(0, extract(epoch FROM t.due_at - now()))::float8 AS retry_in,
            (SELECT r.name FROM repository_blob rb JOIN repository r ON r.id = rb.repository_id
             WHERE rb.blob_id = t.blob_id ORDER BY r.id LIMIT 1) AS repository
        FROM task t JOIN location l ON l.id = t.location_id JOIN blob b ON b.id = t.blob_id
        WHERE t.attempts >= {STALLED_AFTER} AND ($1::text IS NULL OR l.name = $1)
        ORDER BY t.failing_since, t.blob_id, l.id LIMIT $2
        """,  # noqa: S608  # a number, so that the partial index fits
        location,
        most,
    )
    return [
        StalledCopy(
            row["digest"],
            row["size"],
            row["location"],
            row["attempts"],
            row["last_error"],
            row["failing_for"],
            row["retry_in"],
            row["repository"],
        )
        for row in rows
    ]


STUCK = f"""
    SELECT p.blob_id FROM placement p
    WHERE p.location_id = l.id AND p.state IN ('suspect', 'present')
        AND NOT EXISTS (
            SELECT FROM placement q WHERE q.blob_id = p.blob_id AND q.location_id <> l.id AND q.state = 'present')
        -- What no repository has is collected when its time comes.
        AND EXISTS (SELECT FROM repository_blob rb WHERE rb.blob_id = p.blob_id)
        -- Only into active locations is anything copied.
        AND NOT EXISTS (
            SELECT FROM task t JOIN location d ON d.id = t.location_id AND d.state = 'active'
            WHERE t.blob_id = p.blob_id AND (t.attempts < {STALLED_AFTER} OR t.lease_until > now()))
        AND (
            -- A try for which some copy could not be reached has shown nothing.
            p.state = 'suspect' AND EXISTS (
                SELECT FROM task t JOIN location d ON d.id = t.location_id AND d.state = 'active'
                WHERE t.blob_id = p.blob_id AND t.unreached IS NULL)
            OR NOT EXISTS (
                SELECT FROM location d WHERE d.state IN ('active', 'paused') AND NOT blob_forbidden(p.blob_id, d.id)))
"""  # noqa: S608  # a number
"""Blobs of a location `l` that nothing can move: no copy is trusted anywhere, all that could copy one elsewhere is stalled, and
some try has read every copy; or policies let no other location have a copy that takes any, or will after a pause. What only waits
for a location that is away is not among them: `held_up.py`.
"""


@frozen
class StuckBlob:
    """A blob that keeps a location from being emptied: it can be copied nowhere. Its copies are still retried."""

    digest: str
    size: int
    repositories: tuple[str, ...]
    """The first ten that have it, by age."""
    error: str
    """Of the latest try; where no other location may hold it, what made its copy suspect, or just that."""
    failing_for: float | None
    """Seconds since the first failed try; None where there was none."""


async def list_stuck(database: Database, location: str, most: int) -> Sequence[StuckBlob]:
    """Return up to `most` blobs of a location that nothing can move, by age."""
    rows = await database.fetch(
        f"""
        SELECT b.digest, b.size,
            ARRAY(SELECT r.name FROM repository_blob rb JOIN repository r ON r.id = rb.repository_id
                WHERE rb.blob_id = b.id ORDER BY r.id LIMIT 10) AS repositories,
            coalesce(tried.last_error, p.reason, 'policies forbid every other active location') AS error,
            extract(epoch FROM now() - tried.failing_since)::float8 AS failing_for
        FROM location l JOIN placement p ON p.location_id = l.id JOIN blob b ON b.id = p.blob_id
        LEFT JOIN LATERAL (
            SELECT t.last_error, t.failing_since FROM task t JOIN location d ON d.id = t.location_id AND d.state = 'active'
            WHERE t.blob_id = b.id ORDER BY t.unreached IS NOT NULL, t.failing_since LIMIT 1) tried ON true
        WHERE l.name = $1 AND b.id IN ({STUCK}) ORDER BY b.id LIMIT $2
        """,  # noqa: S608  # a constant of this module
        location,
        most,
        deadline=_SECONDS,
    )
    return [
        StuckBlob(row["digest"], row["size"], tuple(row["repositories"]), row["error"], row["failing_for"])
        for row in rows
    ]


async def list_down(database: Database) -> Mapping[str, float]:
    """Return the locations that all live nodes see down, by name, with the seconds since they all have."""
    rows = await database.fetch(
        f"""
        SELECT l.name, (extract(epoch FROM now()) - max((n.down ->> l.name)::float8))::float8 AS seconds
        FROM location l JOIN node n
        ON n.down IS NOT NULL AND NOT n.draining AND n.seen_at > now() - interval '{SILENT_AFTER} seconds'
        GROUP BY l.name HAVING count(*) = count(n.down -> l.name)
        """  # noqa: S608  # a constant
    )
    return {row["name"]: max(0.0, row["seconds"]) for row in rows}


async def count_running(database: Database) -> dict[str, int]:
    """Return how many copies run into each location at this moment, on all nodes."""
    rows = await database.fetch(
        "SELECT l.name, count(*) AS running FROM task t JOIN location l ON l.id = t.location_id "
        "WHERE t.lease_until > now() GROUP BY l.name"
    )
    return {row["name"]: row["running"] for row in rows}
