"""First contact: a registry without users has no password that anybody knows, but a token that makes the first superuser, once."""

import structlog

from node.auth.passwords import Passwords, check_password
from node.auth.secrets import BOOTSTRAP, hash_secret, new_secret
from node.config.values import Unfit
from node.names import is_account
from node.records.accounts import Account, any_user
from node.records.bootstrap import is_bootstrap, offer_bootstrap, use_bootstrap
from node.records.postgres import Database

_log = structlog.get_logger("antipode.accounts")

_PATIENCE = 60.0
"""Seconds for which a token that another node has shown is left alone: nodes that start together show one."""


async def offer_first_contact(database: Database) -> str | None:
    """Where there is no user, make the token and show it in the log; return it. Raises DatabaseUnavailable."""
    if await any_user(database):
        return None
    token = new_secret(BOOTSTRAP)
    way = "antipode user create NAME --superuser, or POST /api/v1/user/initialize with the token, username and password"
    if not await offer_bootstrap(database, hash_secret(token), _PATIENCE):
        _log.warning("there is no user yet: another node's log has the token for the first one", way=way)
        return None
    # Under a name that the log does not hide: it is there to be read, and good for nothing after its first use.
    _log.warning("there is no user yet: this token makes the first superuser", once=token, way=way)
    return token


async def make_first_user(
    database: Database, passwords: Passwords, token: str, name: str, password: str
) -> Account | None:
    """Make the first superuser; None: the token is not good, or not any more.

    Raises Unfit with what would be right for a name or a password that cannot be used, RegistryError (429), DatabaseUnavailable.
    """
    secret = hash_secret(token)
    if not await is_bootstrap(database, secret):
        return None
    if not is_account(name):
        raise Unfit("username: write lower-case letters and digits, joined by '.', '_', '__' or '-'")
    try:
        hashed = await passwords.hash(check_password(password))
    except Unfit as error:
        raise Unfit(f"password: {error}") from None
    return await use_bootstrap(database, secret, name, hashed)
