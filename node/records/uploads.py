"""Upload sessions: begun, taken over, recorded, cancelled, expired. One statement each."""

import json
from collections.abc import Sequence
from uuid import UUID

from attrs import frozen

from node.names import namespace_of
from node.records.permissions import unmake_repository
from node.records.postgres import Database
from node.records.quotas import OverQuota
from node.records.upload_rows import UploadRow, read_upload, say_mixed
from replication.part_numbers import OFTEN_TAKEN_OVER, record_every
from replication.upload_state import UploadState

HOME = """
    SELECT r.id, r.namespace_id FROM repository r CROSS JOIN LATERAL (
        SELECT FROM namespace n WHERE n.id = r.namespace_id FOR KEY SHARE) n WHERE r.name = {name} FOR KEY SHARE OF r
"""
"""Finds a repository that something is linked into: locked after its namespace and before all that is in it, as whoever deletes
these does it, and shared with everybody else."""

_REPOSITORY = """
    found AS ({found}),
    namespace_found AS (SELECT id FROM namespace WHERE name = $2),
    repository_made AS MATERIALIZED (
        SELECT CASE WHEN EXISTS (SELECT FROM found){unless} THEN NULL ELSE hold_repository($2, $1) END AS made),
    repository_new AS (SELECT (made).id, (made).namespace_id FROM repository_made WHERE (made).id IS NOT NULL),
    repo AS (SELECT id, namespace_id FROM found UNION ALL SELECT id, namespace_id FROM repository_new)
"""
_FOUND = "SELECT id, namespace_id FROM repository WHERE name = $1 FOR KEY SHARE"
_FOUND_ALONE = "SELECT id, namespace_id FROM repository WHERE name = $1 FOR NO KEY UPDATE"
_MISSING = " OR EXISTS (SELECT FROM missing)"
_DONE = " OR EXISTS (SELECT FROM seen) OR EXISTS (SELECT FROM lapsed)"

REPOSITORY_TO_LINK = _REPOSITORY.format(found=HOME.format(name="$1"), unless="")
"""Finds or makes the repository named $1 in the namespace $2, for blobs to be linked into it.

Looks first, so that a push locks no shared row but against being deleted.
"""

REPOSITORY_UNLESS_MISSING = _REPOSITORY.format(found=_FOUND, unless=_MISSING)
"""The same where no blob is linked, but makes nothing where `missing` has rows, which may itself depend on `found` (WITH RECURSIVE:
it comes later)."""

REPOSITORY_TO_LINK_UNLESS_MISSING = _REPOSITORY.format(found=HOME.format(name="$1"), unless=_MISSING)
"""Both."""

REPOSITORY_UNLESS_DONE = _REPOSITORY.format(found=_FOUND, unless=_MISSING + _DONE)
"""The same, but nothing for what was done or refused before either (`seen` of node/records/idempotency.py), nor without rights."""

REPOSITORY_ALONE_UNLESS_DONE = _REPOSITORY.format(found=_FOUND_ALONE, unless=_MISSING + _DONE)
"""The same for who comes to several tags of it: one at a time, with whoever deletes or collects several things there."""


class TooManyUploads(Exception):
    """A namespace has as many uploads open as it may."""

    def __init__(self, namespace: str, most: int) -> None:
        super().__init__(f"the namespace {namespace} has {most} uploads open")
        self.namespace = namespace
        self.most = most


@frozen
class Announced:
    """What a client says of a blob before it sends it: bytes, and its digest; 0 and "" where it does not say."""

    size: int = 0
    digest: str = ""


@frozen
class Choice:
    """A store that may take an upload, and the keys that it would get there."""

    location: str
    state: UploadState


async def begin_upload(
    database: Database,
    repository: str,
    library: str,
    upload: UUID,
    choices: Sequence[Choice],
    max_age: float,
    *,
    announced: Announced = Announced(),
    default_quota: int = 0,
    most: int = 0,
) -> Choice | None:
    """Commit a new upload, and its repository if that is new, before a byte of it is written anywhere; nothing if it is refused.

    The first choice counts that the namespace's policy does not forbid (*never*); None if it forbids them all. Raises OverQuota
    where the namespace is full, or what was `announced` and is new to it does not fit (`default_quota` bytes without a limit of its
    own, 0: any), and TooManyUploads where it has `most` uploads open that have not expired (0: any number). Begun at the same
    moment, a few more may be.
    """
    row = await database.fetch_row(
        f"""
        WITH RECURSIVE {REPOSITORY_UNLESS_MISSING},
        crowded AS (
            SELECT FROM upload u
            WHERE $12::bigint > 0 AND u.opened_in = (SELECT id FROM namespace_found) AND u.expires_at > now()
            LIMIT 1 OFFSET greatest($12, 1) - 1),
        full_up AS (
            SELECT q.used, q.reject FROM (
                SELECT n.id, namespace_used(n.id) AS used, coalesce(n.quota_reject, nullif($9::bigint, 0)) AS reject
                FROM namespace n WHERE n.name = $2
                UNION ALL SELECT NULL, 0, nullif($9::bigint, 0) WHERE NOT EXISTS (SELECT FROM namespace_found)) q
            WHERE q.used + greatest($10::bigint, 1) > q.reject AND NOT EXISTS (
                SELECT FROM blob b JOIN namespace_blob nb ON nb.blob_id = b.id AND nb.namespace_id = q.id WHERE b.digest = $11)),
        choice AS (
            SELECT l.id, c.key, c.reserved_key, c.place
            FROM unnest($4::text[], $5::text[], $6::text[]) WITH ORDINALITY AS c (location, key, reserved_key, place)
            JOIN location l ON l.name = c.location AND l.state = 'active'
            WHERE NOT EXISTS (SELECT FROM full_up) AND NOT EXISTS (SELECT FROM crowded) AND NOT EXISTS (
                SELECT FROM namespace_never v WHERE v.location_id = l.id
                AND v.namespace_id IN (SELECT namespace_id FROM found UNION ALL SELECT id FROM namespace_found))
            ORDER BY c.place LIMIT 1),
        missing AS (SELECT WHERE NOT EXISTS (SELECT FROM choice)),
        new AS (
            INSERT INTO upload
                (id, repository_id, location_id, key, reserved_key, algorithm, expires_at, opened_in, made_repository)
            SELECT $3, repo.id, choice.id, choice.key, choice.reserved_key, $7, now() + $8 * interval '1 second', repo.namespace_id,
                EXISTS (SELECT FROM repository_new) OR EXISTS (
                    SELECT FROM upload u WHERE u.repository_id = repo.id AND u.made_repository)
            FROM repo, choice)
        SELECT place, NULL::bigint AS used, NULL::bigint AS reject FROM choice UNION ALL SELECT NULL, used, reject FROM full_up
        UNION ALL SELECT NULL, NULL, NULL FROM crowded
        """,  # noqa: S608  # a constant of this module
        repository,
        namespace_of(repository, library),
        upload,
        [choice.location for choice in choices],
        [choice.state.key for choice in choices],
        [choice.state.reserved_key for choice in choices],
        choices[0].state.algorithm,
        max_age,
        default_quota,
        announced.size,
        announced.digest,
        most,
    )
    if row is None:
        return None
    if row["used"] is not None:
        raise OverQuota(namespace_of(repository, library), row["used"], row["reject"])
    if row["place"] is None:
        raise TooManyUploads(namespace_of(repository, library), most)
    return choices[int(row["place"]) - 1]


async def move_upload(database: Database, upload: UUID, epoch: int, choices: Sequence[Choice]) -> Choice | None:
    """Begin an upload anew in another store, from its first byte on, for the owner of `epoch`.

    The first choice counts that the namespace's policy does not forbid. What the old store has of it becomes dead objects, and the
    owner has the next epoch: what it still records of the old store comes too late. None: no choice is left, or the upload is
    somebody else's by now or gone; nothing was changed then.
    """
    row = await database.fetch_row(
        """
        WITH gone AS (
            SELECT u.*, r.namespace_id FROM upload u JOIN repository r ON r.id = u.repository_id
            WHERE u.id = $1 AND u.epoch = $2 FOR UPDATE OF u),
        choice AS (
            SELECT gone.location_id AS old_location_id, gone.key AS old_key, gone.reserved_key AS old_reserved_key,
                gone.tail_key AS old_tail_key, l.id, c.key, c.reserved_key, c.place
            FROM gone, unnest($3::text[], $4::text[], $5::text[]) WITH ORDINALITY AS c (location, key, reserved_key, place)
            JOIN location l ON l.name = c.location AND l.state = 'active'
            WHERE NOT EXISTS (
                SELECT FROM namespace_never v WHERE v.namespace_id = gone.namespace_id AND v.location_id = l.id)
            ORDER BY c.place LIMIT 1),
        dead AS (
            INSERT INTO dead_object (location_id, key, not_before)
            SELECT old_location_id, k, now() + interval '1 minute'
            FROM choice, unnest(ARRAY[old_key, old_reserved_key, old_tail_key]) k WHERE k IS NOT NULL
            ON CONFLICT (location_id, key) DO UPDATE SET not_before = least(dead_object.not_before, excluded.not_before))
        UPDATE upload u SET epoch = u.epoch + 1, location_id = choice.id, key = choice.key,
            reserved_key = choice.reserved_key, byte_offset = 0,
            parts_upload = NULL, parts = '[]', next_part = 1, tail_key = NULL, tail_size = 0, hash_state = NULL,
            updated_at = now()
        FROM choice WHERE u.id = $1 AND u.epoch = $2 RETURNING choice.place
        """,
        upload,
        epoch,
        [choice.location for choice in choices],
        [choice.state.key for choice in choices],
        [choice.state.reserved_key for choice in choices],
    )
    return None if row is None else choices[row["place"] - 1]


_STEM = "regexp_replace(old.key, '[^.]*$', '')"
_NONCE = "replace(gen_random_uuid()::text, '-', '')"
_SKIPPED = f"CASE WHEN old.epoch < {OFTEN_TAKEN_OVER} THEN {record_every(1)} ELSE {record_every(OFTEN_TAKEN_OVER)} END"


async def take_over_upload(database: Database, repository: str, upload: UUID) -> UploadRow | None:
    """Become the owner of an upload; None if this repository has no such upload.

    The former owner's reserved key becomes a dead object, because it may have been written without a word, and a new one is
    reserved. Where no multi-part write is recorded the same goes for the object's own key: one may have been begun there, whose
    parts nobody would find again. Otherwise part numbers are skipped for the same reason.
    """
    row = await database.fetch_row(
        f"""
        WITH old AS (
            SELECT u.* FROM upload u JOIN repository r ON r.id = u.repository_id
            WHERE u.id = $1 AND r.name = $2 AND u.expires_at > now() FOR UPDATE OF u),
        dead AS (
            INSERT INTO dead_object (location_id, key, not_before)
            SELECT location_id, k, expires_at FROM old, unnest(ARRAY[reserved_key, CASE WHEN parts_upload IS NULL THEN key END]) k
            WHERE k IS NOT NULL ON CONFLICT DO NOTHING)
        UPDATE upload u SET epoch = u.epoch + 1, updated_at = now(), reserved_key = {_STEM} || {_NONCE},
            key = CASE WHEN old.parts_upload IS NULL THEN {_STEM} || {_NONCE} ELSE old.key END,
            next_part = CASE WHEN old.parts_upload IS NULL THEN 1 ELSE old.next_part + {_SKIPPED} END
        FROM old, location l WHERE u.id = old.id AND l.id = u.location_id
        RETURNING u.*, l.name AS location
        """,  # noqa: S608
        upload,
        repository,
    )
    return None if row is None else read_upload(row)


@frozen
class Standing:
    """How many bytes of an upload are recorded, and which epoch owns it."""

    offset: int
    epoch: int


async def look_at_upload(database: Database, repository: str, upload: UUID) -> Standing | None:
    """Return how far an upload is, None if there is no such upload."""
    row = await database.fetch_row(
        "SELECT u.byte_offset, u.epoch FROM upload u JOIN repository r ON r.id = u.repository_id "
        "WHERE u.id = $1 AND r.name = $2 AND u.expires_at > now()",
        upload,
        repository,
    )
    return None if row is None else Standing(row["byte_offset"], row["epoch"])


async def record_upload(database: Database, upload: UUID, epoch: int, state: UploadState) -> bool:
    """Record what the owner of `epoch` has taken in. False: somebody else owns the upload by now, or it is gone.

    A tail object that the new state does not name any more becomes a dead object.
    """
    rows = await database.fetch(
        """
        WITH old AS (SELECT * FROM upload WHERE id = $1 AND epoch = $2 FOR UPDATE),
        dead AS (
            INSERT INTO dead_object (location_id, key, not_before)
            SELECT location_id, tail_key, now() + interval '1 minute' FROM old WHERE tail_key <> coalesce($8, '')
            ON CONFLICT DO NOTHING)
        UPDATE upload u SET byte_offset = $3, parts_upload = $4, parts = $5::jsonb, next_part = $6, reserved_key = $7,
            tail_key = $8, tail_size = $9, tail_proof = $8 || ' ' || $11, hash_state = $10, mixed = $12::jsonb, updated_at = now()
        FROM old WHERE u.id = old.id AND u.epoch = old.epoch RETURNING u.id
        """,
        upload,
        epoch,
        state.offset,
        state.parts_upload,
        json.dumps([[part.number, part.size, part.etag] for part in state.parts]),
        state.next_part,
        state.reserved_key,
        state.tail.key if state.tail else None,
        state.tail.size if state.tail else 0,
        state.hash_state,
        state.tail.sha256 if state.tail else None,
        say_mixed(state),
    )
    return bool(rows)


# A minute, because whoever is writing at this moment may have a call under way.
_BURY = """
    dead AS (
        INSERT INTO dead_object (location_id, key, not_before)
        SELECT gone.location_id, k, now() + interval '1 minute'
        FROM gone, unnest(ARRAY[gone.key, gone.reserved_key, gone.tail_key]) k WHERE k IS NOT NULL
        ON CONFLICT (location_id, key) DO UPDATE SET not_before = least(dead_object.not_before, excluded.not_before))
"""

# Whoever made a repository for it, with accounts, has a while to try again, with the same rights: settle_new_repositories.
# The caller has the repositories' locks already, from before those of the uploads.
_AGAIN = """
    again AS (
        UPDATE repository r SET made_for_push = now() FROM (SELECT DISTINCT repository_id FROM gone) g
        WHERE r.id = g.repository_id AND r.made_for_push IS NOT NULL)
"""


async def cancel_upload(database: Database, repository: str, upload: UUID, epoch: int | None = None) -> bool:
    """Forget an upload, with `epoch` only if that one owns it; what it may have written becomes dead objects.

    Its repository goes with it if it was made for it and nobody uses it; with accounts the janitor sees to that a while later.
    False: there was no such upload.
    """
    row = await database.fetch_row(
        "WITH home AS (SELECT id FROM repository WHERE name = $2 FOR NO KEY UPDATE), "  # noqa: S608
        "gone AS (DELETE FROM upload u USING home WHERE u.id = $1 AND home.id = u.repository_id "
        f"AND ($3::integer IS NULL OR u.epoch = $3) RETURNING u.*), {_BURY}, {_AGAIN} SELECT made_repository FROM gone",
        upload,
        repository,
        epoch,
    )
    if row is not None and row["made_repository"]:
        await unmake_repository(database, repository)
    return row is not None


async def bury_strays(database: Database, upload: UUID, location: str, keys: Sequence[str]) -> None:
    """Make dead objects of what a writer may have written after it had lost its upload: what nobody else accounts for.

    A key that the upload's next owner has, or that became a blob's placement, is left alone.
    """
    await database.fetch(
        """
        INSERT INTO dead_object AS d (location_id, key, not_before)
        SELECT l.id, k, now() + interval '1 minute' FROM location l, unnest($3::text[]) k
        WHERE l.name = $2 AND NOT EXISTS (SELECT FROM upload u WHERE u.id = $1 AND k IN (u.key, u.reserved_key, u.tail_key))
        AND NOT EXISTS (SELECT FROM placement p WHERE p.location_id = l.id AND p.key = k)
        ON CONFLICT (location_id, key) DO UPDATE SET not_before = least(d.not_before, excluded.not_before)
        """,
        upload,
        location,
        list(keys),
    )


async def expire_uploads(database: Database, most: int = 100) -> int:
    """Forget up to `most` uploads that nobody finished in time, with repositories that are there only for them; return how many.

    None while collection is paused: a database that is older than its stores may not know that they were finished.
    """
    rows = await database.fetch(
        # Waits for nobody: what is in use is left to the next look.
        "WITH old AS (SELECT u.id FROM upload u JOIN repository r ON r.id = u.repository_id "  # noqa: S608
        "WHERE u.expires_at <= now() AND NOT collection_paused() "
        "ORDER BY u.expires_at LIMIT $1 FOR NO KEY UPDATE OF r SKIP LOCKED FOR UPDATE OF u SKIP LOCKED), "
        f"gone AS (DELETE FROM upload u USING old WHERE u.id = old.id RETURNING u.*), {_BURY}, {_AGAIN} "
        "SELECT CASE WHEN gone.made_repository THEN r.name END AS made FROM gone JOIN repository r ON r.id = gone.repository_id",
        most,
    )
    for repository in sorted({row["made"] for row in rows} - {None}):
        await unmake_repository(database, repository)
    return len(rows)
