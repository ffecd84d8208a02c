"""Operations on the audit log: of the whole registry, of a namespace, of a repository."""

from collections.abc import Iterator

from node.api.auditlog import get_audit, read_time
from node.api.frame import Json
from node.api.operations import Call, N, Operation, Parameter, Right, count
from node.api.schemas import COUNT, TEXT, TIME, maybe, page, record
from node.names import namespace_of
from node.records.auditlog import Filter

_LINE = record(
    id=COUNT,
    time=TIME,
    actor=TEXT,
    action=TEXT,
    namespace=maybe(TEXT),
    repository=maybe(TEXT),
    detail={"type": "object"},
    client=TEXT,
    node=TEXT,
    request=TEXT,
)


async def _read(call: Call) -> Json:
    query, name = call.query, call.path.get("name")
    namespace = (
        call.path.get("namespace") if name is None else namespace_of(name, call.means.settings.library_namespace)
    )
    wanted = Filter(
        namespace=call.path.get("namespace"),
        repository=name or query.get("repository"),
        actor=query["actor"],
        action=query["action"],
        since=query["since"],
        until=query["until"],
        owner=None if call.who.superuser else namespace,
    )
    return await get_audit(call.means.database, wanted, query["before"], query["n"])


def _time(name: str, summary: str) -> Parameter:
    return Parameter(name, {"type": "string", "format": "date-time"}, read_time, summary=summary)


_QUERY = (
    Parameter("actor", TEXT, summary="Only what this account did."),
    Parameter("action", TEXT, summary="Only this: push, pull, deleteTag, or the id of an operation."),
    _time("since", "Not before this."),
    _time("until", "Before this."),
    count("before", 1, 1 << 62, None, "`next` of the page before."),
    N,
)


def _operations() -> Iterator[Operation]:
    for path, id_, of, right in (
        ("/audit", "getAudit", "to the whole registry", Right.SUPERUSER),
        ("/namespace/{namespace}/audit", "getNamespaceAudit", "to a namespace", Right.NAMESPACE),
        ("/repository/{name}/audit", "getRepositoryAudit", "to a repository", Right.ADMIN),
    ):
        more = () if "{name}" in path else (Parameter("repository", TEXT, summary="Only what was done to this."),)
        yield Operation(
            "GET",
            path,
            id_,
            f"Who did what {of}, the latest first.",
            right,
            _read,
            page("lines", _LINE),
            topic="audit",
            query=(*more, *_QUERY),
        )


OPERATIONS = tuple(_operations())
