"""Services that let nobody in without TLS and a password: a PostgreSQL and a Redis of the session's own, and their authority."""

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import field, frozen

from scripts.services.postgres import Postgres, unprivileged_uid
from scripts.services.processes import Daemon, accepts_connections, free_ports
from scripts.services.redis_server import find_binary
from tests.certificates import Authority
from tests.services import execute

MARK = "pLanTed"
"""In every planted secret, and nowhere else."""


def planted(what: str) -> str:
    """Return a secret that a search finds wherever it comes out."""
    return f"{MARK}-{what}-{secrets.token_hex(4)}"


@frozen
class Guarded:
    """A service on 127.0.0.1 that demands TLS and a password."""

    port: int
    password: str = field(repr=False)


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Who vouches for everything here: whom a node trusts on one Python it has to trust on every other."""
    return Authority.make(tmp_path_factory.mktemp("authority"), old=True)


@pytest.fixture(scope="session")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """An authority that vouches for nothing here."""
    return Authority.make(tmp_path_factory.mktemp("stranger"))


@pytest.fixture(scope="session")
def guarded_postgres(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Iterator[Guarded]:
    """A PostgreSQL: role `antipode`, database `registry`."""
    server, password = Postgres(tmp_path_factory.mktemp("guarded")), planted("database")
    try:
        data, uid, pair = (
            server.daemon.log.parent / "data",
            unprivileged_uid(),
            authority.sign("postgres", names="IP:127.0.0.1"),
        )
        for name, source in (("server.crt", pair.certificate), ("server.key", pair.key)):
            _hand_over(data / name, source.read_bytes(), uid)
        execute(server.uri, "CREATE DATABASE registry")
        execute(server.uri, f"ALTER ROLE antipode PASSWORD '{password}'")
        execute(server.uri, "ALTER SYSTEM SET ssl = on")
        _hand_over(data / "pg_hba.conf", b"hostssl all all 127.0.0.1/32 scram-sha-256\n", uid)
        execute(server.uri, "SELECT pg_reload_conf()")
        yield Guarded(server.port, password)
    finally:
        server.stop()


def _hand_over(path: Path, data: bytes, uid: int | None) -> None:
    path.write_bytes(data)
    path.chmod(0o600)
    if uid is not None:
        os.chown(path, uid, uid)


@pytest.fixture(scope="session")
def guarded_redis(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Iterator[Guarded]:
    """A Redis whose only port speaks TLS."""
    program = find_binary()
    if program is None:
        pytest.skip("no Redis server on this machine")
    folder, pair, (port,), password = (
        tmp_path_factory.mktemp("redis"),
        authority.sign("redis"),
        free_ports(1),
        planted("redis"),
    )
    options = {
        "bind": "127.0.0.1", "port": "0", "tls-port": str(port), "tls-auth-clients": "no", "save": '""',
        "tls-cert-file": str(pair.certificate), "tls-key-file": str(pair.key),
        "tls-ca-cert-file": str(authority.own.certificate), "requirepass": password, "dir": str(folder),
    }  # fmt: skip
    (folder / "redis.conf").write_text("".join(f"{name} {value}\n" for name, value in options.items()))
    server = Daemon("redis", [program, folder / "redis.conf"], folder)
    try:
        server.wait_ready(lambda: accepts_connections(port))
        yield Guarded(port, password)
    finally:
        server.stop()
