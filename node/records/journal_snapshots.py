"""Snapshots of the journal: all that is so now, read in pages. One statement each."""

import json

from attrs import field, frozen

from node.journal.facts import Entry
from node.records.journal import MINE, NOTED, Turn, entry
from node.records.postgres import Database

_SECONDS = 30.0

_PAGES = {
    "names": """
        SELECT 'location' AS kind, name, jsonb_build_object('marker', marker, 'state', state) AS fact, now() AS at, 0 AS x, '' AS y
        FROM location WHERE $1::bigint = 0
        UNION ALL
        SELECT 'defaults', '', jsonb_build_object('locations', coalesce(jsonb_agg(l.name ORDER BY l.id), '[]')), now(), 0, ''
        FROM default_location d JOIN location l ON l.id = d.location_id WHERE $1 = 0 AND $2::text = '' AND $3::integer > 0
        UNION ALL SELECT 'namespace', name, jsonb_build_object('policy', policy, 'tag_expiration', tag_expiration), now(), 0, ''
        FROM namespace WHERE $1 = 0 AND (policy IS NOT NULL OR tag_expiration IS NOT NULL)""",
    "links": """
        SELECT 'link' AS kind, r.name || '@' || m.digest AS name, jsonb_build_object('media_type', rm.media_type) AS fact,
            rm.linked_at AS at, rm.repository_id AS x, rm.manifest_id::text AS y
        FROM repository_manifest rm JOIN repository r ON r.id = rm.repository_id JOIN manifest m ON m.id = rm.manifest_id
        WHERE (rm.repository_id, rm.manifest_id) > ($1, coalesce(nullif($2, ''), '0')::bigint)
        ORDER BY rm.repository_id, rm.manifest_id LIMIT $3""",
    "tags": """
        SELECT 'tag' AS kind, r.name || ':' || t.name AS name, jsonb_build_object('digest', m.digest) AS fact, t.since AS at,
            t.repository_id AS x, t.name AS y
        FROM tag t JOIN repository r ON r.id = t.repository_id JOIN manifest m ON m.id = t.manifest_id
        WHERE (t.repository_id, t.name) > ($1, $2) ORDER BY t.repository_id, t.name LIMIT $3""",
    "copies": """
        SELECT 'copy' AS kind, l.name || ' ' || p.key AS name, jsonb_build_object('digest', b.digest, 'size', b.size) AS fact,
            p.created_at AS at, p.blob_id AS x, p.location_id::text AS y
        FROM placement p JOIN location l ON l.id = p.location_id JOIN blob b ON b.id = p.blob_id
        WHERE (p.blob_id, p.location_id) > ($1, coalesce(nullif($2, ''), '0')::integer)
        ORDER BY p.blob_id, p.location_id LIMIT $3""",
}
PHASES = tuple(_PAGES)
"""What a snapshot holds, in this order."""


@frozen
class Page:
    """Some facts as they are now. `after` is where the next page begins, None at the end of the phase."""

    entries: tuple[Entry, ...] = field(repr=False)
    after: tuple[int, str] | None


async def read_page(database: Database, phase: str, after: tuple[int, str], most: int) -> Page:
    """Return the next facts of a phase of a snapshot."""
    rows = await database.fetch(
        f"SELECT 0 AS id, kind, name, fact, x, y, (extract(epoch FROM at) * 1000000)::bigint AS at FROM ({_PAGES[phase]}) q",  # noqa: S608
        *after,
        most,
        deadline=_SECONDS,
    )
    last = (rows[-1]["x"], rows[-1]["y"]) if len(rows) == most and phase != "names" else None
    return Page(tuple(entry(row) for row in rows), last)


async def begin_snapshot(database: Database, turn: Turn) -> float | None:
    """Begin a snapshot of a location's journal; return when, POSIX seconds. What an unfinished one wrote dies. None: claim lost."""
    row = await database.fetch_row(
        """
        WITH mine AS (
            UPDATE journal_location jl SET started_at = date_trunc('seconds', now()), cursor = NULL FROM location l
            WHERE l.name = $1 AND l.id = jl.location_id AND jl.lease = $2
            RETURNING jl.location_id, jl.started_at, jl.snapshot_at),
        gone AS (
            DELETE FROM journal_object o USING mine WHERE o.location_id = mine.location_id AND o.kind = 'page'
            AND o.hour IS DISTINCT FROM mine.snapshot_at RETURNING o.location_id, o.key),
        dead AS (
            INSERT INTO dead_object (location_id, key, not_before) SELECT location_id, key, now() + interval '1 hour' FROM gone
            ON CONFLICT DO NOTHING)
        SELECT extract(epoch FROM started_at)::float8 AS started_at FROM mine
        """,
        turn.location,
        turn.lease,
    )
    return None if row is None else float(row["started_at"])


async def finish_page(database: Database, turn: Turn, key: str, entries: int, cursor: object) -> bool:
    """Record that a page of a snapshot is written, and where the next begins; `cursor` None: it was the last. False: claim lost."""
    return bool(
        await database.fetch(
            f"""
            WITH {MINE}, {NOTED}
            UPDATE journal_location jl SET cursor = $5::jsonb,
                snapshot_at = CASE WHEN $5::jsonb IS NULL THEN jl.started_at ELSE jl.snapshot_at END,
                started_at = CASE WHEN $5::jsonb IS NULL THEN NULL ELSE jl.started_at END
            FROM noted WHERE jl.location_id = noted.location_id RETURNING 1
            """,  # noqa: S608
            turn.location,
            turn.lease,
            key,
            entries,
            None if cursor is None else json.dumps(cursor),
        )
    )
