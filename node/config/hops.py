"""Names the ways between regions on which somebody could listen or answer in another's name. Pure.

What stays on this machine is not named. A warning, not an error: a private network may be as good as TLS, which only its operator
can know.
"""

from collections.abc import Iterable, Iterator, Mapping
from ipaddress import ip_address
from urllib.parse import parse_qsl, urlsplit

from engines.s3_arguments import S3Arguments
from node.config.database import hosts_of
from node.config.settings import LocationSettings, RedisSettings

_CHECKED = frozenset({"verify-ca", "verify-full"})


def open_hops(
    locations: Mapping[str, LocationSettings],
    database_uri: str,
    redis: RedisSettings | None,
    replicas: Iterable[str] = (),
) -> Iterator[str]:
    """Yield one line for each hop that is not encrypted, or whose other end is not checked; `replicas` are URIs of databases."""
    for name, location in locations.items():
        if isinstance(location.engine.arguments, S3Arguments):
            yield from _store(name, location.engine.arguments, location.redirect)
    yield from _database(database_uri, "database")
    for uri in replicas:
        yield from _database(uri, "read replica")
    if redis is not None and not redis.tls and not is_here(redis.host):
        yield f"node -> redis at {redis.host}:{redis.port} without TLS: set ssl: true"


def _store(name: str, arguments: S3Arguments, redirect: bool) -> Iterator[str]:
    plain = arguments.endpoint.startswith("http:")
    if not _is_local(arguments.endpoint):
        if plain:
            yield f"node -> store {name} at {arguments.endpoint} without TLS: give it an https endpoint"
        elif not arguments.verify_tls:
            yield f"node -> store {name} at {arguments.endpoint} does not check the certificate: use ca_bundle, not verify_tls"
    public = arguments.public_endpoint
    if redirect and public and public.startswith("http:") and not _is_local(public):
        yield f"clients -> store {name} at {public} without TLS: its signed URLs can be read on the way"


def _database(uri: str, called: str) -> Iterator[str]:
    options = dict(parse_qsl(urlsplit(uri).query))
    far = [host for host in hosts_of(uri) if not is_here(host)]
    if not far:
        return
    # What PostgreSQL's clients do without a word about it.
    mode = options.get("sslmode", "prefer")
    where = f"node -> {called} {' and '.join(far)}"
    if mode == "require" and "sslrootcert" not in options:
        yield f"{where} with sslmode require does not check who answers: use verify-full with sslrootcert"
    elif mode not in _CHECKED and mode != "require":
        yield f"{where} with sslmode {mode} may be without TLS: use verify-full with sslrootcert"


def _is_local(endpoint: str) -> bool:
    return is_here(urlsplit(endpoint).hostname or "")


def is_here(host: str) -> bool:
    """Return whether a host is this machine: the loopback interface, or the folder of a local socket."""
    if host.startswith("/") or host.lower() == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
