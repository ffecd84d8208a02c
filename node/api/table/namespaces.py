"""Operations on namespaces: their quotas, the window of their tags, their end."""

from node.api.frame import Json
from node.api.operations import AFTER, Call, N, Operation, Right
from node.api.quotas import get_quota, get_quotas, set_quota
from node.api.schemas import COUNT, FLAG, TEXT, body, listing, maybe, page, record
from node.api.tags import expiration_of, remove_namespace, set_expiration

_QUOTA = record(
    namespace=TEXT,
    blobs=COUNT,
    used_bytes=COUNT,
    reject_bytes=maybe(COUNT),
    warn_bytes=maybe(COUNT),
    own=FLAG,
)
_SIZE: Json = {"type": ["integer", "string", "null"], "minimum": 0, "description": 'Bytes, or text such as "100GiB".'}
_EXPIRATION = record(namespace=TEXT, tag_expiration=TEXT, own=FLAG, options=listing(TEXT))


async def _delete(call: Call) -> Json:
    return await remove_namespace(call.means, call.path["namespace"], whole=call.who.superuser)


async def _quotas(call: Call) -> Json:
    return await get_quotas(
        call.means.database, call.means.settings.default_quota, call.query["after"], call.query["n"]
    )


async def _quota(call: Call) -> Json:
    return await get_quota(call.means.database, call.path["namespace"], call.means.settings.default_quota)


async def _set_quota(call: Call) -> Json:
    means = call.means
    return await set_quota(means.database, call.path["namespace"], call.body, means.settings.default_quota)


async def _expiration(call: Call) -> Json:
    return await expiration_of(call.means, call.path["namespace"])


async def _set_expiration(call: Call) -> Json:
    return await set_expiration(call.means, call.path["namespace"], call.body)


OPERATIONS = (
    Operation(
        "DELETE",
        "/namespace/{namespace}",
        "deleteNamespace",
        "Delete a namespace with all its repositories; its policy and quota go only where a superuser asks.",
        Right.NAMESPACE,
        _delete,
        record(namespace=TEXT, repositories=COUNT, deleted=FLAG),
        topic="namespaces",
    ),
    Operation(
        "GET",
        "/namespace/{namespace}/tag-expiration",
        "getTagExpiration",
        "How long deleted and moved tags of a namespace can be restored.",
        Right.NAMESPACE,
        _expiration,
        _EXPIRATION,
        topic="namespaces",
    ),
    Operation(
        "PUT",
        "/namespace/{namespace}/tag-expiration",
        "setTagExpiration",
        "Set it to one of the windows that are offered, or to null for the usual one.",
        Right.NAMESPACE,
        _set_expiration,
        _EXPIRATION,
        topic="namespaces",
        body=body(tag_expiration={"type": ["string", "integer", "number", "null"]}),
    ),
    Operation(
        "GET",
        "/quota",
        "listQuotas",
        "The namespaces with what they hold and may hold.",
        Right.SUPERUSER,
        _quotas,
        page("quotas", _QUOTA),
        topic="quotas",
        query=(AFTER, N),
    ),
    Operation(
        "GET",
        "/namespace/{namespace}/quota",
        "getQuota",
        "What a namespace holds and may hold; each blob counts once.",
        Right.NAMESPACE,
        _quota,
        _QUOTA,
        topic="quotas",
    ),
    Operation(
        "PUT",
        "/namespace/{namespace}/quota",
        "setQuota",
        "Replace a namespace's quota; what is null or not given has no limit of its own.",
        Right.SUPERUSER,
        _set_quota,
        _QUOTA,
        topic="quotas",
        body=body(optional={"reject": _SIZE, "warn": _SIZE}),
        always=True,
    ),
)
