"""What another policy of a namespace would change: the facts of its blobs as they would be. One statement per page."""

from collections.abc import Sequence

from attrs import frozen

from node.records.postgres import Database
from node.records.reconcile import read_facts
from replication.policy import Policy
from replication.rounds import Candidate


@frozen
class PreviewPage:
    """A page of a namespace's blobs; `last` is the last one's id, None where no more follow."""

    candidates: tuple[Candidate, ...]
    last: int | None


async def preview_facts(
    database: Database, namespace: str, policy: Policy, tags: Sequence[tuple[int, str]], after: int, most: int
) -> PreviewPage:
    """Return the facts that blobs of a namespace would have if this were its policy. `tags`: its own (repository id, name)."""
    places = [(repository, tag, at) for repository, tag in tags for at in sorted(policy.for_tag(tag))]
    rows = await database.fetch(
        """
        WITH ns AS (SELECT id FROM namespace WHERE name = $1),
        never AS (
            SELECT v.namespace_id, v.location_id FROM namespace_never v WHERE v.namespace_id NOT IN (SELECT id FROM ns)
            UNION ALL SELECT ns.id, l.id FROM ns, location l WHERE l.name = ANY($3::text[])),
        required AS (
            SELECT r.namespace_id, r.location_id FROM required_location r WHERE r.namespace_id NOT IN (SELECT id FROM ns)
            UNION ALL SELECT ns.id, l.id FROM ns, location l WHERE NOT l.name = ANY($3::text[]) AND CASE
                WHEN $2::text[] IS NULL THEN l.id IN (SELECT location_id FROM default_location) ELSE l.name = ANY($2::text[]) END),
        ruled AS (
            SELECT tl.repository_id, tl.name, tl.location_id FROM tag_location tl JOIN repository r ON r.id = tl.repository_id
            WHERE r.namespace_id NOT IN (SELECT id FROM ns)
            UNION ALL
            SELECT u.repository_id, u.name, l.id FROM unnest($4::bigint[], $5::text[], $6::text[]) u (repository_id, name, location)
            JOIN location l ON l.name = u.location),
        page AS (
            SELECT DISTINCT b.id, b.digest, b.size FROM ns JOIN repository r ON r.namespace_id = ns.id
            JOIN repository_blob rb ON rb.repository_id = r.id JOIN blob b ON b.id = rb.blob_id
            WHERE b.id > $7 ORDER BY b.id LIMIT $8)
        SELECT page.id, page.digest, page.size, (blob_facts(page.id) || jsonb_build_object(
            'forbidden', (SELECT coalesce(jsonb_agg(l.name), '[]') FROM location l WHERE l.id = ANY(f.ids)),
            'required', (SELECT coalesce(jsonb_agg(l.name), '[]') FROM location l
                WHERE l.state IN ('active', 'paused') AND NOT l.id = ANY(f.ids) AND (
                    EXISTS (SELECT FROM repository_blob rb JOIN repository r ON r.id = rb.repository_id
                        JOIN required q ON q.namespace_id = r.namespace_id AND q.location_id = l.id WHERE rb.blob_id = page.id)
                    OR EXISTS (SELECT FROM wanted w WHERE w.blob_id = page.id AND w.location_id = l.id AND w.until > now())
                    OR (EXISTS (SELECT FROM ruled) AND EXISTS (SELECT FROM blob_tags(page.id) t JOIN ruled u
                        ON u.repository_id = t.repository_id AND u.name = t.name AND u.location_id = l.id)))))) AS facts
        FROM page CROSS JOIN LATERAL (SELECT ARRAY(SELECT l.id FROM location l WHERE NOT EXISTS (
            SELECT FROM repository_blob rb JOIN repository r ON r.id = rb.repository_id
            WHERE rb.blob_id = page.id AND NOT EXISTS (
                SELECT FROM never v WHERE v.namespace_id = r.namespace_id AND v.location_id = l.id))) AS ids) f
        ORDER BY page.id
        """,
        namespace,
        None if policy.required is None else sorted(policy.required),
        sorted(policy.never),
        [repository for repository, _, _ in places],
        [tag for _, tag, _ in places],
        [at for _, _, at in places],
        after,
        most,
        deadline=30.0,
    )
    candidates = tuple(
        Candidate(row["id"], row["digest"], row["size"], read_facts(row["facts"]), row["facts"]) for row in rows
    )
    return PreviewPage(candidates, rows[-1]["id"] if len(rows) == most else None)


async def namespace_tags(
    database: Database, namespace: str, after: tuple[int, str], most: int
) -> Sequence[tuple[int, str]]:
    """Return a page of a namespace's tags as (repository id, name)."""
    rows = await database.fetch(
        """
        SELECT t.repository_id, t.name FROM namespace n JOIN repository r ON r.namespace_id = n.id
        JOIN tag t ON t.repository_id = r.id
        WHERE n.name = $1 AND (t.repository_id, t.name) > ($2, $3) ORDER BY 1, 2 LIMIT $4
        """,
        namespace,
        after[0],
        after[1],
        most,
    )
    return [(row["repository_id"], row["name"]) for row in rows]
