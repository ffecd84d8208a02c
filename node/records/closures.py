"""Closures of manifests: where the blobs are and what is owed, in one statement; copies asked for; tags moved in the end."""

import json
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from attrs import frozen

from node.auth.held import Held
from node.records.auditlog import Line, noted
from node.records.idempotency import first, seen
from node.records.manifests import CompiledTags, ManifestCommit, ended_before
from node.records.postgres import Database
from node.records.rights import RightsLapsed, lapsed, terms
from replication.closure import Closure, ClosureBlob, Debt, Need, Place
from replication.model import LocationState
from replication.plan import SILENT_AFTER

ASKED_FOR = 20
"""The priority of copies that a durable push or the wait API asked for."""

_MOST_AHEAD = 10_000
"""Tasks of a queue that are counted; a position beyond says at least so many."""

_LIVE_SECONDS = 15
"""A node that was silent for longer measures nothing."""

# Only what the repository itself has counts, whether a child, what is attached, or what a tag names: the same manifest may be in
# somebody else's repository with children that are not for everybody to know of, or to have copied.
_CLOSURE = """
    repo AS (SELECT id, namespace_id FROM repository WHERE name = $1),
    root AS (
        SELECT m.id, m.digest FROM repo JOIN repository_manifest rm ON rm.repository_id = repo.id
        JOIN manifest m ON m.id = rm.manifest_id
        WHERE m.id = (SELECT manifest_id FROM repo JOIN tag t ON t.repository_id = repo.id AND t.name = $2 WHERE $2 NOT LIKE '%:%')
        OR m.digest = $2),
    member (id) AS (
        SELECT id FROM root
        UNION
        SELECT next.id FROM member CROSS JOIN LATERAL (
            SELECT mc.child_id AS id FROM manifest_child mc
            JOIN repository_manifest rm ON rm.manifest_id = mc.child_id AND rm.repository_id = (SELECT id FROM repo)
            WHERE mc.manifest_id = member.id
            UNION ALL
            SELECT c.id FROM awaited_child a JOIN manifest c ON c.digest = a.digest
            JOIN repository_manifest rm ON rm.manifest_id = c.id AND rm.repository_id = (SELECT id FROM repo)
            WHERE a.manifest_id = member.id
            UNION ALL
            SELECT s.id FROM manifest m JOIN manifest s ON s.subject = m.digest
            JOIN repository_manifest rm ON rm.manifest_id = s.id AND rm.repository_id = (SELECT id FROM repo)
            WHERE $3 AND m.id = member.id
            UNION ALL
            SELECT t.manifest_id FROM manifest m CROSS JOIN unnest(ARRAY['sig', 'att', 'sbom']) suffix
            JOIN tag t ON t.name = 'sha256-' || substr(m.digest, 8) || '.' || suffix AND t.repository_id = (SELECT id FROM repo)
            WHERE $3 AND m.id = member.id AND m.digest LIKE 'sha256:%') next),
    part AS MATERIALIZED (
        SELECT b.id, b.digest, b.size FROM (
            SELECT DISTINCT mb.blob_id FROM member CROSS JOIN LATERAL (
                SELECT blob_id FROM manifest_blob WHERE manifest_id = member.id OFFSET 0) mb) used
        CROSS JOIN LATERAL (SELECT id, digest, size FROM blob WHERE blob.id = used.blob_id OFFSET 0) b)
"""
"""The closure of the reference $2 (a tag or a digest) of the repository $1, with what is attached to it if $3, as `part`.

The planner cannot know how few blobs that are: what is looked up for each of them is a subquery of its own, never a join that it
might turn into a scan of a whole table.
"""


async def read_closure(
    database: Database,
    repository: str,
    reference: str,
    *,
    locations: Sequence[str] | None = None,
    referrers: bool = False,
    replicate: bool,
    whole: bool = True,
) -> Closure | None:
    """Return the facts about the closure of what a tag or digest names now; None: the repository has nothing under that name.

    `locations` are those asked about, None all. Without `whole`, the queues are not counted and `Need.required` says only what the
    namespace itself requires. Without `replicate`, nothing is required but what somebody asked for.
    """
    row = await database.fetch_row(
        f"""
        WITH RECURSIVE {_CLOSURE},
        asked AS (
            SELECT l.id, l.name, l.state,
                EXISTS (
                    SELECT FROM namespace_never v WHERE v.namespace_id = repo.namespace_id AND v.location_id = l.id) AS forbidden,
                $5 AND l.state IN ('active', 'paused') AND EXISTS (
                    SELECT FROM required_location r WHERE r.namespace_id = repo.namespace_id AND r.location_id = l.id) AS required,
                l.state IN ('active', 'paused') AS counts,
                EXISTS (SELECT FROM required_location r WHERE r.location_id = l.id) AS somewhere,
                EXISTS (SELECT FROM tag_location tl WHERE tl.location_id = l.id) AS patterned
            FROM location l CROSS JOIN repo WHERE $4::text[] IS NULL OR l.name = ANY($4::text[])),
        need AS MATERIALIZED (
            SELECT part.id AS blob_id, asked.id AS location_id, asked.name,
                CASE WHEN asked.required THEN true
                    WHEN NOT $6 OR NOT asked.counts THEN false
                    WHEN EXISTS (
                        SELECT FROM wanted w WHERE w.blob_id = part.id AND w.location_id = asked.id AND w.until > now()) THEN true
                    WHEN NOT $5 THEN false
                    WHEN asked.somewhere AND EXISTS (
                        SELECT FROM required_location rl WHERE rl.location_id = asked.id AND rl.namespace_id IN (
                            SELECT r.namespace_id FROM repository_blob rb JOIN repository r ON r.id = rb.repository_id
                            WHERE rb.blob_id = part.id)) THEN true
                    WHEN asked.patterned THEN asked.id IN (SELECT blob_required(part.id))
                    ELSE false END AS required,
                t.blob_id IS NOT NULL AS owed, t.attempts, t.last_error, t.priority, t.lease_until > now() AS leased,
                extract(epoch FROM t.failing_since)::float8 AS failing_since,
                task_precedence(t.created_at, t.priority, t.size) AS precedence
            FROM part CROSS JOIN asked LEFT JOIN LATERAL (
                SELECT * FROM task WHERE task.blob_id = part.id AND task.location_id = asked.id OFFSET 0) t ON true
            WHERE 'present' IS DISTINCT FROM (
                SELECT p.state FROM placement p WHERE p.blob_id = part.id AND p.location_id = asked.id)),
        needs AS (
            SELECT blob_id, json_object_agg(name, json_build_array(
                required, owed, attempts, last_error, failing_since, priority, leased)) AS needs FROM need GROUP BY blob_id),
        queue AS (
            SELECT asked.id AS location_id, ahead.tasks, ahead.bytes FROM asked
            JOIN (SELECT location_id, max(precedence) AS last FROM need WHERE owed GROUP BY location_id) mine
                ON mine.location_id = asked.id
            CROSS JOIN LATERAL (
                SELECT count(*) AS tasks, coalesce(sum(first.size), 0)::bigint AS bytes FROM (
                    SELECT t.size FROM task t WHERE t.location_id = asked.id
                    AND task_precedence(t.created_at, t.priority, t.size) < mine.last AND t.due_at <= now()
                    AND t.blob_id NOT IN (SELECT id FROM part) LIMIT {_MOST_AHEAD}) first) ahead
            WHERE $6)
        SELECT root.digest, extract(epoch FROM now())::float8 AS now,
            (SELECT count(DISTINCT a.digest) FROM member CROSS JOIN LATERAL (
                SELECT digest FROM awaited_child WHERE manifest_id = member.id
                UNION ALL
                SELECT c.digest FROM manifest_child mc JOIN manifest c ON c.id = mc.child_id
                WHERE mc.manifest_id = member.id OFFSET 0) a
             WHERE NOT EXISTS (
                SELECT FROM manifest c JOIN repository_manifest rm ON rm.manifest_id = c.id
                WHERE c.digest = a.digest AND rm.repository_id = (SELECT id FROM repo) OFFSET 0)) AS absent,
            (SELECT coalesce(json_agg(json_build_array(
                part.digest, part.size, coalesce((
                    SELECT json_object_agg(l.name, p.state = 'present') FROM placement p JOIN location l ON l.id = p.location_id
                    WHERE p.blob_id = part.id), '{{}}'), coalesce(needs.needs, '{{}}')) ORDER BY part.digest), '[]')
             FROM part LEFT JOIN needs ON needs.blob_id = part.id)::text AS blobs,
            (SELECT coalesce(json_agg(json_build_array(
                asked.name, asked.state, asked.forbidden, asked.required, coalesce(queue.tasks, 0), coalesce(queue.bytes, 0), (
                    SELECT coalesce(
                        sum((n.throughput ->> asked.name)::float8) FILTER (WHERE n.preference[1] = asked.name),
                        max((n.throughput ->> asked.name)::float8))
                    FROM node n WHERE n.seen_at > now() - interval '{_LIVE_SECONDS} seconds'), (
                    SELECT coalesce(json_agg(n.down), '[]') FROM node n WHERE n.preference[1] = asked.name AND NOT n.draining
                    AND n.seen_at > now() - interval '{SILENT_AFTER} seconds')) ORDER BY asked.name), '[]')
             FROM asked LEFT JOIN queue ON queue.location_id = asked.id)::text AS places
        FROM root
        """,  # noqa: S608  # constants of this module
        repository,
        reference,
        referrers,
        None if locations is None else list(locations),
        replicate,
        whole,
    )
    if row is None:
        return None
    places = [_place(*fields) for fields in json.loads(row["places"])]
    return Closure(
        digest=row["digest"],
        blobs=tuple(
            ClosureBlob(digest, size, held, {at: _need(*need) for at, need in needs.items()})
            for digest, size, held, needs in json.loads(row["blobs"])
        ),
        places={place.name: place for place in places},
        now=row["now"],
        absent=row["absent"],
    )


def _place(name: str, state: str, *facts: Any) -> Place:
    forbidden, required, position, ahead, throughput, copiers = facts
    return Place(name, LocationState(state), forbidden, required, position, ahead, throughput, tuple(copiers))


def _need(required: bool, owed: bool, *task: Any) -> Need:
    if not owed:
        return Need(required)
    attempts, last_error, failing_since, priority, leased = task
    return Need(required, Debt(attempts, last_error, failing_since, priority, bool(leased)))


@frozen
class Asked:
    """Where copies were asked for: locations that now owe some with priority."""

    locations: tuple[str, ...]


async def ask_for_copies(
    database: Database,
    repository: str,
    digest: str,
    *,
    locations: Sequence[str],
    keep: Mapping[str, float],
    referrers: bool = False,
    priority: int = ASKED_FOR,
) -> Asked:
    """Owe a manifest's closure to `locations` before other work, at once even where a try failed lately.

    `keep` are those of them that count as required for so many seconds although no policy may require them. Locations that the
    namespace forbids, or that are being emptied, are passed over.
    """
    row = await database.fetch_row(
        f"""
        WITH RECURSIVE {_CLOSURE},
        place AS (
            SELECT l.id, l.name FROM location l CROSS JOIN repo WHERE l.name = ANY($4::text[]) AND l.state IN ('active', 'paused')
            AND NOT EXISTS (
                SELECT FROM namespace_never v WHERE v.namespace_id = repo.namespace_id AND v.location_id = l.id)),
        -- Before what is said of them, as whoever collects them has them.
        held AS MATERIALIZED (
            SELECT b.id, b.size FROM blob b WHERE b.id IN (SELECT id FROM part) ORDER BY b.id FOR KEY SHARE),
        kept AS (
            INSERT INTO wanted (blob_id, location_id, until)
            SELECT held.id, place.id, now() + k.seconds * interval '1 second'
            FROM held CROSS JOIN place JOIN unnest($5::text[], $6::float8[]) AS k (name, seconds) ON k.name = place.name
            ORDER BY 1, 2
            ON CONFLICT (blob_id, location_id) DO UPDATE SET until = greatest(wanted.until, excluded.until)),
        owed AS (
            INSERT INTO task AS t (blob_id, location_id, size, priority)
            SELECT held.id, place.id, held.size, $7 FROM held CROSS JOIN place
            WHERE NOT (
                'present' IS NOT DISTINCT FROM (
                    SELECT p.state FROM placement p WHERE p.blob_id = held.id AND p.location_id = place.id)
                AND is_present_by_now(held.id, place.id))
            ORDER BY 1, 2
            ON CONFLICT (blob_id, location_id)
            DO UPDATE SET priority = greatest(t.priority, excluded.priority), due_at = least(t.due_at, now())
            RETURNING t.location_id)
        SELECT array_agg(DISTINCT place.name) AS names FROM owed JOIN place ON place.id = owed.location_id
        """,  # noqa: S608
        repository,
        digest,
        referrers,
        list(locations),
        list(keep),
        [float(seconds) for seconds in keep.values()],
        priority,
    )
    return Asked(tuple(sorted((row and row["names"]) or ())))


async def move_tags(
    database: Database,
    repository: str,
    digest: str,
    tags: CompiledTags,
    note: Line | None = None,
    once: UUID | None = None,
    held: Held | None = None,
) -> ManifestCommit:
    """Move tags to a manifest that the repository has, in one transaction; nothing moves if the policy is another one by now.

    A manifest that is gone meanwhile is `missing`. `note` is the line of the audit log. Of all calls with the same `once` one moves
    them: the others say that it is `done`. Raises RightsLapsed where the rights `held` hold no longer, unless it was done before.
    """
    several = len(set(tags.tags)) > 1
    row = await database.fetch_row(
        f"""
        WITH {seen("$8")}, {lapsed("$1", "$9", "$10")},
        -- Several come to much else there, and do so one at a time.
        found AS (SELECT id, namespace_id FROM repository WHERE name = $1 FOR {"NO KEY UPDATE" if several else "KEY SHARE"}),
        m AS (
            SELECT rm.repository_id, rm.manifest_id AS id FROM found JOIN repository_manifest rm ON rm.repository_id = found.id
            JOIN manifest m ON m.id = rm.manifest_id WHERE m.digest = $2 FOR KEY SHARE OF rm),
        stale AS (
            SELECT n.version, n.policy FROM namespace n JOIN found f ON f.namespace_id = n.id WHERE n.version <> $4),
        allowed AS (
            SELECT m.* FROM m WHERE NOT EXISTS (SELECT FROM stale) AND NOT EXISTS (SELECT FROM seen)
            AND NOT EXISTS (SELECT FROM lapsed) AND in_time($0)),
        {first("$8", "true", "allowed")},
        ok AS (SELECT * FROM allowed WHERE $8::uuid IS NULL OR EXISTS (SELECT FROM first)),
        tags AS (
            INSERT INTO tag (repository_id, name, manifest_id) SELECT ok.repository_id, t, ok.id FROM ok, unnest($3::text[]) t
            ON CONFLICT (repository_id, name) DO UPDATE SET manifest_id = excluded.manifest_id RETURNING repository_id, name),
        wanted_place AS (
            SELECT tags.repository_id, tags.name, l.id AS location_id
            FROM tags JOIN unnest($5::text[], $6::text[]) AS u (name, location) USING (name)
            JOIN location l ON l.name = u.location),
        unplaced AS (
            DELETE FROM tag_location tl USING tags WHERE tl.repository_id = tags.repository_id AND tl.name = tags.name
            AND (tl.name, tl.location_id) NOT IN (SELECT name, location_id FROM wanted_place)),
        placed AS (
            INSERT INTO tag_location (repository_id, name, location_id) SELECT repository_id, name, location_id FROM wanted_place
            ON CONFLICT DO NOTHING),
        {noted("ok", "$7")}
        SELECT (SELECT count(*) FROM m) AS found, (SELECT version FROM stale) AS version, (SELECT policy FROM stale) AS policy,
            (SELECT moved FROM seen) AS done, EXISTS (SELECT FROM allowed) AND NOT EXISTS (SELECT FROM ok) AS late,
            EXISTS (SELECT FROM lapsed) AS lapsed
        """,  # noqa: S608
        repository,
        digest,
        sorted(set(tags.tags)),
        tags.version,
        [tag for tag, _ in tags.locations],
        [location for _, location in tags.locations],
        None if note is None else note.text(),
        once,
        *terms(held),
    )
    assert row is not None
    if (ended := await ended_before(database, row, once)) is not None:
        return ManifestCommit(done=ended.done, refused=not ended.done)
    if row["lapsed"]:
        raise RightsLapsed
    if not row["found"]:
        return ManifestCommit(missing=(digest,))
    if row["version"] is not None:
        return ManifestCommit(stale=True, version=row["version"], policy=row["policy"])
    return ManifestCommit()
