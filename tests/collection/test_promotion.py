"""Another server takes over, or a copy of the database: collection pauses by itself from the first moment, and says why."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from engines.crossing import open_bridge
from node.records.collect import CollectRules, collect_batch, read_pause, resume
from node.records.postgres import Database, open_database
from scripts.services.postgres import Postgres
from tests.replication.world import LOCATIONS, open_world

_AT_ONCE = CollectRules(grace=0, retention=0, tag_expiration=0)
_QUIET = {
    "fsync": "off",
    "wal_level": "replica",
    "hot_standby": "on",
    # No checkpoint comes by itself soon, as on a database that has much to write.
    "checkpoint_timeout": "1h",
    "checkpoint_completion_target": "0.9",
}


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder for two servers, which another user may have to enter; removed afterwards."""
    made = Path(tempfile.mkdtemp(prefix="antipode-promotion-", dir="/tmp"))
    for place in (made, made / "primary", made / "standby"):
        place.mkdir(exist_ok=True)
        place.chmod(0o711)
    yield made
    shutil.rmtree(made, ignore_errors=True)


async def fill(uri: str) -> None:
    """Make a blob that nothing uses, in a fresh database."""
    async with open_world(uri) as world:
        await world.blob("loose", [], list(LOCATIONS))
        await world.one("SELECT count(*) FROM (SELECT note_garbage('blob', '{0}', array_agg(id)) FROM blob) q")
        assert await read_pause(world.database) is None


async def collect(database: Database) -> tuple[bool, int]:
    """Return whether collection is paused, and how many blobs went."""
    batch = await collect_batch(database, "blob", _AT_ONCE)
    return batch.paused, len(batch.removed)


async def check_paused(uri: str) -> None:
    """Nothing is collected and no copy trimmed until somebody says so."""
    async with open_bridge(), open_database(uri) as database:
        reason = await read_pause(database)
        assert reason is not None
        assert "another server has taken over" in reason
        assert await collect(database) == (True, 0)
        assert await resume(database)
        assert await read_pause(database) is None
        assert await collect(database) == (False, 1)


async def test_a_promoted_standby_is_not_collected(folder: Path) -> None:
    """From the moment a standby takes over, before its first checkpoint, nothing is collected on the new timeline."""
    # Not in a thread of Trio's: the kernel ends a service with the thread that started it, here after ten idle seconds.
    primary = Postgres(folder / "primary", settings=_QUIET)
    try:
        await fill(primary.uri)
    finally:
        await trio.to_thread.run_sync(primary.stop)
    data = folder / "standby" / "postgres" / "data"
    await trio.to_thread.run_sync(lambda: _copy(folder / "primary" / "postgres" / "data", data))
    (data / "standby.signal").touch()
    standby = Postgres(folder / "standby", settings=_QUIET)
    try:
        async with open_bridge(), open_database(standby.uri) as database:
            await database.fetch("SELECT pg_promote()")
        await check_paused(standby.uri)
    finally:
        await trio.to_thread.run_sync(standby.stop)


def _copy(source: Path, target: Path) -> None:
    """Copy a stopped cluster's folder with its owners."""
    shutil.copytree(source, target, symlinks=True)
    for place in [target.parent, target, *target.rglob("*")]:
        shutil.chown(place, source.stat().st_uid, source.stat().st_gid)


async def test_a_copy_of_a_database_is_not_collected(database_uri: str) -> None:
    """The same rows in another database, as a dump that was read back has them, are not collected either."""
    await fill(database_uri)
    name, copy = database_uri.rpartition("/")[2], f"{database_uri}_copy"
    administrator = database_uri.rpartition("/")[0] + "/postgres"
    async with open_bridge(), open_database(administrator) as database:
        await database.fetch(f'CREATE DATABASE "{name}_copy" TEMPLATE "{name}"')
    try:
        await check_paused(copy)
    finally:
        async with open_bridge(), open_database(administrator) as database:
            await database.fetch(f'DROP DATABASE "{name}_copy" WITH (FORCE)')
