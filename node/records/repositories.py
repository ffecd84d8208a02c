"""Repositories and their tags as the API lists them, in pages. One statement each."""

from collections.abc import Sequence

from attrs import frozen

from node.records.postgres import Database


@frozen
class RepositoryLine:
    """A repository. `created`: POSIX seconds."""

    name: str
    public: bool
    created: float
    tags: int


async def list_repository_lines(
    database: Database, namespace: str | None, after: str, most: int
) -> Sequence[RepositoryLine]:
    """Return up to `most` repositories behind `after`, by name; only those of a namespace where one is given."""
    rows = await database.fetch(
        """
        SELECT r.name, r.public, extract(epoch FROM r.created_at)::float8 AS created,
            (SELECT count(*) FROM tag t WHERE t.repository_id = r.id) AS tags
        FROM repository r
        WHERE r.name > $2 AND ($1::text IS NULL OR r.namespace_id = (SELECT n.id FROM namespace n WHERE n.name = $1))
        ORDER BY r.name LIMIT $3
        """,
        namespace,
        after,
        most,
    )
    return [RepositoryLine(row["name"], row["public"], row["created"], row["tags"]) for row in rows]


async def find_repository_line(database: Database, repository: str) -> RepositoryLine | None:
    """Return one repository."""
    row = await database.fetch_row(
        "SELECT r.name, r.public, extract(epoch FROM r.created_at)::float8 AS created, "
        "(SELECT count(*) FROM tag t WHERE t.repository_id = r.id) AS tags FROM repository r WHERE r.name = $1",
        repository,
    )
    return None if row is None else RepositoryLine(row["name"], row["public"], row["created"], row["tags"])


@frozen
class TagLine:
    """A tag. `size`: bytes of the manifest's own blobs, not of an index's children; `since`: POSIX seconds."""

    name: str
    digest: str
    media_type: str
    size: int
    since: float
    immutable: bool


async def list_tag_lines(database: Database, repository: str, after: str, most: int) -> Sequence[TagLine] | None:
    """Return up to `most` tags behind `after`, by name; None: there is no such repository."""
    rows = await database.fetch(
        """
        SELECT r.id AS there, t.name, m.digest, rm.media_type, extract(epoch FROM t.since)::float8 AS since,
            coalesce((SELECT sum(b.size) FROM manifest_blob mb JOIN blob b ON b.id = mb.blob_id
                WHERE mb.manifest_id = m.id), 0)::bigint AS size,
            tag_is_immutable(r.id, t.name) AS immutable
        FROM repository r LEFT JOIN LATERAL (
            SELECT q.* FROM tag q WHERE q.repository_id = r.id AND q.name > $2 ORDER BY q.name LIMIT $3) t ON true
        LEFT JOIN manifest m ON m.id = t.manifest_id
        LEFT JOIN repository_manifest rm ON rm.repository_id = r.id AND rm.manifest_id = m.id
        WHERE r.name = $1 ORDER BY t.name
        """,
        repository,
        after,
        most,
    )
    if not rows:
        return None
    return [
        TagLine(row["name"], row["digest"], row["media_type"], row["size"], row["since"], row["immutable"])
        for row in rows
        if row["name"] is not None
    ]
