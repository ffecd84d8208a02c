"""People in an LDAP directory: found with the administrator's entry, proven by a bind as themselves (RFC 4511, 4513).

The library blocks, so it works in threads, a few at a time, each login on a connection of its own that ends with it. Referrals are
not followed: they would take the password wherever the directory says.
"""

import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import structlog
import trio
from attrs import define, field
from ldap3 import BASE, NONE, SIMPLE, SUBTREE, SYNC, Connection, Server, Tls
from ldap3.core.exceptions import LDAPExceptionError
from ldap3.utils.conv import escape_filter_chars

from engines.tls_trust import trusting
from node.auth.directory import DirectoryUnavailable, Person
from node.auth.passwords import MOST
from node.auth.told import Unread
from node.config.settings import LdapSettings
from node.errors import TOOMANYREQUESTS, RegistryError

_log = structlog.get_logger("antipode.access")

_AT_ONCE = 8
_WAITING = 64
_SUCCESS = 0
_NOT_NOW = frozenset({1, 2, 3, 7, 8, 10, 13, 14, 51, 52, 80, 118})
"""Results of a bind that say nothing of the password: RFC 4511, 4.1.9; busy, unavailable, stronger authentication required, ..."""


@define(eq=False)
class Ldap:
    """An LDAP directory."""

    _settings: LdapSettings = field(alias="settings")
    kind: str = field(default="ldap", init=False)
    _limiter: trio.CapacityLimiter = field(factory=lambda: trio.CapacityLimiter(_AT_ONCE), init=False)

    async def prove(self, name: str, password: str) -> Person | None:
        """Return who has this name and password. Raises DirectoryUnavailable, RegistryError (429) when too many are waiting."""
        # RFC 4513, 5.1.2: a bind with an empty password succeeds, and proves nothing.
        if not password or len(password) > MOST or "\0" in password:
            return None
        if self._limiter.statistics().tasks_waiting >= _WAITING:
            raise RegistryError(TOOMANYREQUESTS, {"reason": "too many logins at once"}, retry_after=2)
        try:
            with trio.fail_after(self._settings.timeout):
                return await trio.to_thread.run_sync(
                    prove_now, self._settings, name, password, limiter=self._limiter, abandon_on_cancel=True
                )
        except trio.TooSlowError:
            reason = f"no answer within {self._settings.timeout:g} s"
        except DirectoryUnavailable as error:
            reason = str(error)
        _log.warning("the directory cannot be asked", directory=self._settings.uri, reason=reason)
        raise DirectoryUnavailable(reason)


def prove_now(settings: LdapSettings, name: str, password: str) -> Person | None:
    """Ask the directory and wait for it; `password` is not empty. Raises DirectoryUnavailable."""
    with entered(settings) as connection:
        found = _find(connection, settings, name)
        if found is None:
            _bind_as_nobody(connection, settings, password)
            return None
        entry = str(found["dn"])
        superuser = _matches(connection, entry, settings.superuser_filter)
        if not _bind(connection, entry, password):
            return None
        return Person(_first(found["attributes"].get(settings.email_attribute)), superuser)


@contextmanager
def entered(settings: LdapSettings) -> Iterator[Connection]:
    """Connect as LDAP_ADMIN_DN, in a thread that may wait. What goes wrong, here or inside, becomes DirectoryUnavailable."""
    connection = _prepare(settings)
    try:
        try:
            _enter(connection, settings)
            yield connection
        finally:
            _leave(connection)
    except (LDAPExceptionError, OSError) as error:
        # The library's texts name hosts, results and certificates, and no password.
        raise DirectoryUnavailable(f"{type(error).__name__}: {error}") from error


def user_filter(settings: LdapSettings, name: str) -> str:
    """Return the filter that finds somebody by name (RFC 4515)."""
    return f"(&({settings.uid_attribute}={escape_filter_chars(name)}){settings.user_filter})"


class _Tls(Tls):  # type: ignore[misc] # the library ships no types
    """TLS as Python's own: OpenSSL compares the certificate's names with the host, which the library does by outdated means."""

    def wrap_socket(self, connection: Connection, do_handshake: bool = False) -> None:
        """Put TLS around the connection's socket. Raises OSError."""
        context = trusting(self.ca_certs_file)
        connection.socket = context.wrap_socket(
            connection.socket, server_hostname=connection.server.host, do_handshake_on_connect=do_handshake
        )


def _prepare(settings: LdapSettings) -> Connection:
    """Return a connection that is not opened yet."""
    tls = _Tls(ca_certs_file=settings.ca_file) if settings.secure or settings.start_tls else None
    seconds = max(1, int(settings.timeout))
    server = Server(
        settings.host, settings.port, use_ssl=settings.secure, tls=tls, get_info=NONE, connect_timeout=seconds
    )
    return Connection(
        server,
        settings.admin_dn,
        settings.admin_password,
        authentication=SIMPLE,
        client_strategy=SYNC,
        auto_referrals=False,
        receive_timeout=seconds,
        read_only=True,
        # It would rewrite names that the directory itself gave.
        check_names=False,
        # Where the next part of a long list is refused, it would give what it has for the whole (`ldap_search.py`); and a part that
        # was asked for and did not come it would add as an empty one.
        auto_range=False,
        return_empty_attributes=False,
    )


def _enter(connection: Connection, settings: LdapSettings) -> None:
    """Open the connection, with TLS where it is asked for, and bind as the administrator."""
    connection.open(read_server_info=False)
    if settings.start_tls:
        connection.start_tls(read_server_info=False)
    if not connection.bind(read_server_info=False):
        raise DirectoryUnavailable(f"the bind as LDAP_ADMIN_DN: {_result(connection)}", Unread.REFUSED)


def _leave(connection: Connection) -> None:
    held = connection.socket
    # A server that is gone needs no farewell.
    with suppress(LDAPExceptionError, OSError):
        connection.unbind()
    if held is not None:
        # The library leaves open what it could not open whole.
        held.close()


def _find(connection: Connection, settings: LdapSettings, name: str) -> Any:
    """Return the one entry of this name, with its attributes; None: there is none, or more than one."""
    found = _search(connection, settings.base, user_filter(settings, name), SUBTREE, [settings.email_attribute])
    if len(found) > 1:
        _log.warning("more than one entry of the directory has this name", account=name)
    return found[0] if len(found) == 1 else None


def _matches(connection: Connection, entry: str, wanted: str | None) -> bool:
    return wanted is not None and bool(_search(connection, entry, wanted, BASE, []))


def _search(connection: Connection, base: str, wanted: str, scope: Any, attributes: Sequence[str]) -> list[Any]:
    connection.search(base, wanted, scope, attributes=list(attributes), size_limit=2)
    entries = [line for line in connection.response or () if line["type"] == "searchResEntry"]
    # Where there are more than two, their number is told by a result of its own; two are as good a reason to refuse.
    if connection.result["result"] != _SUCCESS and len(entries) < 2:
        raise DirectoryUnavailable(f"the search below {base}: {_result(connection)}")
    return entries


def _bind(connection: Connection, entry: str, password: str) -> bool:
    """Tell whether this is the entry's password. The bytes go as they are: what they mean is the directory's business."""
    bound: bool = connection.rebind(entry, password.encode(), authentication=SIMPLE, read_server_info=False)
    if not bound and connection.result["result"] in _NOT_NOW:
        raise DirectoryUnavailable(f"the bind as a user: {_result(connection)}")
    return bound


def _bind_as_nobody(connection: Connection, settings: LdapSettings, password: str) -> None:
    """Ask all that is asked about somebody: nobody shall see by the time that it takes whether the directory has a name."""
    entry = f"cn={secrets.token_hex(16)},{settings.base}"
    with suppress(DirectoryUnavailable):
        # Nothing is there, whichever way the directory says so.
        _matches(connection, settings.base, settings.superuser_filter)
        _bind(connection, entry, password)


def _result(connection: Connection) -> str:
    return str(connection.result["description"])


def _first(value: Any) -> str | None:
    """Return an attribute's first value: without a schema the library gives lists, of bytes or text."""
    one = next(iter(value), None) if isinstance(value, list) else value
    if isinstance(one, bytes):
        one = one.decode(errors="replace")
    return str(one) if one else None
