"""Brings the database's schema up to this release: numbered files, one transaction, one advisory lock for all nodes."""

import re
from collections.abc import Sequence
from importlib import resources
from typing import Any

from attrs import frozen

from node.records.postgres import Database, DatabaseMisconfigured

_LOCK = 0x616E7469  # "anti": the same for every node that shares the database
_FILE = re.compile(r"^(\d{4})_(\w+)\.sql$")
_TABLE = re.compile(r"^CREATE (?:UNLOGGED )?TABLE (\w+)", re.MULTILINE)
_TAKEN = "SELECT name FROM unnest($1::text[]) AS name WHERE to_regclass(name) IS NOT NULL ORDER BY name"


@frozen
class Migration:
    """One file of the schema folder."""

    number: int
    name: str
    sql: str


def migrations() -> Sequence[Migration]:
    """Return the release's migrations in order."""
    found = []
    for entry in resources.files("node.records.schema").iterdir():
        match = _FILE.match(entry.name)
        if match:
            found.append(Migration(int(match[1]), match[2], entry.read_text(encoding="utf-8")))
    return sorted(found, key=lambda migration: migration.number)


def _made_by(numbered: Sequence[Migration]) -> Sequence[str]:
    """Return the names of the tables that migrations make."""
    return sorted({name for migration in numbered for name in _TABLE.findall(migration.sql)})


async def migrate(database: Database, deadline: float = 120.0) -> Sequence[str]:
    """Apply what is missing and return its names. Safe with several nodes starting at once: one does it, the others wait.

    A database that is ahead of this release is left as it is: schemas expand first, so an older node works on it.
    Raises DatabaseUnavailable, and DatabaseMisconfigured for the database of another program.
    """
    numbered = migrations()

    async def steps(connection: Any) -> Sequence[str]:
        first = await connection.fetchval("SELECT to_regclass('schema_version') IS NULL")
        await connection.execute(
            "CREATE TABLE IF NOT EXISTS schema_version "
            "(number integer PRIMARY KEY, name text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now())"
        )
        # Left alone, as a script is all or nothing. Quay's has most of these names.
        if first and (taken := [row["name"] for row in await connection.fetch(_TAKEN, _made_by(numbered))]):
            raise DatabaseMisconfigured(
                f"it has tables of another program ({', '.join(taken[:5])}): name an empty database; Quay's cannot be taken over"
            )
        done = {row["number"] for row in await connection.fetch("SELECT number FROM schema_version")}
        applied = []
        for migration in numbered:
            if migration.number not in done:
                # A large table takes longer than a statement of a request may.
                await connection.execute(migration.sql, timeout=deadline)
                await connection.execute(
                    "INSERT INTO schema_version (number, name) VALUES ($1, $2)", migration.number, migration.name
                )
                applied.append(f"{migration.number:04}_{migration.name}")
        return applied

    return await database.script(_LOCK, steps, deadline)
