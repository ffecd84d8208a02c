"""Residency: blobs that are in a location which a namespace that links them forbids, because another namespace allows it."""

from collections.abc import Sequence

from attrs import frozen

from node.records.postgres import Database


@frozen
class SharedBlob:
    """A blob in a location that `forbidding` namespaces say *never* to. `allowing` are those that link it and do not.

    Without any that allow it, it is still there only until another copy is good, and then trimmed.
    """

    digest: str
    size: int
    location: str
    forbidding: tuple[str, ...]
    allowing: tuple[str, ...]


@frozen
class ResidencyPage:
    """Some of these blobs; `after` is where the next page begins, None at the end."""

    blobs: tuple[SharedBlob, ...]
    after: tuple[int, int] | None


async def list_shared_blobs(
    database: Database, location: str | None, namespace: str | None, after: tuple[int, int], most: int
) -> ResidencyPage:
    """Return blobs that are where one of their namespaces forbids it: of a location, of a namespace, or all."""
    rows = await database.fetch(
        """
        SELECT q.blob_id, q.location_id, b.digest, b.size, l.name AS location,
            ARRAY(SELECT DISTINCT n.name FROM repository_blob rb JOIN repository r ON r.id = rb.repository_id
                JOIN namespace n ON n.id = r.namespace_id JOIN namespace_never v ON v.namespace_id = n.id AND v.location_id = l.id
                WHERE rb.blob_id = b.id ORDER BY 1) AS forbidding,
            ARRAY(SELECT DISTINCT n.name FROM repository_blob rb JOIN repository r ON r.id = rb.repository_id
                JOIN namespace n ON n.id = r.namespace_id
                WHERE rb.blob_id = b.id AND NOT EXISTS (
                    SELECT FROM namespace_never v WHERE v.namespace_id = n.id AND v.location_id = l.id) ORDER BY 1) AS allowing
        FROM (
            SELECT DISTINCT rb.blob_id, v.location_id FROM namespace_never v JOIN namespace n ON n.id = v.namespace_id
            JOIN location l ON l.id = v.location_id AND l.state <> 'removed'
            JOIN repository r ON r.namespace_id = v.namespace_id JOIN repository_blob rb ON rb.repository_id = r.id
            JOIN placement p ON p.blob_id = rb.blob_id AND p.location_id = v.location_id
            WHERE ($1::text IS NULL OR l.name = $1) AND ($2::text IS NULL OR n.name = $2)
            AND (rb.blob_id, v.location_id) > ($3, $4) ORDER BY 1, 2 LIMIT $5) q
        JOIN blob b ON b.id = q.blob_id JOIN location l ON l.id = q.location_id ORDER BY 1, 2
        """,
        location,
        namespace,
        after[0],
        after[1],
        most,
        deadline=30.0,
    )
    blobs = tuple(
        SharedBlob(row["digest"], row["size"], row["location"], tuple(row["forbidding"]), tuple(row["allowing"]))
        for row in rows
    )
    return ResidencyPage(blobs, (rows[-1]["blob_id"], rows[-1]["location_id"]) if len(rows) == most else None)


async def known_names(database: Database, name: str) -> Sequence[str]:
    """Return what a name is: "location", "namespace", both or neither."""
    rows = await database.fetch(
        "SELECT 'location' AS kind FROM location WHERE name = $1 UNION ALL SELECT 'namespace' FROM namespace WHERE name = $1",
        name,
    )
    return [row["kind"] for row in rows]
