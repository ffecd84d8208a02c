"""Bringing the records up to what the journals say, the last word about each thing. One statement each, idempotent, in pages.

What the journals say is staged in `journal_fact`. A thing that the records changed later than the journals say is left alone.
"""

import json
from collections.abc import Mapping, Sequence

from attrs import field, frozen

from node.journal.facts import Entry, last_words
from node.names import namespace_of
from node.records.manifests import ManifestFacts
from node.records.postgres import Database, DatabaseUnavailable
from node.records.uploads import REPOSITORY_TO_LINK

_SECONDS = 300.0
_COPIES_AT_ONCE = 500
"""Copies that are forgotten in one transaction: pushes of their blobs wait for it."""

_TRIES = 5
_AT = "to_timestamp(f.at / 1000000.0)"


async def stage(database: Database, entries: Sequence[Entry], since: float | None = None) -> None:
    """Stage entries; of each thing the last word stays.

    What a snapshot had, which was staged before, is not gone by what was noted before `since` (POSIX seconds): it has come again.
    The times of things are those when their statements began, which may have waited until just those were deleted.
    """
    last = last_words(entries)
    await database.fetch(
        """
        INSERT INTO journal_fact AS f (kind, name, at, seq, fact)
        SELECT * FROM unnest($1::text[], $2::text[], $3::bigint[], $4::bigint[], $5::jsonb[])
        ON CONFLICT (kind, name) DO UPDATE SET at = excluded.at, seq = excluded.seq, fact = excluded.fact
        WHERE (f.at, f.seq) < (excluded.at, excluded.seq)
        AND NOT coalesce(f.fact IS NOT NULL AND excluded.fact IS NULL AND excluded.at < $6, false)
        """,
        [entry.kind for entry in last],
        [entry.name for entry in last],
        [entry.at for entry in last],
        [entry.seq for entry in last],
        [None if entry.fact is None else json.dumps(entry.fact) for entry in last],
        None if since is None else int(since * 1_000_000),
        deadline=_SECONDS,
    )


async def stage_own(database: Database) -> None:
    """Stage what this database itself has noted and not yet written everywhere: it may be later than every journal."""
    await database.fetch(
        """
        INSERT INTO journal_fact AS f (kind, name, at, seq, fact)
        SELECT DISTINCT ON (kind, name) kind, name, (extract(epoch FROM at) * 1000000)::bigint, id, fact FROM journal_entry
        ORDER BY kind, name, at DESC, id DESC
        ON CONFLICT (kind, name) DO UPDATE SET at = excluded.at, seq = excluded.seq, fact = excluded.fact
        WHERE (f.at, f.seq) < (excluded.at, excluded.seq)
        """,
        deadline=_SECONDS,
    )


async def drop_overtaken(database: Database) -> None:
    """Forget of the staged what lay in a repository that was deleted later."""
    await database.fetch(
        "DELETE FROM journal_fact f USING journal_fact g WHERE f.kind IN ('tag', 'link') AND g.kind = 'repository' "
        "AND g.name = split_part(f.name, CASE f.kind WHEN 'tag' THEN ':' ELSE '@' END, 1) AND g.at >= f.at",
        deadline=_SECONDS,
    )


@frozen
class Named:
    """A staged fact by its name."""

    name: str
    fact: Mapping[str, object] | None


async def staged(database: Database, kind: str) -> Sequence[Named]:
    """Return all staged facts of a kind of which there are few: namespace, location, defaults."""
    rows = await database.fetch("SELECT name, fact FROM journal_fact WHERE kind = $1 ORDER BY name", kind)
    return [Named(row["name"], None if row["fact"] is None else json.loads(row["fact"])) for row in rows]


async def take_location(database: Database, name: str, marker: str, state: str | None) -> None:
    """Believe what a store's marker, or the journals, say of a location that nothing was placed in yet."""
    await database.fetch(
        "UPDATE location l SET marker = $2::text::uuid, state = coalesce($3, l.state) WHERE l.name = $1 "
        "AND NOT EXISTS (SELECT FROM placement p WHERE p.location_id = l.id)",
        name,
        marker,
        state,
    )


async def delete_gone(database: Database) -> int:
    """Delete the repositories and namespaces that were deleted after all that the records have of them; return how many."""
    row = await database.fetch_row("SELECT delete_gone_repositories() AS deleted", deadline=_SECONDS)
    assert row is not None
    await database.fetch(
        f"DELETE FROM namespace n USING journal_fact f WHERE f.kind = 'namespace' AND f.fact IS NULL AND f.name = n.name "  # noqa: S608
        f"AND n.created_at < {_AT} AND NOT EXISTS (SELECT FROM repository r WHERE r.namespace_id = n.id)",
        deadline=_SECONDS,
    )
    return int(row["deleted"])


async def place_copies(database: Database, location: str, keys: Sequence[str]) -> int:
    """Record those of these objects, which were seen in a location's store, that the journals know as copies; return how many.

    Nobody has read them: they are listed as unverified. A copy whose own object the journals know to be gone is replaced. What an
    older database wants deleted, because it was an open upload or an unfinished copy then, is not dead.
    """
    row = await database.fetch_row(
        """
        WITH here AS (SELECT id FROM location WHERE name = $1),
        known AS (
            SELECT DISTINCT ON (f.fact ->> 'digest') k AS key, f.fact ->> 'digest' AS digest, (f.fact ->> 'size')::bigint AS size
            FROM here, unnest($2::text[]) k
            JOIN journal_fact f ON f.kind = 'copy' AND f.name = $1 || ' ' || k AND f.fact IS NOT NULL
            WHERE NOT EXISTS (SELECT FROM placement p, here h WHERE p.location_id = h.id AND p.key = k)
            ORDER BY f.fact ->> 'digest', f.at DESC),
        made AS (
            INSERT INTO blob (digest, size) SELECT digest, size FROM known ON CONFLICT (digest) DO NOTHING
            RETURNING id, digest, size),
        every AS (
            SELECT made.id, known.key FROM known JOIN made USING (digest)
            UNION ALL SELECT b.id, known.key FROM known JOIN blob b ON b.digest = known.digest AND b.size = known.size),
        placed AS (
            INSERT INTO placement AS p (blob_id, location_id, key) SELECT every.id, here.id, every.key FROM every, here
            ON CONFLICT (blob_id, location_id)
            DO UPDATE SET key = excluded.key, state = 'present', reason = NULL, created_at = now()
            WHERE EXISTS (SELECT FROM journal_fact f WHERE f.kind = 'copy' AND f.name = $1 || ' ' || p.key AND f.fact IS NULL)
            RETURNING blob_id, location_id, key),
        alive AS (DELETE FROM dead_object d USING placed WHERE d.location_id = placed.location_id AND d.key = placed.key),
        unread AS (
            INSERT INTO unverified_copy AS u (blob_id, location_id, key) SELECT * FROM placed
            ON CONFLICT (blob_id, location_id) DO UPDATE SET key = excluded.key),
        garbage AS (SELECT note_garbage('blob', array_agg(0::bigint), array_agg(id)) FROM made HAVING count(*) > 0)
        SELECT (SELECT count(*) FROM placed) AS placed, (SELECT count(*) FROM garbage) AS noted
        """,
        location,
        list(keys),
        deadline=_SECONDS,
    )
    assert row is not None
    return int(row["placed"])


@frozen
class MissingLink:
    """A manifest that a repository has by the journals and not by the records. `body` where the records have its bytes."""

    repository: str
    digest: str
    media_type: str
    at: float
    """When it was linked, POSIX seconds."""
    body: bytes | None = field(repr=False)


async def missing_links(database: Database, after: str, most: int) -> Sequence[MissingLink]:
    """Return a page of the manifests that are to be linked, by `repository@digest` behind `after`."""
    rows = await database.fetch(
        """
        SELECT split_part(f.name, '@', 1) AS repository, split_part(f.name, '@', 2) AS digest,
            f.fact ->> 'media_type' AS media_type, f.at / 1000000.0::float8 AS at, m.bytes
        FROM journal_fact f LEFT JOIN manifest m ON m.digest = split_part(f.name, '@', 2)
        WHERE f.kind = 'link' AND f.fact IS NOT NULL AND f.name > $1 AND NOT EXISTS (
            SELECT FROM repository r JOIN repository_manifest rm ON rm.repository_id = r.id
            WHERE r.name = split_part(f.name, '@', 1) AND rm.manifest_id = m.id)
        ORDER BY f.name LIMIT $2
        """,
        after,
        most,
        deadline=_SECONDS,
    )
    return [MissingLink(row["repository"], row["digest"], row["media_type"], row["at"], row["bytes"]) for row in rows]


_RESTORE = f"""
    WITH {REPOSITORY_TO_LINK},
    named AS (SELECT * FROM unnest($3::text[], $4::bigint[]) AS u (digest, size)),
    made AS (
        INSERT INTO blob (digest, size) SELECT digest, size FROM named ORDER BY 1 ON CONFLICT (digest) DO NOTHING RETURNING id),
    blobs AS (SELECT id FROM made UNION SELECT b.id FROM blob b JOIN named ON named.digest = b.digest),
    linked AS (
        INSERT INTO repository_blob (repository_id, blob_id) SELECT repo.id, blobs.id FROM repo, blobs
        ORDER BY 2 ON CONFLICT DO NOTHING),
    new AS (
        INSERT INTO manifest (digest, bytes, subject, artifact_type, annotations) VALUES ($5, $6, $7, $8, $9::json)
        ON CONFLICT (digest) DO UPDATE SET created_at = manifest.created_at RETURNING id),
    held AS (INSERT INTO manifest_blob (manifest_id, blob_id) SELECT new.id, blobs.id FROM new, blobs ON CONFLICT DO NOTHING),
    children AS (
        INSERT INTO manifest_child (manifest_id, child_id) SELECT new.id, c.id FROM new, manifest c
        WHERE c.digest = ANY($10::text[]) ON CONFLICT DO NOTHING),
    awaited AS (
        INSERT INTO awaited_child (manifest_id, digest) SELECT new.id, d FROM new, unnest($10::text[]) d
        WHERE NOT EXISTS (SELECT FROM manifest c WHERE c.digest = d) ON CONFLICT DO NOTHING),
    -- What somebody has just made, and this waited for, is in none of these: it is when this is done once more.
    complete AS (SELECT (SELECT count(*) FROM blobs) = cardinality($3::text[]) AS whole),
    link AS (
        INSERT INTO repository_manifest (repository_id, manifest_id, media_type, linked_at)
        SELECT repo.id, new.id, $11, to_timestamp($12) FROM repo, new, complete WHERE whole ON CONFLICT DO NOTHING)
    SELECT whole FROM complete
"""  # noqa: S608  # constants


async def restore_manifest(
    database: Database, repository: str, library: str, manifest: ManifestFacts, sizes: Mapping[str, int], at: float
) -> None:
    """Link a manifest, and the blobs that it names, whether they have a copy or not; `at` is when it was linked, POSIX seconds.

    Children that are not there are awaited. `sizes`: bytes of each blob as the manifest says. Raises LedgerUnavailable.
    """
    for _ in range(_TRIES):
        row = await database.fetch_row(
            _RESTORE,
            repository,
            namespace_of(repository, library),
            list(sizes),
            list(sizes.values()),
            manifest.digest,
            manifest.body,
            manifest.subject,
            manifest.artifact_type,
            None if manifest.annotations is None else json.dumps(dict(manifest.annotations)),
            list(dict.fromkeys(manifest.children)),
            manifest.media_type,
            at,
            deadline=30.0,
        )
        assert row is not None
        if row["whole"]:
            return
    raise DatabaseUnavailable(f"the blobs of {manifest.digest} come and go")


async def join_awaited(database: Database) -> None:
    """Let indexes have the children that are there by now: neither saw the other where both came back at the same moment."""
    await database.fetch(
        "INSERT INTO manifest_child (manifest_id, child_id) SELECT a.manifest_id, c.id "
        "FROM awaited_child a JOIN manifest c ON c.digest = a.digest ORDER BY 1, 2 ON CONFLICT DO NOTHING",
        deadline=_SECONDS,
    )


async def unlink_gone(database: Database) -> int:
    """Take out of their repositories the manifests that left them later than the records know; return how many."""
    rows = await database.fetch(
        f"DELETE FROM repository_manifest rm USING journal_fact f, repository r, manifest m WHERE f.kind = 'link' "  # noqa: S608
        f"AND f.fact IS NULL AND r.name = split_part(f.name, '@', 1) AND m.digest = split_part(f.name, '@', 2) "
        f"AND rm.repository_id = r.id AND rm.manifest_id = m.id AND rm.linked_at < {_AT} RETURNING 1",
        deadline=_SECONDS,
    )
    return len(rows)


async def forget_gone_copies(database: Database) -> int:
    """Forget the copies that the journals know to be gone; return how many. With them goes what no manifest names.

    Where such an object is there all the same it is an unknown one: a repair adopts it if its blob lacks a copy.
    """
    rows = await database.fetch(
        "SELECT p.blob_id, p.location_id, p.key FROM placement p JOIN location l ON l.id = p.location_id "
        "JOIN journal_fact f ON f.kind = 'copy' AND f.name = l.name || ' ' || p.key WHERE f.fact IS NULL ORDER BY 1, 2",
        deadline=_SECONDS,
    )
    gone = 0
    for start in range(0, len(rows), _COPIES_AT_ONCE):
        page = rows[start : start + _COPIES_AT_ONCE]
        row = await database.fetch_row(
            "SELECT forget_copies($1, $2, $3) AS gone",
            [copy["blob_id"] for copy in page],
            [copy["location_id"] for copy in page],
            [copy["key"] for copy in page],
            deadline=_SECONDS,
        )
        assert row is not None
        gone += int(row["gone"])
    return gone


@frozen
class MovedTags:
    """How many tags were made or moved, and deleted; and `repository:tag digest` of those whose manifest is not there."""

    moved: int
    deleted: int
    without: tuple[str, ...]


async def move_tags_on(database: Database) -> MovedTags:
    """Let every tag point to what the journals say last, unless it was changed later than that."""
    row = await database.fetch_row(
        f"""
        WITH said AS (
            SELECT f.name, r.id AS repository_id, substr(f.name, strpos(f.name, ':') + 1) AS tag, f.fact ->> 'digest' AS digest,
                {_AT} AS at
            FROM journal_fact f LEFT JOIN repository r ON r.name = split_part(f.name, ':', 1) WHERE f.kind = 'tag'),
        target AS (
            SELECT said.*, rm.manifest_id FROM said LEFT JOIN (manifest m JOIN repository_manifest rm ON rm.manifest_id = m.id)
            ON m.digest = said.digest AND rm.repository_id = said.repository_id),
        moved AS (
            INSERT INTO tag AS t (repository_id, name, manifest_id, since)
            SELECT repository_id, tag, manifest_id, at FROM target WHERE manifest_id IS NOT NULL
            ON CONFLICT (repository_id, name) DO UPDATE SET manifest_id = excluded.manifest_id
            WHERE t.manifest_id <> excluded.manifest_id AND t.since < excluded.since RETURNING 1),
        deleted AS (
            DELETE FROM tag t USING target WHERE target.digest IS NULL AND t.repository_id = target.repository_id
            AND t.name = target.tag AND t.since < target.at RETURNING 1)
        SELECT (SELECT count(*) FROM moved) AS moved, (SELECT count(*) FROM deleted) AS deleted, ARRAY(
            SELECT name || ' ' || digest FROM target WHERE digest IS NOT NULL AND manifest_id IS NULL AND NOT EXISTS (
                SELECT FROM tag t WHERE t.repository_id = target.repository_id AND t.name = target.tag AND t.since >= target.at)
            ORDER BY 1) AS without
        """,  # noqa: S608  # constants of this module
        deadline=_SECONDS,
    )
    assert row is not None
    return MovedTags(row["moved"], row["deleted"], tuple(row["without"]))


async def begin_journals_anew(database: Database) -> None:
    """Have every location's journal begin with a snapshot, which also writes again the manifests that it lacks."""
    await database.fetch("UPDATE journal_location SET snapshot_at = NULL, started_at = NULL, cursor = NULL")
