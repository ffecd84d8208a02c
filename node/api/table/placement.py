"""Operations about where blobs are and must be: debt, risk, residency, policies and locations."""

from node.api.debts import replication_risk, replication_status, residency, stalled_copies
from node.api.frame import Json
from node.api.locations import BY_HAND, change_location, get_locations
from node.api.operations import Call, Operation, Parameter, Right, count, flag, words
from node.api.policies import Request, get_policies, get_policy, set_policy
from node.api.schemas import COUNT, FLAG, NUMBER, TEXT, WHOLE, body, listing, mapping, maybe, one_of, record
from node.config.values import Unfit

_STATE = one_of("active", "paused", "draining", "drained", "removed")
_LOCATION: dict[str, Json] = {
    "name": TEXT,
    "state": _STATE,
    "default": FLAG,
    **dict.fromkeys(
        (
            "blobs",
            "sole_blobs",
            "sole_bytes",
            "suspect_blobs",
            "stuck_blobs",
            "unproven",
            "owed_blobs",
            "owed_bytes",
            "uploads",
            "dead_objects",
        ),
        COUNT,
    ),
    "stuck": listing(
        record(digest=TEXT, size=COUNT, repositories=listing(TEXT), error=TEXT, failing_for=maybe(NUMBER)),
    ),
    "waiting_blobs": COUNT,
    "waits_for": listing(record(location=TEXT, paused=FLAG, away_for=maybe(NUMBER), blobs=COUNT)),
}
_POLICY: dict[str, Json] = {"namespace": TEXT, "policy": {"type": "object"}, "version": COUNT}
_AMOUNTS = mapping(record(blobs=COUNT, bytes=COUNT))
_CHANGED = record(**_POLICY, dry_run=FLAG, blobs=COUNT, copies=_AMOUNTS, trims=_AMOUNTS)
_CHANGING = (
    flag("dry_run", "Only say what would be copied and trimmed."),
    count("version", 0, 1 << 62, None, "Refuse if the policy has another version by now."),
)


async def _status(call: Call) -> Json:
    return await replication_status(call.means.database)


async def _stalled(call: Call) -> Json:
    return await stalled_copies(call.means.database, call.query["location"] or None, call.query["limit"])


async def _risk(call: Call) -> Json:
    return await replication_risk(call.means.database, call.query["location"] or None, call.query["limit"])


async def _residency(call: Call) -> Json:
    return await residency(call.means.database, call.path["place"], call.query["after"])


async def _policies(call: Call) -> Json:
    return await get_policies(call.means.database)


async def _policy(call: Call) -> Json:
    return await get_policy(call.means.database, call.path["namespace"])


async def _set_policy(call: Call) -> Json:
    return await _change(call, call.body)


async def _remove_policy(call: Call) -> Json:
    return await _change(call, None)


async def _change(call: Call, document: object | None) -> Json:
    request = Request(call.path["namespace"], document, call.query["dry_run"], call.query["version"])
    means = call.means
    return await set_policy(means.database, means.publish, request, replicate=means.settings.replicate)


async def _locations(call: Call) -> Json:
    return await get_locations(call.means.database)


async def _set_state(call: Call) -> Json:
    means = call.means
    return await change_location(means.database, means.publish, call.path["location"], call.body["state"])


def _pair(text: str) -> tuple[int, int]:
    first, comma, second = text.partition(",")
    digits = [part.isascii() and part.isdigit() and len(part) < 19 for part in (first, second)]
    if not (comma and all(digits)):
        raise Unfit("write the two numbers of `next`, with a comma between them")
    return int(first), int(second)


OPERATIONS = (
    Operation(
        "GET",
        "/replication/status",
        "getReplicationStatus",
        "What is owed to every location, what is being copied, and how far the reconciler is.",
        Right.SUPERUSER,
        _status,
        record(
            locations=listing(
                record(
                    location=TEXT,
                    debt_blobs=COUNT,
                    debt_bytes=COUNT,
                    oldest_seconds=NUMBER,
                    running=COUNT,
                    stalled=COUNT,
                    dead_objects=COUNT,
                    down_seconds=maybe(NUMBER),
                )
            ),
            reconciliation=record(round=WHOLE, hurry=FLAG, completed_seconds_ago=maybe(NUMBER)),
        ),
        topic="replication",
    ),
    Operation(
        "GET",
        "/replication/stalled",
        "listStalled",
        "Copies that keep failing, and why. They are still retried.",
        Right.SUPERUSER,
        _stalled,
        record(stalled=listing(record())),
        topic="replication",
        query=(words("location", "Only this location's."), count("limit", 1, 1000, 100)),
    ),
    Operation(
        "GET",
        "/replication/risk",
        "getRisk",
        "What would be lost if a location died now.",
        Right.SUPERUSER,
        _risk,
        record(
            risk=listing(
                record(
                    location=TEXT,
                    blobs=COUNT,
                    bytes=COUNT,
                    oldest_seconds=maybe(NUMBER),
                    tags=listing(record()),
                    more_tags=FLAG,
                )
            )
        ),
        topic="replication",
        query=(words("location", "Only this location."), count("limit", 0, 1000, 20, "Tags to list.")),
    ),
    Operation(
        "GET",
        "/replication/residency/{place}",
        "getResidency",
        "Blobs that are somewhere although a namespace that links them forbids it.",
        Right.SUPERUSER,
        _residency,
        record(blobs=listing(record()), next=maybe(listing(WHOLE)), note=TEXT),
        topic="replication",
        query=(
            Parameter(
                "after",
                {"type": "string", "pattern": "^[0-9]{1,18},[0-9]{1,18}$"},
                _pair,
                (0, 0),
                summary="The two numbers of `next`, with a comma between them.",
            ),
        ),
    ),
    Operation(
        "GET",
        "/policy",
        "listPolicies",
        "Every namespace's placement policy that is not empty.",
        Right.SUPERUSER,
        _policies,
        record(policies=listing(record(**_POLICY))),
        topic="policies",
    ),
    Operation(
        "GET",
        "/namespace/{namespace}/policy",
        "getPolicy",
        "A namespace's placement policy.",
        Right.NAMESPACE,
        _policy,
        record(**_POLICY),
        topic="policies",
    ),
    Operation(
        "PUT",
        "/namespace/{namespace}/policy",
        "setPolicy",
        "Replace a namespace's placement policy; says what is copied and trimmed because of it.",
        Right.SUPERUSER,
        _set_policy,
        _CHANGED,
        topic="policies",
        query=_CHANGING,
        body={
            "type": "object",
            "description": "required, never, tags, durability: see the manual of `antipode policy`.",
        },
        always=True,
    ),
    Operation(
        "DELETE",
        "/namespace/{namespace}/policy",
        "deletePolicy",
        "Take a namespace's placement policy away: the default locations count again.",
        Right.SUPERUSER,
        _remove_policy,
        _CHANGED,
        topic="policies",
        query=_CHANGING,
        always=True,
    ),
    Operation(
        "GET",
        "/location",
        "listLocations",
        "All locations with their states and what is there.",
        Right.SUPERUSER,
        _locations,
        record(locations=listing(record(**_LOCATION))),
        topic="locations",
    ),
    Operation(
        "PUT",
        "/location/{location}/state",
        "setLocationState",
        "Bring a location into another state; the nodes act on it at once.",
        Right.SUPERUSER,
        _set_state,
        record(**_LOCATION, only_copies=COUNT),
        topic="locations",
        body=body(state=one_of(*(state.value for state in BY_HAND))),
        always=True,
    ),
)
