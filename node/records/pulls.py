"""What a blob pull needs to know: that the repository has it, and where its copies are. One statement each."""

from collections.abc import Sequence

from attrs import frozen

from node.records.postgres import Database, Reads, Row
from replication.model import Blob, Placement


@frozen
class FoundBlob:
    """A blob as a repository sees it, with all its placements. `blob.pieces` is None unless they were asked for, or few."""

    blob: Blob
    placements: tuple[Placement, ...]
    stays: float | None = None
    """Seconds for which the repository surely keeps it, below zero when it may go at any moment; None: longer than any grace."""


_FEW = 4 << 20
"""Bytes, the most that REDIRECT_MINIMUM_SIZE may be: what the node may read right away comes with its pieces, which are few."""


def _found(which: str) -> str:
    """Return the statement that looks blobs up; $1 is the repository, $2 the digests, $3 whether pieces, $4 the grace."""
    return f"""
        SELECT b.id, b.digest, b.size, CASE WHEN $3 OR b.size <= {_FEW} THEN b.pieces END AS pieces,
            CASE WHEN $3 OR b.size <= {_FEW} THEN b.macs END AS macs,
            array_agg(l.name ORDER BY l.id) FILTER (WHERE l.id IS NOT NULL) AS locations,
            array_agg(p.key ORDER BY l.id) FILTER (WHERE l.id IS NOT NULL) AS keys,
            array_agg(p.state = 'suspect' ORDER BY l.id) FILTER (WHERE l.id IS NOT NULL) AS suspects,
            (SELECT extract(epoch FROM g.since - now())::float8 + $4 FROM garbage g
             WHERE g.kind = 'blob link' AND g.repository_id = r.id AND g.object_id = b.id) AS stays
        FROM repository r JOIN repository_blob rb ON rb.repository_id = r.id JOIN blob b ON b.id = rb.blob_id
        LEFT JOIN placement p ON p.blob_id = b.id LEFT JOIN location l ON l.id = p.location_id
        WHERE r.name = $1 AND b.digest {which} GROUP BY b.id, r.id
        """  # noqa: S608


_ONE, _SEVERAL = _found("= $2"), _found("= ANY($2::text[])")


async def find_blob(database: Reads, repository: str, digest: str, *, pieces: bool, grace: float) -> FoundBlob | None:
    """Look a blob up in a repository, with its pieces and their MACs (48 bytes per MiB) if `pieces`. None: not in this repository.

    `grace` (GARBAGE_GRACE, seconds) says how long it stays if it is a candidate of collection.
    """
    row = await database.fetch_row(_ONE, repository, digest, pieces, grace)
    return None if row is None else _blob(row)


async def find_blobs(
    database: Database, repository: str, digests: Sequence[str], *, grace: float
) -> Sequence[FoundBlob]:
    """Look several blobs up in a repository, without the piece digests of large ones; those that it has, in any order."""
    return [_blob(row) for row in await database.fetch(_SEVERAL, repository, list(digests), False, grace)]


def _blob(row: Row) -> FoundBlob:
    placements = zip(row["locations"] or (), row["keys"] or (), row["suspects"] or (), strict=True)
    return FoundBlob(
        Blob(row["id"], row["digest"], row["size"], row["pieces"], row["macs"]),
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
