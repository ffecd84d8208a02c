"""Quotas of namespaces: what they link, counted once per blob, and how much they may. One statement each."""

from collections.abc import Sequence

from attrs import frozen

from node.records.postgres import Database, Row


class OverQuota(Exception):
    """A push would take a namespace beyond what it may hold. Bytes."""

    def __init__(self, namespace: str, used: int, limit: int) -> None:
        super().__init__(f"the namespace {namespace} holds {used} bytes and may hold {limit}")
        self.namespace = namespace
        self.used = used
        self.limit = limit


@frozen
class Usage:
    """What a namespace holds and may hold, in bytes. None: no limit."""

    namespace: str
    blobs: int
    used: int
    reject: int | None
    """Its own limit, or DEFAULT_SYSTEM_REJECT_QUOTA_BYTES."""
    warn: int | None
    own: bool = False
    """Whether the limit is its own."""


_LINES = """
    SELECT n.name, coalesce(n.quota_reject, nullif($1::bigint, 0)) AS reject, n.quota_warn AS warn,
        n.quota_reject IS NOT NULL AS own, coalesce(sum(u.blobs), 0)::bigint AS blobs, coalesce(sum(u.bytes), 0)::bigint AS used
    FROM namespace n LEFT JOIN namespace_usage u ON u.namespace_id = n.id
"""


async def read_usage(database: Database, namespace: str, default: int) -> Usage | None:
    """Return what a namespace holds and may hold; None: there is none of that name. `default` counts without an own limit."""
    row = await database.fetch_row(f"{_LINES} WHERE n.name = $2 GROUP BY n.id", default, namespace)
    return None if row is None else _usage(row)


async def list_usage(database: Database, default: int, after: str, most: int) -> Sequence[Usage]:
    """Return up to `most` namespaces behind `after`, by name."""
    rows = await database.fetch(
        f"{_LINES} WHERE n.name > $2 GROUP BY n.id ORDER BY n.name LIMIT $3", default, after, most
    )
    return [_usage(row) for row in rows]


async def write_quota(database: Database, namespace: str, *, reject: int | None, warn: int | None) -> None:
    """Set a namespace's limits, None for none of its own. A namespace that nobody has pushed to yet is made."""
    await database.fetch(
        "INSERT INTO namespace (name, quota_reject, quota_warn) SELECT $1, $2, $3 WHERE in_time($0) "
        "ON CONFLICT (name) DO UPDATE SET quota_reject = excluded.quota_reject, quota_warn = excluded.quota_warn",
        namespace,
        reject,
        warn,
    )


def _usage(row: Row) -> Usage:
    return Usage(row["name"], row["blobs"], row["used"], row["reject"], row["warn"], row["own"])
