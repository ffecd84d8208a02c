"""Time goes by at once: every time in the tables moves into the past. And collection until nothing is left to do."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from node.records.collect import KINDS, CollectRules, Removed, collect_batch, expire_history
from node.records.postgres import Database

HOUR = 3600.0

Later = Callable[[float], Awaitable[None]]
"""Lets hours go by."""

_TIMES = {
    "garbage": ("since",),
    "tag": ("since",),
    "tag_history": ("since", "until"),
    "dead_object": ("not_before",),
    "task": ("due_at", "created_at", "lease_until"),
    "upload": ("created_at", "updated_at", "expires_at"),
}


async def pass_time(database: Database, seconds: float) -> None:
    """Let this much time go by for all that the tables remember, without a trigger's noticing."""
    moves = [
        f"UPDATE {table} SET {', '.join(f'{column} = {column} - {seconds} * interval $$1 second$$' for column in columns)}"  # noqa: S608
        for table, columns in _TIMES.items()
    ]

    await without_triggers(database, moves)


async def without_triggers(database: Database, statements: Sequence[str]) -> None:
    """Run statements in one transaction as a replica would: no trigger fires, no foreign key is checked."""

    async def steps(connection: Any) -> None:
        await connection.execute("SET LOCAL session_replication_role = replica")
        await connection.execute("; ".join(statements))

    await database.script(7, steps, 30.0)


async def collect_all(database: Database, rules: CollectRules, *, most: int = 100) -> Sequence[Removed]:
    """Collect until a whole round finds nothing to do; return what went, in its order."""
    removed: list[Removed] = []
    while True:
        looked_at = await expire_history(database, rules)
        for kind in KINDS:
            batch = await collect_batch(database, kind, rules, most)
            assert not batch.paused
            removed += batch.removed
            looked_at += batch.looked_at
        if not looked_at:
            return removed
