"""What the database knows of every location in numbers, for metrics: debt, risk, dead objects, uploads. One statement."""

from attrs import frozen

from node.records.postgres import Database
from replication.plan import STALLED_AFTER


@frozen
class LocationTotals:
    """One location's numbers as of one moment. Ages in seconds by the database's clock."""

    location: str
    debt_blobs: int
    """Copies that are owed to it."""
    debt_bytes: int
    oldest_debt: float
    """Age of the oldest debt, 0 if there is none."""
    stalled: int
    """Copies that failed so often that they count as stalled."""
    dead_objects: int
    """Objects that wait to be deleted, those whose time has not come included."""
    dead_failing: int
    """Dead objects that a store could not delete at least once."""
    uploads: int
    """Uploads that are open there."""
    sole_blobs: int
    """Blobs whose only good copy is there."""
    sole_bytes: int


async def look_at_totals(database: Database, deadline: float = 10.0) -> tuple[LocationTotals, ...]:
    """Return the totals of every location that is not removed. Raises DatabaseUnavailable.

    Debt is what the task table schedules: the reconciler keeps that equal to required minus present. Risk comes from maintained
    counts; everything else is as long as what is waiting, and short when all is well.
    """
    rows = await database.fetch(
        """
        SELECT l.name, coalesce(t.blobs, 0) AS debt_blobs, coalesce(t.bytes, 0)::bigint AS debt_bytes,
            greatest(0, coalesce(extract(epoch FROM now() - t.oldest), 0))::float8 AS oldest_debt,
            coalesce(t.stalled, 0) AS stalled,
            coalesce(d.objects, 0) AS dead_objects, coalesce(d.failing, 0) AS dead_failing, coalesce(u.uploads, 0) AS uploads,
            greatest(0, coalesce(s.blobs, 0))::bigint AS sole_blobs, greatest(0, coalesce(s.bytes, 0))::bigint AS sole_bytes
        FROM location l
        LEFT JOIN (
            SELECT location_id, count(*) AS blobs, sum(size) AS bytes, min(created_at) AS oldest,
                count(*) FILTER (WHERE attempts >= $1) AS stalled FROM task GROUP BY location_id) t ON t.location_id = l.id
        LEFT JOIN (
            SELECT location_id, count(*) AS objects, count(*) FILTER (WHERE attempts > 0) AS failing
            FROM dead_object GROUP BY location_id) d ON d.location_id = l.id
        LEFT JOIN (SELECT location_id, count(*) AS uploads FROM upload GROUP BY location_id) u ON u.location_id = l.id
        LEFT JOIN (
            SELECT location_id, sum(blobs) AS blobs, sum(bytes) AS bytes FROM sole_total GROUP BY location_id) s
            ON s.location_id = l.id
        WHERE l.state <> 'removed' ORDER BY l.name
        """,
        STALLED_AFTER,
        deadline=deadline,
    )
    return tuple(LocationTotals(location=row["name"], **{k: v for k, v in row.items() if k != "name"}) for row in rows)
