"""Links accounts with the people of a directory: at the first login the account is made, or taken over if it has no password.

A linked account's secret is a mark, such as `ldap:alice`, which no password has as its hash. An account with a password of its own
stays the database's: nobody in the directory gets it by having its name.
"""

import structlog
from attrs import frozen

from node.auth.directory import Directory, Person
from node.auth.model import Kind
from node.names import is_name
from node.records.accounts import create_user, link_account
from node.records.auditlog import Line
from node.records.logins import Login, find_by_name
from node.records.postgres import Database

_log = structlog.get_logger("antipode.access")


CREATED, LINKED = "createUser", "linkUser"
"""What the audit log calls it that a first login makes an account, or is let into one that was there."""


@frozen
class Where:
    """Where a login comes from: the client's address, and the node that it came to."""

    client: str = ""
    node: str = ""

    def line(self, action: str, name: str, **detail: object) -> Line:
        """Return the audit log's line about somebody's own account."""
        return Line(action, name, name, detail=detail, client=self.client, node=self.node)


def mark_of(directory: Directory, name: str) -> str:
    """Return the secret of an account that is linked with somebody of this name."""
    return f"{directory.kind}:{name}"


def belongs(directory: Directory, name: str, login: Login | None) -> bool:
    """Tell whether the directory decides who has this name: it is free, or a user's who is linked, or who has no password."""
    if login is None:
        return is_name(name) and "/" not in name
    account = login.account
    return account.kind is Kind.USER and account.secret in (None, mark_of(directory, name))


async def link(
    database: Database, directory: Directory, name: str, login: Login | None, person: Person, at: Where
) -> Login | None:
    """Return the login of somebody whom the directory has just proven; None: their name is not to be had, as the log says.

    What the first login of somebody makes or links has a line in the audit log. Raises DatabaseUnavailable.
    """
    mark = mark_of(directory, name)
    if login is not None and login.account.secret == mark:
        return login
    if login is None:
        # Another node may be making it at this moment.
        await create_user(database, name, mark, email=person.email, line=at.line(CREATED, name, by=directory.kind))
    else:
        await link_account(database, login.account.id, mark, at.line(LINKED, name, by=directory.kind))
    linked = await find_by_name(database, name)
    if linked is None or linked.account.secret != mark:
        _log.warning("a name in the directory is taken, or its namespace has repositories", account=name)
        return None
    _log.info("account linked with the directory", account=name, directory=directory.kind)
    return linked
