"""Tags that never move: the patterns of a namespace or of one repository. The database holds them. One statement each."""

from collections.abc import Sequence

from node.records.postgres import Database


async def read_patterns(database: Database, namespace: str, repository: str | None) -> Sequence[str] | None:
    """Return the patterns of a repository, or those for a whole namespace; None: there is no such repository or namespace."""
    row = await database.fetch_row(
        """
        SELECT ARRAY(
            SELECT p.pattern FROM immutable_pattern p
            WHERE p.namespace_id = n.id AND p.repository_id IS NOT DISTINCT FROM r.id ORDER BY p.pattern) AS patterns
        FROM namespace n LEFT JOIN repository r ON r.namespace_id = n.id AND r.name = $2
        WHERE n.name = $1 AND ($2::text IS NULL OR r.id IS NOT NULL)
        """,
        namespace,
        repository,
    )
    return None if row is None else list(row["patterns"])


async def write_patterns(
    database: Database, namespace: str, repository: str | None, patterns: Sequence[tuple[str, str]]
) -> bool:
    """Replace them by these, each with its regular expression. False: there is no such repository.

    A namespace that nobody has pushed to yet is made: patterns hold from the first push on.
    """
    row = await database.fetch_row(
        """
        WITH n AS MATERIALIZED (
            SELECT hold_namespace($1) AS id
            WHERE in_time($0) AND ($2::text IS NULL OR EXISTS (SELECT FROM namespace WHERE name = $1))),
        r AS (
            SELECT r.id FROM n JOIN repository r ON r.namespace_id = n.id WHERE r.name = $2 FOR NO KEY UPDATE OF r),
        here AS (
            SELECT n.id AS namespace_id, r.id AS repository_id
            FROM n LEFT JOIN r ON true WHERE $2::text IS NULL OR r.id IS NOT NULL),
        gone AS (
            DELETE FROM immutable_pattern p USING here WHERE p.namespace_id = here.namespace_id
            AND p.repository_id IS NOT DISTINCT FROM here.repository_id AND p.pattern <> ALL($3::text[])),
        new AS (
            INSERT INTO immutable_pattern (namespace_id, repository_id, pattern, expression)
            SELECT here.namespace_id, here.repository_id, u.pattern, u.expression
            FROM here, unnest($3::text[], $4::text[]) AS u (pattern, expression) ON CONFLICT DO NOTHING)
        SELECT FROM here
        """,
        namespace,
        repository,
        [pattern for pattern, _ in patterns],
        [expression for _, expression in patterns],
    )
    return row is not None
