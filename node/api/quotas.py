"""Quotas of namespaces: shown, listed and set."""

from node.api.frame import Json, Problem, Wrong
from node.config.values import Unfit, parse_size, show
from node.names import is_name
from node.records.postgres import Database
from node.records.quotas import Usage, list_usage, read_usage, write_quota

_MOST_BYTES = 1 << 62


async def get_quota(database: Database, namespace: str, default: int) -> Json:
    """Return what a namespace holds and may hold, in bytes. Raises Problem (404)."""
    found = await read_usage(database, namespace, default)
    if found is None:
        raise Problem(404, "no such namespace", namespace[:255])
    return _line(found)


async def get_quotas(database: Database, default: int, after: str, most: int) -> Json:
    """Return a page of namespaces by name; `next` is the `after` of the next page."""
    found = await list_usage(database, default, after, most + 1)
    page = found[:most]
    return {"quotas": [_line(line) for line in page], "next": page[-1].namespace if len(found) > most else None}


async def set_quota(database: Database, namespace: str, body: object, default: int) -> Json:
    """Set it: body `{"reject": "100GiB", "warn": null}`, null or nothing for no limit of its own. Raises Problem (400)."""
    if not is_name(namespace) or "/" in namespace:
        raise Problem(400, "not a namespace", f"{namespace[:100]!r}: the first part of a repository's name is needed")
    if not isinstance(body, dict) or not set(body) <= {"reject", "warn"}:
        raise Problem(
            400, "a body that cannot be used", 'send {"reject": "100GiB", "warn": "80GiB"}; null for no limit'
        )
    wrong: list[Wrong] = []
    limits: dict[str, int | None] = {}
    for name in ("reject", "warn"):
        limits[name] = None
        if (value := body.get(name)) is None:
            continue
        try:
            limits[name] = parse_size(value)
        except Unfit as error:
            wrong.append(Wrong(name, show(value), str(error)))
        else:
            if (limits[name] or 0) > _MOST_BYTES:
                wrong.append(Wrong(name, show(value), "write at most 4 EiB"))
    if not wrong and limits["warn"] is not None and limits["reject"] is not None and limits["warn"] > limits["reject"]:
        wrong.append(Wrong("warn", show(body["warn"]), "write at most what `reject` says: nothing is taken beyond it"))
    if wrong:
        detail = "; ".join(f"{line.field}: found {line.found}; {line.right}" for line in wrong)
        raise Problem(400, "a quota that cannot be used", detail, wrong=tuple(wrong))
    await write_quota(database, namespace, reject=limits["reject"], warn=limits["warn"])
    return await get_quota(database, namespace, default)


def _line(usage: Usage) -> Json:
    return {
        "namespace": usage.namespace,
        "blobs": usage.blobs,
        "used_bytes": usage.used,
        "reject_bytes": usage.reject,
        "warn_bytes": usage.warn,
        "own": usage.own,
    }
