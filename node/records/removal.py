"""Repositories and namespaces deleted whole. What they held becomes garbage at once; its grace begins now. One statement each."""

from node.records.postgres import Database

_SECONDS = 300.0
"""A repository of a hundred thousand manifests takes its time."""


async def delete_repository(database: Database, repository: str) -> bool:
    """Delete a repository with its tags, their history, its manifests and uploads. False: there is none of that name.

    Tags of it cannot be restored. Its blobs are collected when their grace is over, unless another repository links them.
    """
    row = await database.fetch_row(
        "SELECT delete_repository($1) AS deleted WHERE in_time($0)", repository, deadline=_SECONDS
    )
    assert row is not None
    return bool(row["deleted"])


async def clear_namespace(database: Database, namespace: str) -> int | None:
    """Delete all repositories of a namespace, and what its owner had set for it; return how many there were, None as below.

    Its policy and its quota stay: superusers set them, and whoever owns the namespace may not be rid of them.
    """
    row = await database.fetch_row(
        """
        WITH here AS (SELECT id FROM namespace WHERE name = $1 AND in_time($0) FOR UPDATE),
        hooks AS (DELETE FROM webhook w USING here WHERE w.namespace_id = here.id),
        patterns AS (DELETE FROM immutable_pattern p USING here WHERE p.namespace_id = here.id AND p.repository_id IS NULL),
        usual AS (UPDATE namespace n SET tag_expiration = NULL FROM here WHERE n.id = here.id)
        SELECT delete_repositories(
            coalesce((SELECT array_agg(r.id) FROM repository r WHERE r.namespace_id = here.id), '{}')) AS deleted FROM here
        """,
        namespace,
        deadline=_SECONDS,
    )
    return None if row is None else int(row["deleted"])


async def delete_namespace(database: Database, namespace: str) -> int | None:
    """Delete a namespace with its policy and all its repositories; return how many there were, None without such a namespace."""
    row = await database.fetch_row(
        "SELECT delete_namespace($1) AS deleted WHERE in_time($0)", namespace, deadline=_SECONDS
    )
    assert row is not None
    return None if row["deleted"] is None else int(row["deleted"])
