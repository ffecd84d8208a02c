"""Debt in plain sight: copies that keep failing, and what is running. One statement each."""

from collections.abc import Sequence

from attrs import frozen

from node.records.postgres import Database
from replication.plan import STALLED_AFTER


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


async def count_running(database: Database) -> dict[str, int]:
    """Return how many copies run into each location at this moment, on all nodes."""
    rows = await database.fetch(
        "SELECT l.name, count(*) AS running FROM task t JOIN location l ON l.id = t.location_id "
        "WHERE t.lease_until > now() GROUP BY l.name"
    )
    return {row["name"]: row["running"] for row in rows}
