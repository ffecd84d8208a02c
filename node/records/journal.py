"""The journal as debt: what is noted and not yet in a location's store, claimed by one node at a time. One statement each."""

import json
from collections.abc import Sequence
from uuid import UUID

from attrs import field, frozen

from node.journal.facts import Entry
from node.records.postgres import Database, Row

_BATCH = 2000
_BATCHES_AT_ONCE = 10
_MOST_BEHIND = 20_000
"""Batches; beyond that a location begins again with a snapshot."""
_SECONDS = 30.0


async def seal(database: Database) -> int:
    """Give what was noted since its place in the order, and forget what every active location has; return how many entries."""
    total, sealed = 0, _BATCH
    while sealed == _BATCH:
        row = await database.fetch_row("SELECT seal_journal($1, $2) AS sealed", _BATCH, _MOST_BEHIND, deadline=_SECONDS)
        assert row is not None
        sealed = int(row["sealed"])
        total += sealed
    return total


@frozen
class Turn:
    """A claim on one location's journal. Times are POSIX seconds by the database's clock."""

    location: str
    lease: UUID
    now: float
    snapshot_at: float | None
    """When its last complete snapshot was begun, None if it has none."""
    started_at: float | None
    """When the snapshot was begun that is being written."""
    cursor: str | None
    """How far that one is, as JSON."""
    paused: bool
    """Whether the database may be older than the journals (`node.records.collect.read_pause`)."""
    marker: str
    """What the location's store must bear."""


async def claim_journal(database: Database, location: str, lease: UUID, seconds: float) -> Turn | None:
    """Become the one that writes a location's journal for so many seconds; None: somebody else is, or it is not active.

    Objects that an earlier writer had begun become dead objects.
    """
    row = await database.fetch_row(
        """
        WITH mine AS (
            UPDATE journal_location jl SET lease = $2, lease_until = now() + $3 * interval '1 second' FROM location l
            WHERE l.name = $1 AND l.state = 'active' AND jl.location_id = l.id
            AND (jl.lease_until IS NULL OR jl.lease_until < now() OR jl.lease = $2) RETURNING jl.*, l.marker),
        begun AS (
            DELETE FROM journal_object o USING mine WHERE o.location_id = mine.location_id AND NOT o.written
            RETURNING o.location_id, o.key),
        dead AS (
            INSERT INTO dead_object (location_id, key, not_before) SELECT location_id, key, now() + interval '1 hour' FROM begun
            ON CONFLICT DO NOTHING)
        SELECT extract(epoch FROM now())::float8 AS now, extract(epoch FROM snapshot_at)::float8 AS snapshot_at,
            extract(epoch FROM started_at)::float8 AS started_at, cursor,
            collection_paused() AS paused, marker::text
        FROM mine
        """,
        location,
        lease,
        seconds,
    )
    if row is None:
        return None
    return Turn(
        location,
        lease,
        row["now"],
        row["snapshot_at"],
        row["started_at"],
        row["cursor"],
        row["paused"],
        row["marker"],
    )


async def renew_journal(database: Database, turn: Turn, seconds: float) -> bool:
    """Keep a claim; False: somebody else has it."""
    return bool(
        await database.fetch(
            "UPDATE journal_location jl SET lease_until = now() + $3 * interval '1 second' FROM location l "
            "WHERE l.name = $1 AND jl.location_id = l.id AND jl.lease = $2 RETURNING 1",
            turn.location,
            turn.lease,
            seconds,
        )
    )


async def release_journal(database: Database, turn: Turn, error: str | None = None) -> None:
    """Give a claim back, with what went wrong."""
    await database.fetch(
        "UPDATE journal_location jl SET lease = NULL, lease_until = NULL, last_error = $3, "
        "failing_since = CASE WHEN $3::text IS NULL THEN NULL ELSE coalesce(failing_since, now()) END FROM location l "
        "WHERE l.name = $1 AND jl.location_id = l.id AND jl.lease = $2",
        turn.location,
        turn.lease,
        error,
    )


@frozen
class Batches:
    """Consecutive batches that a location lacks, and the hour in which the first of them was noted, POSIX seconds."""

    first: int
    last: int
    hour: float
    entries: tuple[Entry, ...] = field(repr=False)


async def next_batches(database: Database, turn: Turn) -> Batches | None:
    """Return the next batches for a location, None when it has them all."""
    rows = await database.fetch(
        """
        SELECT e.batch, e.id, (extract(epoch FROM e.at) * 1000000)::bigint AS at, e.kind, e.name, e.fact,
            extract(epoch FROM date_trunc('hour', e.at))::float8 AS hour
        FROM location l JOIN journal_location jl ON jl.location_id = l.id
        JOIN journal_entry e ON e.batch > jl.written AND e.batch <= jl.written + $3
        WHERE l.name = $1 AND jl.lease = $2 ORDER BY e.batch, e.id
        """,
        turn.location,
        turn.lease,
        _BATCHES_AT_ONCE,
        deadline=_SECONDS,
    )
    if not rows:
        return None
    entries = tuple(entry(row) for row in rows)
    return Batches(rows[0]["batch"], rows[-1]["batch"], min(row["hour"] for row in rows), entries)


def entry(row: Row) -> Entry:
    """Return the entry that a row with id, at, kind, name and fact spells."""
    return Entry(
        row["kind"], row["name"], row["at"], row["id"], None if row["fact"] is None else json.loads(row["fact"])
    )


async def reserve_object(database: Database, turn: Turn, key: str, kind: str, hour: float) -> bool:
    """Commit the key of a journal object before its first byte. False: the claim is lost."""
    return bool(
        await database.fetch(
            "INSERT INTO journal_object (location_id, key, kind, hour) SELECT l.id, $3, $4, to_timestamp($5) "
            "FROM location l JOIN journal_location jl ON jl.location_id = l.id WHERE l.name = $1 AND jl.lease = $2 RETURNING 1",
            turn.location,
            turn.lease,
            key,
            kind,
            hour,
        )
    )


MINE = """
    mine AS (
        SELECT jl.location_id FROM journal_location jl JOIN location l ON l.id = jl.location_id
        WHERE l.name = $1 AND jl.lease = $2 FOR UPDATE OF jl)
"""
"""The location of a claim that is still ours."""

NOTED = """
    noted AS (
        UPDATE journal_object o SET written = true, entries = $4 FROM mine
        WHERE o.location_id = mine.location_id AND o.key = $3 RETURNING o.location_id)
"""
"""Records that the store has an object whose key was reserved."""


async def finish_batches(database: Database, turn: Turn, key: str, entries: int, last: int) -> bool:
    """Record that a location's store has the journal up to the batch `last`. False: the claim is lost, and nothing changed."""
    return bool(
        await database.fetch(
            f"WITH {MINE}, {NOTED} UPDATE journal_location jl SET written = $5, last_error = NULL, failing_since = NULL "  # noqa: S608
            "FROM noted WHERE jl.location_id = noted.location_id RETURNING 1",
            turn.location,
            turn.lease,
            key,
            entries,
            last,
        )
    )


@frozen
class Merge:
    """Batches of one hour that is over, to become one object."""

    hour: float
    keys: tuple[str, ...]


async def next_merge(database: Database, turn: Turn, most_entries: int) -> Merge | None:
    """Return the objects of the oldest hour that is over and has more than one, up to so many entries together."""
    rows = await database.fetch(
        """
        WITH here AS (
            SELECT l.id FROM location l JOIN journal_location jl ON jl.location_id = l.id WHERE l.name = $1 AND jl.lease = $2),
        over AS (
            SELECT o.hour FROM journal_object o JOIN here ON here.id = o.location_id
            WHERE o.kind = 'batch' AND o.written AND o.hour < date_trunc('hour', now())
            GROUP BY o.hour HAVING count(*) > 1 ORDER BY 1 LIMIT 1)
        SELECT q.key, q.hour FROM (
            SELECT o.key, extract(epoch FROM o.hour)::float8 AS hour, o.id, sum(o.entries) OVER (ORDER BY o.id) AS entries
            FROM over JOIN journal_object o ON o.hour = over.hour JOIN here ON here.id = o.location_id
            WHERE o.kind = 'batch' AND o.written) q WHERE q.entries <= $3 ORDER BY q.id
        """,
        turn.location,
        turn.lease,
        most_entries,
    )
    return Merge(rows[0]["hour"], tuple(row["key"] for row in rows)) if len(rows) > 1 else None


async def finish_merge(database: Database, turn: Turn, key: str, entries: int, merged: Sequence[str]) -> bool:
    """Record that one object has replaced others, which die. False: the claim is lost."""
    return bool(
        await database.fetch(
            f"""
            WITH {MINE}, {NOTED},
            gone AS (
                DELETE FROM journal_object o USING noted WHERE o.location_id = noted.location_id AND o.key = ANY($5::text[])
                RETURNING o.location_id, o.key),
            dead AS (
                INSERT INTO dead_object (location_id, key, not_before) SELECT location_id, key, now() + interval '1 hour' FROM gone
                ON CONFLICT DO NOTHING)
            SELECT 1 FROM noted
            """,  # noqa: S608
            turn.location,
            turn.lease,
            key,
            entries,
            list(merged),
        )
    )


async def prune_journal(database: Database, turn: Turn, retention: float) -> int:
    """Let die what a location's journal need not hold any more, and manifests that policy forbids it by now; return how much.

    Hours go when they are older than `retention` seconds and than the last complete snapshot; snapshots when a newer one is
    complete.
    """
    row = await database.fetch_row(
        """
        WITH here AS (
            SELECT jl.location_id AS id, jl.snapshot_at FROM journal_location jl JOIN location l ON l.id = jl.location_id
            WHERE l.name = $1 AND jl.lease = $2 AND NOT collection_paused()),
        gone AS (
            DELETE FROM journal_object o USING here WHERE o.location_id = here.id AND o.written AND (
                (o.kind IN ('page', 'complete') AND o.hour < here.snapshot_at)
                OR (o.kind IN ('batch', 'hour')
                    AND o.hour + interval '2 hours' < least(here.snapshot_at, now() - $3 * interval '1 second')))
            RETURNING o.location_id, o.key),
        dead AS (
            INSERT INTO dead_object (location_id, key, not_before) SELECT location_id, key, now() + interval '1 day' FROM gone
            ON CONFLICT DO NOTHING),
        forbidden AS (
            DELETE FROM manifest_object WHERE (location_id, key) IN (
                SELECT o.location_id, o.key FROM here JOIN manifest_object o ON o.location_id = here.id
                JOIN repository r ON r.id = o.repository_id
                JOIN namespace_never v ON v.namespace_id = r.namespace_id AND v.location_id = here.id FOR UPDATE OF o SKIP LOCKED)
            RETURNING 1)
        SELECT (SELECT count(*) FROM gone) + (SELECT count(*) FROM forbidden) AS gone
        """,
        turn.location,
        turn.lease,
        retention,
        deadline=_SECONDS,
    )
    assert row is not None
    return int(row["gone"])


@frozen
class JournalLag:
    """How far a location's journal is behind the database. Ages in seconds."""

    location: str
    entries: int
    """Changes that its store does not have yet."""
    oldest: float
    """Age of the oldest of them, 0 if there is none."""
    snapshot_age: float | None
    """Since its last complete snapshot was begun, None if it has none."""
    failing: float | None
    """For how long writing has failed, None while it does not."""
    error: str | None


async def journal_lag(database: Database) -> Sequence[JournalLag]:
    """Return the lag of every active location's journal, by name."""
    rows = await database.fetch(
        """
        SELECT l.name, coalesce(e.entries, 0) AS entries, coalesce(e.oldest, 0)::float8 AS oldest,
            extract(epoch FROM now() - jl.snapshot_at)::float8 AS snapshot_age,
            extract(epoch FROM now() - jl.failing_since)::float8 AS failing, jl.last_error
        FROM location l LEFT JOIN journal_location jl ON jl.location_id = l.id
        LEFT JOIN LATERAL (
            SELECT count(*) AS entries, greatest(0, extract(epoch FROM now() - min(e.at))) AS oldest FROM journal_entry e
            WHERE e.batch IS NULL OR e.batch > coalesce(jl.written, 0)) e ON true
        WHERE l.state = 'active' ORDER BY l.name
        """,
        deadline=10.0,
    )
    return [
        JournalLag(row["name"], row["entries"], row["oldest"], row["snapshot_age"], row["failing"], row["last_error"])
        for row in rows
    ]
