"""Manifests and tags of a repository: committed together with what they refer to, deleted, listed. One statement each."""

import json
from collections.abc import Mapping, Sequence
from uuid import UUID

from attrs import field, frozen

from node.auth.held import Held
from node.names import namespace_of
from node.records.auditlog import Line, noted
from node.records.idempotency import Ended, first, how_it_ended, seen
from node.records.postgres import Database, Reads, Row
from node.records.quotas import OverQuota, Usage
from node.records.rights import RightsLapsed, lapsed, terms
from node.records.uploads import REPOSITORY_ALONE_UNLESS_DONE, REPOSITORY_UNLESS_DONE


@frozen
class ManifestFacts:
    """What a manifest's bytes say, as far as records need it. Digests as `algorithm:hex`."""

    digest: str
    media_type: str
    body: bytes = field(repr=False)
    blobs: tuple[str, ...] = ()
    """Config and layers that must be in the repository (foreign layers excepted)."""
    children: tuple[str, ...] = ()
    """Manifests of an index."""
    subject: str | None = None
    artifact_type: str | None = None
    annotations: Mapping[str, str] | None = None


@frozen
class CompiledTags:
    """Tags to move to a manifest, each with the locations that its namespace's patterns add, by version `version` of the policy."""

    tags: tuple[str, ...]
    version: int = 0
    locations: tuple[tuple[str, str], ...] = ()
    """(tag, location) pairs."""


@frozen
class ManifestCommit:
    """What became of a manifest PUT: stored; or these digests are missing; or the policy is another one than was compiled.

    In the last case nothing was stored, and `policy` and `version` are what must be compiled instead.
    """

    missing: tuple[str, ...] = ()
    stale: bool = False
    version: int = 0
    policy: str | None = field(default=None, repr=False)
    """The namespace's rules as JSON text."""
    warning: Usage | None = None
    """What the namespace holds, where that is more than its quota warns at."""
    done: bool = False
    """It was done before, with its tags, by another try of the same request: nothing is left to do, and nothing was done now."""
    refused: bool = False
    """Another try of the same request was refused, for good: nothing was done now."""


async def commit_manifest(
    database: Database,
    repository: str,
    library: str,
    manifest: ManifestFacts,
    tags: CompiledTags,
    *,
    sparse: bool,
    default_quota: int = 0,
    note: Line | None = None,
    once: UUID | None = None,
    moves: bool = True,
    held: Held | None = None,
) -> ManifestCommit:
    """Store a manifest, link it and move the tags to it, in one transaction; or nothing, if it names what is not there.

    With `sparse`, missing children of an index are accepted (FEATURE_SPARSE_INDEX). Its blobs' debt was committed when they were
    linked; what tag patterns add is committed here. Raises OverQuota where the namespace holds more than it may (`default_quota`
    bytes without a limit of its own, 0: any) and the repository does not have the manifest yet. All blobs of a manifest were
    counted before it comes, so that of any number of pushes at once those that are taken fit together. `note` is the line of the
    audit log.

    Of all calls with the same `once` one does it, and the others nothing, whenever they come and however the tags have moved since.
    Without `moves` what is done is only a part: the tags follow, by `move_tags` with the same `once`. Raises RightsLapsed where the
    rights `held` hold no longer, unless it was done before.
    """
    row = await database.fetch_row(
        f"""
        WITH RECURSIVE {seen("$18")}, {lapsed("$1", "$20", "$21")},
        {REPOSITORY_UNLESS_DONE if len(set(tags.tags)) < 2 else REPOSITORY_ALONE_UNLESS_DONE},
        wanted_blob AS (SELECT unnest($4::text[]) AS digest),
        found_blob AS (
            SELECT b.id, b.digest FROM wanted_blob w JOIN blob b ON b.digest = w.digest
            JOIN repository_blob rb ON rb.blob_id = b.id JOIN found f ON f.id = rb.repository_id FOR KEY SHARE OF rb),
        wanted_child AS (SELECT unnest($5::text[]) AS digest),
        found_child AS (
            SELECT m.id, m.digest FROM wanted_child w JOIN manifest m ON m.digest = w.digest
            JOIN repository_manifest rm ON rm.manifest_id = m.id JOIN found f ON f.id = rm.repository_id FOR KEY SHARE OF rm),
        missing AS (
            SELECT digest FROM wanted_blob EXCEPT SELECT digest FROM found_blob
            UNION ALL (SELECT digest FROM wanted_child WHERE NOT $6 EXCEPT SELECT digest FROM found_child)),
        policy AS (
            SELECT n.version, n.policy, n.quota_warn AS warn, coalesce(n.quota_reject, nullif($16::bigint, 0)) AS reject,
                namespace_used(n.id) AS used
            FROM namespace n JOIN found f ON f.namespace_id = n.id),
        stale AS (SELECT version, policy FROM policy WHERE version <> $13),
        full_up AS (
            SELECT used, reject FROM policy WHERE used > reject AND NOT EXISTS (
                SELECT FROM manifest m JOIN repository_manifest rm ON rm.manifest_id = m.id JOIN found f ON f.id = rm.repository_id
                WHERE m.digest = $3)),
        allowed AS (
            SELECT repo.id FROM repo WHERE NOT EXISTS (SELECT FROM missing) AND NOT EXISTS (SELECT FROM stale)
            AND NOT EXISTS (SELECT FROM full_up) AND NOT EXISTS (SELECT FROM seen) AND NOT EXISTS (SELECT FROM lapsed)
            AND in_time($0)),
        {first("$18", "$19", "allowed")},
        ok AS (SELECT id FROM allowed WHERE $18::uuid IS NULL OR EXISTS (SELECT FROM first)),
        known AS (SELECT id FROM manifest WHERE digest = $3 FOR KEY SHARE),
        made AS (
            INSERT INTO manifest (digest, bytes, subject, artifact_type, annotations)
            SELECT $3, $7, $8, $9, $10::json FROM ok WHERE NOT EXISTS (SELECT FROM known)
            ON CONFLICT (digest) DO UPDATE SET created_at = manifest.created_at RETURNING id),
        m AS (SELECT known.id FROM known, ok UNION SELECT id FROM made),
        link AS (
            INSERT INTO repository_manifest (repository_id, manifest_id, media_type) SELECT ok.id, m.id, $11 FROM ok, m
            ON CONFLICT (repository_id, manifest_id) DO UPDATE SET media_type = excluded.media_type, linked_at = now()
            RETURNING repository_id, manifest_id),
        blobs AS (INSERT INTO manifest_blob (manifest_id, blob_id) SELECT m.id, b.id FROM m, found_blob b ON CONFLICT DO NOTHING),
        children AS (
            INSERT INTO manifest_child (manifest_id, child_id) SELECT m.id, c.id FROM m, found_child c ON CONFLICT DO NOTHING),
        awaited AS (
            INSERT INTO awaited_child (manifest_id, digest) SELECT m.id, w.digest FROM m, wanted_child w
            WHERE NOT EXISTS (SELECT FROM found_child c WHERE c.digest = w.digest) ON CONFLICT DO NOTHING),
        tags AS (
            -- After the link, as whoever deletes the manifest has them.
            INSERT INTO tag (repository_id, name, manifest_id)
            SELECT link.repository_id, t, link.manifest_id FROM link, unnest($12::text[]) t
            ON CONFLICT (repository_id, name) DO UPDATE SET manifest_id = excluded.manifest_id RETURNING repository_id, name),
        -- After the tags, as whoever deletes one has them.
        wanted_place AS (
            SELECT tags.repository_id, tags.name, l.id AS location_id
            FROM tags JOIN unnest($14::text[], $15::text[]) AS u (name, location) USING (name)
            JOIN location l ON l.name = u.location),
        unplaced AS (
            DELETE FROM tag_location tl USING tags WHERE tl.repository_id = tags.repository_id AND tl.name = tags.name
            AND (tl.name, tl.location_id) NOT IN (SELECT name, location_id FROM wanted_place)),
        placed AS (
            INSERT INTO tag_location (repository_id, name, location_id) SELECT repository_id, name, location_id FROM wanted_place
            ON CONFLICT DO NOTHING),
        {noted("m", "$17")}
        SELECT (SELECT array_agg(DISTINCT digest) FROM missing) AS missing, (SELECT version FROM stale) AS version,
            (SELECT policy FROM stale) AS policy, (SELECT count(*) FROM m) AS stored,
            (SELECT used FROM full_up) AS over, (SELECT reject FROM policy) AS reject,
            (SELECT used FROM policy WHERE used > warn) AS warned, (SELECT warn FROM policy) AS warn,
            (SELECT moved FROM seen) AS done, EXISTS (SELECT FROM allowed) AND NOT EXISTS (SELECT FROM ok) AS late,
            EXISTS (SELECT FROM lapsed) AS lapsed
        """,  # noqa: S608
        repository,
        namespace_of(repository, library),
        manifest.digest,
        list(dict.fromkeys(manifest.blobs)),
        list(dict.fromkeys(manifest.children)),
        sparse,
        manifest.body,
        manifest.subject,
        manifest.artifact_type,
        None if manifest.annotations is None else json.dumps(dict(manifest.annotations)),
        manifest.media_type,
        sorted(set(tags.tags)),
        tags.version,
        [tag for tag, _ in tags.locations],
        [location for _, location in tags.locations],
        default_quota,
        None if note is None else note.text(),
        once,
        moves,
        *terms(held),
    )
    assert row is not None
    namespace = namespace_of(repository, library)
    ended = await ended_before(database, row, once)
    if ended is not None and not ended.done:
        return ManifestCommit(refused=True)
    if row["lapsed"] and ended is None:
        raise RightsLapsed
    if row["version"] is not None and ended is None:
        return ManifestCommit(stale=True, version=row["version"], policy=row["policy"])
    if row["missing"] and ended is None:
        return ManifestCommit(tuple(sorted(row["missing"])))
    if row["over"] is not None and ended is None:
        raise OverQuota(namespace, row["over"], row["reject"])
    done = ended is not None
    if row["warned"] is None:
        return ManifestCommit(done=done)
    return ManifestCommit(warning=Usage(namespace, 0, row["warned"], row["reject"], row["warn"]), done=done)


async def ended_before(database: Database, row: Row, once: UUID | None) -> Ended | None:
    """Return how the request had ended before a statement, or while that waited for another try (`late`); None: it had not."""
    if row["done"] is not None:
        return Ended(row["done"])
    return await how_it_ended(database, once) if row["late"] and once is not None else None


_LAPSED = "EXISTS (SELECT FROM lapsed) AND NOT EXISTS (SELECT FROM seen) AS lapsed"


async def delete_tag(
    database: Database,
    repository: str,
    tag: str,
    note: Line | None = None,
    once: UUID | None = None,
    held: Held | None = None,
) -> str | None:
    """Delete a tag; return the digest that it pointed to, None if there was none. Its history remembers it.

    Of all calls with the same `once` one deletes, and for the others there was none. Raises RightsLapsed where the rights `held`
    hold no longer, unless it was deleted before.
    """
    row = await database.fetch_row(
        f"WITH {seen('$4')}, {lapsed('$1', '$5', '$6')}, "  # noqa: S608
        "home AS (SELECT id FROM repository WHERE name = $1 FOR KEY SHARE), "
        "there AS (SELECT t.repository_id, t.name, m.digest FROM home r JOIN tag t ON t.repository_id = r.id "
        "JOIN manifest m ON m.id = t.manifest_id WHERE t.name = $2 AND NOT EXISTS (SELECT FROM seen) "
        f"AND NOT EXISTS (SELECT FROM lapsed) AND in_time($0) FOR UPDATE OF t), {first('$4', 'true', 'there')}, "
        "gone AS (DELETE FROM tag t USING there WHERE t.repository_id = there.repository_id AND t.name = there.name "
        "AND ($4::uuid IS NULL OR EXISTS (SELECT FROM first)) RETURNING there.digest), "
        f"{noted('gone', '$3')} SELECT (SELECT digest FROM gone) AS digest, {_LAPSED}",
        repository,
        tag,
        None if note is None else note.text(),
        once,
        *terms(held),
    )
    assert row is not None
    if row["lapsed"]:
        raise RightsLapsed
    return None if row["digest"] is None else str(row["digest"])


async def delete_manifest(
    database: Database,
    repository: str,
    digest: str,
    note: Line | None = None,
    once: UUID | None = None,
    held: Held | None = None,
) -> bool:
    """Take a manifest out of a repository together with every tag that points to it. False: it was not there.

    `once` and `held` as for tags. Raises RightsLapsed.
    """
    row = await database.fetch_row(
        f"WITH {seen('$4')}, {lapsed('$1', '$5', '$6')}, "  # noqa: S608
        # One at a time in a repository: what goes makes candidates of much else there.
        "home AS (SELECT id FROM repository WHERE name = $1 FOR NO KEY UPDATE), "
        "there AS (SELECT rm.repository_id, rm.manifest_id FROM home r JOIN repository_manifest rm "
        "ON rm.repository_id = r.id JOIN manifest m ON m.id = rm.manifest_id WHERE m.digest = $2 "
        "AND NOT EXISTS (SELECT FROM seen) AND NOT EXISTS (SELECT FROM lapsed) AND in_time($0) FOR UPDATE OF rm), "
        f"{first('$4', 'true', 'there')}, "
        "gone AS (DELETE FROM repository_manifest rm USING there WHERE rm.repository_id = there.repository_id "
        "AND rm.manifest_id = there.manifest_id AND ($4::uuid IS NULL OR EXISTS (SELECT FROM first)) RETURNING rm.manifest_id), "
        f"{noted('gone', '$3')} SELECT EXISTS (SELECT FROM gone) AS gone, {_LAPSED}",
        repository,
        digest,
        None if note is None else note.text(),
        once,
        *terms(held),
    )
    assert row is not None
    if row["lapsed"]:
        raise RightsLapsed
    return bool(row["gone"])


@frozen
class FoundManifest:
    """A manifest as a repository sees it. `body` is None where the caller said that it has the bytes of this digest."""

    digest: str
    media_type: str
    body: bytes | None = field(repr=False)


@frozen
class Look:
    """The answer to a look-up: whether the repository exists, and what it has under that name."""

    repository_exists: bool
    manifest: FoundManifest | None = None


_FOUND = "m.digest, rm.media_type, CASE WHEN m.digest = $3 THEN NULL ELSE m.bytes END AS bytes"


@frozen
class TagAsked:
    """A tag to look up. `have` is a digest whose bytes the caller holds, so that they need not travel."""

    repository: str
    tag: str
    have: str | None = None


async def find_by_tags(database: Database, asked: Sequence[TagAsked]) -> Sequence[Look]:
    """Look tags up, all in one statement; the answers are in the order of what was asked."""
    if len(asked) == 1:
        # As nearly always, and arrays of one take longer than what is in them.
        (one,) = asked
        rows = await database.fetch(_ONE_TAG, one.repository, one.tag, one.have)
    else:
        rows = await database.fetch(
            _TAGS, [one.repository for one in asked], [one.tag for one in asked], [one.have for one in asked]
        )
    return [_look(None if row["id"] is None else row) for row in rows]


_BY_TAG = """
    SELECT r.id, m.digest, rm.media_type, CASE WHEN m.digest = k.have THEN NULL ELSE m.bytes END AS bytes
    FROM {asked}
    LEFT JOIN repository r ON r.name = k.repository COLLATE "C"
    LEFT JOIN tag t ON t.repository_id = r.id AND t.name = k.tag COLLATE "C"
    LEFT JOIN manifest m ON m.id = t.manifest_id
    LEFT JOIN repository_manifest rm ON rm.repository_id = r.id AND rm.manifest_id = m.id
"""
_ONE_TAG = _BY_TAG.format(asked="(SELECT $1::text AS repository, $2::text AS tag, $3::text AS have) AS k")
_TAGS = (
    _BY_TAG.format(
        asked="unnest($1::text[], $2::text[], $3::text[]) WITH ORDINALITY AS k (repository, tag, have, place)"
    )
    + "ORDER BY k.place"
)


async def find_by_digest(database: Reads, repository: str, digest: str, have: str | None) -> Look:
    """Look a digest up in a repository; `have` as for tags."""
    row = await database.fetch_row(
        f"SELECT {_FOUND} FROM repository r LEFT JOIN (repository_manifest rm "  # noqa: S608
        "JOIN manifest m ON m.id = rm.manifest_id AND m.digest = $2) ON rm.repository_id = r.id WHERE r.name = $1",
        repository,
        digest,
        have,
    )
    return _look(row)


def _look(row: Mapping[str, object] | None) -> Look:
    if row is None:
        return Look(False)
    if row["digest"] is None:
        return Look(True)
    body = row["bytes"]
    assert body is None or isinstance(body, bytes)
    return Look(True, FoundManifest(str(row["digest"]), str(row["media_type"]), body))
