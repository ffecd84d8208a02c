"""Teams with their members, and permissions on repositories: listed, given, taken away."""

from collections.abc import Mapping

from node.api.frame import Json, Problem, timestamp
from node.api.tags import Means
from node.auth.changes import ACCESS_CHANGED
from node.auth.model import Role, TeamRole
from node.names import is_name
from node.records.default_permissions import DefaultPermission, add_default, list_defaults, remove_default
from node.records.permissions import Grantee, Granting, list_permissions, remove_permission, set_permission
from node.records.teams import (
    Sync,
    Team,
    TeamDeletion,
    TeamSynced,
    add_member,
    delete_team,
    find_team,
    list_members,
    list_teams,
    put_team,
    remove_member,
)

ROLES: Mapping[str, Role] = {"read": Role.READ, "write": Role.WRITE, "admin": Role.ADMIN}
TEAM_ROLES: Mapping[str, TeamRole] = {
    "member": TeamRole.MEMBER,
    "creator": TeamRole.CREATOR,
    "admin": TeamRole.ADMIN,
}


async def get_teams(means: Means, organization: str, after: str, most: int) -> Json:
    """Return a page of an organisation's teams by name."""
    found = await list_teams(means.database, organization, after=after, most=most + 1)
    page = found[:most]
    return {"teams": [_team(team) for team in page], "next": page[-1].name if len(found) > most else None}


async def get_team(means: Means, organization: str, name: str) -> Json:
    """Return a team. Raises Problem (404)."""
    found = await find_team(means.database, organization, name)
    if found is None:
        raise _no_team(name)
    return _team(found)


async def set_team(means: Means, organization: str, name: str, body: Mapping[str, object]) -> Json:
    """Make a team, or change its `role` and `description`. Raises Problem: 400, 404."""
    if not is_name(name) or "/" in name:
        raise Problem(400, "not a team's name", f"{name[:80]!r}: write lower-case letters and digits")
    role, description = body.get("role"), body.get("description")
    team = await put_team(
        means.database,
        organization,
        name,
        None if role is None else TEAM_ROLES[str(role)],
        None if description is None else str(description),
    )
    if team is None:
        raise Problem(404, "no such organisation", organization[:255])
    means.publish(ACCESS_CHANGED)
    return _team(team)


async def remove_team(means: Means, organization: str, name: str) -> Json:
    """Delete a team with what it was given. Raises Problem: 404, 409 for the last one with an admin."""
    left(await delete_team(means.database, organization, name), name)
    means.publish(ACCESS_CHANGED)
    return {"name": name, "deleted": True}


async def get_members(means: Means, organization: str, team: str, after: str, most: int) -> Json:
    """Return a page of a team's members by name. Raises Problem (404)."""
    await get_team(means, organization, team)
    found = await list_members(means.database, organization, team, after=after, most=most + 1)
    page = found[:most]
    return {
        "members": [{"name": member.name, "kind": member.kind.value} for member in page],
        "next": page[-1].name if len(found) > most else None,
    }


async def put_member(means: Means, organization: str, team: str, account: str) -> Json:
    """Put a user, or a robot of the organisation, into a team. Raises Problem: 404, 409 where a group decides."""
    try:
        added = await add_member(means.database, organization, team, account)
    except TeamSynced:
        raise _decided(team) from None
    if not added:
        raise Problem(404, "no such team or account", f"{team[:80]} cannot have {account[:80]}")
    means.publish(ACCESS_CHANGED)
    return {"team": team, "member": account}


async def drop_member(means: Means, organization: str, team: str, account: str) -> Json:
    """Take somebody out of a team. Raises Problem: 404, 409 for the organisation's last admin and where a group decides."""
    try:
        outcome = await remove_member(means.database, organization, team, account)
    except TeamSynced:
        raise _decided(team) from None
    left(outcome, account)
    means.publish(ACCESS_CHANGED)
    return {"team": team, "member": account, "deleted": True}


async def get_permissions(means: Means, repository: str) -> Json:
    """Return who has which role on a repository. Raises Problem (404)."""
    found = await list_permissions(means.database, repository)
    if found is None:
        raise Problem(404, "no such repository", repository[:255])
    return {"name": repository, "permissions": [_permission(line.grantee, line.role) for line in found]}


async def give_permission(means: Means, repository: str, grantee: Grantee, role: str) -> Json:
    """Give an account or a team a role on a repository, in place of the one it had. Raises Problem (404)."""
    _granted(await set_permission(means.database, repository, grantee, ROLES[role]), repository, grantee)
    means.publish(ACCESS_CHANGED)
    return {"name": repository, **_permission(grantee, ROLES[role])}


async def take_permission(means: Means, repository: str, grantee: Grantee) -> Json:
    """Take an account's or a team's role on a repository away. Raises Problem (404)."""
    _granted(await remove_permission(means.database, repository, grantee), repository, grantee)
    means.publish(ACCESS_CHANGED)
    return {"name": repository, "account": grantee.account, "team": grantee.team, "deleted": True}


async def get_defaults(means: Means, namespace: str) -> Json:
    """Return the permissions that a namespace's new repositories begin with."""
    return {"defaults": [_default(line) for line in await list_defaults(means.database, namespace)]}


async def give_default(means: Means, namespace: str, body: Mapping[str, object]) -> Json:
    """Add one: `account` or `team`, `role`, and `creator` for what only that account makes. Raises Problem: 400, 404."""
    account, team, creator = (
        None if body.get(name) is None else str(body[name]) for name in ("account", "team", "creator")
    )
    if (account is None) == (team is None):
        raise Problem(400, "a body that cannot be used", "give either an account or a team")
    made = await add_default(means.database, namespace, Grantee(account, team), ROLES[str(body["role"])], creator)
    if made is None:
        raise Problem(404, "no such namespace, account or team", f"in {namespace[:255]}")
    return _default(made)


async def take_default(means: Means, namespace: str, default: str) -> Json:
    """Take one away by its id. Raises Problem (404)."""
    known = default.isascii() and default.isdigit() and len(default) < 19
    if not known or not await remove_default(means.database, namespace, int(default)):
        raise Problem(404, "no such default permission", default[:80])
    return {"id": int(default), "deleted": True}


def left(outcome: TeamDeletion, name: str) -> None:
    """Return if it was done. Raises Problem: 404, 409."""
    if outcome is TeamDeletion.UNKNOWN:
        raise _no_team(name)
    if outcome is not TeamDeletion.DONE:
        raise Problem(409, "the last admin", "nobody would administer the organisation any more")


def _granted(outcome: Granting, repository: str, grantee: Grantee) -> None:
    if outcome is Granting.NO_REPOSITORY:
        raise Problem(404, "no such repository", repository[:255])
    if outcome is Granting.NO_GRANTEE:
        raise Problem(
            404, "no such account or team, or it has no permission", str(grantee.account or grantee.team)[:255]
        )


def _decided(team: str) -> Problem:
    detail = f"a group decides which users are in {team[:255]}: put them into that, or end the team's synchronisation"
    return Problem(409, "the team is synchronised", detail)


def _no_team(name: str) -> Problem:
    return Problem(404, "no such team or member", name[:255])


def _team(team: Team) -> Json:
    return {
        "organization": team.organization,
        "name": team.name,
        "role": team.role.name.lower(),
        "description": team.description,
        "members": team.members,
        "sync": None if team.sync is None else _sync(team.sync),
    }


def _sync(sync: Sync) -> Json:
    return {"service": sync.service, "group": sync.group, "synced": timestamp(sync.synced_at)}


def _permission(grantee: Grantee, role: Role) -> Json:
    return {"account": grantee.account, "team": grantee.team, "role": role.name.lower()}


def _default(line: DefaultPermission) -> Json:
    return {"id": line.id, **_permission(line.grantee, line.role), "creator": line.creator}
