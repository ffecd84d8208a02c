"""Whether what was acknowledged is there. One statement."""

from collections.abc import Sequence

from node.acknowledged import Push
from node.records.postgres import Database


async def missing_pushes(database: Database, pushes: Sequence[Push]) -> Sequence[Push]:
    """Return those of the pushes whose manifest the repository does not have, or whose tag neither points nor pointed to it."""
    rows = await database.fetch(
        """
        SELECT u.repository, u.tag, u.digest
        FROM unnest($1::text[], $2::text[], $3::text[]) WITH ORDINALITY AS u (repository, tag, digest, place)
        LEFT JOIN repository r ON r.name = u.repository LEFT JOIN manifest m ON m.digest = u.digest
        WHERE CASE WHEN u.tag = '' THEN
            NOT EXISTS (SELECT FROM repository_manifest rm WHERE rm.repository_id = r.id AND rm.manifest_id = m.id)
        ELSE
            NOT EXISTS (SELECT FROM tag t WHERE t.repository_id = r.id AND t.name = u.tag AND t.manifest_id = m.id)
            AND NOT EXISTS (
                SELECT FROM tag_history h WHERE h.repository_id = r.id AND h.name = u.tag AND h.manifest_id = m.id
                AND h.until > now() - interval '1 hour')
        END ORDER BY u.place
        """,
        [push.repository for push in pushes],
        [push.tag for push in pushes],
        [push.digest for push in pushes],
        deadline=30.0,
    )
    return [Push(row["repository"], row["tag"], row["digest"]) for row in rows]
