"""Values from files, environment variables and systemd's credentials: any of them, at any depth, and shown nowhere."""

from pathlib import Path

import pytest

from engines.s3_arguments import S3Arguments, StaticKeys
from node.config.report import report
from node.config.settings import Settings
from node.config.values import show
from tests.configurations import errors, only_error, settings, stores

MARK = "hunter2"


def keys_of(made: Settings) -> StaticKeys:
    arguments = made.locations["us"].engine.arguments
    assert isinstance(arguments, S3Arguments)
    assert isinstance(arguments.keys, StaticKeys)
    return arguments.keys


def test_a_value_may_come_from_elsewhere(tmp_path: Path) -> None:
    """A file's text, a variable's, a credential's: for a whole URI, a password, a store's key or a plain key."""
    (tmp_path / "uri").write_text("postgresql://somebody@db.test/registry\n")
    (tmp_path / "redis").write_text(" hunter2\n\n")
    made = settings(
        {"KEY": f"{MARK}+/=", "CREDENTIALS_DIRECTORY": str(tmp_path), "SIZE": "50"},
        DB_URI={"file": str(tmp_path / "uri")},
        DB_CONNECTION_ARGS={"password": {"env": "KEY"}},
        USER_EVENTS_REDIS={"host": "redis.test", "password": {"credential": "redis"}},
        DISTRIBUTED_STORAGE_CONFIG=stores(secret_key={"env": "KEY"}),
        V2_PAGINATION_SIZE={"env": "SIZE"},
        ENABLE_HEALTH_DEBUG_SECRET={"env": "KEY"},
    )
    assert made.database_uri == "postgresql://somebody@db.test/registry?password=hunter2%2B%2F%3D"
    assert made.redis is not None
    assert made.redis.password == " hunter2\n", "one line's end goes, and nothing else"
    assert keys_of(made).secret_key == f"{MARK}+/="
    assert made.debug_secret == f"{MARK}+/="
    assert made.page_size == 50
    assert MARK not in report(made) + repr(made)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"file": "/nowhere/secret"}, "found {file: /nowhere/secret}; it cannot be read: No such file or directory"),
        ({"file": "secret"}, "write an absolute path"),
        ({"file": 7}, "name the file in text"),
        ({"env": "UNSET"}, "found {env: UNSET}; there is no such environment variable"),
        ({"env": "EMPTY"}, "there is nothing in it"),
        ({"credential": "x"}, "CREDENTIALS_DIRECTORY is not set"),
    ],
)
def test_what_cannot_be_had_is_named(value: object, words: str) -> None:
    """The one error says the key, where its value should have come from, and what was wrong there."""
    environment = {"EMPTY": ""}
    for key in ("DB_URI", "V2_PAGINATION_SIZE", "SERVER_HOSTNAME"):
        line = only_error(environment, **{key: value})
        assert line.startswith(f"{key}: ")
        assert words in line
    line = only_error(environment, DISTRIBUTED_STORAGE_CONFIG=stores(secret_key=value))
    assert line.startswith("DISTRIBUTED_STORAGE_CONFIG.us.secret_key: ")


def test_files_that_hold_no_secret(tmp_path: Path) -> None:
    """A file that is too large or not text was named by mistake; a credential's name has no way out of its folder."""
    large, binary = tmp_path / "large", tmp_path / "binary"
    large.write_bytes(b"x" * 70_000)
    binary.write_bytes(b"\xff\xfe")
    assert "larger than" in only_error(DB_URI={"file": str(large)})
    assert "not UTF-8" in only_error(DB_URI={"file": str(binary)})
    assert "cannot be read" in only_error(DB_URI={"file": str(tmp_path)})
    line = only_error({"CREDENTIALS_DIRECTORY": str(tmp_path / "below")}, DB_URI={"credential": "../large"})
    assert "has no slash" in line


def test_no_error_shows_what_came_from_elsewhere() -> None:
    """A value that cannot be used is not repeated where it came from a file or a variable, whatever its key."""
    environment = {"X": f"{MARK}/not: [right"}
    for key in (
        "SERVER_HOSTNAME",
        "PREFERRED_URL_SCHEME",
        "V2_PAGINATION_SIZE",
        "UPLOAD_MAX_AGE",
        "DB_URI",
        "TEE_SPOOL",
    ):
        errors(environment, **{key: {"env": "X"}})
    for name in (
        "hostname",
        "port",
        "is_secure",
        "signature_version",
        "public_endpoint",
        "read_timeout",
        "bucket_name",
    ):
        errors(environment, DISTRIBUTED_STORAGE_CONFIG=stores(**{name: {"env": "X"}}))
    errors(environment, DB_CONNECTION_ARGS={"sslmode": {"env": "X"}, "sslrootcert": {"env": "X"}})
    errors(environment, DISTRIBUTED_STORAGE_PREFERENCE={"env": "X"}, TRUSTED_PROXY_CIDR={"env": "X"})
    assert show("seen") == '"seen"', "the same messages show what stands in the file itself"


def test_two_passwords_of_the_database_contradict() -> None:
    """The database's password stands in one place."""
    line = only_error(
        DB_URI="postgresql://somebody:s3cr3t@127.0.0.1/registry", DB_CONNECTION_ARGS={"password": "hunter2"}
    )
    assert line == (
        "DB_CONNECTION_ARGS.password: found a value that is not shown; DB_URI has a password too: say it in one place"
    )
