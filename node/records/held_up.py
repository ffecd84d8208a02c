"""Blobs that keep a location which is being emptied only because another one is away: who is waited for, and since when."""

from attrs import frozen

from node.records.postgres import Database
from replication.plan import SILENT_AFTER, STALLED_AFTER

_SECONDS = 30.0

_MOST = 100_000
"""Blobs that are looked at: some seconds' work where all of them wait."""


@frozen
class WaitsFor:
    """A location that must be back before blobs can leave one that is being emptied, or be read where they are as well."""

    location: str
    paused: bool
    """By operators; else its store cannot be reached."""
    away_for: float | None
    """Seconds since all nodes have seen it down; None where it is paused, or some see it well and only copies failed there."""
    blobs: int


@frozen
class HeldUp:
    """What waits: `blobs` in all, each of which may wait for several locations. Up to 100 000 blobs are counted."""

    blobs: int = 0
    waits_for: tuple[WaitsFor, ...] = ()


async def list_held_up(database: Database, location: str) -> HeldUp:
    """Return what keeps blobs in a location that is being emptied and will move by itself when other locations are back."""
    rows = await database.fetch(
        f"""
        WITH here AS (SELECT * FROM location WHERE name = $1 AND state IN ('draining', 'drained')),
        away AS MATERIALIZED (
            SELECT d.id, d.name, d.state = 'paused' AS paused, seen.since
            FROM location d CROSS JOIN LATERAL (
                SELECT count(*) AS nodes, count(n.down -> d.name) AS agree, max((n.down ->> d.name)::float8) AS since
                FROM node n WHERE n.down IS NOT NULL AND NOT n.draining AND n.seen_at > now() - interval '{SILENT_AFTER} seconds'
            ) seen
            WHERE d.state = 'paused' OR d.state <> 'removed' AND seen.nodes > 0 AND seen.agree = seen.nodes),
        looked_at AS MATERIALIZED (
            SELECT p.blob_id, p.state, here.id AS location_id, here.emptying_since
            FROM here JOIN placement p ON p.location_id = here.id
            WHERE EXISTS (SELECT FROM away) OR p.blob_id IN (SELECT blob_id FROM task WHERE unreached IS NOT NULL)
            LIMIT {_MOST}),
        held AS (
            SELECT b.blob_id, coalesce(
                -- A copy elsewhere is good: it has to be read.
                CASE WHEN good.copies > 0 THEN CASE WHEN good.copies = cardinality(good.away) THEN good.away END
                -- The one here has to be read first.
                WHEN ways.count > 0 AND b.state = 'present' AND b.location_id IN (SELECT id FROM away) THEN ARRAY[$1::text]
                WHEN ways.count > 0 THEN CASE WHEN ways.count = ways.held THEN ways.needs END
                -- Nobody else may have it but who is paused.
                WHEN NOT EXISTS (SELECT FROM location d WHERE d.state = 'active' AND NOT blob_forbidden(b.blob_id, d.id))
                THEN ARRAY(SELECT a.name FROM away a WHERE a.paused AND NOT blob_forbidden(b.blob_id, a.id)) END, '{{}}') AS needs
            FROM looked_at b
            CROSS JOIN LATERAL (
                SELECT count(*) AS copies, coalesce(array_agg(a.name) FILTER (WHERE a.id IS NOT NULL), '{{}}') AS away
                FROM placement q JOIN location m ON m.id = q.location_id AND m.state <> 'removed' LEFT JOIN away a ON a.id = m.id
                WHERE q.blob_id = b.blob_id AND q.location_id <> b.location_id AND q.state = 'present') good
            CROSS JOIN LATERAL (
                -- Names of locations have no spaces.
                SELECT count(*) AS count, count(needs) AS held,
                    string_to_array(string_agg(array_to_string(needs, ' '), ' '), ' ') AS needs
                FROM (
                    SELECT CASE
                        WHEN t.attempts > 0 AND t.unreached IS NOT NULL AND (t.lease_until IS NULL OR t.lease_until < now())
                            THEN t.unreached
                        -- All was read, and nothing is right, wherever it would go.
                        WHEN t.attempts >= {STALLED_AFTER} AND t.unreached IS NULL THEN NULL
                        WHEN a.id IS NOT NULL THEN ARRAY[a.name] END AS needs
                    FROM task t JOIN location d ON d.id = t.location_id AND d.state = 'active' LEFT JOIN away a ON a.id = d.id
                    WHERE t.blob_id = b.blob_id) owed) ways
            WHERE EXISTS (SELECT FROM repository_blob rb WHERE rb.blob_id = b.blob_id)
            AND NOT outlives(b.blob_id, b.location_id, b.emptying_since))
        SELECT needed.name, count(DISTINCT held.blob_id) AS blobs, coalesce(a.paused, false) AS paused,
            (extract(epoch FROM now()) - a.since)::float8 AS away_for
        FROM held CROSS JOIN LATERAL unnest(held.needs) AS needed (name) LEFT JOIN away a USING (name)
        GROUP BY GROUPING SETS ((needed.name, a.paused, a.since), ()) ORDER BY needed.name
        """,  # noqa: S608  # constants of this module
        location,
        deadline=_SECONDS,
    )
    waits_for = tuple(
        WaitsFor(row["name"], row["paused"], None if row["paused"] else row["away_for"], row["blobs"])
        for row in rows
        if row["name"] is not None
    )
    return HeldUp(next(row["blobs"] for row in rows if row["name"] is None), waits_for)
