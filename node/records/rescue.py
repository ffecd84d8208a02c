"""The beginning and the end of a rescue. One statement each."""

from enum import Enum

from node.records.postgres import Database

_LIVE = 30.0


class Beginning(Enum):
    """Whether a rescue may begin, or go on; otherwise why not, for the operator."""

    BEGUN = "begun"
    NOT_EMPTY = (
        "the database holds a registry: a rescue begins with an empty one. If this one was restored from a backup, "
        "run `antipode repair --after-restore`"
    )
    NODES = "nodes run on this database: stop them, rescue, then start them"


async def begin_rescue(database: Database) -> Beginning:
    """Say that a rescue is at work, which pauses collection, if the database is empty or an earlier rescue was not ended."""
    row = await database.fetch_row(
        """
        WITH facts AS (
            SELECT EXISTS (SELECT FROM node WHERE seen_at > now() - $1 * interval '1 second') AS nodes,
                NOT EXISTS (SELECT FROM bookmark WHERE name = 'rescue')
                AND (EXISTS (SELECT FROM repository) OR EXISTS (SELECT FROM placement) OR EXISTS (SELECT FROM blob)) AS used),
        begun AS (
            INSERT INTO bookmark (name, value) SELECT v.name, v.value::jsonb
            FROM facts, (VALUES ('rescue', '{}'), ('collection', '{"identity": "not looked at to the end"}')) v (name, value)
            WHERE NOT nodes AND NOT used ON CONFLICT (name) DO UPDATE SET value = excluded.value, updated_at = now())
        SELECT nodes, used FROM facts
        """,
        _LIVE,
    )
    assert row is not None
    return Beginning.NODES if row["nodes"] else Beginning.NOT_EMPTY if row["used"] else Beginning.BEGUN


async def end_rescue(database: Database) -> None:
    """Say that the rescue has looked at everything."""
    await database.fetch("DELETE FROM bookmark WHERE name = 'rescue'")
