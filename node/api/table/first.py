"""The operation of a registry that has no users yet."""

from node.api.frame import Json, Problem
from node.api.operations import Call, Operation, Right
from node.api.schemas import FLAG, TEXT, body, record
from node.auth.first import make_first_user
from node.config.values import Unfit


async def _initialize(call: Call) -> Json:
    given = call.body
    try:
        made = await make_first_user(
            call.registry.database, call.registry.access.passwords, given["token"], given["username"], given["password"]
        )
    except Unfit as error:
        raise Problem(400, "a body that cannot be used", str(error)) from None
    if made is None:
        raise Problem(403, "not with this token", "it is not this registry's, or the first user has been made")
    return {"username": made.name, "superuser": made.superuser}


OPERATIONS = (
    Operation(
        "POST",
        "/user/initialize",
        "initialize",
        "Make the first superuser with the token that the first node's log shows; once.",
        Right.NOTHING,
        _initialize,
        record(username=TEXT, superuser=FLAG),
        topic="users",
        body=body(token=TEXT, username=TEXT, password=TEXT),
        always=True,
        status=201,
    ),
)
