"""The audit log, read: the latest first, in pages, by what somebody looks for."""

from datetime import datetime

from node.api.frame import Json, timestamp
from node.config.values import Unfit
from node.records.auditlog import Filter, Kept, read_lines
from node.records.postgres import Database


async def get_audit(database: Database, wanted: Filter, before: int | None, most: int) -> Json:
    """Return a page of lines, the latest first; `next` is the `before` of the next page."""
    found = await read_lines(database, wanted, before, most + 1)
    page = found[:most]
    return {"lines": [_line(kept) for kept in page], "next": str(page[-1].id) if len(found) > most else None}


def read_time(text: str) -> float:
    """Return the POSIX seconds that RFC 3339 says, such as 2026-11-26T10:00:00Z. Raises Unfit."""
    try:
        said = datetime.fromisoformat(text)
        if said.tzinfo is not None:
            return said.timestamp()
    except (ValueError, OverflowError):
        pass
    raise Unfit("write a time with its zone, such as 2026-11-26T10:00:00Z")


def _line(kept: Kept) -> Json:
    line = kept.line
    return {
        "id": kept.id,
        "time": timestamp(kept.at),
        "actor": line.actor,
        "action": line.action,
        "namespace": line.namespace,
        "repository": line.repository,
        "detail": dict(line.detail),
        "client": line.client,
        "node": line.node,
        "request": line.request,
    }
