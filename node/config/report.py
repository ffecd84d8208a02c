"""Says what a node would do with its settings, for `antipode config check`: everything but the secrets."""

import time
from collections.abc import Iterator

from node.config.database import describe_database
from node.config.settings import LdapSettings, LocationSettings, Settings
from node.config.spool import folder_of
from node.config.values import say_duration, say_size
from node.modes import NORMAL
from node.tls import life_of


def _redirects(settings: Settings, location: LocationSettings) -> str:
    if settings.proxy_storage:
        return "pulls streamed by the node (FEATURE_PROXY_STORAGE)"
    # Only stores that other hosts reach have URLs to redirect to.
    redirects = location.redirect and location.engine.shared
    if redirects and settings.redirect_minimum_size:
        return f"pulls from {say_size(settings.redirect_minimum_size)} on redirected to the store"
    return "pulls redirected to the store" if redirects else "pulls streamed by the node"


def _tls(settings: Settings) -> str:
    tls = settings.edge.tls
    if tls is not None:
        return f"certificate {tls.certificate}, key {tls.key}; {' and '.join(tls.protocols)}"
    if settings.scheme == "http":
        return "none: plain HTTP"
    return "ended in front of the node, which speaks plain HTTP"


def _of_the_certificate(settings: Settings) -> Iterator[str]:
    """What a node that starts now says of its certificate's end by itself, in its log."""
    tls = settings.edge.tls
    if tls is not None and (remark := life_of(tls.certificate).remark(time.time())) is not None:
        yield f"{tls.certificate}: {remark}"


def _proxies(settings: Settings) -> str:
    edge = settings.edge
    if not edge.trusted_proxies:
        return "none: clients are the addresses that connect"
    networks = ", ".join(map(str, edge.trusted_proxies))
    return f"{networks}, which begin with a PROXY header" if edge.proxy_protocol else networks


def _redis(settings: Settings) -> str:
    redis = settings.redis
    if redis is None:
        return "none; hints go through the database (LISTEN and NOTIFY)"
    host = f"[{redis.host}]" if ":" in redis.host else redis.host
    said = f"{host}:{redis.port}, database {redis.db}, {'with' if redis.password else 'without'} password"
    return f"{said}, over TLS" if redis.tls else said


def _directory(ldap: LdapSettings) -> str:
    said = f"{ldap.uri}, below {ldap.base}"
    return f"{said}, over TLS" if ldap.secure or ldap.start_tls else f"{said}, in clear text"


def _replication(settings: Settings) -> str:
    if not settings.replicate:
        return "off: one copy of a blob is enough"
    return f"on: every blob is owed a copy in {', '.join(settings.default_locations)}"


def _picture(settings: Settings) -> Iterator[tuple[str, str]]:
    yield "address", f"{settings.scheme}://{settings.server_hostname}"
    yield "TLS", _tls(settings)
    yield "trusted proxies", _proxies(settings)
    yield "database", f"{describe_database(settings.database_uri)}; at most {settings.database_pool} connections"
    yield "redis", _redis(settings)
    yield "replication", _replication(settings)
    yield "open to anybody", "yes" if settings.open_registry else "no"
    if settings.ldap is not None:
        yield "people", f"proven by {_directory(settings.ldap)}, or by a password in the database"
    if settings.oidc is not None:
        yield (
            "people",
            f"proven by {settings.oidc.service_name}, {settings.oidc.server}, or by a password in the database",
        )
    for rule in settings.federation:
        yield rule.robot, f"also with a token of {rule.issuer} for {rule.audience}, about {rule.subject}"
    if settings.registry_state != NORMAL:
        yield "state", "read-only: pushes, deletes and everything else that changes the registry are refused"
    elif settings.disable_pushes:
        yield "state", "pushes are refused; deletes and administration go on"
    yield "bare names", f"belong to the namespace {settings.library_namespace}"


def _from_elsewhere(settings: Settings) -> str:
    rate, spool = settings.failover_bandwidth, settings.tee_spool
    said = "unlimited bandwidth" if rate is None else f"{say_size(rate)} a second"
    tees = f"tees in {say_size(spool.most)} of {folder_of(spool)}" if spool.most else "no tees"
    return f"{said} per location for streamed pulls; {tees}"


def _limits(settings: Settings) -> Iterator[tuple[str, str]]:
    yield "blob", f"at most {say_size(settings.maximum_layer_size)}"
    yield "manifest", f"at most {say_size(settings.maximum_manifest_size)}"
    yield "page of a list", f"{settings.page_size} entries"
    quota = settings.default_quota
    yield (
        "namespace",
        f"at most {say_size(quota)} unless it has a quota of its own" if quota else "as much as its quota",
    )
    most = settings.maximum_uploads_per_namespace
    at_once = f"{most} open in a namespace at once" if most else "any number open at once"
    yield "upload", f"given up after {say_duration(settings.upload_max_age)}; {at_once}"
    yield "deleted blob", f"its bytes stay for {say_duration(settings.deleted_blob_retention)}"
    yield "part buffers", f"{say_size(settings.part_memory)} in parts of {say_size(settings.part_size)}"
    kept = settings.upload_spool
    yield (
        "uploads kept",
        f"{say_size(kept.most)} in {folder_of(kept)}" if kept.most else "no, they die with their store",
    )
    yield "connections", f"at most {settings.maximum_connections}"
    if settings.replicate:
        bandwidth = settings.bandwidth_per_location
        rate = "unlimited bandwidth" if bandwidth is None else f"{say_size(bandwidth)} a second"
        streams = f"{settings.copy_streams} at once, {settings.copy_streams_per_location} per location"
        yield "copies", f"{streams}, {settings.copy_parts_per_blob} parts of a blob in flight; {rate} per location"
    yield "from elsewhere", _from_elsewhere(settings)
    interval, deadline = say_duration(settings.probe_interval), say_duration(settings.probe_deadline)
    yield "health", f"every store probed every {interval}, given {deadline} to answer"
    delay, drain = say_duration(settings.drain_delay), say_duration(settings.drain_deadline)
    yield "stopping", f"503 to the load balancer for {delay}, then {drain} for requests to end"


def _locations(settings: Settings) -> Iterator[tuple[str, str]]:
    others = [name for name in settings.locations if name not in settings.preference]
    for place, name in enumerate((*settings.preference, *others), 1):
        location = settings.locations[name]
        rank = f"{place}." if name in settings.preference else "-"
        facts = [location.engine.describe()]
        if place == 1:
            facts.append("preferred")
        if name not in settings.preference:
            facts.append("not in the preference: read only when nothing else has the blob")
        if settings.replicate and name in settings.default_locations:
            facts.append("required")
        facts.append(_redirects(settings, location))
        yield f"{rank} {name}", "; ".join(facts)


def _table(rows: Iterator[tuple[str, str]]) -> Iterator[str]:
    cells = list(rows)
    width = max(len(name) for name, _ in cells)
    for name, text in cells:
        yield f"  {name:<{width}}  {text}"


def report(settings: Settings) -> str:
    """Return what a node would do with these settings, as a few tables for people."""
    lines = ["The node:", *_table(_picture(settings))]
    lines += ["", "Locations, in this node's order of preference:", *_table(_locations(settings))]
    lines += ["", "Limits:", *_table(_limits(settings))]
    warnings = [*settings.warnings, *_of_the_certificate(settings)]
    lines += ["", "Warnings:" if warnings else "No warnings."]
    lines += [f"  - {line}" for line in warnings]
    return "\n".join(lines)
