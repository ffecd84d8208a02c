"""Authorities of one's own, besides the system's: where they are looked for, whom they vouch for, and what is no authority."""

import ssl
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml

from engines.s3_arguments import S3Arguments
from node.config.load import load_settings
from node.config.settings import Settings
from tests.certificates import Authority
from tests.configurations import document, only_error, settings, stores

FAR = {"hostname": "ceph.example.com", "is_secure": True, "port": 443}


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.make(tmp_path_factory.mktemp("authority"))


def everything(**changes: Any) -> dict[str, Any]:
    """Return a configuration in which all that can speak TLS does."""
    return {
        "DISTRIBUTED_STORAGE_CONFIG": stores(**FAR),
        "USER_EVENTS_REDIS": {"host": "redis.example.com", "ssl": True},
        "DB_CONNECTION_ARGS": {"sslmode": "verify-full"},
        **changes,
    }


def bundle_of(made: Settings, store: str = "us") -> str | None:
    arguments = made.locations[store].engine.arguments
    assert isinstance(arguments, S3Arguments)
    return arguments.ca_bundle


def vouches(file: str, authority: Authority) -> bool:
    """Return whether a file has the system's authorities and this one."""
    trusted = ssl.create_default_context(cafile=file).get_ca_certs()
    subjects = [dict(pair for part in entry["subject"] for pair in part).get("commonName") for entry in trusted]  # type: ignore[misc]
    return "a test's authority" in subjects and len(subjects) > 50


def test_an_authority_is_trusted_besides_the_system_s(authority: Authority) -> None:
    """Stores, Redis and the database get one file with both."""
    made = settings(**everything(EXTRA_CA_CERTS=str(authority.own.certificate)))
    file = bundle_of(made)
    assert file is not None
    assert vouches(file, authority)
    assert made.redis is not None
    assert made.redis.ca_file == file
    assert parse_qs(urlsplit(made.database_uri).query)["sslrootcert"] == [file]
    assert str(made.authorities) == file, "for what is reached over https and has no key of its own"
    assert made == settings(**everything(EXTRA_CA_CERTS=str(authority.own.certificate))), (
        "a reload finds nothing changed"
    )


def test_a_file_of_its_own_counts_more(authority: Authority) -> None:
    """What names a file, checks nothing or speaks plain text is left as it is."""
    own = str(authority.own.certificate)
    made = settings(
        EXTRA_CA_CERTS=own,
        DISTRIBUTED_STORAGE_CONFIG=stores(**FAR, ca_bundle=own),
        USER_EVENTS_REDIS={"host": "redis.example.com", "ssl": True, "ssl_ca_certs": own},
        DB_CONNECTION_ARGS={"sslmode": "verify-full", "sslrootcert": own},
    )
    assert bundle_of(made) == own
    assert made.redis is not None
    assert made.redis.ca_file == own
    assert parse_qs(urlsplit(made.database_uri).query)["sslrootcert"] == [own]
    unchecked = settings(
        EXTRA_CA_CERTS=own,
        DISTRIBUTED_STORAGE_CONFIG=stores(**FAR, verify_tls=False),
        DB_CONNECTION_ARGS={"sslmode": "require"},
    )
    assert bundle_of(unchecked) is None
    assert unchecked.redis is not None
    assert unchecked.redis.ca_file is None
    assert "sslrootcert" not in unchecked.database_uri


def test_quays_folder_beside_the_configuration(authority: Authority, tmp_path: Path) -> None:
    """`extra_ca_certs` beside the file counts without a key; other files in it and an empty folder do not matter."""
    path, folder = tmp_path / "config.yaml", tmp_path / "extra_ca_certs"
    path.write_text(yaml.safe_dump(document(**everything())))
    folder.mkdir()
    (folder / "README").write_text("nothing")
    assert bundle_of(load_settings(path, {})) is None
    assert load_settings(path, {}).authorities is None
    (folder / "ours.crt").write_bytes(authority.own.certificate.read_bytes())
    file = bundle_of(load_settings(path, {}))
    assert file is not None
    assert vouches(file, authority)


def test_what_is_no_authority_is_named(authority: Authority, tmp_path: Path) -> None:
    """A place that is not there, an empty folder and a file without certificates are errors of the key."""
    (tmp_path / "bad.pem").write_text("-----BEGIN CERTIFICATE-----\nnot\n-----END CERTIFICATE-----\n")
    (tmp_path / "empty").mkdir()
    places = (
        ("/nowhere", "name a PEM file"),
        (f"{tmp_path}/empty", "name a PEM file"),
        (f"{tmp_path}/bad.pem", "no certificates"),
        (str(authority.own.key), "no certificates"),
        (7, "write some text"),
    )
    for place, words in places:
        line = only_error(EXTRA_CA_CERTS=place)
        assert line.startswith("EXTRA_CA_CERTS: ")
        assert words in line
