"""SIGHUP: what a running node takes over from its file, what it names, and what an error leaves as it was."""

import os
import signal
from typing import Any

import attrs
import trio
import yaml

from node.config.keys import KEYS, STRUCTURED
from node.config.oidc import ENDING
from node.config.settings import Settings
from node.reload import RELOADED, differ, key_of
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
