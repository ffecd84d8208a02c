"""`location add` of a location that no node has in its configuration: it says so, and --wait does not wait for ever."""

from pathlib import Path
from uuid import UUID

import pytest
import trio
import yaml
from click.testing import CliRunner

from engines.crossing import open_bridge
from node.cli import main
from node.commands import location
from node.commands.location import EXIT_STUCK, lacking_text
from node.records.members import Knowing, Membership, heartbeat, what_nodes_know
from node.records.migrate import migrate
from node.records.postgres import Database, open_database
from tests.cluster import configuration
from tests.replication.world import World
from tests.services import Store

US, EU = Knowing(("us", "eu"), ("eu", "us")), Knowing(("eu", "us"), ("eu", "us"))


def test_what_is_said() -> None:
    """What is missing, what is there and what would be right; nothing where a node has the location, or is too old to say."""
    assert lacking_text("ap", [US, EU]) == (
        "no node has ap, so nothing is copied there: the 2 nodes that run have eu, us; "
        "(re)start the nodes with a configuration whose DISTRIBUTED_STORAGE_CONFIG has ap"
    )
    assert "the one node that runs has eu, us" in str(lacking_text("ap", [US]))
    assert "no node runs" in str(lacking_text("ap", []))
    assert lacking_text("ap", [US, Knowing(("us",), ("ap", "us"))]) is None
    assert lacking_text("ap", [US, Knowing(("us",), None)]) is None


async def test_nodes_say_what_they_have(world: World) -> None:
    """With their heartbeats; one that stops does not count any more."""
    node = Membership(UUID(int=1), ("us",), ("us",), "test", ("us", "eu"))
    await heartbeat(world.database, node, draining=False, forget_after=60.0)
    await heartbeat(
        world.database, Membership(UUID(int=2), ("eu",), ("us",), "test"), draining=False, forget_after=60.0
    )
    assert await what_nodes_know(world.database) == [Knowing(("us",), ("eu", "us")), Knowing(("eu",), None)]
    await heartbeat(world.database, node, draining=True, forget_after=60.0)
    assert await what_nodes_know(world.database) == [Knowing(("eu",), None)]


@pytest.mark.usefixtures("logs_as_before")
@pytest.mark.parametrize("blobs", [0, 1])
@pytest.mark.parametrize("words", [(), ("--wait",)], ids=["", "waiting"])
def test_nobody_waits_for_nodes_that_do_not_know(
    monkeypatch: pytest.MonkeyPatch, database_uri: str, tmp_path: Path, words: tuple[str, ...], blobs: int
) -> None:
    """The command says at once that no node has the location; with --wait it ends after a while, and the debt stays.

    That nothing is owed, as before the nodes know it as a default location, is no word that all is there.
    """
    monkeypatch.setattr(location, "_PATIENCE", 0.5)
    stores = {name: Store(name, "http://127.0.0.1:9", "a", "b", "bucket") for name in ("us", "ap")}
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(configuration(database_uri, None, stores, "path")))

    async def prepare(database: Database) -> None:
        await database.fetch("INSERT INTO location (name, state) VALUES ('us', 'active'), ('ap', 'active')")
        await database.fetch(
            "WITH b AS (INSERT INTO blob (digest, size) VALUES ('sha256:' || repeat('0', 64), 5) RETURNING id) "
            "INSERT INTO task (blob_id, location_id, size) SELECT b.id, l.id, 5 FROM b, location l WHERE l.name = 'ap' AND $1",
            blobs > 0,
        )
        node = Membership(UUID(int=1), ("us",), ("us",), "test", ("us",))
        await heartbeat(database, node, draining=False, forget_after=60.0)

    async def owed(database: Database) -> int:
        return len(await database.fetch("SELECT FROM task"))

    async def at(act: object) -> object:
        async with open_bridge(), open_database(database_uri, most=1) as database:
            return await act(database)  # type: ignore[operator]

    trio.run(at, migrate)
    trio.run(at, prepare)
    given = ["location", "add", "ap", *words, "--config", str(file)]
    monkeypatch.setattr("sys.argv", ["antipode", *given])
    result = CliRunner().invoke(main, given, prog_name="antipode")
    assert result.exit_code == (EXIT_STUCK if words else 0), result.output
    assert f"ap is active: {blobs} blobs" in result.stdout
    assert "no node has ap" in result.stderr
    assert ("gave up waiting" in result.stderr) is bool(words)
    assert trio.run(at, owed) == blobs
