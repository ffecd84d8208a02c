"""Regions inside the test's process; `tests/registry/world.py` says how they are used."""

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import trio
from attrs import evolve

from engines import parse_engine
from engines.crossing import open_bridge
from node import hints as hint_lines
from node.assembly import assemble
from node.cache import Freshness
from node.config.settings import LocationSettings, Settings
from node.hints import open_hints
from node.records.members import Membership, enrol_locations
from node.records.migrate import migrate
from node.records.postgres import Database, open_database
from node.supervisor import _listen
from replication.watcher import probe_keys
from tests.faulty_engine import FaultyEngine
from tests.registry.world import MakeWorld, Region
from tests.services import Store, fresh_database, required


@pytest.fixture(scope="session")
def migrated_uri() -> Iterator[str]:
    """A database with the schema, for all tests of this folder, emptied before each."""

    async def prepare(uri: str) -> None:
        async with open_bridge(), open_database(uri) as database:
            await migrate(database)

    with fresh_database(required("ANTIPODE_TEST_POSTGRES")) as uri:
        trio.run(prepare, uri)
        yield uri


@pytest.fixture
async def database(migrated_uri: str) -> AsyncIterator[Database]:
    """The migrated database, empty."""
    async with open_bridge(), open_database(migrated_uri) as opened:
        tables = await opened.fetch(
            "SELECT string_agg(quote_ident(tablename), ', ') AS names FROM pg_tables "
            "WHERE schemaname = 'public' AND tablename <> 'schema_version'"
        )
        await opened.fetch(f"TRUNCATE {tables[0]['names']} RESTART IDENTITY CASCADE")
        yield opened


PATIENCE = 30.0
"""Seconds that a statement may take in these tests: what a busy machine takes for it, where none is to be given up."""
_HINT_PATIENCE = 20.0
"""Seconds that the hints' line may take for an answer: each loss makes a node forget everything, and ask the database again."""


async def _run(settings: Settings, patience: float, *, task_status: trio.TaskStatus[Region]) -> None:
    """Be a node without its scheduler, janitor and HTTP edge, until cancelled."""
    member = Membership(uuid4(), settings.preference, settings.default_locations, "test")
    async with AsyncExitStack() as stack:
        own = await stack.enter_async_context(open_database(settings.database_uri, deadline=patience))
        rows = await enrol_locations(own, list(settings.locations), settings.default_locations)
        hints = await stack.enter_async_context(open_hints(None, settings.database_uri, str(member.id)))
        engines = {name: await stack.enter_async_context(at.engine.open()) for name, at in settings.locations.items()}
        for name, engine in engines.items():
            await engine.put(probe_keys(engine.prefix, "-").marker, rows[name].marker.encode())
        node = assemble(settings, own, hints, engines, rows, member)
        freshness = Freshness(settings.metadata_staleness, settings.metadata_grace)
        services = await stack.enter_async_context(trio.open_nursery())
        await node.mac_keyring.refresh()
        await node.access.open()
        await services.start(node.access.run)
        await services.start(partial(_listen, node, freshness))
        await services.start(node.watcher.run)
        await services.start(node.upload_spool.run)
        await services.start(node.tees.run)
        await node.watcher.first_round()
        with trio.fail_after(60):
            await hints.wait_connected()
        breakable = {name: engine for name, engine in engines.items() if isinstance(engine, FaultyEngine)}
        task_status.started(Region(node, node.registry(freshness), breakable))
        await trio.sleep_forever()


@pytest.fixture
async def world(
    database: Database,
    migrated_uri: str,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[MakeWorld]:
    """A function that assembles regions over one database; each has its own pool, caches and hints, as on hosts of their own."""
    for name in ("CONNECT_SECONDS", "ANSWER_SECONDS"):
        monkeypatch.setattr(hint_lines, name, _HINT_PATIENCE)
    async with trio.open_nursery() as regions:

        async def make(*preferences: str, ceph: bool = False, patience: float = PATIENCE, **given: Any) -> list[Region]:
            names = sorted({name for preference in preferences for name in preference.split()})
            specs = {name: parse_engine("LocalStorage", {"storage_path": str(tmp_path / name)}) for name in names}
            if ceph:
                stores: dict[str, Store] = request.getfixturevalue("s3_stores")
                path: str = request.getfixturevalue("storage_path")
                specs = {name: parse_engine(*stores[name].configuration(f"{path}/{name}")) for name in names}
            shared = Settings(
                server_hostname="registry.test",
                database_uri=migrated_uri,
                locations={
                    name: LocationSettings(name, evolve(spec, wrap=FaultyEngine)) for name, spec in specs.items()
                },
                preference=(),
                default_locations=tuple(names),
                replicate=True,
                open_registry=True,
            )
            return [
                await regions.start(
                    _run, evolve(shared, **{"preference": tuple(preference.split()), **given}), patience
                )
                for preference in preferences
            ]

        yield make
        regions.cancel_scope.cancel()


@pytest.fixture
async def us(world: MakeWorld) -> Region:
    """One region alone, on a folder."""
    (region,) = await world("us")
    return region
