"""Operations on repositories and their tags."""

from collections.abc import Iterator

from node.api.frame import Json
from node.api.immutability import MOST_PATTERNS, get_immutability, set_immutability
from node.api.operations import AFTER, Call, N, Operation, Parameter, Right, flag
from node.api.replication import replication_of
from node.api.repositories import get_repositories, get_repository, get_tags, publish_repository, remove_tag
from node.api.schemas import COUNT, DIGEST, FLAG, NUMBER, TEXT, TIME, body, listing, maybe, one_of, page, record, text
from node.api.tags import history_of, remove_repository, restore_tag

_STATE = record(digest=DIGEST, since=TIME, until=maybe(TIME), restorable_until=maybe(TIME))


async def _replication(call: Call) -> Json:
    if "true" in call.query.get("request", ()):
        # Copies cost, and stay for days: nobody in particular has none made of what anybody may pull.
        call.registry.access.require_somebody(call.who)
    who = call.registry.sharer(call.who.name, call.client)
    found = await replication_of(call.registry, call.path["name"], call.path["reference"], call.query, who)
    # A store's own words name it and its buckets, and anybody may ask about a public image.
    return found if call.who.superuser else {**found, "last_error": None}


async def _history(call: Call) -> Json:
    return await history_of(call.means, call.path["name"], call.path["tag"], call.query)


async def _restore(call: Call) -> Json:
    return await restore_tag(call.means, call.path["name"], call.path["tag"], call.body)


async def _delete(call: Call) -> Json:
    return await remove_repository(call.means, call.path["name"])


async def _repositories(call: Call) -> Json:
    return await get_repositories(call.means, call.path.get("namespace"), call.query["after"], call.query["n"])


async def _repository(call: Call) -> Json:
    return await get_repository(call.means, call.path["name"])


async def _visibility(call: Call) -> Json:
    return await publish_repository(call.means, call.path["name"], public=call.body["public"])


async def _tags(call: Call) -> Json:
    return await get_tags(call.means, call.path["name"], call.query["after"], call.query["n"])


async def _delete_tag(call: Call) -> Json:
    return await remove_tag(call.means, call.path["name"], call.path["tag"])


async def _immutability(call: Call) -> Json:
    return await get_immutability(
        call.means, namespace=call.path.get("namespace", ""), repository=call.path.get("name")
    )


async def _set_immutability(call: Call) -> Json:
    path = call.path
    return await set_immutability(
        call.means, call.body, namespace=path.get("namespace", ""), repository=path.get("name")
    )


def _immutabilities() -> Iterator[Operation]:
    answer = record(namespace=TEXT, repository=maybe(TEXT), patterns=listing(TEXT))
    for base, word, of, right in (
        ("/repository/{name}", "Repository", "a repository", Right.ADMIN),
        ("/namespace/{namespace}", "Namespace", "every repository of a namespace", Right.NAMESPACE),
    ):
        yield Operation(
            "GET",
            f"{base}/immutability",
            f"get{word}Immutability",
            f"The patterns of tags of {of} that can be neither moved nor deleted.",
            right,
            _immutability,
            answer,
            topic="tags",
        )
        yield Operation(
            "PUT",
            f"{base}/immutability",
            f"set{word}Immutability",
            f"Replace the patterns of tags of {of} that can be neither moved nor deleted; * is any text, ? one character.",
            right,
            _set_immutability,
            answer,
            topic="tags",
            body=body(
                patterns=listing(text(pattern="^[a-zA-Z0-9_.*?-]{1,128}$"), "Patterns of tags.", maxItems=MOST_PATTERNS)
            ),
        )


_REPOSITORY = record(name=TEXT, public=FLAG, created=TIME, tags=COUNT)

OPERATIONS = (
    Operation(
        "GET",
        "/repository",
        "listRepositories",
        "All repositories.",
        Right.SUPERUSER,
        _repositories,
        page("repositories", _REPOSITORY),
        topic="repositories",
        query=(AFTER, N),
    ),
    Operation(
        "GET",
        "/namespace/{namespace}/repository",
        "listNamespaceRepositories",
        "The repositories of a namespace.",
        Right.NAMESPACE,
        _repositories,
        page("repositories", _REPOSITORY),
        topic="repositories",
        query=(AFTER, N),
    ),
    Operation(
        "GET",
        "/repository/{name}",
        "getRepository",
        "A repository.",
        Right.PULL,
        _repository,
        _REPOSITORY,
        topic="repositories",
    ),
    Operation(
        "PUT",
        "/repository/{name}/visibility",
        "setVisibility",
        "Make a repository public, so that anybody may pull, or private.",
        Right.ADMIN,
        _visibility,
        _REPOSITORY,
        topic="repositories",
        body=body(public=FLAG),
    ),
    Operation(
        "GET",
        "/repository/{name}/tag",
        "listTags",
        "The tags of a repository.",
        Right.PULL,
        _tags,
        record(
            name=TEXT,
            tags=listing(record(name=TEXT, digest=DIGEST, media_type=TEXT, size=COUNT, since=TIME, immutable=FLAG)),
            next=maybe(TEXT),
        ),
        topic="tags",
        query=(AFTER, N),
    ),
    Operation(
        "DELETE",
        "/repository/{name}/tag/{tag}",
        "deleteTag",
        "Delete a tag; it can be restored within its window.",
        Right.DELETE,
        _delete_tag,
        record(name=TEXT, tag=TEXT, digest=DIGEST, deleted=FLAG),
        topic="tags",
    ),
    *_immutabilities(),
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
            flag("request", "Ask for copies that no policy wants; only those may who have logged in."),
        ),
        reads_itself=True,
        waits=True,
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
