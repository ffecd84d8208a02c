"""TLS from the node to what it needs: a certificate of an authority that was named is trusted, any other refused.

Redis and stores with an authority of their own are tested beside their clients (test_hints.py, engines/test_s3.py).
"""

from pathlib import Path
from typing import Any

import pytest
import trio

from engines.contract import EngineUnavailable
from engines.crossing import open_bridge
from node.config.settings import Settings
from node.hints import open_hints
from node.records.postgres import DatabaseMisconfigured, DatabaseUnavailable, open_database
from tests.certificates import Authority
from tests.configurations import settings
from tests.security.conftest import Guarded
from tests.services import Store

PATIENCE = 30.0
"""Seconds that a busy machine may take for a connection over TLS."""


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a busy machine keeps waiting has not been refused, and is not told as that."""
    for name in ("CONNECT_SECONDS", "ANSWER_SECONDS"):
        monkeypatch.setattr(f"node.hints.{name}", PATIENCE)


def uri(server: Guarded, **arguments: Any) -> str:
    """Return what the node connects with when the configuration says so."""
    made = settings(
        DB_URI=f"postgresql://antipode@127.0.0.1:{server.port}/registry",
        DB_CONNECTION_ARGS={"password": server.password, **arguments},
    )
    return made.database_uri


@pytest.mark.parametrize("mode", ["require", "verify-ca", "verify-full"])
async def test_postgresql_is_reached_over_tls(guarded_postgres: Guarded, authority: Authority, mode: str) -> None:
    """With an `sslmode` and the authority's file the connection is encrypted, and so is the one that carries hints."""
    where = uri(guarded_postgres, sslmode=mode, sslrootcert=str(authority.own.certificate))
    async with open_bridge(), open_database(where, deadline=PATIENCE) as database:
        row = await database.fetch_row("SELECT version FROM pg_stat_ssl WHERE pid = pg_backend_pid() AND ssl")
        assert row is not None
        assert row["version"] in ("TLSv1.2", "TLSv1.3")
        async with open_hints(None, where, "us") as hints:
            with trio.fail_after(60):
                await hints.wait_connected()
            listening = await database.fetch_row(
                "SELECT ssl FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE application_name LIKE 'antipode hints%'"
            )
            assert listening is not None
            assert listening["ssl"]


@pytest.mark.parametrize("mode", ["require", "verify-ca", "verify-full"])
async def test_postgresql_with_another_authority_is_refused(
    guarded_postgres: Guarded, stranger: Authority, mode: str
) -> None:
    """A server that the named file does not vouch for gets no password; the reason says certificate."""
    where = uri(guarded_postgres, sslmode=mode, sslrootcert=str(stranger.own.certificate))
    async with open_bridge(), open_database(where, deadline=PATIENCE) as database:
        with pytest.raises(DatabaseUnavailable, match=r"(?i)certificate") as refused:
            await database.fetch("SELECT 1")
    assert guarded_postgres.password not in repr(refused.getrepr(style="short"))


async def test_a_certificate_for_another_name_is_refused(guarded_postgres: Guarded, authority: Authority) -> None:
    """`verify-full` checks the name, too, and `verify-ca` does not: the certificate is for 127.0.0.1."""
    for mode in ("verify-full", "verify-ca"):
        where = uri(guarded_postgres, sslmode=mode, sslrootcert=str(authority.own.certificate))
        async with open_bridge(), open_database(where.replace("127.0.0.1", "localhost"), deadline=PATIENCE) as database:
            if mode == "verify-ca":
                await database.fetch("SELECT 1")
                continue
            with pytest.raises(DatabaseUnavailable, match=r"(?i)certificate"):
                await database.fetch("SELECT 1")


async def test_a_server_that_demands_tls_is_not_reached_without(guarded_postgres: Guarded) -> None:
    """What the other tests reach has no plain way in."""
    where = uri(guarded_postgres, sslmode="disable")
    async with open_bridge(), open_database(where, deadline=PATIENCE) as database:
        with pytest.raises(DatabaseMisconfigured, match="no encryption"):
            await database.fetch("SELECT 1")


async def test_one_authority_for_everything(
    guarded_postgres: Guarded,
    guarded_redis: Guarded,
    authority: Authority,
    s3_stores: dict[str, Store],
    storage_path: str,
    tmp_path: Path,
) -> None:
    """With EXTRA_CA_CERTS nothing else names a file: PostgreSQL, Redis and a store are checked and reached; without it none is."""
    store = s3_stores["us-tls"]
    for name, file in (("ours.crt", authority.own.certificate), ("store.crt", Path(store.ca or ""))):
        (tmp_path / name).write_bytes(file.read_bytes())
    entry = store.configuration(storage_path)
    del entry[1]["ca_bundle"]

    def made(**more: Any) -> Settings:
        return settings(
            DB_URI=f"postgresql://antipode@127.0.0.1:{guarded_postgres.port}/registry",
            DB_CONNECTION_ARGS={"password": guarded_postgres.password, "sslmode": "verify-full"},
            USER_EVENTS_REDIS={
                "host": "127.0.0.1",
                "port": guarded_redis.port,
                "password": guarded_redis.password,
                "ssl": True,
            },
            DISTRIBUTED_STORAGE_CONFIG={"us": entry},
            DISTRIBUTED_STORAGE_PREFERENCE=["us"],
            DISTRIBUTED_STORAGE_DEFAULT_LOCATIONS=["us"],
            **more,
        )

    with_it, without = made(EXTRA_CA_CERTS=str(tmp_path)), made()
    async with open_bridge():
        async with (
            open_database(with_it.database_uri, deadline=PATIENCE) as database,
            open_hints(with_it.redis, None, "us") as hints,
        ):
            await database.fetch("SELECT 1")
            with trio.fail_after(60):
                await hints.wait_connected()
            async with with_it.locations["us"].engine.open() as engine:
                await engine.list_keys(engine.prefix, None)
        async with open_hints(without.redis, None, "us") as hints, without.locations["us"].engine.open() as engine:
            with trio.fail_after(60):
                await hints.wait_lost()
            assert "certificate" in str(hints.statistics().last_error).lower()
            with pytest.raises(EngineUnavailable, match=r"(?i)certificate"):
                await engine.list_keys(engine.prefix, None)
