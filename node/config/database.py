"""Reads the database's keys: DB_URI in the forms that Quay's operators write, and DB_CONNECTION_ARGS.

What comes out is a URI that asyncpg takes as it is. A password never gets into a message.
"""

from collections.abc import Mapping
from pathlib import Path
from urllib.parse import SplitResult, parse_qsl, unquote, urlencode, urlsplit

from attrs import evolve, frozen

from engines.readable import why_unreadable
from node.config.keys import nearest
from node.config.values import Findings, Unfit, parse_host, read_choice, read_number, read_text, show

_RIGHT = 'write "postgresql://user:password@host:5432/database"'
_SCHEMES = frozenset({"postgresql", "postgres"})
# Client options of libpq; asyncpg would send them to the server, which refuses settings that it does not know.
_CLIENT_ONLY = frozenset(
    {
        "channel_binding",
        "connect_timeout",
        "gssencmode",
        "keepalives",
        "keepalives_count",
        "keepalives_idle",
        "keepalives_interval",
        "load_balance_hosts",
        "tcp_user_timeout",
    }
)
_FILES = ("sslrootcert", "sslcert", "sslkey")
# In capitals, as `nearest` compares.
_ARGUMENTS = tuple(name.upper() for name in ("max_connections", "password", "sslmode", *_FILES))
_read_sslmode = read_choice("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
# Every node needs one connection for requests and one for its background work.
_read_pool = read_number(2, 1000)


@frozen
class Database:
    """Where the database is, as a URI for asyncpg, and how many connections may be open. `pool` of None is the default."""

    uri: str
    pool: int | None = None


def _split(uri: object) -> SplitResult:
    """Return the URI in its parts. Raises Unfit, whose text repeats nothing of the URI but its scheme and host."""
    if not isinstance(uri, str) or "://" not in uri:
        raise Unfit(_RIGHT)
    scheme, _, rest = uri.partition("://")
    # "postgresql+psycopg2" names SQLAlchemy's driver; there is only one here.
    base = scheme.partition("+")[0].lower()
    if base not in _SCHEMES:
        raise Unfit(f"this registry keeps its records in PostgreSQL only, not in {base!r}: {_RIGHT}")
    try:
        parts = urlsplit(f"postgresql://{rest}")
        parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError as error:
        raise Unfit(f"this is not a URI: {_RIGHT}") from error
    if parts.fragment or parts.netloc.count("@") > 1:
        raise Unfit('the characters "@", "#", "/", "?" and "%" in a user name or password must be percent-encoded')
    return parts


def _hosts(parts: SplitResult, options: Mapping[str, str]) -> tuple[str, ...]:
    """Return the hosts, each with its port if it has one, in the order in which they are tried. Raises Unfit."""
    hosts = tuple(host for host in parts.netloc.rpartition("@")[2].split(",") if host)
    for host in hosts:
        try:
            parse_host(host)
        except Unfit as error:
            # Not shown: after a slash or the like that is not percent-encoded it is the beginning of a password.
            right = f"{_RIGHT}, or several hosts with commas between; special characters of a password percent-encoded"
            raise Unfit(f"there is something in it where a host is due: {right}") from error
    return hosts or tuple(options.get("host", "").split(",") if options.get("host") else ())


def _name(parts: SplitResult, options: Mapping[str, str]) -> str:
    """Return the database's name. Raises Unfit where the URI has none."""
    name = unquote(parts.path.lstrip("/")) or options.get("dbname") or options.get("database")
    if not name:
        raise Unfit(f"the name of the database is missing: {_RIGHT}")
    return name


def hosts_of(uri: str) -> tuple[str, ...]:
    """Return the hosts of a URI that `read_database` made, without their ports; none where it is the local socket."""
    parts = urlsplit(uri)
    hosts = _hosts(parts, dict(parse_qsl(parts.query)))
    return tuple(host if host.startswith("/") else parse_host(host)[0] for host in hosts)


def describe_database(uri: str) -> str:
    """Return "host:port, database name, as user" of a URI that `read_database` made: everything but the password."""
    parts = urlsplit(uri)
    options = dict(parse_qsl(parts.query))
    hosts = " or ".join(_hosts(parts, options)) or "the local socket"
    user = unquote(parts.netloc.rpartition("@")[0].partition(":")[0]) or options.get("user")
    said = f"{hosts}, database {_name(parts, options)}"
    said += f", as {user}" if user else ""
    return said + (f", sslmode {options['sslmode']}" if "sslmode" in options else "")


def _take_password(value: object, parts: SplitResult, options: dict[str, str]) -> None:
    """Add the password to the URI's `options`. Raises Unfit."""
    password = read_text(value)
    if "password" in options or ":" in parts.netloc.rpartition("@")[0]:
        raise Unfit("DB_URI has a password too: say it in one place")
    options["password"] = password


def _take_arguments(
    arguments: Mapping[object, object], parts: SplitResult, options: dict[str, str], findings: Findings
) -> int | None:
    """Add what DB_CONNECTION_ARGS says to the URI's `options`; return the bound of connections, None if it has none."""
    pool = None
    left_out = []
    for name, value in arguments.items():
        where = f"DB_CONNECTION_ARGS.{name}"
        try:
            if name == "max_connections":
                pool = None if value is None else _read_pool(value)
            elif name == "password":
                _take_password(value, parts, options)
            elif name == "sslmode" or name in _FILES:
                said = _read_sslmode(value) if name == "sslmode" else read_text(value)
                other = options.setdefault(str(name), said)
                if other != said:
                    findings.wrong(where, show(value), f'DB_URI says "{other}": say it in one place')
            elif (meant := nearest(str(name), _ARGUMENTS)) is not None:
                findings.wrong(where, "an unknown key", f"did you mean {meant.lower()}?")
            else:
                left_out.append(str(name))
        except Unfit as error:
            findings.wrong(where, show(value, secret=name == "password"), str(error))
    if left_out:
        findings.warn(f"DB_CONNECTION_ARGS: not supported and ignored: {', '.join(left_out)}")
    return pool


def trust_database(database: Database, authorities: Path) -> Database:
    """Return the database with this file for a connection that checks the certificate and names none."""
    parts = urlsplit(database.uri)
    options = dict(parse_qsl(parts.query))
    if options.get("sslmode") not in ("verify-ca", "verify-full") or "sslrootcert" in options:
        return database
    return evolve(database, uri=f"{database.uri}&{urlencode({'sslrootcert': str(authorities)})}")


def _show_uri(uri: object) -> str:
    """Return what a message may say of a URI that could not be read: its scheme."""
    scheme, separator, _ = uri.partition("://") if isinstance(uri, str) else ("", "", "")
    return f'"{scheme}://..."' if separator and scheme.replace("+", "").isalnum() else show(uri, secret=True)


def read_replicas(document: Mapping[str, object], findings: Findings) -> tuple[Database, ...]:
    """Return the databases of DB_READ_REPLICAS, a list of mappings with DB_URI and DB_CONNECTION_ARGS (Quay's form)."""
    given = document.get("DB_READ_REPLICAS")
    if given is None:
        return ()
    if not isinstance(given, list):
        findings.wrong(
            "DB_READ_REPLICAS", show(given, secret=True), 'write a list, such as [{DB_URI: "postgresql://..."}]'
        )
        return ()
    found = []
    for place, entry in enumerate(given):
        inner, where = Findings(), f"DB_READ_REPLICAS[{place}]"
        if not isinstance(entry, Mapping):
            findings.wrong(where, show(entry, secret=True), 'write a mapping, such as {DB_URI: "postgresql://..."}')
            continue
        known = {str(name): value for name, value in entry.items()}
        if unknown := sorted(known.keys() - {"DB_URI", "DB_CONNECTION_ARGS"}):
            inner.warn(f"not supported and ignored: {', '.join(unknown)}")
        database = read_database(known, inner)
        for problem in inner.problems:
            findings.wrong(f"{where}.{problem.key}", problem.found, problem.right)
        for line in inner.warnings:
            findings.warn(f"{where}: {line}")
        if database is not None:
            found.append(database)
    return tuple(found)


def read_database(document: Mapping[str, object], findings: Findings) -> Database | None:
    """Return the database that DB_URI and DB_CONNECTION_ARGS name; None after errors, which go to `findings`.

    The files that `sslrootcert` and its like name must be readable here.
    """
    uri = document.get("DB_URI")
    try:
        parts = _split(uri)
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        _hosts(parts, options)
        _name(parts, options)
        if "sslmode" in options:
            _read_sslmode(options["sslmode"])
    except Unfit as error:
        findings.wrong("DB_URI", _show_uri(uri), str(error))
        return None
    ignored = [name for name in options if name in _CLIENT_ONLY]
    if ignored:
        findings.warn(f"DB_URI: options that are not supported and ignored: {', '.join(ignored)}")
        options = {name: value for name, value in options.items() if name not in _CLIENT_ONLY}
    arguments = document.get("DB_CONNECTION_ARGS")
    pool = None
    if isinstance(arguments, Mapping):
        pool = _take_arguments(arguments, parts, options, findings)
    elif arguments is not None:
        findings.wrong(
            "DB_CONNECTION_ARGS",
            show(arguments, secret=isinstance(arguments, str)),
            "write a mapping, such as {sslmode: verify-full}",
        )
    for name in _FILES:
        if name in options and (reason := why_unreadable(options[name])) is not None:
            findings.wrong(f"DB_CONNECTION_ARGS.{name}", show(options[name]), reason)
    query = f"?{urlencode(options)}" if options else ""
    # By hand: geturl() would drop the slashes of an empty host.
    return Database(f"postgresql://{parts.netloc}{parts.path}{query}", pool)
