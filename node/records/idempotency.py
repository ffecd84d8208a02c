"""What became of requests with an idempotency key: found and noted by the statement that does it, let go after a day."""

from uuid import UUID

from attrs import frozen

from node.records.postgres import Database

KEPT = 86400.0
"""Seconds. A node that stood still for longer might do what was done elsewhere meanwhile."""

_BATCH = 1000


def seen(key: str) -> str:
    """Return the part of a WITH that has a row where the request with the id in a parameter (uuid, or NULL for none) has ended.

    It was done where that is `moved`, and else refused.
    """
    return f"seen AS (SELECT moved FROM idempotency_key WHERE id = {key}::uuid AND (moved OR refused))"  # noqa: S608  # constants of the callers


def first(key: str, moves: str, source: str) -> str:
    """Return the part of a WITH that has a row where nobody has done yet what is to be done for each row of `source`.

    It waits for whoever is doing or refusing it, whose row it may not have seen: `how_it_ended` tells which. `moves` is a boolean.
    Nothing may be done without its row unless the id is NULL.
    """
    return f"""
        first AS (
            INSERT INTO idempotency_key AS k (id, moved) SELECT {key}::uuid, {moves} FROM {source} WHERE {key}::uuid IS NOT NULL
            ON CONFLICT (id) DO UPDATE SET moved = true WHERE NOT k.moved AND NOT k.refused AND excluded.moved RETURNING k.id)
    """  # noqa: S608  # likewise


@frozen
class Ended:
    """How a request has ended: done by one of its tries, or refused."""

    done: bool


async def how_it_ended(database: Database, once: UUID) -> Ended | None:
    """Return how a request has ended, None if it has not. Raises DatabaseUnavailable."""
    row = await database.fetch_row(f"WITH {seen('$1')} SELECT moved FROM seen", once)  # noqa: S608  # likewise
    return None if row is None else Ended(row["moved"])


async def refuse(database: Database, once: UUID) -> bool:
    """Let no try of a request do it any more; False where one has done it. Raises DatabaseUnavailable.

    It waits for one that is at work.
    """
    row = await database.fetch_row(
        "INSERT INTO idempotency_key AS k (id, moved, refused) SELECT $1, false, true WHERE in_time($0) "
        "ON CONFLICT (id) DO UPDATE SET refused = true WHERE NOT k.moved RETURNING id",
        once,
    )
    return row is not None


async def drop_old_keys(database: Database, older: float = KEPT) -> int:
    """Let go what was done longer ago than so many seconds; return how many went. Raises DatabaseUnavailable."""
    dropped = 0
    while True:
        rows = await database.fetch(
            "DELETE FROM idempotency_key WHERE id IN (SELECT id FROM idempotency_key "
            "WHERE at < now() - $1 * interval '1 second' ORDER BY at LIMIT $2 FOR UPDATE SKIP LOCKED) RETURNING id",
            older,
            _BATCH,
        )
        dropped += len(rows)
        if len(rows) < _BATCH:
            return dropped
