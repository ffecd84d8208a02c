"""Reads where Redis is: USER_EVENTS_REDIS, else BUILDLOGS_REDIS, else nowhere."""

from collections.abc import Mapping

from engines.readable import why_unreadable
from node.config.keys import nearest
from node.config.settings import RedisSettings
from node.config.values import Findings, Unfit, parse_host, read_flag, read_number, read_text, show

_SUPPORTED = ("host", "port", "password", "db", "ssl", "ssl_ca_certs")
# Keys of Quay's that change how TLS is checked or what is shown to the server; here certificates are always checked.
_UNSUPPORTED = ("ssl_keyfile", "ssl_certfile", "ssl_cert_reqs", "ssl_ca_data", "ssl_check_hostname", "ssl_ca_path")


def _read_host(value: object) -> str:
    host, port = parse_host(read_text(value))
    if port is not None:
        raise Unfit('write the bare host; the port has a key of its own, "port"')
    return host


_READERS = {
    "host": _read_host,
    "port": read_number(1, 65535),
    "password": read_text,
    "db": read_number(0, 1_000_000),
    "ssl": read_flag,
    "ssl_ca_certs": read_text,
}
_FIELDS = {"ssl": "tls", "ssl_ca_certs": "ca_file"}


def _check_names(key: str, names: list[object], findings: Findings) -> None:
    """Name what is not understood: an error where it looks like a slip, a warning where it is Quay's or foreign."""
    ignored = []
    for name in names:
        if name in _SUPPORTED:
            continue
        meant = None if name in _UNSUPPORTED else nearest(str(name).upper(), [known.upper() for known in _SUPPORTED])
        if meant is not None:
            findings.wrong(f"{key}.{name}", "an unknown key", f"did you mean {meant.lower()}?")
        else:
            ignored.append(str(name))
    if ignored:
        findings.warn(f"{key}: not supported and ignored: {', '.join(ignored)}")


def read_redis(document: Mapping[str, object], findings: Findings) -> RedisSettings | None:
    """Return where Redis is, None where no key says so or after errors, which go to `findings`."""
    key = next((name for name in ("USER_EVENTS_REDIS", "BUILDLOGS_REDIS") if document.get(name) is not None), None)
    if key is None:
        return None
    given = document[key]
    if not isinstance(given, Mapping) or given.get("host") is None:
        # Perhaps a URL with a password in it.
        findings.wrong(
            key,
            show(given, secret=isinstance(given, str)),
            'write at least the host: {host: "redis.example.com", port: 6379}',
        )
        return None
    before = len(findings.problems)
    _check_names(key, list(given), findings)
    values: dict[str, object] = {}
    for name, read in _READERS.items():
        value = given.get(name)
        if value is None:
            continue
        try:
            values[_FIELDS.get(name, name)] = read(value)
        except Unfit as error:
            findings.wrong(f"{key}.{name}", show(value, secret=name == "password"), str(error))
    ca_file = values.get("ca_file")
    if isinstance(ca_file, str) and (reason := why_unreadable(ca_file)) is not None:
        findings.wrong(f"{key}.ssl_ca_certs", show(ca_file), reason)
    if ca_file is not None and not values.get("tls"):
        findings.wrong(f"{key}.ssl_ca_certs", show(ca_file), "it needs ssl: true beside it")
    if len(findings.problems) > before:
        return None
    return RedisSettings(**values)  # type: ignore[arg-type] # each reader returns its field's type
