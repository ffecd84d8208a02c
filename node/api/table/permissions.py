"""Operations on teams, their members, and permissions on repositories."""

from collections.abc import Iterator

from node.api.frame import Json
from node.api.operations import AFTER, Call, N, Operation, Right
from node.api.permissions import (
    ROLES,
    TEAM_ROLES,
    drop_member,
    get_defaults,
    get_members,
    get_permissions,
    get_team,
    get_teams,
    give_default,
    give_permission,
    put_member,
    remove_team,
    set_team,
    take_default,
    take_permission,
)
from node.api.schemas import COUNT, FLAG, TEXT, TIME, body, listing, maybe, one_of, page, record, text
from node.records.permissions import Grantee

_ROLE, _TEAM_ROLE = one_of(*ROLES), one_of(*TEAM_ROLES)
_SYNC = record(service=one_of("ldap", "oidc"), group=TEXT, synced=maybe(TIME))
TEAM = record(organization=TEXT, name=TEXT, role=_TEAM_ROLE, description=maybe(TEXT), members=COUNT, sync=maybe(_SYNC))
_PERMISSION: dict[str, Json] = {"account": maybe(TEXT), "team": maybe(TEXT), "role": _ROLE}
_DEFAULT = record(id=COUNT, **_PERMISSION, creator=maybe(TEXT))
TEAM_PATH = "/organization/{namespace}/team/{team}"


async def _teams(call: Call) -> Json:
    return await get_teams(call.means, call.path["namespace"], call.query["after"], call.query["n"])


async def _team(call: Call) -> Json:
    return await get_team(call.means, call.path["namespace"], call.path["team"])


async def _set_team(call: Call) -> Json:
    return await set_team(call.means, call.path["namespace"], call.path["team"], call.body)


async def _delete_team(call: Call) -> Json:
    return await remove_team(call.means, call.path["namespace"], call.path["team"])


async def _members(call: Call) -> Json:
    path, query = call.path, call.query
    return await get_members(call.means, path["namespace"], path["team"], query["after"], query["n"])


async def _put_member(call: Call) -> Json:
    return await put_member(call.means, call.path["namespace"], call.path["team"], call.path["member"])


async def _drop_member(call: Call) -> Json:
    return await drop_member(call.means, call.path["namespace"], call.path["team"], call.path["member"])


async def _permissions(call: Call) -> Json:
    return await get_permissions(call.means, call.path["name"])


async def _give(call: Call) -> Json:
    return await give_permission(call.means, call.path["name"], _grantee(call), call.body["role"])


async def _take(call: Call) -> Json:
    return await take_permission(call.means, call.path["name"], _grantee(call))


def _grantee(call: Call) -> Grantee:
    return Grantee(call.path.get("account"), call.path.get("team"))


async def _defaults(call: Call) -> Json:
    return await get_defaults(call.means, call.path["namespace"])


async def _give_default(call: Call) -> Json:
    return await give_default(call.means, call.path["namespace"], call.body)


async def _take_default(call: Call) -> Json:
    return await take_default(call.means, call.path["namespace"], call.path["default"])


def _granting() -> Iterator[Operation]:
    """Yield giving and taking, for accounts and for teams."""
    for kind, of in (("account", "an account"), ("team", "a team of the organisation")):
        path, word = f"/repository/{{name}}/permission/{kind}/{{{kind}}}", kind.capitalize()
        yield Operation(
            "PUT",
            path,
            f"give{word}Permission",
            f"Give {of} a role on a repository, in place of the one it had.",
            Right.ADMIN,
            _give,
            record(name=TEXT, **_PERMISSION),
            topic="permissions",
            body=body(role=_ROLE),
        )
        yield Operation(
            "DELETE",
            path,
            f"take{word}Permission",
            f"Take the role of {of} on a repository away.",
            Right.ADMIN,
            _take,
            record(name=TEXT, account=maybe(TEXT), team=maybe(TEXT), deleted=FLAG),
            topic="permissions",
        )


OPERATIONS = (
    Operation(
        "GET",
        "/organization/{namespace}/team",
        "listTeams",
        "The teams of an organisation.",
        Right.NAMESPACE,
        _teams,
        page("teams", TEAM),
        topic="teams",
        query=(AFTER, N),
    ),
    Operation("GET", TEAM_PATH, "getTeam", "A team.", Right.NAMESPACE, _team, TEAM, topic="teams"),
    Operation(
        "PUT",
        TEAM_PATH,
        "setTeam",
        "Make a team, or change what is given.",
        Right.NAMESPACE,
        _set_team,
        TEAM,
        topic="teams",
        body=body(optional={"role": _TEAM_ROLE, "description": text(maxLength=1000)}),
    ),
    Operation(
        "DELETE",
        TEAM_PATH,
        "deleteTeam",
        "Delete a team; the last one that has an admin stays.",
        Right.NAMESPACE,
        _delete_team,
        record(name=TEXT, deleted=FLAG),
        topic="teams",
    ),
    Operation(
        "GET",
        f"{TEAM_PATH}/member",
        "listMembers",
        "Who is in a team.",
        Right.NAMESPACE,
        _members,
        page("members", record(name=TEXT, kind=TEXT)),
        topic="teams",
        query=(AFTER, N),
    ),
    Operation(
        "PUT",
        f"{TEAM_PATH}/member/{{member}}",
        "putMember",
        "Put a user, or a robot of the organisation, into a team; where a group decides, robots alone.",
        Right.NAMESPACE,
        _put_member,
        record(team=TEXT, member=TEXT),
        topic="teams",
    ),
    Operation(
        "DELETE",
        f"{TEAM_PATH}/member/{{member}}",
        "dropMember",
        "Take somebody out of a team; the organisation's last admin stays, and users where a group decides.",
        Right.NAMESPACE,
        _drop_member,
        record(team=TEXT, member=TEXT, deleted=FLAG),
        topic="teams",
    ),
    Operation(
        "GET",
        "/repository/{name}/permission",
        "listPermissions",
        "Who has which role on a repository.",
        Right.ADMIN,
        _permissions,
        record(name=TEXT, permissions=listing(record(**_PERMISSION))),
        topic="permissions",
    ),
    *_granting(),
    Operation(
        "GET",
        "/namespace/{namespace}/default-permission",
        "listDefaultPermissions",
        "What new repositories of a namespace begin with.",
        Right.NAMESPACE,
        _defaults,
        record(defaults=listing(_DEFAULT)),
        topic="permissions",
    ),
    Operation(
        "POST",
        "/namespace/{namespace}/default-permission",
        "giveDefaultPermission",
        "Give an account or a team a role on every repository that is made from now on.",
        Right.NAMESPACE,
        _give_default,
        _DEFAULT,
        topic="permissions",
        body=body(
            role=_ROLE,
            optional={
                "account": text(maxLength=255),
                "team": text(maxLength=255),
                "creator": text("Only on what this account makes.", maxLength=255),
            },
        ),
    ),
    Operation(
        "DELETE",
        "/namespace/{namespace}/default-permission/{default}",
        "takeDefaultPermission",
        "Take a default permission away.",
        Right.NAMESPACE,
        _take_default,
        record(id=COUNT, deleted=FLAG),
        topic="permissions",
    ),
)
