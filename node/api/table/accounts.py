"""Operations on users, organisations, teams, robots, application tokens and permissions."""

from node.api.accounts import (
    MOST_TITLE,
    add_token,
    get_account,
    get_accounts,
    get_tokens,
    remove_account,
    remove_token,
    renew_robot,
    set_organization,
    set_robot,
    set_user,
)
from node.api.frame import Json
from node.api.operations import AFTER, Call, N, Operation, Right
from node.api.schemas import FLAG, TEXT, TIME, body, listing, maybe, one_of, page, record, text
from node.auth.model import Kind
from node.auth.passwords import LEAST, MOST

_ACCOUNT: dict[str, Json] = {
    "name": TEXT,
    "kind": one_of(*(kind.value for kind in Kind)),
    "owner": maybe(TEXT),
    "email": maybe(TEXT),
    "description": maybe(TEXT),
    "superuser": FLAG,
    "enabled": FLAG,
    "created": TIME,
}
_TOKEN: dict[str, Json] = {"id": TEXT, "account": TEXT, "title": TEXT, "created": TIME, "expires": maybe(TIME)}
_DELETED = record(name=TEXT, deleted=FLAG)
_EMAIL, _DESCRIPTION = text(maxLength=255), text(maxLength=1000)


async def _me(call: Call) -> Json:
    who = call.who
    return {"name": who.name, "kind": None if who.kind is None else who.kind.value, "superuser": who.superuser}


async def _users(call: Call) -> Json:
    return await get_accounts(call.means, Kind.USER, None, call.query["after"], call.query["n"])


async def _user(call: Call) -> Json:
    return await get_account(call.means, call.path["user"], Kind.USER)


async def _set_user(call: Call) -> Json:
    return await set_user(call.means, call.registry.access.passwords, call.path["user"], call.body)


async def _delete_user(call: Call) -> Json:
    return await remove_account(call.means, call.path["user"], Kind.USER)


async def _organizations(call: Call) -> Json:
    return await get_accounts(call.means, Kind.ORGANIZATION, None, call.query["after"], call.query["n"])


async def _organization(call: Call) -> Json:
    return await get_account(call.means, call.path["namespace"], Kind.ORGANIZATION)


async def _set_organization(call: Call) -> Json:
    name, access, settings = call.path["namespace"], call.registry.access, call.registry.settings
    # Whoever has the first owns all names of one component, and pulls of `ubuntu` with them.
    reserved = name in (settings.library_namespace, *settings.superusers)

    async def admit(makes: bool) -> None:
        if not makes:
            await access.require_namespace(call.who, name)
        elif settings.superusers_make_organizations or reserved:
            access.require_superuser(call.who)

    creator = call.who.name if call.who.kind is Kind.USER else None
    return await set_organization(call.means, name, call.body, creator, admit)


async def _delete_organization(call: Call) -> Json:
    return await remove_account(call.means, call.path["namespace"], Kind.ORGANIZATION)


async def _robots(call: Call) -> Json:
    return await get_accounts(call.means, Kind.ROBOT, call.path["namespace"], call.query["after"], call.query["n"])


async def _set_robot(call: Call) -> Json:
    return await set_robot(call.means, call.path["namespace"], call.path["robot"], call.body)


async def _renew_robot(call: Call) -> Json:
    return await renew_robot(call.means, call.path["namespace"], call.path["robot"])


async def _delete_robot(call: Call) -> Json:
    return await remove_account(call.means, f"{call.path['namespace']}+{call.path['robot']}", Kind.ROBOT)


async def _tokens(call: Call) -> Json:
    return await get_tokens(call.means, call.path["namespace"])


async def _add_token(call: Call) -> Json:
    return await add_token(call.means, call.path["namespace"], call.body)


async def _remove_token(call: Call) -> Json:
    return await remove_token(call.means, call.path["namespace"], call.path["token"])


OPERATIONS = (
    Operation(
        "GET",
        "/me",
        "getMe",
        "Who asks.",
        Right.NOTHING,
        _me,
        record(name=TEXT, kind=maybe(one_of(*(kind.value for kind in Kind))), superuser=FLAG),
        topic="accounts",
    ),
    Operation(
        "GET",
        "/user",
        "listUsers",
        "The users.",
        Right.SUPERUSER,
        _users,
        page("accounts", record(**_ACCOUNT)),
        topic="accounts",
        query=(AFTER, N),
    ),
    Operation(
        "GET", "/user/{user}", "getUser", "A user.", Right.SUPERUSER, _user, record(**_ACCOUNT), topic="accounts"
    ),
    Operation(
        "PUT",
        "/user/{user}",
        "setUser",
        "Make a user, or change what is given; another password makes void what was issued before.",
        Right.SUPERUSER,
        _set_user,
        record(**_ACCOUNT),
        topic="accounts",
        body=body(
            optional={
                "password": text(f"{LEAST} to {MOST} characters.", writeOnly=True),
                "email": _EMAIL,
                "superuser": FLAG,
                "enabled": FLAG,
            }
        ),
    ),
    Operation(
        "DELETE",
        "/user/{user}",
        "deleteUser",
        "Delete a user, whose namespace must be without repositories.",
        Right.SUPERUSER,
        _delete_user,
        _DELETED,
        topic="accounts",
    ),
    Operation(
        "GET",
        "/organization",
        "listOrganizations",
        "The organisations.",
        Right.SUPERUSER,
        _organizations,
        page("accounts", record(**_ACCOUNT)),
        topic="accounts",
        query=(AFTER, N),
    ),
    Operation(
        "GET",
        "/organization/{namespace}",
        "getOrganization",
        "An organisation.",
        Right.NAMESPACE,
        _organization,
        record(**_ACCOUNT),
        topic="accounts",
    ),
    Operation(
        "PUT",
        "/organization/{namespace}",
        "setOrganization",
        "Make an organisation, or, as one of its admins, change what is given; a new one has a team of admins, owners.",
        Right.USER,
        _set_organization,
        record(**_ACCOUNT),
        topic="accounts",
        body=body(optional={"email": _EMAIL, "description": _DESCRIPTION}),
    ),
    Operation(
        "DELETE",
        "/organization/{namespace}",
        "deleteOrganization",
        "Delete an organisation with its teams and robots; its namespace must be without repositories.",
        Right.NAMESPACE,
        _delete_organization,
        _DELETED,
        topic="accounts",
    ),
    Operation(
        "GET",
        "/namespace/{namespace}/robot",
        "listRobots",
        "The robots of a user or an organisation.",
        Right.NAMESPACE,
        _robots,
        page("accounts", record(**_ACCOUNT)),
        topic="robots",
        query=(AFTER, N),
    ),
    Operation(
        "PUT",
        "/namespace/{namespace}/robot/{robot}",
        "setRobot",
        "Make a robot, or change its description; the answer to the making has its token, which nothing shows later.",
        Right.NAMESPACE,
        _set_robot,
        record(**_ACCOUNT),
        topic="robots",
        body=body(optional={"description": _DESCRIPTION}),
    ),
    Operation(
        "POST",
        "/namespace/{namespace}/robot/{robot}/token",
        "renewRobot",
        "Give a robot another token; the old one is void at once.",
        Right.NAMESPACE,
        _renew_robot,
        record(**_ACCOUNT, token=TEXT),
        topic="robots",
    ),
    Operation(
        "DELETE",
        "/namespace/{namespace}/robot/{robot}",
        "deleteRobot",
        "Delete a robot.",
        Right.NAMESPACE,
        _delete_robot,
        _DELETED,
        topic="robots",
    ),
    Operation(
        "GET",
        "/namespace/{namespace}/token",
        "listTokens",
        "The application tokens of an account.",
        Right.NAMESPACE,
        _tokens,
        record(tokens=listing(record(**_TOKEN))),
        topic="tokens",
    ),
    Operation(
        "POST",
        "/namespace/{namespace}/token",
        "addToken",
        "Make an application token of an account; the answer has its secret, which nothing shows later.",
        Right.NAMESPACE,
        _add_token,
        record(**_TOKEN, secret=TEXT),
        topic="tokens",
        body=body(
            title=text("What it is for.", minLength=1, maxLength=MOST_TITLE),
            optional={"lifetime": text('Such as "90d"; without it, it never ends.', maxLength=40)},
        ),
    ),
    Operation(
        "DELETE",
        "/namespace/{namespace}/token/{token}",
        "deleteToken",
        "Take an application token away; what was issued with it is void.",
        Right.NAMESPACE,
        _remove_token,
        record(id=TEXT, deleted=FLAG),
        topic="tokens",
    ),
)
