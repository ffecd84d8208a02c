"""Lets a group decide who is in a team, and ends that."""

from node.api.frame import Json, Problem, Wrong
from node.api.permissions import get_team, left
from node.api.tags import Means
from node.auth.changes import ACCESS_CHANGED
from node.auth.group_names import DirectoryUnavailable, check_group, service_of
from node.config.values import Unfit, show
from node.records.team_sync import bind_team, unbind_team
from node.records.teams import find_team


async def set_sync(means: Means, organization: str, team: str, group: str) -> Json:
    """Let a group decide who is in a team, and return the team; the same again lets those go who wait.

    Raises Problem: 400, 404, 409, 503.
    """
    service = service_of(means.settings)
    if service is None:
        right = "set FEATURE_TEAM_SYNCING: true, and AUTHENTICATION_TYPE: LDAP or OIDC"
        raise Problem(409, "teams follow no groups here", right)
    found = await find_team(means.database, organization, team)
    bound = found.sync.group if found is not None and found.sync is not None and found.sync.service == service else None
    try:
        kept = await check_group(means.settings, group, bound)
    except Unfit as error:
        wrong = (Wrong("group", show(group)[:80], str(error)),)
        raise Problem(400, "a group that cannot be used", str(error), wrong=wrong) from None
    except DirectoryUnavailable:
        detail = "nothing was changed: ask again when it answers"
        raise Problem(503, "the directory cannot be asked", detail, headers=(("retry-after", "5"),)) from None
    left(await bind_team(means.database, organization, team, service, kept), team)
    means.publish(ACCESS_CHANGED)
    return await get_team(means, organization, team)


async def end_sync(means: Means, organization: str, team: str) -> Json:
    """Let nobody else decide who is in a team any more; who is in it stays. Raises Problem (404)."""
    if not await unbind_team(means.database, organization, team):
        raise Problem(404, "no such team, or no group decides who is in it", team[:255])
    return {"team": team, "deleted": True}
