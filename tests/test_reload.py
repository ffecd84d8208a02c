"""SIGHUP: what a running node takes over from its file, what it names, and what an error leaves as it was."""

import os
import signal
from pathlib import Path
from typing import Any

import attrs
import trio
import yaml

from node.config.keys import KEYS, STRUCTURED
from node.config.oidc import ENDING
from node.config.settings import Settings
from node.reload import INSIDE, RELOADED, differ, key_of
from tests.certificates import Authority
from tests.cluster import Cluster, StartCluster
from tests.configurations import settings


def test_limits_are_taken_and_the_rest_is_named() -> None:
    """Limits of copies and fail-over are taken over with old and new value; other changes are named by their keys."""
    before = settings()
    after = settings(
        REPLICATION_STREAMS=3,
        REPLICATION_BYTES_PER_SECOND="1MiB",
        FAILOVER_BYTES_PER_SECOND="2MiB",
        DB_URI="postgresql://somebody:hunter2@127.0.0.1:5544/other",
        PART_SIZE="8MiB",
        TEE_SPOOL={"max_bytes": 0},
    )
    difference = differ(before, after)
    assert difference.taken == {
        "REPLICATION_STREAMS": (8, 3),
        "REPLICATION_BYTES_PER_SECOND": (None, 1 << 20),
        "FAILOVER_BYTES_PER_SECOND": (None, 2 << 20),
    }
    assert set(difference.fixed) == {"DB_URI", "PART_SIZE", "TEE_SPOOL"}
    assert differ(before, settings()).taken == {}


def test_what_several_keys_fill_is_named_by_the_one_that_changed(tmp_path: Path) -> None:
    """Who lists a new balancer is not sent to look at the certificate, nor to the directory's address for a filter."""
    pairs = [Authority.make(tmp_path / name).sign("node") for name in ("old", "new")]
    files = [{"SSL_CERTIFICATE": str(pair.certificate), "SSL_CERTIFICATE_KEY": str(pair.key)} for pair in pairs]
    tls = {"PREFERRED_URL_SCHEME": "https", "TRUSTED_PROXY_CIDR": ["10.0.0.0/8"]}
    directory = {
        "AUTHENTICATION_TYPE": "LDAP",
        "LDAP_URI": "ldaps://ldap.example.com",
        "LDAP_BASE_DN": "dc=example,dc=com",
        "LDAP_ADMIN_DN": "cn=registry,dc=example,dc=com",
        "LDAP_ADMIN_PASSWD": "hunter2",
    }

    def named(before: dict[str, Any], **changes: Any) -> set[str]:
        return set(differ(settings(**before), settings(**{**before, **changes})).fixed)

    served = {**tls, **files[0]}
    assert named(served, TRUSTED_PROXY_CIDR=["10.0.0.0/8", "192.0.2.0/24"]) == {"TRUSTED_PROXY_CIDR"}
    assert named(served, FEATURE_PROXY_PROTOCOL=True) == {"FEATURE_PROXY_PROTOCOL"}
    assert named(served, SSL_PROTOCOLS=["TLSv1.3"]) == {"SSL_PROTOCOLS"}
    assert named(served, **files[1]) == {"SSL_CERTIFICATE", "SSL_CERTIFICATE_KEY"}
    external = {**tls, "EXTERNAL_TLS_TERMINATION": True}
    assert set(differ(settings(**served), settings(**external)).fixed) == {
        "EXTERNAL_TLS_TERMINATION",
        "MAXIMUM_CONNECTIONS",
    }
    assert named(directory, LDAP_USER_FILTER="(a=b)") == {"LDAP_USER_FILTER"}
    assert named(directory, LDAP_URI="ldaps://other.example.com:6363") == {"LDAP_URI"}
    assert named(directory, LDAP_TIMEOUT="5s", LDAP_CACHE_TTL="5s") == {"LDAP_TIMEOUT", "LDAP_CACHE_TTL"}
    assert {key for keys in INSIDE.values() for key in keys.values()} <= {*STRUCTURED}


def test_every_setting_has_its_key() -> None:
    """Whatever changes, the operator is told the key that the file has."""
    known = {*(key.name for key in KEYS), *STRUCTURED, f"<NAME>{ENDING}"}
    assert {key_of(field.name) for field in attrs.fields(Settings) if field.name != "warnings"} <= known
    assert {name for name in (key_of(field) for field in RELOADED) if not name.startswith("REPLICATION_")} == {
        "FAILOVER_BYTES_PER_SECOND",
        "REGISTRY_STATE",
        "DISABLE_PUSHES",
        "DEFAULT_SYSTEM_REJECT_QUOTA_BYTES",
        "WEBHOOK_ALLOWED_NETWORKS",
        "AUDIT_PULLS",
        "ACTION_LOG_ROTATION_THRESHOLD",
    }


async def test_a_running_node(start_cluster: StartCluster) -> None:
    """A node that gets SIGHUP logs what it took over and what needs a restart; with an error in the file nothing changes."""
    nodes = await start_cluster("us eu", REPLICATION_STREAMS=4)
    hang_up(
        nodes, REPLICATION_STREAMS=6, REPLICATION_BYTES_PER_SECOND="5MiB", PAGE_SIZE_UNKNOWN=1, V2_PAGINATION_SIZE=7
    )
    await logged(
        nodes, '"REPLICATION_BYTES_PER_SECOND"', '"before": 4', '"now": 6', "need a restart", "V2_PAGINATION_SIZE"
    )
    hang_up(nodes, REPLICATION_STREAMS="many")
    await logged(nodes, "the old values stay", "REPLICATION_STREAMS")
    hang_up(nodes, REPLICATION_STREAMS=7)
    await logged(nodes, '"before": 6', '"now": 7')


def hang_up(nodes: Cluster, **changes: Any) -> None:
    nodes.configuration_file.write_text(yaml.safe_dump({**nodes.configuration, **changes}))
    os.kill(nodes["us"].pid, signal.SIGHUP)


async def logged(nodes: Cluster, *words: str) -> None:
    """Wait until the node's log has all of these."""
    with trio.fail_after(60):
        while not all(word in nodes["us"].log for word in words):  # noqa: ASYNC110 - a file tells nobody that it grew
            await trio.sleep(0.05)
