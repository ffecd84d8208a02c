"""The PostgreSQL that the nemesis breaks: a fault reaches every connection's process, each of which is a session of its own."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from engines.crossing import open_bridge
from node.records.postgres import DatabaseUnavailable, open_database
from scripts.services.postgres import Postgres
from tests.services import execute, fetch_rows


@pytest.fixture
def postgres() -> Iterator[Postgres]:
    # Not pytest's folder: PostgreSQL runs as another user there, who must be able to enter it.
    with tempfile.TemporaryDirectory(prefix="antipode-servers-") as name:
        Path(name).chmod(0o711)
        server = Postgres(Path(name), settings={"synchronous_commit": "on", "fsync": "off"})
        try:
            yield server
        finally:
            server.stop()


async def test_a_frozen_server_answers_on_no_connection(postgres: Postgres) -> None:
    """An open connection gets nothing while the server is frozen, and its answer once that is over."""
    async with open_bridge(), open_database(postgres.uri, most=1, deadline=20) as database:
        assert await database.fetch("SELECT 1")
        postgres.freeze()
        try:
            with pytest.raises(DatabaseUnavailable):
                await database.fetch("SELECT 1", deadline=1)
        finally:
            postgres.thaw()
        assert await database.fetch("SELECT 1")


def test_a_killed_server_leaves_no_process(postgres: Postgres) -> None:
    """With the server its connections' processes are gone at once, and what was committed is there when it starts again."""
    execute(postgres.uri, "CREATE TABLE kept AS SELECT 1 AS one")
    processes = [pid for (pid,) in fetch_rows(postgres.uri, "SELECT pid FROM pg_stat_activity")]
    postgres.kill()
    assert len(processes) > 1
    assert [pid for pid in processes if runs(pid)] == []
    again = Postgres(postgres.daemon.log.parent.parent, port=postgres.port)
    try:
        assert fetch_rows(again.uri, "SELECT one FROM kept") == [(1,)]
    finally:
        again.stop()


def runs(pid: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
