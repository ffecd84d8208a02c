"""What a replay makes of the manifest and journal objects that it sees in stores. One statement each, idempotent."""

from collections.abc import Collection, Mapping, Sequence

from attrs import frozen

from node.records.postgres import Database

_SECONDS = 300.0


async def unaccounted_manifests(database: Database, location: str, keys: Collection[str]) -> Sequence[str]:
    """Return those of these keys of manifest objects in a location's store that the records have nothing of."""
    rows = await database.fetch(
        """
        SELECT k AS key FROM location l, unnest($2::text[]) k WHERE l.name = $1
        AND NOT EXISTS (SELECT FROM manifest_object o WHERE o.location_id = l.id AND o.key = k)
        AND NOT EXISTS (SELECT FROM dead_object d WHERE d.location_id = l.id AND d.key = k)
        """,
        location,
        list(keys),
        deadline=_SECONDS,
    )
    return [row["key"] for row in rows]


@frozen
class Stored:
    """A manifest object of a location's store, and what it says that it is: a repository's manifest."""

    key: str
    repository: str
    digest: str


async def not_linked(database: Database, objects: Sequence[Stored]) -> Sequence[str]:
    """Return the keys of those objects whose manifest their repository does not have."""
    rows = await database.fetch(
        """
        SELECT u.key FROM unnest($1::text[], $2::text[], $3::text[]) AS u (key, repository, digest)
        WHERE NOT EXISTS (
            SELECT FROM repository r JOIN repository_manifest rm ON rm.repository_id = r.id JOIN manifest m ON m.id = rm.manifest_id
            WHERE r.name = u.repository AND m.digest = u.digest)
        """,
        [one.key for one in objects],
        [one.repository for one in objects],
        [one.digest for one in objects],
        deadline=_SECONDS,
    )
    return [row["key"] for row in rows]


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


async def adopt_manifest_objects(database: Database, location: str, objects: Sequence[Stored], *, bury: bool) -> None:
    """Record manifest objects that were seen in a location's store, each for the repository that it names.

    With `bury` those that this repository does not need become dead.
    """
    await database.fetch(
        """
        WITH here AS (SELECT id FROM location WHERE name = $1),
        seen AS (
            SELECT u.*, row_number() OVER (PARTITION BY u.repository, u.digest ORDER BY u.key) AS n
            FROM here, unnest($2::text[], $3::text[], $4::text[]) AS u (key, repository, digest)
            WHERE NOT EXISTS (SELECT FROM manifest_object o WHERE o.location_id = here.id AND o.key = u.key)
            AND NOT EXISTS (SELECT FROM dead_object d WHERE d.location_id = here.id AND d.key = u.key)),
        needed AS (
            SELECT seen.key, rm.repository_id, rm.manifest_id
            FROM here, seen JOIN repository r ON r.name = seen.repository JOIN manifest m ON m.digest = seen.digest
            JOIN repository_manifest rm ON rm.repository_id = r.id AND rm.manifest_id = m.id
            WHERE seen.n = 1
            AND NOT EXISTS (SELECT FROM namespace_never v WHERE v.namespace_id = r.namespace_id AND v.location_id = here.id)
            AND NOT EXISTS (SELECT FROM manifest_object o WHERE o.location_id = here.id
                AND o.repository_id = rm.repository_id AND o.manifest_id = rm.manifest_id)),
        taken AS (
            INSERT INTO manifest_object (location_id, repository_id, manifest_id, key, written)
            SELECT here.id, needed.repository_id, needed.manifest_id, needed.key, true FROM here, needed
            ORDER BY 3, 2 ON CONFLICT DO NOTHING)
        INSERT INTO dead_object (location_id, key, not_before)
        SELECT here.id, seen.key, now() + interval '1 day' FROM here, seen LEFT JOIN needed USING (key)
        WHERE needed.key IS NULL AND $5 ON CONFLICT DO NOTHING
        """,
        location,
        [one.key for one in objects],
        [one.repository for one in objects],
        [one.digest for one in objects],
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
