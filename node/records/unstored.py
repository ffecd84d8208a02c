"""Manifests that a location's store lacks, as debt: keys are committed first, then the objects are written. One statement each."""

from collections.abc import Sequence

from attrs import field, frozen

from node.records.journal import Batches, Turn
from node.records.postgres import Database

_SECONDS = 30.0


@frozen
class Unstored:
    """A manifest that a location's store shall hold, and the key that was committed for it. `at`: POSIX seconds."""

    repository_id: int
    manifest_id: int
    key: str
    repository: str
    digest: str
    media_type: str
    subject: str | None
    at: float
    body: bytes = field(repr=False)


async def claim_manifests(
    database: Database, turn: Turn, prefix: str, batches: Batches | None, after: tuple[int, int], most: int
) -> Sequence[Unstored]:
    """Commit keys for up to `most` manifests that a location's store lacks: those that `batches` link, else those behind `after`.

    What a namespace's policy forbids the location is left out. `prefix` is where keys of the store begin.
    """
    rows = await database.fetch(
        """
        WITH here AS (
            SELECT l.id FROM location l JOIN journal_location jl ON jl.location_id = l.id WHERE l.name = $1 AND jl.lease = $2),
        named AS (
            SELECT DISTINCT rm.repository_id, rm.manifest_id FROM journal_entry e
            JOIN repository r ON r.name = split_part(e.name, '@', 1) JOIN manifest m ON m.digest = split_part(e.name, '@', 2)
            JOIN repository_manifest rm ON rm.repository_id = r.id AND rm.manifest_id = m.id
            WHERE e.batch BETWEEN $3 AND $4 AND e.kind = 'link' AND e.fact IS NOT NULL
            UNION ALL
            (SELECT rm.repository_id, rm.manifest_id FROM repository_manifest rm
             WHERE $3::bigint IS NULL AND (rm.repository_id, rm.manifest_id) > ($5, $6)
             AND NOT EXISTS (SELECT FROM manifest_object o JOIN here ON here.id = o.location_id
                WHERE o.repository_id = rm.repository_id AND o.manifest_id = rm.manifest_id AND o.written)
             AND NOT EXISTS (SELECT FROM repository r JOIN namespace_never v ON v.namespace_id = r.namespace_id
                JOIN here ON here.id = v.location_id WHERE r.id = rm.repository_id)
             ORDER BY 1, 2 LIMIT $7)),
        wanted AS (
            SELECT here.id AS location_id, r.name AS repository, m.*, rm.repository_id, rm.media_type, rm.linked_at
            FROM here, named n JOIN repository r ON r.id = n.repository_id JOIN manifest m ON m.id = n.manifest_id
            JOIN repository_manifest rm ON rm.repository_id = n.repository_id AND rm.manifest_id = n.manifest_id
            WHERE NOT EXISTS (SELECT FROM manifest_object o WHERE o.location_id = here.id
                AND o.repository_id = n.repository_id AND o.manifest_id = n.manifest_id AND o.written)
            AND NOT EXISTS (SELECT FROM namespace_never v WHERE v.namespace_id = r.namespace_id AND v.location_id = here.id)
            ORDER BY rm.repository_id, rm.manifest_id LIMIT $7 FOR KEY SHARE OF rm),
        claimed AS (
            INSERT INTO manifest_object AS o (location_id, repository_id, manifest_id, key)
            SELECT location_id, repository_id, id, $8 || 'manifests/' || split_part(digest, ':', 1) || '/'
                || substr(split_part(digest, ':', 2), 1, 2) || '/' || split_part(digest, ':', 2) || '.'
                || replace(gen_random_uuid()::text, '-', '')
            FROM wanted ORDER BY id, repository_id ON CONFLICT (location_id, repository_id, manifest_id)
            DO UPDATE SET key = excluded.key WHERE NOT o.written RETURNING repository_id, manifest_id, key)
        SELECT c.*, w.repository, w.digest, w.media_type, w.subject, w.bytes, extract(epoch FROM w.linked_at)::float8 AS at
        FROM claimed c JOIN wanted w ON w.repository_id = c.repository_id AND w.id = c.manifest_id ORDER BY 1, 2
        """,
        turn.location,
        turn.lease,
        None if batches is None else batches.first,
        None if batches is None else batches.last,
        *after,
        most,
        prefix,
        deadline=_SECONDS,
    )
    return [
        Unstored(
            row["repository_id"],
            row["manifest_id"],
            row["key"],
            row["repository"],
            row["digest"],
            row["media_type"],
            row["subject"],
            row["at"],
            row["bytes"],
        )
        for row in rows
    ]


async def note_manifests(database: Database, location: str, keys: Sequence[str]) -> None:
    """Record that a store has these manifests."""
    await database.fetch(
        "WITH here AS (SELECT o.location_id, o.key FROM location l JOIN manifest_object o ON o.location_id = l.id "
        "WHERE l.name = $1 AND o.key = ANY($2::text[]) ORDER BY o.manifest_id, o.repository_id FOR NO KEY UPDATE OF o) "
        "UPDATE manifest_object o SET written = true FROM here WHERE (o.location_id, o.key) = (here.location_id, here.key)",
        location,
        list(keys),
    )
