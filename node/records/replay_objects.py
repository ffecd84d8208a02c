"""What a replay makes of the manifest and journal objects that it sees in stores. One statement each, idempotent."""

from collections.abc import Mapping

from node.records.postgres import Database

_SECONDS = 300.0


async def spare_manifests(database: Database, location: str, objects: Mapping[str, str]) -> frozenset[str]:
    """Return the digests of which a location's store has more objects (key -> digest) than repositories account for.

    Each repository has an object of its own there.
    """
    rows = await database.fetch(
        """
        WITH here AS (SELECT id FROM location WHERE name = $1),
        seen AS (
            SELECT u.digest, count(*) AS objects FROM here, unnest($2::text[], $3::text[]) AS u (key, digest)
            WHERE NOT EXISTS (SELECT FROM manifest_object o WHERE o.location_id = here.id AND o.key = u.key)
            AND NOT EXISTS (SELECT FROM dead_object d WHERE d.location_id = here.id AND d.key = u.key) GROUP BY u.digest)
        SELECT seen.digest FROM seen WHERE seen.objects > (
            SELECT count(*) FROM here, manifest m JOIN repository_manifest rm ON rm.manifest_id = m.id
            JOIN repository r ON r.id = rm.repository_id
            WHERE m.digest = seen.digest
            AND NOT EXISTS (SELECT FROM namespace_never v WHERE v.namespace_id = r.namespace_id AND v.location_id = here.id)
            AND NOT EXISTS (SELECT FROM manifest_object o WHERE o.location_id = here.id
                AND o.repository_id = rm.repository_id AND o.manifest_id = rm.manifest_id))
        """,
        location,
        list(objects),
        list(objects.values()),
        deadline=_SECONDS,
    )
    return frozenset(row["digest"] for row in rows)


async def is_linked(database: Database, repository: str, digest: str) -> bool:
    """Return whether a repository has a manifest."""
    rows = await database.fetch(
        "SELECT FROM manifest m JOIN repository_manifest rm ON rm.manifest_id = m.id "
        "JOIN repository r ON r.id = rm.repository_id WHERE m.digest = $2 AND r.name = $1",
        repository,
        digest,
    )
    return bool(rows)


async def was_unlinked(database: Database, repository: str, digest: str, at: float) -> bool:
    """Return whether the journals say that a manifest left a repository, or that went, after `at` (POSIX seconds)."""
    rows = await database.fetch(
        "SELECT FROM journal_fact f WHERE f.fact IS NULL AND to_timestamp(f.at / 1000000.0) >= to_timestamp($3) AND ("
        "(f.kind = 'link' AND f.name = $1 || '@' || $2) OR (f.kind = 'repository' AND f.name = $1))",
        repository,
        digest,
        at,
    )
    return bool(rows)


async def adopt_manifest_objects(database: Database, location: str, objects: Mapping[str, str], *, bury: bool) -> None:
    """Record manifest objects that were seen in a location's store (key -> digest).

    With `bury` those that no repository needs become dead.
    """
    await database.fetch(
        """
        WITH here AS (SELECT id FROM location WHERE name = $1),
        seen AS (
            SELECT u.key, u.digest, row_number() OVER (PARTITION BY u.digest ORDER BY u.key) AS n
            FROM here, unnest($2::text[], $3::text[]) AS u (key, digest)
            WHERE NOT EXISTS (SELECT FROM manifest_object o WHERE o.location_id = here.id AND o.key = u.key)
            AND NOT EXISTS (SELECT FROM dead_object d WHERE d.location_id = here.id AND d.key = u.key)),
        lacking AS (
            SELECT m.digest, rm.repository_id, rm.manifest_id, row_number() OVER (PARTITION BY m.digest ORDER BY r.id) AS n
            FROM here, manifest m JOIN repository_manifest rm ON rm.manifest_id = m.id JOIN repository r ON r.id = rm.repository_id
            WHERE m.digest IN (SELECT digest FROM seen)
            AND NOT EXISTS (SELECT FROM namespace_never v WHERE v.namespace_id = r.namespace_id AND v.location_id = here.id)
            AND NOT EXISTS (SELECT FROM manifest_object o WHERE o.location_id = here.id
                AND o.repository_id = rm.repository_id AND o.manifest_id = rm.manifest_id)),
        taken AS (
            INSERT INTO manifest_object (location_id, repository_id, manifest_id, key, written)
            SELECT here.id, l.repository_id, l.manifest_id, s.key, true FROM here, seen s JOIN lacking l USING (digest, n)
            ON CONFLICT DO NOTHING RETURNING key)
        INSERT INTO dead_object (location_id, key, not_before)
        SELECT here.id, s.key, now() + interval '1 day' FROM here, seen s LEFT JOIN lacking l USING (digest, n)
        WHERE l.manifest_id IS NULL AND $4 ON CONFLICT DO NOTHING
        """,
        location,
        list(objects),
        list(objects.values()),
        bury,
        deadline=_SECONDS,
    )


async def adopt_journal_objects(database: Database, location: str, objects: Mapping[str, tuple[str, float]]) -> None:
    """Record journal objects that were seen in a location's store: key -> kind and hour (POSIX seconds)."""
    await database.fetch(
        """
        INSERT INTO journal_object (location_id, key, kind, hour, written)
        SELECT l.id, u.key, u.kind, to_timestamp(u.hour), true
        FROM location l, unnest($2::text[], $3::text[], $4::float8[]) AS u (key, kind, hour)
        WHERE l.name = $1 AND NOT EXISTS (SELECT FROM dead_object d WHERE d.location_id = l.id AND d.key = u.key)
        ON CONFLICT DO NOTHING
        """,
        location,
        list(objects),
        [kind for kind, _ in objects.values()],
        [hour for _, hour in objects.values()],
        deadline=_SECONDS,
    )
