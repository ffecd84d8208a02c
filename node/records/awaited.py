"""What copies into a location wait for: itself, while no node reaches it or it is paused, or others that have what it lacks."""

from collections.abc import Sequence

from attrs import frozen

from node.records.held_up import WaitsFor
from node.records.postgres import Database
from replication.plan import SILENT_AFTER

_SECONDS = 30.0


@frozen
class Awaited(WaitsFor):
    """A location that must be back before copies are made, and why it is not there."""

    reason: str | None = None
    """As a node says; None where that is not known, or it is paused."""


async def list_awaited(database: Database, location: str) -> Sequence[Awaited]:
    """Return the locations that copies into this one wait for, by name, each with the reason, where it is known."""
    rows = await database.fetch(
        f"""
        WITH away AS MATERIALIZED (
            SELECT d.name, d.state = 'paused' AS paused, seen.since, seen.reason
            FROM location d CROSS JOIN LATERAL (
                SELECT count(*) AS nodes, count(n.down -> d.name) AS agree, max((n.down ->> d.name)::float8) AS since,
                    max(n.down_reasons ->> d.name) AS reason
                FROM node n WHERE n.down IS NOT NULL AND NOT n.draining AND n.seen_at > now() - interval '{SILENT_AFTER} seconds'
            ) seen
            WHERE d.state = 'paused' OR d.state <> 'removed' AND seen.nodes > 0 AND seen.agree = seen.nodes),
        owed AS (
            SELECT t.last_error, CASE
                WHEN EXISTS (SELECT FROM away WHERE away.name = l.name) THEN ARRAY[l.name]
                WHEN t.attempts > 0 AND (t.lease_until IS NULL OR t.lease_until < now()) THEN t.unreached END AS needs
            FROM location l JOIN task t ON t.location_id = l.id WHERE l.name = $1)
        SELECT n.name, count(*) AS blobs, coalesce(a.paused, false) AS paused,
            (extract(epoch FROM now()) - a.since)::float8 AS away_for, coalesce(a.reason, max(owed.last_error)) AS reason
        FROM owed CROSS JOIN LATERAL unnest(owed.needs) AS n (name) LEFT JOIN away a ON a.name = n.name
        GROUP BY n.name, a.paused, a.since, a.reason ORDER BY n.name
        """,  # noqa: S608  # a constant
        location,
        deadline=_SECONDS,
    )
    return [
        Awaited(
            row["name"],
            row["paused"],
            None if row["paused"] else row["away_for"],
            row["blobs"],
            None if row["paused"] else row["reason"],
        )
        for row in rows
    ]
