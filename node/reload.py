"""SIGHUP: modes, the default quota and the limits of copies and fail-over from the file again, while everything goes on."""

import signal
from collections.abc import Callable, Mapping
from typing import Any

import attrs
import structlog
import trio
from attrs import evolve, frozen

from node.config.keys import KEYS
from node.config.load import ConfigurationErrors
from node.config.oidc import ENDING
from node.config.settings import Settings
from node.running import Node

_log = structlog.get_logger("antipode.reload")

RELOADED = (
    "copy_streams",
    "copy_streams_per_location",
    "copy_parts_per_blob",
    "bandwidth_per_location",
    "lease_seconds",
    "failover_bandwidth",
    "registry_state",
    "disable_pushes",
    "default_quota",
    "webhook_networks",
    "audit_pulls",
    "audit_retention",
)
"""The fields of `Settings` that a running node takes over."""

_STRUCTURED = {
    "database_uri": "DB_URI",
    "database_pool": "DB_CONNECTION_ARGS",
    "read_replicas": "DB_READ_REPLICAS",
    "locations": "DISTRIBUTED_STORAGE_CONFIG",
    "preference": "DISTRIBUTED_STORAGE_PREFERENCE",
    "default_locations": "DISTRIBUTED_STORAGE_DEFAULT_LOCATIONS",
    "redis": "USER_EVENTS_REDIS",
    "edge": "SSL_CERTIFICATE",
    "authorities": "EXTRA_CA_CERTS",
    "ldap": "LDAP_URI",
    "oidc": f"<NAME>{ENDING}",
    "federation": "ROBOT_FEDERATION",
}
_PLAIN = {key.field: key.name for key in KEYS}

INSIDE = {
    "edge": {
        "tls": "EXTERNAL_TLS_TERMINATION",
        "trusted_proxies": "TRUSTED_PROXY_CIDR",
        "proxy_protocol": "FEATURE_PROXY_PROTOCOL",
    },
    "tls": {
        "certificate": "SSL_CERTIFICATE",
        "key": "SSL_CERTIFICATE_KEY",
        "protocols": "SSL_PROTOCOLS",
        "ciphers": "SSL_CIPHERS",
        "suites": "SSL_CIPHERSUITES",
    },
    "ldap": {
        "base_dn": "LDAP_BASE_DN",
        "admin_dn": "LDAP_ADMIN_DN",
        "admin_password": "LDAP_ADMIN_PASSWD",
        "start_tls": "LDAP_START_TLS",
        "ca_file": "EXTRA_CA_CERTS",
        "user_rdn": "LDAP_USER_RDN",
        "uid_attribute": "LDAP_UID_ATTR",
        "email_attribute": "LDAP_EMAIL_ATTR",
        "user_filter": "LDAP_USER_FILTER",
        "superuser_filter": "LDAP_SUPERUSER_FILTER",
        "memberof_attribute": "LDAP_MEMBEROF_ATTR",
        "nested_groups": "LDAP_NESTED_GROUPS",
        "timeout": "LDAP_TIMEOUT",
        "fresh": "LDAP_CACHE_TTL",
    },
}
"""The keys of what several fill together, where it is something else than that of the whole."""


@frozen
class Difference:
    """What a file says otherwise than the node does: keys with (old, new) that it takes over, and those that need a restart."""

    taken: Mapping[str, tuple[object, object]]
    fixed: tuple[str, ...]


def differ(before: Settings, after: Settings) -> Difference:
    """Compare the settings that a node runs with and those of its file now."""
    changed = [
        field.name
        for field in attrs.fields(Settings)
        if field.name != "warnings" and getattr(before, field.name) != getattr(after, field.name)
    ]
    return Difference(
        {key_of(name): (getattr(before, name), getattr(after, name)) for name in changed if name in RELOADED},
        tuple(
            key
            for name in changed
            if name not in RELOADED
            for key in _keys(name, key_of(name), getattr(before, name), getattr(after, name))
        ),
    )


def _keys(name: str, whole: str, before: Any, after: Any) -> tuple[str, ...]:
    """Return the keys of what changed: of a value that several fill, of what changed in it. `whole` is the one of all of it."""
    inside = INSIDE.get(name)
    if inside is None or before is None or after is None:
        return (whole,)
    changed = [
        (field.name, inside.get(field.name, whole), getattr(before, field.name), getattr(after, field.name))
        for field in attrs.fields(type(before))
    ]
    found = (key for part, of, old, new in changed if old != new for key in _keys(part, of, old, new))
    return tuple(dict.fromkeys(found))


def key_of(field: str) -> str:
    """Return the configuration key that fills a field of `Settings`."""
    return _PLAIN.get(field) or _STRUCTURED.get(field) or field.upper()


def apply(node: Node, after: Settings) -> Difference:
    """Let a node go on with what can be changed of `after`. Copies that run keep the parts in flight they began with."""
    difference = differ(node.settings, after)
    node.settings = evolve(node.settings, **{name: getattr(after, name) for name in RELOADED})
    node.scheduler.settings = evolve(
        node.scheduler.settings,
        streams=after.copy_streams,
        streams_per_location=after.copy_streams_per_location,
        lease_seconds=after.lease_seconds,
    )
    node.copier.settings = evolve(node.copier.settings, parts_per_blob=after.copy_parts_per_blob)
    for bandwidth in node.bandwidth.values():
        bandwidth.rate = after.bandwidth_per_location
    node.cap.change(after.failover_bandwidth)
    node.scheduler.nudge()
    return difference


async def reload_on_hangup(node: Node, load: Callable[[], Settings], *, task_status: trio.TaskStatus[None]) -> None:
    """Read the file again at every SIGHUP. With errors in it the old values stay; what happened is said in the log."""
    with trio.open_signal_receiver(signal.SIGHUP) as signals:
        task_status.started()
        async for _ in signals:
            if node.certificates is not None:
                await node.certificates.look()
            try:
                after = await trio.to_thread.run_sync(load)
            except ConfigurationErrors as errors:
                for problem in errors.problems:
                    _log.error("the configuration was not reloaded: the old values stay", problem=str(problem))
                continue
            difference = apply(node, after)
            for key, (old, new) in difference.taken.items():
                _log.warning("configuration reloaded", key=key, before=old, now=new)
            if difference.fixed:
                _log.warning("these keys changed in the file and need a restart", keys=list(difference.fixed))
            if not difference.taken:
                _log.info("configuration reloaded: nothing changed that a running node takes over")
