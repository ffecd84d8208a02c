"""What tags pointed to before: listed, found again while their window lasts, and the windows of namespaces. One statement each."""

from collections.abc import Mapping, Sequence

from attrs import field, frozen

from node.records.blobs import OWE
from node.records.postgres import Database
from node.records.uploads import HOME


@frozen
class TagState:
    """What a tag pointed to for a while. Times in POSIX seconds; `until` is None for what it points to now."""

    digest: str
    since: float
    until: float | None
    restorable_until: float | None
    """When this state can no longer be restored; None for what the tag points to now."""


@frozen
class TagHistory:
    """A tag's states, latest first, and whether older ones follow."""

    states: tuple[TagState, ...]
    more: bool


async def tag_history(
    database: Database, repository: str, tag: str, *, window: float, before: float | None, most: int
) -> TagHistory | None:
    """Return up to `most` states of a tag that ended before `before` (POSIX seconds; None: from what it points to now on).

    `window` (DEFAULT_TAG_EXPIRATION, seconds) counts where the namespace has none of its own; older states are left out. None:
    there is no such repository.
    """
    rows = await database.fetch(
        """
        WITH here AS (
            SELECT r.id, coalesce(n.tag_expiration, $3) AS expiration
            FROM repository r JOIN namespace n ON n.id = r.namespace_id WHERE r.name = $1),
        states AS (
            SELECT t.manifest_id, t.since, NULL::timestamptz AS until, NULL::bigint AS place FROM here
            JOIN tag t ON t.repository_id = here.id AND t.name = $2 WHERE $4::float8 IS NULL
            UNION ALL
            (SELECT h.manifest_id, h.since, h.until, h.id FROM here
             JOIN tag_history h ON h.repository_id = here.id AND h.name = $2
             WHERE ($4 IS NULL OR h.until < to_timestamp($4)) AND h.until >= now() - here.expiration * interval '1 second'
             ORDER BY h.until DESC, h.id DESC LIMIT $5))
        SELECT m.digest, extract(epoch FROM s.since)::float8 AS since, extract(epoch FROM s.until)::float8 AS until,
            extract(epoch FROM s.until)::float8 + here.expiration AS restorable
        FROM here LEFT JOIN states s ON true LEFT JOIN manifest m ON m.id = s.manifest_id
        ORDER BY s.until DESC NULLS FIRST, s.place DESC LIMIT $5
        """,
        repository,
        tag,
        window,
        before,
        most + 1,
    )
    if not rows:
        return None
    found = [
        TagState(row["digest"], row["since"], row["until"], row["restorable"])
        for row in rows
        if row["digest"] is not None
    ]
    return TagHistory(tuple(found[:most]), len(found) > most)


@frozen
class FormerManifest:
    """A manifest that a tag pointed to. `media_type` is None where the repository does not have it any more."""

    body: bytes = field(repr=False)
    media_type: str | None


async def find_former(
    database: Database, repository: str, tag: str, digest: str, window: float
) -> FormerManifest | None:
    """Return the manifest if the tag points to it or did within its window (seconds; the namespace's own counts first)."""
    row = await database.fetch_row(
        """
        SELECT m.bytes, rm.media_type FROM repository r JOIN namespace n ON n.id = r.namespace_id
        JOIN manifest m ON m.digest = $3
        LEFT JOIN repository_manifest rm ON rm.repository_id = r.id AND rm.manifest_id = m.id
        WHERE r.name = $1 AND (
            EXISTS (SELECT FROM tag t WHERE t.repository_id = r.id AND t.name = $2 AND t.manifest_id = m.id)
            OR EXISTS (
                SELECT FROM tag_history h WHERE h.repository_id = r.id AND h.name = $2 AND h.manifest_id = m.id
                AND h.until >= now() - coalesce(n.tag_expiration, $4) * interval '1 second'))
        """,
        repository,
        tag,
        digest,
        window,
    )
    return None if row is None else FormerManifest(row["bytes"], row["media_type"])


@frozen
class LostChild:
    """A manifest that a former index needs and its repository does not have any more; `blobs` are what the database has of its."""

    digest: str
    body: bytes = field(repr=False)
    blobs: frozenset[str]


async def find_lost_children(database: Database, repository: str, digest: str) -> Sequence[LostChild]:
    """Return what the closure of a former index has lost in this repository since it was pushed there, as far as it is still known.

    What an index named before it was there (FEATURE_SPARSE_INDEX) is left out: another repository may have brought it.
    """
    rows = await database.fetch(
        """
        WITH RECURSIVE here AS (SELECT id FROM repository WHERE name = $1),
        closure(id) AS (
            SELECT m.id FROM manifest m WHERE m.digest = $2
            UNION
            SELECT c.id FROM closure JOIN manifest_child mc ON mc.manifest_id = closure.id JOIN manifest c ON c.id = mc.child_id
            WHERE NOT EXISTS (SELECT FROM awaited_child a WHERE a.manifest_id = closure.id AND a.digest = c.digest))
        SELECT m.digest, m.bytes, ARRAY(
            SELECT b.digest FROM manifest_blob mb JOIN blob b ON b.id = mb.blob_id WHERE mb.manifest_id = m.id) AS blobs
        FROM here, closure JOIN manifest m ON m.id = closure.id WHERE m.digest <> $2 AND NOT EXISTS (
            SELECT FROM repository_manifest rm WHERE rm.repository_id = here.id AND rm.manifest_id = m.id)
        ORDER BY m.id
        """,
        repository,
        digest,
    )
    return [LostChild(row["digest"], row["bytes"], frozenset(row["blobs"])) for row in rows]


async def relink_closure(
    database: Database, repository: str, digest: str, children: Mapping[str, str], *, replicate: bool
) -> None:
    """Link again what the closure of a former manifest needs and was deleted by hand since, and schedule its debt.

    `children` are the media types of lost manifests by digest. History, or the time that garbage is left alone, has kept the bytes,
    and the repository had them when the manifest was pushed. Repeating it is harmless.
    """
    await database.fetch(
        f"""
        WITH here AS ({HOME.format(name="$1")}),
        lost AS (
            SELECT m.id, u.media_type FROM unnest($4::text[], $5::text[]) AS u (digest, media_type)
            JOIN manifest m ON m.digest = u.digest ORDER BY m.id FOR KEY SHARE OF m),
        child AS (
            INSERT INTO repository_manifest (repository_id, manifest_id, media_type)
            SELECT here.id, lost.id, lost.media_type FROM here, lost ON CONFLICT DO NOTHING),
        wanted AS (
            SELECT b.id, b.size FROM here, blob b WHERE b.id IN (
                SELECT mb.blob_id FROM manifest m CROSS JOIN LATERAL manifest_closure(m.id, false) c
                JOIN manifest_blob mb ON mb.manifest_id = c
                WHERE m.digest = $2 AND (manifest_held(here.id, c) OR c IN (SELECT id FROM lost)))
            ORDER BY b.id FOR KEY SHARE OF b),
        link AS (
            INSERT INTO repository_blob (repository_id, blob_id) SELECT here.id, wanted.id FROM here, wanted
            ORDER BY 2 ON CONFLICT DO NOTHING RETURNING blob_id),
        linked AS (
            SELECT wanted.id AS blob_id, wanted.size, here.namespace_id FROM here, link JOIN wanted ON wanted.id = link.blob_id),
        {OWE.format(required="required_location", replicate="$3", besides="")}
        SELECT count(*) FROM owed
        """,  # noqa: S608  # constants
        repository,
        digest,
        replicate,
        list(children),
        list(children.values()),
    )


async def set_tag_expiration(database: Database, namespace: str, seconds: float | None) -> None:
    """Give a namespace, which nobody need have pushed to yet, a window of its own, None for the usual one.

    It counts for what was deleted before, too; what had gone already stays gone.
    """
    await database.fetch(
        "INSERT INTO namespace (name, tag_expiration) SELECT $1, $2 WHERE in_time($0) "
        "ON CONFLICT (name) DO UPDATE SET tag_expiration = excluded.tag_expiration",
        namespace,
        seconds,
    )


async def tag_expiration(database: Database, namespace: str) -> tuple[bool, float | None]:
    """Return whether there is such a namespace, and its own window in seconds, None where it has the usual one."""
    row = await database.fetch_row("SELECT tag_expiration FROM namespace WHERE name = $1", namespace)
    return (False, None) if row is None else (True, row["tag_expiration"])
