"""What a blob pull needs to know: that the repository has it, and where its copies are. One statement."""

from attrs import frozen

from node.records.postgres import Database, Reads
from replication.model import Blob, Placement


@frozen
class FoundBlob:
    """A blob as a repository sees it, with all its placements. `blob.pieces` is None unless they were asked for."""

    blob: Blob
    placements: tuple[Placement, ...]
    stays: float | None = None
    """Seconds for which the repository surely keeps it, below zero when it may go at any moment; None: longer than any grace."""


async def find_blob(database: Reads, repository: str, digest: str, *, pieces: bool, grace: float) -> FoundBlob | None:
    """Look a blob up in a repository, with its piece digests (16 bytes per MiB) if `pieces`. None: not in this repository.

    `grace` (GARBAGE_GRACE, seconds) says how long it stays if it is a candidate of collection.
    """
    row = await database.fetch_row(
        """
        SELECT b.id, b.size, CASE WHEN $3 THEN b.pieces END AS pieces,
            array_agg(l.name ORDER BY l.id) FILTER (WHERE l.id IS NOT NULL) AS locations,
            array_agg(p.key ORDER BY l.id) FILTER (WHERE l.id IS NOT NULL) AS keys,
            array_agg(p.state = 'suspect' ORDER BY l.id) FILTER (WHERE l.id IS NOT NULL) AS suspects,
            (SELECT extract(epoch FROM g.since - now())::float8 + $4 FROM garbage g
             WHERE g.kind = 'blob link' AND g.repository_id = r.id AND g.object_id = b.id) AS stays
        FROM repository r JOIN repository_blob rb ON rb.repository_id = r.id JOIN blob b ON b.id = rb.blob_id
        LEFT JOIN placement p ON p.blob_id = b.id LEFT JOIN location l ON l.id = p.location_id
        WHERE r.name = $1 AND b.digest = $2 GROUP BY b.id, r.id
        """,
        repository,
        digest,
        pieces,
        grace,
    )
    if row is None:
        return None
    placements = zip(row["locations"] or (), row["keys"] or (), row["suspects"] or (), strict=True)
    return FoundBlob(
        Blob(row["id"], digest, row["size"], row["pieces"]),
        tuple(Placement(location, key, suspect) for location, key, suspect in placements),
        row["stays"],
    )


async def prolong_blob(database: Database, repository: str, digest: str) -> None:
    """Begin the grace of a blob that is a candidate of collection anew. Waits for a collector that has it: look again then."""
    await database.fetch(
        """
        UPDATE garbage g SET since = now() FROM repository r, blob b
        WHERE r.name = $1 AND b.digest = $2 AND g.kind = 'blob link' AND g.repository_id = r.id AND g.object_id = b.id
        """,
        repository,
        digest,
    )
