"""Commands that look at a store from outside the nodes: one that belongs to another database proves nothing."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import trio
import yaml
from click.testing import CliRunner

from engines import parse_engine
from engines.crossing import open_bridge
from node.cli import main
from node.records.members import enrol_locations
from node.records.migrate import migrate
from node.records.postgres import Database, open_database
from replication.watcher import probe_keys

_KEY = "sha256/ab/ab.1"


@pytest.mark.usefixtures("logs_as_before")
@pytest.mark.parametrize(
    ("marker", "words", "reason"),
    [
        (b"another's", "orphans --delete", "bears the marker of another location"),
        (None, "orphans --delete", "holds no marker"),
        (b"another's", "verify", "bears the marker of another location"),
    ],
)
def test_a_store_of_another_database_loses_nothing(
    monkeypatch: pytest.MonkeyPatch,
    database_uri: str,
    tmp_path: Path,
    marker: bytes | None,
    words: str,
    reason: str,
) -> None:
    """To a new database all that is in a store is unknown, and all that it knows is not there: neither is acted upon."""
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(_document(database_uri, tmp_path)))
    trio.run(_prepare, database_uri, tmp_path / "us", marker)
    given = [*words.split(), "--location", "us", "--config", str(config)]
    monkeypatch.setattr("sys.argv", ["antipode", *given])
    result = CliRunner().invoke(main, given, prog_name="antipode")
    assert (result.exit_code, reason in result.output) == (1, True), result.output
    assert (tmp_path / "us" / _KEY).exists()
    assert trio.run(_suspects, database_uri) == 0
    # With its own marker it is looked at as before.
    trio.run(_mark, database_uri, tmp_path / "us")
    result = CliRunner().invoke(main, given, prog_name="antipode")
    assert result.exit_code == (1 if words == "verify" else 0), result.output
    assert (tmp_path / "us" / _KEY).exists() is (words == "verify")


@pytest.mark.usefixtures("logs_as_before")
def test_a_store_that_does_not_answer_is_not_read(
    monkeypatch: pytest.MonkeyPatch, database_uri: str, tmp_path: Path
) -> None:
    """Whose it is cannot be told, so nothing is concluded from what it may say a moment later; one line says so, not one a copy."""
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(_document(database_uri, tmp_path)))
    trio.run(_prepare, database_uri, tmp_path / "us", None)
    (tmp_path / "us").rename(tmp_path / "away")
    (tmp_path / "us").write_text("a file where the folder should be")
    for output in ("table", "json"):
        given = ["verify", "--location", "us", "--config", str(config), "--output", output]
        monkeypatch.setattr("sys.argv", ["antipode", *given])
        result = CliRunner().invoke(main, given, prog_name="antipode")
        assert (result.exit_code, result.stdout.count("sha256")) == (3, 0), result.output
        if output == "json":
            found = json.loads(result.stdout)
            assert (found["copies_read"], found["findings"], bool(found["stopped"])) == (0, [], True)
        else:
            assert "the store does not answer" in result.stdout
    assert trio.run(_suspects, database_uri) == 0


def _document(database_uri: str, folder: Path) -> dict[str, Any]:
    return {
        "SERVER_HOSTNAME": "127.0.0.1:1",
        "PREFERRED_URL_SCHEME": "http",
        "DB_URI": database_uri,
        "DISTRIBUTED_STORAGE_CONFIG": {"us": ["LocalStorage", {"storage_path": str(folder / "us")}]},
        "DISTRIBUTED_STORAGE_PREFERENCE": ["us"],
        "FEATURE_STORAGE_REPLICATION": False,
        "DISTRIBUTED_STORAGE_DEFAULT_LOCATIONS": ["us"],
        "DATABASE_SECRET_KEY": "a secret key for tests",
    }


async def _prepare(uri: str, folder: Path, marker: bytes | None) -> None:
    async with (
        open_bridge(),
        open_database(uri) as database,
        parse_engine("LocalStorage", {"storage_path": str(folder)}).open() as engine,
    ):
        await migrate(database)
        await enrol_locations(database, ["us"], ["us"])
        await engine.put(_KEY, b"the only copy")
        os.utime(folder / _KEY, (time.time() - 90_000,) * 2)
        if marker is not None:
            await engine.put(probe_keys(engine.prefix, "-").marker, marker)
        await database.fetch(
            "WITH b AS (INSERT INTO blob (digest, size) VALUES ('sha256:' || repeat('a', 64), 3) RETURNING id) "
            "INSERT INTO placement (blob_id, location_id, key) SELECT b.id, l.id, 'sha256/aa/gone' FROM b, location l"
        )


async def _mark(uri: str, folder: Path) -> None:
    async with (
        open_bridge(),
        open_database(uri) as database,
        parse_engine("LocalStorage", {"storage_path": str(folder)}).open() as engine,
    ):
        (row,) = await database.fetch("SELECT marker FROM location")
        await engine.put(probe_keys(engine.prefix, "-").marker, str(row["marker"]).encode())


async def _suspects(uri: str) -> int:
    async with open_bridge(), open_database(uri) as database:
        return await _count(database)


async def _count(database: Database) -> int:
    return len(await database.fetch("SELECT FROM placement WHERE state = 'suspect'"))
