"""Whose turn it is to replay the journals: whoever began last. What is staged for it is in one table. One statement each."""

from uuid import UUID, uuid4

from node.records.postgres import Database

_SECONDS = 300.0


class Overtaken(Exception):
    """Another repair or rescue has begun on this database since: what this one had staged is gone, and it must conclude nothing."""


async def take_turn(database: Database) -> UUID:
    """Begin: forget what was staged, and return what tells this turn from later ones. Who had the turn is overtaken."""
    turn = uuid4()
    await database.fetch(
        "WITH mine AS (INSERT INTO bookmark (name, value) VALUES ('replay', jsonb_build_object('turn', $1::text)) "
        "ON CONFLICT (name) DO UPDATE SET value = excluded.value, updated_at = now() RETURNING name) "
        "DELETE FROM journal_fact WHERE EXISTS (SELECT FROM mine)",
        str(turn),
        deadline=_SECONDS,
    )
    return turn


async def clear_facts(database: Database, turn: UUID) -> None:
    """Forget what was staged. Raises Overtaken."""
    row = await database.fetch_row(
        "WITH mine AS (SELECT name FROM bookmark WHERE name = 'replay' AND value ->> 'turn' = $1 FOR UPDATE), "
        "gone AS (DELETE FROM journal_fact WHERE EXISTS (SELECT FROM mine)) SELECT EXISTS (SELECT FROM mine) AS mine",
        str(turn),
        deadline=_SECONDS,
    )
    _check(row is not None and row["mine"])


async def check_turn(database: Database, turn: UUID) -> None:
    """Return if nobody has begun since. Raises Overtaken."""
    row = await database.fetch_row(
        "SELECT FROM bookmark WHERE name = 'replay' AND value ->> 'turn' = $1", str(turn), deadline=_SECONDS
    )
    _check(row is not None)


async def resume_after(database: Database, turn: UUID) -> None:
    """Let collection go on with the database as it is now, after a repair or rescue that has looked at everything.

    Raises Overtaken: then collection stays paused for whoever is at it now.
    """
    row = await database.fetch_row(
        """
        WITH mine AS (SELECT name FROM bookmark WHERE name = 'replay' AND value ->> 'turn' = $1 FOR UPDATE)
        INSERT INTO bookmark (name, value) SELECT 'collection', jsonb_build_object('identity', database_identity()) FROM mine
        ON CONFLICT (name) DO UPDATE SET value = excluded.value, updated_at = now() RETURNING name
        """,
        str(turn),
    )
    _check(row is not None)


def _check(mine: bool) -> None:
    if not mine:
        raise Overtaken("another repair or rescue has begun on this database since: let that one end")
