"""Blobs of a repository: committed at the end of an upload, mounted from another repository, unlinked. One statement each."""

from collections.abc import Sequence
from enum import Enum
from uuid import UUID

from attrs import frozen

from node.names import namespace_of
from node.records.auditlog import Line, noted
from node.records.postgres import Database
from node.records.uploads import HOME, REPOSITORY_TO_LINK_UNLESS_MISSING

OWE = """
    owed AS (
        INSERT INTO task (blob_id, location_id, size)
        SELECT linked.blob_id, r.location_id, linked.size
        FROM linked JOIN {required} r ON r.namespace_id = linked.namespace_id
        JOIN location l ON l.id = r.location_id AND l.state IN ('active', 'paused')
        WHERE {replicate} AND NOT (EXISTS (
            SELECT FROM placement p
            WHERE p.blob_id = linked.blob_id AND p.location_id = r.location_id AND p.state = 'present')
            -- Whoever had the blob before may just have let that copy go, which nothing required then.
            AND is_present_by_now(linked.blob_id, r.location_id)){besides}
        ORDER BY 1, 2 ON CONFLICT (blob_id, location_id) DO NOTHING RETURNING location_id)
"""
"""Schedules the debt of the rows of `linked` (blob_id, size, namespace_id): what their namespace requires and is not present.

Whoever calls it locks the blobs and makes the links first: `linked` comes from them.
"""

_DOUBTFUL = """(p.state = 'suspect' OR EXISTS (
                SELECT FROM unverified_copy u WHERE u.blob_id = p.blob_id AND u.location_id = p.location_id AND u.key = p.key))"""
"""A copy that is distrusted, or that a rescue took from the journals and nobody has read: what has just come is better."""

# A namespace that the statement itself makes is not in the view yet, and has no policy.
_REQUIRED_OF_NEW = """(
            SELECT namespace_id, location_id FROM required_location
            UNION ALL SELECT n.namespace_id, d.location_id FROM repository_new n CROSS JOIN default_location d
            WHERE n.namespace_id NOT IN (SELECT id FROM namespace_found))"""


@frozen
class Committed:
    """A blob is in its repository. `debt` names the locations that now owe a copy."""

    debt: tuple[str, ...]


async def commit_blob(
    database: Database,
    repository: str,
    upload: UUID,
    epoch: int,
    *,
    digest: str,
    size: int,
    pieces: bytes | None,
    key: str,
    leftovers: Sequence[str],
    replicate: bool,
    macs: bytes | None = None,
) -> Committed | None:
    """Publish a finished upload: the blob, its link, its first placement and its debt, in one transaction.

    None: the upload is gone, or somebody else owns it. If its location has a good copy already, ours becomes a dead object, like
    the `leftovers` (keys of tails that are part of the object now). A suspect copy there is replaced by ours, and one that nobody
    has read since a rescue.
    """
    owe = OWE.format(
        required="required_location", replicate="$9", besides=" AND r.location_id <> (SELECT location_id FROM gone)"
    )
    row = await database.fetch_row(
        f"""
        WITH home AS ({HOME.format(name="$3")}),
        gone AS (
            DELETE FROM upload u USING home
            WHERE u.id = $1 AND u.epoch = $2 AND home.id = u.repository_id
            RETURNING u.repository_id, u.location_id, home.namespace_id),
        -- Locked, so that they are what ours replaces, whatever somebody makes of them meanwhile; blobs first, as everybody.
        known AS MATERIALIZED (SELECT b.id FROM gone, blob b WHERE b.digest = $4 FOR NO KEY UPDATE OF b),
        before AS MATERIALIZED (
            SELECT p.key FROM known JOIN placement p ON p.blob_id = known.id JOIN gone ON gone.location_id = p.location_id
            FOR NO KEY UPDATE OF p),
        new AS (
            INSERT INTO blob AS b (digest, size, pieces, macs) SELECT $4, $5, $6, $10 FROM gone
            WHERE (SELECT count(*) FROM before) >= 0
            ON CONFLICT (digest) DO UPDATE
            SET pieces = coalesce(b.pieces, excluded.pieces), macs = coalesce(excluded.macs, b.macs) RETURNING id),
        link AS (
            INSERT INTO repository_blob (repository_id, blob_id) SELECT gone.repository_id, new.id FROM gone, new
            ON CONFLICT (repository_id, blob_id) DO UPDATE SET linked_at = now() RETURNING blob_id),
        linked AS (SELECT link.blob_id, $5::bigint AS size, gone.namespace_id FROM link, gone),
        placed AS (
            INSERT INTO placement AS p (blob_id, location_id, key) SELECT new.id, gone.location_id, $7 FROM gone, new
            ON CONFLICT (blob_id, location_id)
            DO UPDATE SET key = excluded.key, state = 'present', reason = NULL, created_at = now()
            WHERE {_DOUBTFUL} RETURNING blob_id, location_id),
        read AS (
            DELETE FROM unverified_copy u USING placed WHERE (u.blob_id, u.location_id) = (placed.blob_id, placed.location_id)),
        paid AS (
            DELETE FROM task t USING new, gone
            WHERE t.blob_id = new.id AND t.location_id = gone.location_id AND (t.lease_until IS NULL OR t.lease_until < now())
            RETURNING t.location_id, t.key),
        dead AS (
            INSERT INTO dead_object (location_id, key, not_before)
            SELECT location_id, k, now() + interval '1 minute' FROM (
                SELECT gone.location_id, unnest($8::text[]) AS k FROM gone
                UNION SELECT gone.location_id, $7 FROM gone WHERE NOT EXISTS (SELECT FROM placed)
                UNION SELECT gone.location_id, before.key FROM gone, before WHERE EXISTS (SELECT FROM placed)
                UNION SELECT paid.location_id, paid.key FROM paid WHERE paid.key IS NOT NULL) keys
            ON CONFLICT DO NOTHING),
        {owe}
        SELECT (SELECT coalesce(array_agg(l.name), '{{}}') FROM owed JOIN location l ON l.id = owed.location_id) AS debt FROM new
        """,  # noqa: S608  # constants of this module
        upload,
        epoch,
        repository,
        digest,
        size,
        pieces,
        key,
        list(leftovers),
        replicate,
        macs,
    )
    return None if row is None else Committed(tuple(row["debt"]))


async def mount_blob(
    database: Database, repository: str, library: str, source: str, digest: str, *, replicate: bool
) -> Committed | None:
    """Link a blob of the repository `source` into `repository`, and schedule what its namespace requires.

    None: it is not there, and nothing was changed. A blob without any copy left is not mounted, nor one of a namespace that forbids
    locations: the client must upload it.
    """
    row = await database.fetch_row(
        f"""
        WITH RECURSIVE {REPOSITORY_TO_LINK_UNLESS_MISSING},
        wanted AS (
            SELECT b.id, b.size FROM repository r
            JOIN repository_blob rb ON rb.repository_id = r.id JOIN blob b ON b.id = rb.blob_id
            WHERE r.name = $3 AND b.digest = $4 AND EXISTS (SELECT FROM placement p WHERE p.blob_id = b.id AND p.state = 'present')
            AND NOT EXISTS (SELECT FROM namespace_never v WHERE v.namespace_id = r.namespace_id)
            FOR KEY SHARE OF b),
        missing AS (SELECT WHERE NOT EXISTS (SELECT FROM wanted)),
        link AS (
            INSERT INTO repository_blob (repository_id, blob_id) SELECT repo.id, wanted.id FROM repo, wanted
            ON CONFLICT (repository_id, blob_id) DO UPDATE SET linked_at = now() RETURNING blob_id),
        linked AS (SELECT link.blob_id, wanted.size, repo.namespace_id FROM link, wanted, repo),
        {OWE.format(required=_REQUIRED_OF_NEW, replicate="$5", besides="")}
        SELECT (SELECT coalesce(array_agg(l.name), '{{}}') FROM owed JOIN location l ON l.id = owed.location_id) AS debt FROM wanted
        """,  # noqa: S608
        repository,
        namespace_of(repository, library),
        source,
        digest,
        replicate,
    )
    return None if row is None else Committed(tuple(row["debt"]))


class Unlinking(Enum):
    """What became of a request to delete a blob from a repository."""

    DONE = "done"
    UNKNOWN = "unknown"
    IN_USE = "in use"
    """A manifest of the repository still names it."""


async def unlink_blob(database: Database, repository: str, digest: str, note: Line | None = None) -> Unlinking:
    """Take a blob out of a repository, unless a manifest of that repository uses it."""
    row = await database.fetch_row(
        "WITH done AS MATERIALIZED (SELECT unlink_blob($1, $2) AS outcome WHERE in_time($0)), "  # noqa: S608
        f"gone AS (SELECT FROM done WHERE outcome = 'done'), {noted('gone', '$3')} SELECT outcome FROM done",
        repository,
        digest,
        None if note is None else note.text(),
    )
    assert row is not None
    return Unlinking(row["outcome"])
