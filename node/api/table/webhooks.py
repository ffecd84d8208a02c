"""Operations on webhooks: those of a namespace, and those of the whole registry, which see everything."""

from collections.abc import Iterator

from node.api.frame import Json
from node.api.operations import Call, N, Operation, Parameter, Right, choice, count
from node.api.schemas import COUNT, FLAG, TEXT, TIME, body, listing, maybe, one_of, page, record, text
from node.api.webhooks import deliver_again, get_deliveries, get_webhook, get_webhooks, remove_webhook, set_webhook
from node.hooks.message import KINDS

_WEBHOOK: dict[str, Json] = {
    "namespace": maybe(TEXT),
    "name": TEXT,
    "url": TEXT,
    "events": listing(one_of(*KINDS)),
    "active": FLAG,
    "pending": COUNT,
    "dead": COUNT,
    "oldest": maybe(TIME),
}
_DELIVERY = record(
    id=COUNT,
    event=TEXT,
    kind=one_of(*KINDS),
    subject=TEXT,
    time=TIME,
    state=one_of("pending", "dead"),
    attempts=COUNT,
    last_error=maybe(TEXT),
    due=maybe(TIME),
    data={"type": "object"},
)
_NEW = body(
    url=text("Where events are sent to.", maxLength=2000, format="uri"),
    events=listing(one_of(*KINDS), "What is sent.", minItems=1),
    optional={
        "secret": text(
            "whsec_ and 24 to 64 bytes in Base64; one is made where none is given.", pattern="^whsec_", writeOnly=True
        ),
        "active": FLAG,
    },
)


async def _list(call: Call) -> Json:
    return await get_webhooks(call.means, call.path.get("namespace"))


async def _get(call: Call) -> Json:
    return await get_webhook(call.means, call.path.get("namespace"), call.path["webhook"])


async def _set(call: Call) -> Json:
    return await set_webhook(call.means, call.path.get("namespace"), call.path["webhook"], call.body)


async def _delete(call: Call) -> Json:
    return await remove_webhook(call.means, call.path.get("namespace"), call.path["webhook"])


async def _deliveries(call: Call) -> Json:
    query = call.query
    return await get_deliveries(
        call.means,
        call.path.get("namespace"),
        call.path["webhook"],
        state=query["state"],
        after=query["after"],
        most=query["n"],
    )


async def _redeliver(call: Call) -> Json:
    return await deliver_again(call.means, call.path.get("namespace"), call.path["webhook"], call.query["delivery"])


def _operations(base: str, of: str, suffix: str, right: Right) -> Iterator[Operation]:
    one = f"{base}/webhook/{{webhook}}"
    all_of_them = record(webhooks=listing(record(**_WEBHOOK)))
    yield Operation(
        "GET",
        f"{base}/webhook",
        f"list{suffix}Webhooks",
        f"The webhooks of {of}.",
        right,
        _list,
        all_of_them,
        topic="webhooks",
    )
    yield Operation(
        "GET", one, f"get{suffix}Webhook", f"A webhook of {of}.", right, _get, record(**_WEBHOOK), topic="webhooks"
    )
    yield Operation(
        "PUT",
        one,
        f"set{suffix}Webhook",
        f"Make or replace a webhook of {of}; the answer to the making has its secret, which nothing shows later.",
        right,
        _set,
        record(**_WEBHOOK),
        topic="webhooks",
        body=_NEW,
        always=right is Right.SUPERUSER,
    )
    yield Operation(
        "DELETE",
        one,
        f"delete{suffix}Webhook",
        f"Delete a webhook of {of} with what it has not been told.",
        right,
        _delete,
        record(name=TEXT, deleted=FLAG),
        topic="webhooks",
        always=right is Right.SUPERUSER,
    )
    yield Operation(
        "GET",
        f"{one}/delivery",
        f"list{suffix}Deliveries",
        "What a webhook has not been told yet, oldest first; dead is what is not tried any more by itself.",
        right,
        _deliveries,
        page("deliveries", _DELIVERY),
        topic="webhooks",
        query=(
            choice("state", ("pending", "dead"), "Only these."),
            count("after", 0, 1 << 62, 0, "`next` of the page before."),
            N,
        ),
    )
    yield Operation(
        "POST",
        f"{one}/redeliver",
        f"redeliver{suffix}",
        "Make one delivery due at once, or every dead one.",
        right,
        _redeliver,
        record(name=TEXT, due=COUNT),
        topic="webhooks",
        query=(
            Parameter(
                "delivery", COUNT, count("delivery", 0, 1 << 62, None).read, summary="Its id; all dead ones without."
            ),
        ),
        always=True,
    )


OPERATIONS = (
    *_operations("/namespace/{namespace}", "a namespace", "Namespace", Right.NAMESPACE),
    *_operations("", "the whole registry", "Registry", Right.SUPERUSER),
)
