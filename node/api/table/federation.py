"""Operations on the rules by which tokens of identity providers count for a robot."""

from node.api.federation import add_federation, get_federation, remove_federation
from node.api.frame import Json
from node.api.operations import Call, Operation, Right
from node.api.schemas import FLAG, TEXT, TIME, WHOLE, body, listing, maybe, record, text

_RULE: dict[str, Json] = {
    "id": maybe(WHOLE),
    "issuer": TEXT,
    "audience": TEXT,
    "subject": TEXT,
    "created": maybe(TIME),
    "counts": FLAG,
}
_PATH = "/namespace/{namespace}/robot/{robot}/federation"


def _robot(call: Call) -> str:
    return f"{call.path['namespace']}+{call.path['robot']}"


async def _rules(call: Call) -> Json:
    return await get_federation(call.means, _robot(call))


async def _add(call: Call) -> Json:
    return await add_federation(call.means, _robot(call), call.body)


async def _remove(call: Call) -> Json:
    return await remove_federation(call.means, _robot(call), call.path["rule"])


OPERATIONS = (
    Operation(
        "GET",
        _PATH,
        "listRobotFederation",
        "Which tokens of identity providers count for a robot; rules without an id stand in the configuration.",
        Right.NAMESPACE,
        _rules,
        record(rules=listing(record(**_RULE))),
        topic="robots",
    ),
    Operation(
        "POST",
        _PATH,
        "addRobotFederation",
        "Let tokens of an identity provider count for a robot; the issuer must be one of ROBOT_FEDERATION_ISSUERS.",
        Right.NAMESPACE,
        _add,
        record(**_RULE),
        topic="robots",
        body=body(
            issuer=text("As the provider's tokens have it in iss.", minLength=1, maxLength=500),
            subject=text("What sub must be; a star stands for any characters.", minLength=1, maxLength=500),
            optional={"audience": text("What must be in aud; else SERVER_HOSTNAME.", minLength=1, maxLength=500)},
        ),
    ),
    Operation(
        "DELETE",
        f"{_PATH}/{{rule}}",
        "deleteRobotFederation",
        "Take such a rule away; what was issued by it is void at once.",
        Right.NAMESPACE,
        _remove,
        record(id=WHOLE, deleted=FLAG),
        topic="robots",
    ),
)
