"""A URI of a database with several hosts, as one URI for each: tried side by side, so that a dead one holds nobody up. Pure."""

from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

ATTRIBUTES = "target_session_attrs"
WRITABLE = "read-write"


def each_host(uri: str) -> tuple[str, ...]:
    """Return a URI per host, in order. With several, `target_session_attrs` is `read-write` unless the URI says otherwise.

    `host=` among the options counts as in libpq, where the URI's own place for it is empty.
    """
    parts = urlsplit(uri)
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    credentials, at, names = parts.netloc.rpartition("@")
    hosts = [host for host in names.split(",") if host]
    if len(hosts) > 1:
        options.setdefault(ATTRIBUTES, WRITABLE)
        query = urlencode(options)
        return tuple(urlunsplit(("postgresql", f"{credentials}{at}{host}", parts.path, query, "")) for host in hosts)
    listed, ports = options.get("host", "").split(","), options.get("port", "").split(",")
    if hosts or len(listed) < 2:
        return (uri,)
    options.setdefault(ATTRIBUTES, WRITABLE)
    found = []
    for place, host in enumerate(listed):
        port = ports[place] if len(ports) == len(listed) else ports[0]
        single = {**options, "host": host, **({"port": port} if port else {})}
        found.append(f"postgresql://{parts.netloc}{parts.path}?{urlencode(single)}")
    return tuple(found)
