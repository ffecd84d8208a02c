"""Users, organisations, robots and application tokens: made, changed, deleted. Secrets are shown once, when they are made."""

from collections.abc import Awaitable, Callable, Mapping
from uuid import UUID

from node.api.frame import Json, Problem, Wrong, timestamp
from node.api.tags import Means
from node.auth.changes import ACCESS_CHANGED
from node.auth.model import Kind
from node.auth.passwords import Passwords, check_password
from node.auth.secrets import APPLICATION, ROBOT, hash_secret, new_secret
from node.config.values import Unfit, parse_duration, show
from node.names import is_name
from node.records.accounts import (
    Account,
    Deletion,
    create_organization,
    create_robot,
    create_user,
    delete_account,
    find_account,
    list_accounts,
    set_secret,
    update_account,
)
from node.records.application_tokens import ApplicationToken, create_token, delete_token, list_tokens

Admit = Callable[[bool], Awaitable[None]]
"""Returns if whoever asks may make (True) or change (False) the organisation. Raises RegistryError."""

MOST_TITLE = 200
"""Characters of what an application token is for."""
_MOST_TOKEN_SECONDS = 10 * 365 * 86400.0


async def get_accounts(means: Means, kind: Kind, owner: str | None, after: str, most: int) -> Json:
    """Return a page of accounts of a kind by name; of robots those of `owner`."""
    found = await list_accounts(means.database, kind, owner=owner, after=after, most=most + 1)
    page = found[:most]
    return {"accounts": [_line(account) for account in page], "next": page[-1].name if len(found) > most else None}


async def get_account(means: Means, name: str, kind: Kind) -> Json:
    """Return an account. Raises Problem (404)."""
    return _line(await _find(means, name, kind))


async def set_user(means: Means, passwords: Passwords, name: str, body: Mapping[str, object]) -> Json:
    """Make a user, or change what is given: `password`, `email`, `superuser`, `enabled`. Raises Problem: 400, 409.

    Another password makes void whatever was issued before. A user without one cannot log in.
    """
    _check(name, "user")
    secret = None
    if (password := body.get("password")) is not None:
        try:
            secret = await passwords.hash(check_password(str(password)))
        except Unfit as error:
            raise Problem(
                400,
                "a password that cannot be used",
                str(error),
                wrong=(Wrong("password", "what was given", str(error)),),
            ) from None
    email = body.get("email")
    known = await find_account(means.database, name)
    if known is None:
        made = await create_user(
            means.database,
            name,
            secret,
            email=None if email is None else str(email),
            superuser=body.get("superuser") is True,
        )
        if made is None:
            raise _taken(name)
    elif known.kind is not Kind.USER:
        raise _taken(name)
    elif secret is not None:
        await set_secret(means.database, name, secret)
    changed = await update_account(
        means.database,
        name,
        email=None if email is None else str(email),
        enabled=_flag(body.get("enabled")),
        superuser=_flag(body.get("superuser")),
    )
    means.publish(ACCESS_CHANGED)
    if changed is None:
        raise _unknown(name, Kind.USER)
    return _line(changed)


async def set_organization(
    means: Means, name: str, body: Mapping[str, object], creator: str | None, admit: Admit
) -> Json:
    """Make an organisation, or change its `email` and `description`. Raises Problem: 400, 409; and what `admit` does.

    A new one has a team of admins, `owners`, with its creator in it.
    """
    _check(name, "organisation")
    email, description = body.get("email"), body.get("description")
    known = await find_account(means.database, name)
    await admit(known is None)
    if known is None:
        if await create_organization(means.database, name, creator) is None:
            raise _taken(name)
    elif known.kind is not Kind.ORGANIZATION:
        raise _taken(name)
    changed = await update_account(
        means.database,
        name,
        email=None if email is None else str(email),
        description=None if description is None else str(description),
    )
    means.publish(ACCESS_CHANGED)
    if changed is None:
        raise _unknown(name, Kind.ORGANIZATION)
    return _line(changed)


async def remove_account(means: Means, name: str, kind: Kind) -> Json:
    """Delete an account with its robots, teams and permissions. Raises Problem: 404, 409 while its namespace has repositories."""
    await _find(means, name, kind)
    outcome = await delete_account(means.database, name)
    if outcome is Deletion.UNKNOWN:
        raise _unknown(name, kind)
    if outcome is Deletion.IN_USE:
        raise Problem(409, "it has repositories", f"delete the namespace {name} first")
    means.publish(ACCESS_CHANGED)
    return {"name": name, "deleted": True}


async def set_robot(means: Means, owner: str, short: str, body: Mapping[str, object]) -> Json:
    """Make the robot `owner+short`, or change its `description`; the making shows its token. Raises Problem: 400, 404."""
    _check(short, "robot")
    name, description = f"{owner}+{short}", body.get("description")
    text = None if description is None else str(description)
    secret = new_secret(ROBOT)
    if await find_account(means.database, name) is None:
        made = await create_robot(means.database, owner, short, hash_secret(secret), description=text)
        if made is None:
            raise Problem(404, "no such user or organisation", owner[:255])
        return {**_line(made), "token": secret}
    changed = await update_account(means.database, name, description=text)
    if changed is None:
        raise _unknown(name, Kind.ROBOT)
    return _line(changed)


async def renew_robot(means: Means, owner: str, short: str) -> Json:
    """Give a robot another token, and show it; the old one is void at once. Raises Problem (404)."""
    name, secret = f"{owner}+{short}", new_secret(ROBOT)
    account = await _find(means, name, Kind.ROBOT)
    if not await set_secret(means.database, name, hash_secret(secret)):
        raise _unknown(name, Kind.ROBOT)
    means.publish(ACCESS_CHANGED)
    return {**_line(account), "token": secret}


async def get_tokens(means: Means, account: str) -> Json:
    """Return an account's application tokens, without their secrets."""
    return {"tokens": [_token(token) for token in await list_tokens(means.database, account)]}


def parse_token_lifetime(given: object) -> float:
    """Return for how many seconds an application token is good, from text such as "90d". Raises Unfit."""
    seconds = parse_duration(given)
    if not 60 <= seconds <= _MOST_TOKEN_SECONDS:
        raise Unfit("write a minute to ten years")
    return seconds


async def add_token(means: Means, account: str, body: Mapping[str, object]) -> Json:
    """Make an application token: `title`, and `lifetime` such as "90d"; shows its secret. Raises Problem: 400, 404."""
    lifetime = None
    if (given := body.get("lifetime")) is not None:
        try:
            lifetime = parse_token_lifetime(given)
        except Unfit as error:
            raise _lifetime(given, str(error)) from None
    secret = new_secret(APPLICATION)
    made = await create_token(means.database, account, str(body.get("title", "")), hash_secret(secret), lifetime)
    if made is None:
        raise Problem(404, "no such account", account[:255])
    return {**_token(made), "secret": secret}


async def remove_token(means: Means, account: str, token: str) -> Json:
    """Take an application token away; what was issued with it is void. Raises Problem (404)."""
    try:
        wanted = UUID(token)
    except ValueError:
        raise Problem(404, "no such token", token[:80]) from None
    if not await delete_token(means.database, account, wanted):
        raise Problem(404, "no such token", token[:80])
    means.publish(ACCESS_CHANGED)
    return {"id": str(wanted), "deleted": True}


async def _find(means: Means, name: str, kind: Kind) -> Account:
    found = await find_account(means.database, name)
    if found is None or found.kind is not kind:
        raise _unknown(name, kind)
    return found


def _check(name: str, what: str) -> None:
    if not is_name(name) or "/" in name:
        right = "write lower-case letters and digits, joined by '.', '_', '__' or '-', at most 255"
        raise Problem(400, f"not a name of a {what}", f"{name[:80]!r}: {right}")


def _flag(value: object) -> bool | None:
    return value if isinstance(value, bool) else None


def _taken(name: str) -> Problem:
    return Problem(409, "the name is taken", f"{name[:255]} is another account, or a namespace with repositories")


def _unknown(name: str, kind: Kind) -> Problem:
    return Problem(404, f"no such {kind.value}", name[:255])


def _lifetime(given: object, right: str) -> Problem:
    wrong = (Wrong("lifetime", show(given), right),)
    return Problem(400, "a lifetime that cannot be used", f"lifetime: {right}", wrong=wrong)


def _line(account: Account) -> Json:
    return {
        "name": account.name,
        "kind": account.kind.value,
        "owner": account.owner,
        "email": account.email,
        "description": account.description,
        "superuser": account.superuser,
        "enabled": account.enabled,
        "created": timestamp(account.created_at),
    }


def _token(token: ApplicationToken) -> Json:
    return {
        "id": str(token.id),
        "account": token.account,
        "title": token.title,
        "created": timestamp(token.created_at),
        "expires": timestamp(token.expires_at),
    }
