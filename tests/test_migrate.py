"""The schema goes into a database of its own."""

import pytest
import trio

from engines.crossing import open_bridge
from node.records.migrate import migrate
from node.records.postgres import Database, DatabaseMisconfigured, open_database


def test_the_database_of_another_program_is_refused_and_left_alone(database_uri: str) -> None:
    """Whoever comes with Quay's whole file reads in one line that its database is no database for this; nothing is made in it."""

    async def prepare(database: Database) -> None:
        await database.fetch("CREATE TABLE repository (id integer)")
        await database.fetch("CREATE TABLE alembic_version (version_num text)")
        with pytest.raises(
            DatabaseMisconfigured, match=r"tables of another program \(repository\): name an empty database"
        ):
            await migrate(database)
        rows = await database.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY 1")
        assert [row["tablename"] for row in rows] == ["alembic_version", "repository"]
        await database.fetch("DROP TABLE repository")
        assert await migrate(database), "others' tables do no harm by other names"
        assert not await migrate(database)

    async def main() -> None:
        async with open_bridge(), open_database(database_uri, most=1) as database:
            await prepare(database)

    trio.run(main)
