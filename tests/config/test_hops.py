"""Geo-replication without TLS between regions is said at the start, hop by hop."""

from typing import Any

import pytest

from node.config.hops import is_here
from node.config.report import report
from tests.configurations import settings, stores

DB = "postgresql://antipode:hunter2@db.example.com,db2.example.com:5433/registry"
CA = {"sslrootcert": __file__}


def hops(**changes: Any) -> list[str]:
    """Return the hops that a configuration is warned of; `config check` says each of them, too."""
    made = settings(**changes)
    said = [line.partition(": ")[2] for line in made.warnings if line.startswith("regions without TLS: ")]
    assert all(line in report(made) for line in said)
    return said


def test_what_stays_on_this_machine_is_not_named() -> None:
    """The example speaks plain text, but to the loopback interface only."""
    assert hops() == []


def test_without_replication_nothing_is_said() -> None:
    """One region's network is its own business."""
    assert hops(DB_URI=DB, FEATURE_STORAGE_REPLICATION=False) == []


def test_every_plain_hop_is_named() -> None:
    """Stores, the database and Redis, each with where it is and what to do; no password."""
    said = hops(
        DB_URI=DB,
        USER_EVENTS_REDIS={"host": "redis.example.com", "password": "hunter2"},
        DISTRIBUTED_STORAGE_CONFIG=stores(hostname="ceph.eu.example.com"),
    )
    assert [line.partition(" without")[0].partition(" with")[0] for line in said] == [
        "node -> store us at http://ceph.eu.example.com:7480",
        "node -> database db.example.com and db2.example.com",
        "node -> redis at redis.example.com:6379",
    ]
    assert not [line for line in said if "hunter2" in line]


def test_read_replicas_are_hops_of_their_own() -> None:
    """Each replica is judged by its own address and arguments: only what is encrypted and checked, or here, is silent."""
    far = "postgresql://antipode:hunter2@replica.example.com/registry"
    checked = {"DB_URI": far, "DB_CONNECTION_ARGS": {"sslmode": "verify-full", **CA}}
    here = {"DB_URI": "postgresql://antipode@127.0.0.1/registry"}
    (said,) = hops(DB_READ_REPLICAS=[checked, {"DB_URI": far}, here])
    assert said.startswith("node -> read replica replica.example.com with sslmode prefer may be without TLS")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "with sslmode prefer may be without TLS"),
        ({"sslmode": "disable"}, "with sslmode disable may be without TLS"),
        ({"sslmode": "allow"}, "with sslmode allow may be without TLS"),
        ({"sslmode": "require"}, "with sslmode require does not check who answers"),
        ({"sslmode": "require", **CA}, None),
        ({"sslmode": "verify-ca", **CA}, None),
        ({"sslmode": "verify-full", **CA}, None),
    ],
)
def test_what_the_database_s_modes_are_worth(arguments: dict[str, str], words: str | None) -> None:
    """Only what is encrypted and checks who answers is silent."""
    said = hops(DB_URI=DB, DB_CONNECTION_ARGS=arguments)
    assert [words in line for line in said] == [True] if words else said == []


def test_a_store_whose_certificate_is_not_checked_and_one_whose_urls_are_plain() -> None:
    """TLS without a check, and signed URLs over plain HTTP, are named too."""
    far = {"hostname": "ceph.eu.example.com", "is_secure": True, "port": 443}
    assert hops(DISTRIBUTED_STORAGE_CONFIG=stores(**far)) == []
    (unchecked,) = hops(DISTRIBUTED_STORAGE_CONFIG=stores(**far, verify_tls=False))
    assert "does not check the certificate" in unchecked
    public = {"public_endpoint": "http://blobs.example.com"}
    (plain,) = hops(DISTRIBUTED_STORAGE_CONFIG=stores(**far, **public))
    assert plain.startswith("clients -> store us at http://blobs.example.com")
    assert hops(DISTRIBUTED_STORAGE_CONFIG=stores(**far, **public, redirect=False)) == []


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.8.9.1", "::1", "[::1]", "localhost", "LOCALHOST", "/var/run/postgresql"]
)
def test_loopback_is_here(host: str) -> None:
    """What is this machine in any spelling."""
    assert is_here(host)


@pytest.mark.parametrize("host", ["10.0.0.1", "localhost.example.com", "", "127.0.0.1.example.com", "fe80::1"])
def test_elsewhere_is_not_here(host: str) -> None:
    """What only looks like it."""
    assert not is_here(host)
