"""Locations as operators see and change them: active, paused, draining, drained, removed. One statement each."""

from collections.abc import Mapping, Sequence
from enum import Enum

from attrs import frozen

from node.records.debt import STUCK
from node.records.postgres import Database
from replication.model import LocationState

_SECONDS = 30.0


@frozen
class LocationLine:
    """A location with what is there. Counts of blobs, sizes in bytes."""

    name: str
    state: LocationState
    default: bool
    """Whether the database's default list has it."""
    blobs: int
    sole_blobs: int
    """Blobs whose only good copy is here."""
    sole_bytes: int
    suspect_blobs: int
    """Blobs here of which no copy is trusted anywhere; they are copied where their bytes turn out to be right."""
    stuck_blobs: int
    """While it is being emptied: blobs that nothing can move: all copies are stalled, or policies forbid every other location."""
    unproven: int
    """While it is being emptied: blobs without a copy elsewhere that was made, or read and right, since that began."""
    owed_blobs: int
    owed_bytes: int
    uploads: int
    dead_objects: int


async def list_locations(database: Database) -> Sequence[LocationLine]:
    """Return all locations, removed ones too, by name."""
    rows = await database.fetch(
        f"""
        SELECT l.name, l.state, d.location_id IS NOT NULL AS is_default, coalesce(p.blobs, 0) AS blobs,
            coalesce(s.blobs, 0)::bigint AS sole_blobs, coalesce(s.bytes, 0)::bigint AS sole_bytes,
            coalesce(b.blobs, 0) AS suspect_blobs,
            CASE WHEN l.state IN ('draining', 'drained') THEN (SELECT count(*) FROM ({STUCK}) stuck) ELSE 0 END AS stuck_blobs,
            CASE WHEN l.state IN ('draining', 'drained') THEN unproven_at(l.id) ELSE 0 END AS unproven,
            coalesce(t.blobs, 0) AS owed_blobs, coalesce(t.bytes, 0)::bigint AS owed_bytes,
            coalesce(u.uploads, 0) AS uploads, coalesce(o.objects, 0) AS dead_objects
        FROM location l LEFT JOIN default_location d ON d.location_id = l.id
        LEFT JOIN (SELECT location_id, count(*) AS blobs FROM placement GROUP BY 1) p ON p.location_id = l.id
        LEFT JOIN (SELECT location_id, sum(blobs) AS blobs, sum(bytes) AS bytes FROM sole_total GROUP BY 1) s
            ON s.location_id = l.id
        LEFT JOIN (SELECT p.location_id, count(*) AS blobs FROM placement p WHERE p.state = 'suspect' AND NOT EXISTS (
            SELECT FROM placement q WHERE q.blob_id = p.blob_id AND q.state = 'present') GROUP BY 1) b ON b.location_id = l.id
        LEFT JOIN (SELECT location_id, count(*) AS blobs, sum(size) AS bytes FROM task GROUP BY 1) t ON t.location_id = l.id
        LEFT JOIN (SELECT location_id, count(*) AS uploads FROM upload GROUP BY 1) u ON u.location_id = l.id
        LEFT JOIN (SELECT location_id, count(*) AS objects FROM dead_object GROUP BY 1) o ON o.location_id = l.id
        ORDER BY l.name
        """,  # noqa: S608  # a constant
        deadline=_SECONDS,
    )
    return [
        LocationLine(
            row["name"],
            LocationState(row["state"]),
            row["is_default"],
            row["blobs"],
            row["sole_blobs"],
            row["sole_bytes"],
            row["suspect_blobs"],
            row["stuck_blobs"],
            row["unproven"],
            row["owed_blobs"],
            row["owed_bytes"],
            row["uploads"],
            row["dead_objects"],
        )
        for row in rows
    ]


class Change(Enum):
    """What became of a request to change a location."""

    DONE = "done"
    UNKNOWN = "unknown"
    """There is no such location."""
    REFUSED = "refused"
    """It is not in a state from which that is possible."""
    ONLY_COPIES = "only copies"
    """Blobs have their only copy there, or no copy elsewhere that was made or read since it is being emptied."""
    ANOTHER_REMOVAL = "another removal"
    """The rows of another removed location are still being taken away."""


@frozen
class Changed:
    """The outcome with the state before it; `blobs` is how many would be lost, as far as anybody knows."""

    outcome: Change
    before: LocationState | None = None
    blobs: int = 0


_FROM: Mapping[LocationState, tuple[LocationState, ...]] = {
    LocationState.ACTIVE: (
        LocationState.PAUSED,
        LocationState.DRAINING,
        LocationState.DRAINED,
        LocationState.REMOVED,
    ),
    LocationState.PAUSED: (LocationState.ACTIVE,),
    # One that is drained is so again at once: a drain, too, may be asked for twice.
    LocationState.DRAINING: (LocationState.ACTIVE, LocationState.PAUSED, LocationState.DRAINED),
}
"""From which states a location may come into this one by hand. The state itself is always fine: the request is repeated."""


async def set_state(database: Database, name: str, state: LocationState) -> Changed:
    """Make a location active, paused or draining, if that is possible from where it is.

    A removed one becomes active again only when the rows of its copies are gone. Never leaves the registry without an active
    location.
    """
    allowed = [state.value, *(before.value for before in _FROM[state])]
    row = await database.fetch_row(
        """
        WITH every AS (SELECT id, name, state FROM location ORDER BY id FOR NO KEY UPDATE),
        before AS (
            SELECT id, state, state = ANY($3::text[])
                AND ($2 = 'active' OR EXISTS (SELECT FROM every e WHERE e.name <> $1 AND e.state = 'active'))
                AND (state <> 'removed' OR NOT EXISTS (SELECT FROM placement p WHERE p.location_id = every.id)) AS ok
            FROM every WHERE name = $1),
        done AS (UPDATE location l SET state = $2 FROM before WHERE l.id = before.id AND before.ok AND l.state <> $2
            AND in_time($0))
        SELECT state, ok FROM before
        """,
        name,
        state.value,
        allowed,
    )
    if row is None:
        return Changed(Change.UNKNOWN)
    return Changed(Change.DONE if row["ok"] else Change.REFUSED, LocationState(row["state"]))


async def remove_location(database: Database, name: str) -> Changed:
    """Take a draining or drained location out for good, unless a blob may have its only good copy there.

    Its bucket is left as it is. Its rows go in batches afterwards: `purge_removed`. Repeating it is harmless.
    """
    row = await database.fetch_row("SELECT * FROM remove_location($1) WHERE in_time($0)", name, deadline=_SECONDS)
    assert row is not None
    outcome = {
        "removed": Change.DONE,
        "unknown": Change.UNKNOWN,
        "not drained": Change.REFUSED,
        "only copies": Change.ONLY_COPIES,
        "another removal": Change.ANOTHER_REMOVAL,
    }[row["outcome"]]
    return Changed(outcome, blobs=row["blobs"] if outcome is Change.ONLY_COPIES else 0)


async def purge_removed(database: Database, most: int = 2000) -> int:
    """Take away rows of removed locations, up to `most` each of copies and dead objects; return how many went."""
    row = await database.fetch_row(
        """
        WITH out AS (SELECT id FROM location WHERE state = 'removed'),
        few AS (
            SELECT p.blob_id, p.location_id FROM out JOIN placement p ON p.location_id = out.id JOIN blob b ON b.id = p.blob_id
            LIMIT $1 FOR NO KEY UPDATE OF b SKIP LOCKED FOR UPDATE OF p SKIP LOCKED),
        placements AS (
            DELETE FROM placement p USING few f WHERE p.blob_id = f.blob_id AND p.location_id = f.location_id RETURNING 1),
        dead AS (
            DELETE FROM dead_object WHERE id IN (
                SELECT d.id FROM out JOIN dead_object d ON d.location_id = out.id LIMIT $1 FOR UPDATE OF d SKIP LOCKED)
            RETURNING 1),
        tasks AS (DELETE FROM task t USING (
            SELECT t.blob_id, t.location_id FROM out JOIN task t ON t.location_id = out.id FOR UPDATE OF t SKIP LOCKED) few
            WHERE t.blob_id = few.blob_id AND t.location_id = few.location_id RETURNING 1),
        wishes AS (DELETE FROM wanted w USING (
            SELECT w.blob_id, w.location_id FROM out JOIN wanted w ON w.location_id = out.id FOR UPDATE OF w SKIP LOCKED) few
            WHERE w.blob_id = few.blob_id AND w.location_id = few.location_id RETURNING 1),
        manifests AS (DELETE FROM manifest_object o USING (
            SELECT o.location_id, o.key FROM out JOIN manifest_object o ON o.location_id = out.id FOR UPDATE OF o SKIP LOCKED) few
            WHERE o.location_id = few.location_id AND o.key = few.key RETURNING 1),
        journals AS (DELETE FROM journal_object o WHERE o.id IN (
            SELECT o.id FROM out JOIN journal_object o ON o.location_id = out.id FOR UPDATE OF o SKIP LOCKED) RETURNING 1)
        SELECT (SELECT count(*) FROM placements) + (SELECT count(*) FROM dead) + (SELECT count(*) FROM tasks)
            + (SELECT count(*) FROM wishes) + (SELECT count(*) FROM manifests) + (SELECT count(*) FROM journals) AS gone
        """,
        most,
        deadline=_SECONDS,
    )
    assert row is not None
    return int(row["gone"])


async def note_drained(database: Database) -> Sequence[str]:
    """Make draining locations drained where each blob has a proven copy elsewhere, and drained ones draining where one has not.

    Returns the names of those that became drained. What was read is forgotten, a few rows at a time, while nothing is emptied.
    """
    rows = await database.fetch(
        """
        WITH idle AS (
            DELETE FROM proven_copy WHERE (blob_id, location_id) IN (
                SELECT blob_id, location_id FROM proven_copy
                WHERE NOT EXISTS (SELECT FROM location WHERE state IN ('draining', 'drained')) LIMIT 2000 FOR UPDATE SKIP LOCKED)),
        looked AS (
            SELECT l.id, l.state, CASE WHEN only_at(l.id) > 0 THEN 1 ELSE unproven_at(l.id) END AS blobs
            FROM location l WHERE l.state IN ('draining', 'drained')),
        held AS (
            SELECT id FROM location WHERE id IN (SELECT id FROM looked WHERE (blobs = 0) <> (state = 'drained'))
            ORDER BY id FOR NO KEY UPDATE),
        changed AS (
            UPDATE location l SET state = CASE WHEN looked.blobs = 0 THEN 'drained' ELSE 'draining' END
            FROM looked JOIN held USING (id)
            WHERE l.id = looked.id AND l.state = looked.state AND (looked.blobs = 0) <> (l.state = 'drained')
            RETURNING l.name, l.state)
        SELECT name FROM changed WHERE state = 'drained' ORDER BY name
        """,
        deadline=_SECONDS,
    )
    return [row["name"] for row in rows]


async def only_copies(database: Database, name: str) -> tuple[int, int]:
    """Return how many blobs have no good copy outside a location, and how many of these have none there either."""
    row = await database.fetch_row(
        """
        SELECT only_at(l.id) AS blobs, (
            SELECT count(*) FROM placement p WHERE p.location_id = l.id AND p.state = 'suspect' AND NOT EXISTS (
                SELECT FROM placement q WHERE q.blob_id = p.blob_id AND q.state = 'present')) AS suspect
        FROM location l WHERE l.name = $1
        """,
        name,
    )
    return (0, 0) if row is None else (int(row["blobs"]), int(row["suspect"]))


async def apply_defaults(database: Database, names: Sequence[str]) -> bool:
    """Make these the database's default locations at once; return whether that changed anything."""
    row = await database.fetch_row(
        """
        WITH named AS (SELECT id FROM location WHERE name = ANY($1::text[])),
        gone AS (DELETE FROM default_location d WHERE d.location_id NOT IN (SELECT id FROM named) RETURNING 1),
        new AS (INSERT INTO default_location (location_id) SELECT id FROM named ON CONFLICT DO NOTHING RETURNING 1)
        SELECT EXISTS (SELECT FROM gone) OR EXISTS (SELECT FROM new) AS changed
        """,
        list(names),
    )
    assert row is not None
    return bool(row["changed"])
