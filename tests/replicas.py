"""A PostgreSQL with a streaming standby, of a test's own: the primary can be killed and the standby promoted, or held behind.

primary  <-- [proxy] --  standby
"""

import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from scripts.services.postgres import ROLE, Postgres, find_binaries, unprivileged_uid
from scripts.services.processes import call, free_ports
from tests.faults import FaultProxy
from tests.services import execute, fetch_rows

DATABASE = "registry"
_PRIMARY = {
    # What it acknowledged survives that it is killed: the operating system stays.
    "fsync": "off",
    "synchronous_commit": "on",
    "wal_level": "replica",
    "max_wal_senders": "4",
    "wal_keep_size": "64MB",
}


class Pair:
    """A primary and its standby. `line` is what the standby receives through; breaking it makes the standby miss commits."""

    def __init__(self, primary: Postgres, standby: Postgres, line: FaultProxy) -> None:
        self.primary = primary
        self.standby = standby
        self.line = line

    @property
    def uri(self) -> str:
        """The registry's database on whichever of both takes writes."""
        hosts = f"127.0.0.1:{self.primary.port},127.0.0.1:{self.standby.port}"
        return f"postgresql://{ROLE}@{hosts}/{DATABASE}?target_session_attrs=read-write"

    @staticmethod
    def uri_of(server: Postgres) -> str:
        """The registry's database on one of them."""
        return server.uri.replace("/postgres", f"/{DATABASE}")

    async def caught_up(self) -> None:
        """Wait until the standby has all that the primary has committed by now."""
        ((position,),) = await trio.to_thread.run_sync(
            fetch_rows, self.primary.uri, "SELECT pg_current_wal_lsn()::text"
        )
        with trio.fail_after(30):
            while True:
                ((there,),) = await trio.to_thread.run_sync(
                    fetch_rows,
                    self.standby.uri,
                    "SELECT coalesce(pg_last_wal_replay_lsn() >= $1::text::pg_lsn, false)",
                    position,
                )
                if there:
                    return
                await trio.sleep(0.05)

    async def promote(self) -> None:
        """Make the standby the primary; returns when it takes writes."""
        await trio.to_thread.run_sync(execute, self.standby.uri, "SELECT pg_promote(true, 60)")


@asynccontextmanager
async def open_pair() -> AsyncIterator[Pair]:
    """Start both on fresh data in a temporary folder, with an empty database; stop them at the end."""
    binaries = find_binaries()
    if binaries is None or not (binaries / "pg_basebackup").exists():
        pytest.skip("no pg_basebackup on this machine")
    # Not pytest's folder: PostgreSQL runs as another user there, who must be able to enter it.
    with tempfile.TemporaryDirectory(prefix="antipode-pair-") as name:
        folder = Path(name)
        primary = _start_primary(folder)
        try:
            await trio.to_thread.run_sync(execute, primary.uri, f"CREATE DATABASE {DATABASE}")
            async with trio.open_nursery() as nursery:
                line: FaultProxy = await nursery.start(FaultProxy("127.0.0.1", primary.port).serve)
                standby = _start_standby(folder, binaries, primary, line)
                try:
                    yield Pair(primary, standby, line)
                finally:
                    standby.stop()
                nursery.cancel_scope.cancel()
        finally:
            primary.stop()


# Both block for a second or two. Not in a thread: the kernel ends a service with the thread that started it.


def _start_primary(folder: Path) -> Postgres:
    folder.chmod(0o711)
    for part in ("primary", "standby"):
        (folder / part).mkdir(mode=0o711)
    return Postgres(folder / "primary", settings=_PRIMARY)


def _start_standby(folder: Path, binaries: Path, primary: Postgres, line: FaultProxy) -> Postgres:
    uid, home = unprivileged_uid(), folder / "standby" / "postgres"
    home.mkdir(mode=0o700)
    if uid is not None:
        os.chown(home, uid, uid)
    words: list[str | Path] = [binaries / "pg_basebackup", "-D", home / "data", "-R", "-X", "stream", "-c", "fast"]
    call([*words, "--no-sync", "-h", "127.0.0.1", "-p", str(primary.port), "-U", ROLE], uid=uid, cwd=home)
    follows = {"primary_conninfo": f"host=127.0.0.1 port={line.port} user={ROLE}", "hot_standby": "on"}
    return Postgres(folder / "standby", port=free_ports(1)[0], settings={**_PRIMARY, **follows})
