"""Operations on repositories and their tags."""

from node.api.frame import Json
from node.api.operations import Call, Operation, Parameter, Right, flag
from node.api.replication import replication_of
from node.api.schemas import COUNT, DIGEST, FLAG, NUMBER, TEXT, TIME, body, listing, maybe, one_of, record, text
from node.api.tags import history_of, remove_repository, restore_tag

_STATE = record(digest=DIGEST, since=TIME, until=maybe(TIME), restorable_until=maybe(TIME))


async def _replication(call: Call) -> Json:
    return await replication_of(call.registry, call.path["name"], call.path["reference"], call.query)


async def _history(call: Call) -> Json:
    return await history_of(call.means, call.path["name"], call.path["tag"], call.query)


async def _restore(call: Call) -> Json:
    return await restore_tag(call.means, call.path["name"], call.path["tag"], call.body)


async def _delete(call: Call) -> Json:
    return await remove_repository(call.means, call.path["name"])


OPERATIONS = (
    Operation(
        "GET",
        "/repository/{name}/manifest/{reference}/replication",
        "getReplication",
        "Whether an image, with all that it refers to, has arrived in a location; waits for it if asked to.",
        Right.PULL,
        _replication,
        record(
            repository=TEXT,
            reference=TEXT,
            digest=DIGEST,
            location=TEXT,
            status=one_of("present", "pending", "stalled", "not_required", "impossible"),
            reason=maybe(TEXT),
            blobs=COUNT,
            bytes=COUNT,
            missing_blobs=COUNT,
            missing_bytes=COUNT,
            estimate_seconds=maybe(NUMBER),
            as_of=TIME,
            waited_seconds=NUMBER,
        ),
        topic="replication",
        query=(
            Parameter("location", TEXT, required=True, summary="Where."),
            Parameter("wait", text(examples=["60s"]), summary="How long to wait at most; 5 minutes are the most."),
            flag("referrers", "Take in what is attached to the image."),
            flag("request", "Ask for copies that no policy wants."),
        ),
        reads_itself=True,
    ),
    Operation(
        "GET",
        "/repository/{name}/tag/{tag}/history",
        "getTagHistory",
        "What a tag points to and pointed to, latest first, as far back as it can be restored.",
        Right.PULL,
        _history,
        record(name=TEXT, tag=TEXT, history=listing(_STATE), next=maybe(NUMBER)),
        topic="tags",
        query=(
            Parameter(
                "n", {"type": "integer", "minimum": 1, "maximum": 500, "default": 50}, summary="Entries of a page."
            ),
            Parameter(
                "before",
                {"type": "number", "minimum": 0, "exclusiveMaximum": 1e11},
                summary="`next` of the page before: POSIX seconds.",
            ),
        ),
        reads_itself=True,
    ),
    Operation(
        "POST",
        "/repository/{name}/tag/{tag}/restore",
        "restoreTag",
        "Point a tag to a manifest that it pointed to within its window.",
        Right.PUSH,
        _restore,
        record(name=TEXT, tag=TEXT, digest=DIGEST),
        topic="tags",
        body=body(digest=DIGEST),
    ),
    Operation(
        "DELETE",
        "/repository/{name}",
        "deleteRepository",
        "Delete a repository with its tags and their history.",
        Right.ADMIN,
        _delete,
        record(name=TEXT, deleted=FLAG),
        topic="repositories",
    ),
)
