"""An empty world for every crash: one migrated database, emptied each time, and stores in memory."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import pytest
import trio
from attrs import evolve

from engines.crossing import open_bridge
from node.config.settings import Settings
from node.records.members import enrol_locations
from node.records.migrate import migrate
from node.records.postgres import open_database
from tests.crash.harness import LOCATIONS, World
from tests.services import fresh_database, required

MakeWorld = Callable[[], Awaitable[World]]

SETTINGS = Settings(
    open_registry=True,
    server_hostname="registry.test",
    database_uri="",
    locations={},
    preference=LOCATIONS,
    default_locations=LOCATIONS,
    replicate=True,
    proxy_storage=True,
    part_size=1 << 20,
    # A third of it is copied in one piece: here a part.
    part_memory=3 << 20,
    metadata_staleness=0.0,
)


@pytest.fixture(scope="module")
def migrated_uri() -> Iterator[str]:
    """A database with the schema."""

    async def prepare(uri: str) -> None:
        async with open_bridge(), open_database(uri) as database:
            await migrate(database)
            await enrol_locations(database, list(LOCATIONS), LOCATIONS)

    with fresh_database(required("ANTIPODE_TEST_POSTGRES")) as uri:
        trio.run(prepare, uri)
        yield uri


@pytest.fixture
async def make_world(migrated_uri: str) -> AsyncIterator[MakeWorld]:
    """A function that returns a world without a blob."""
    async with open_bridge(), open_database(migrated_uri) as database:
        rows = await enrol_locations(database, list(LOCATIONS), LOCATIONS)

        async def make() -> World:
            # Deleting a handful of rows is quicker than truncating thirty tables. Order: what refers goes first.
            for table in (
                "upload",
                "task",
                "tag_history",
                "repository",
                "placement",
                "dead_object",
                "manifest",
                "blob",
            ):
                await database.fetch(f"DELETE FROM {table}")  # noqa: S608 - names of this list
            for table in ("namespace", "garbage", "sole_copy", "sole_total", "node"):
                await database.fetch(f"DELETE FROM {table}")  # noqa: S608 - likewise
            await database.fetch("UPDATE location SET state = 'active'")
            return World(database, evolve(SETTINGS, database_uri=migrated_uri), rows)

        yield make
