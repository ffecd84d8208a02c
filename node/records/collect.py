"""Collection: candidates whose grace is over are looked at in small batches, and what nothing uses goes. One statement each.

A candidate is only a place to look (triggers keep them, schema 0002 and 0004); the rows that it refers to decide, locked.
"""

from collections.abc import Sequence

from attrs import frozen

from node.records.postgres import Database

KINDS = ("manifest link", "blob link", "manifest", "blob")
"""What is collected, in this order: links of a repository first, then what no repository links."""

HEAD_PROMISE = 3600.0
"""Seconds that a blob stays at least after a HEAD has said that it is there."""

REST = 2 * HEAD_PROMISE
"""Seconds of its grace that a thing keeps when the last that used it is collected: somebody may have just been told of it."""

_SURVEY_SECONDS = 300.0


@frozen
class CollectRules:
    """How long things stay. Seconds."""

    grace: float
    """GARBAGE_GRACE: from the moment the last reference went."""
    retention: float
    """DELETED_BLOB_RETENTION: how long a collected blob's bytes stay in the stores."""
    tag_expiration: float
    """DEFAULT_TAG_EXPIRATION: how long a deleted or moved tag can be restored, where the namespace has no window of its own."""


@frozen
class Removed:
    """One thing that was collected. `repository` is None for the global kinds; `size` in bytes, 0 for links."""

    kind: str
    repository: str | None
    digest: str
    size: int


@frozen
class Batch:
    """What came of one batch of candidates: removed; kept, because they are used (again); busy, to be looked at later."""

    removed: tuple[Removed, ...] = ()
    kept: int = 0
    busy: int = 0
    paused: bool = False
    """Nothing was looked at: the database is another one than it was (see `read_pause`)."""

    @property
    def looked_at(self) -> int:
        """Return how many candidates left the list."""
        return len(self.removed) + self.kept


async def collect_batch(database: Database, kind: str, rules: CollectRules, most: int = 100) -> Batch:
    """Look at up to `most` due candidates of one kind; remove what is unused. Any number of nodes may do so at once.

    A removed blob's objects and those of its copies under way become dead objects, due after the retention.
    """
    rows = await database.fetch(
        "SELECT outcome, in_repository, what, bytes FROM collect_garbage($1, $2, $3, $4, $5)",
        kind,
        rules.grace,
        min(REST, rules.grace),
        rules.retention,
        most,
    )
    outcomes = [row["outcome"] for row in rows]
    return Batch(
        tuple(
            Removed(kind, row["in_repository"], row["what"], row["bytes"])
            for row in rows
            if row["outcome"] == "removed"
        ),
        outcomes.count("kept"),
        outcomes.count("busy"),
        "paused" in outcomes,
    )


async def expire_history(database: Database, rules: CollectRules, most: int = 500) -> int:
    """Forget up to `most` former states of tags that can no longer be restored; return how many. Nothing while paused."""
    rows = await database.fetch(
        """
        WITH least AS (SELECT least($1, min(tag_expiration)) AS seconds FROM namespace),
        old AS (
            SELECT h.id FROM tag_history h JOIN repository r ON r.id = h.repository_id
            JOIN namespace n ON n.id = r.namespace_id CROSS JOIN least
            WHERE h.until < now() - least.seconds * interval '1 second'
            AND h.until < now() - coalesce(n.tag_expiration, $1) * interval '1 second' AND NOT collection_paused()
            -- With the repository's lock, as all who make many candidates there (0031), and after it: what is passed over because
            -- somebody has the repository stays locked otherwise.
            ORDER BY h.until LIMIT $2 FOR NO KEY UPDATE OF r SKIP LOCKED FOR UPDATE OF h SKIP LOCKED)
        DELETE FROM tag_history h USING old WHERE h.id = old.id RETURNING h.id
        """,
        rules.tag_expiration,
        most,
    )
    return len(rows)


@frozen
class KindSurvey:
    """Candidates of one kind: how many wait for their grace to end, are due, and would go now with how many bytes."""

    kind: str
    waiting: int
    due: int
    unused: int
    bytes: int


async def survey(database: Database, rules: CollectRules) -> Sequence[KindSurvey]:
    """Say what a collection would remove now, in the order of `KINDS`, without removing it.

    What is used only by things that would go counts as used: it comes up when they are gone.
    """
    rows = await database.fetch(
        """
        WITH looked AS (
            SELECT g.kind, g.object_id, g.since <= now() - $1 * interval '1 second' AS due, CASE
                WHEN g.since > now() - $1 * interval '1 second' THEN true
                WHEN g.kind = 'manifest link' THEN manifest_link_used(g.repository_id, g.object_id) OR NOT EXISTS (
                    SELECT FROM repository_manifest x WHERE x.repository_id = g.repository_id AND x.manifest_id = g.object_id)
                WHEN g.kind = 'blob link' THEN blob_link_used(g.repository_id, g.object_id) OR NOT EXISTS (
                    SELECT FROM repository_blob x WHERE x.repository_id = g.repository_id AND x.blob_id = g.object_id)
                WHEN g.kind = 'manifest' THEN manifest_used(g.object_id) OR m.id IS NULL
                ELSE blob_used(g.object_id) OR b.id IS NULL END AS used,
                CASE g.kind WHEN 'manifest' THEN octet_length(m.bytes) WHEN 'blob' THEN b.size ELSE 0 END AS bytes
            FROM garbage g LEFT JOIN manifest m ON g.kind = 'manifest' AND m.id = g.object_id
            LEFT JOIN blob b ON g.kind = 'blob' AND b.id = g.object_id)
        SELECT kind, count(*) FILTER (WHERE NOT due) AS waiting, count(*) FILTER (WHERE due) AS due,
            count(*) FILTER (WHERE NOT used) AS unused, coalesce(sum(bytes) FILTER (WHERE NOT used), 0)::bigint AS bytes
        FROM looked GROUP BY kind
        """,
        rules.grace,
        deadline=_SURVEY_SECONDS,
    )
    found = {row["kind"]: row for row in rows}
    return [
        KindSurvey(kind, found[kind]["waiting"], found[kind]["due"], found[kind]["unused"], found[kind]["bytes"])
        if kind in found
        else KindSurvey(kind, 0, 0, 0, 0)
        for kind in KINDS
    ]


async def read_pause(database: Database) -> str | None:
    """Return why collection is paused, None if it is not.

    It pauses by itself when the database is another one than it was (`system identifier/database/timeline`): one that was
    restored or failed over may lack placements and references that were committed, so what looks like garbage may be none.
    """
    row = await database.fetch_row(
        "SELECT database_identity() AS now, (SELECT value ->> 'identity' FROM bookmark WHERE name = 'collection') AS before, "
        "collection_paused() AS paused"
    )
    assert row is not None
    if not row["paused"]:
        return None
    return f"the database is {row['now']} and was {row['before']}: it was restored, or another server has taken over"


async def pause(database: Database) -> None:
    """Pause collection until `resume`, also where it would not by itself: what the database is compared with is not read yet."""
    await database.fetch(
        "INSERT INTO bookmark (name, value) VALUES ('collection', '{\"identity\": \"not looked at to the end\"}') "
        "ON CONFLICT (name) DO UPDATE SET value = excluded.value, updated_at = now()"
    )


async def resume(database: Database) -> bool:
    """Let collection go on with the database as it is now; return whether it was paused."""
    row = await database.fetch_row(
        """
        WITH before AS (SELECT collection_paused() AS paused)
        INSERT INTO bookmark (name, value) SELECT 'collection', jsonb_build_object('identity', database_identity()) FROM before
        ON CONFLICT (name) DO UPDATE SET value = excluded.value, updated_at = now()
        RETURNING (SELECT paused FROM before) AS paused
        """
    )
    assert row is not None
    return bool(row["paused"])
