"""Operations on the groups that decide who is in a team."""

from node.api.frame import Json
from node.api.operations import Call, Operation, Right
from node.api.schemas import FLAG, TEXT, body, record, text
from node.api.table.permissions import TEAM, TEAM_PATH
from node.api.team_sync import end_sync, set_sync


def _admit(call: Call) -> None:
    """Return if somebody who administers the organisation may say so, too. Raises RegistryError."""
    if not call.registry.settings.admins_sync_teams:
        call.registry.access.require_superuser(call.who)


async def _set(call: Call) -> Json:
    _admit(call)
    return await set_sync(call.means, call.path["namespace"], call.path["team"], call.body["group"])


async def _end(call: Call) -> Json:
    _admit(call)
    return await end_sync(call.means, call.path["namespace"], call.path["team"])


OPERATIONS = (
    Operation(
        "PUT",
        f"{TEAM_PATH}/syncing",
        "setTeamSync",
        "Let a group of the directory or the identity provider decide who is in a team; for superusers, unless others may.",
        Right.NAMESPACE,
        _set,
        TEAM,
        topic="teams",
        body=body(
            group=text(
                "Of a directory its name relative to LDAP_BASE_DN: cn=devs,ou=groups.", minLength=1, maxLength=1000
            )
        ),
    ),
    Operation(
        "DELETE",
        f"{TEAM_PATH}/syncing",
        "deleteTeamSync",
        "Let the organisation decide again who is in a team; whoever is in it stays.",
        Right.NAMESPACE,
        _end,
        record(team=TEXT, deleted=FLAG),
        topic="teams",
    ),
)
