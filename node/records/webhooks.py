"""Webhooks: who wants to be told what, and what they have not been told yet. One statement each."""

import json
from collections.abc import Mapping, Sequence

from attrs import field, frozen

from node.records.postgres import Database, Row


@frozen
class Webhook:
    """A webhook. `namespace` None: of the whole registry. `oldest`: POSIX seconds of the oldest event that it has not been told."""

    namespace: str | None
    name: str
    url: str
    events: tuple[str, ...]
    active: bool
    pending: int = 0
    dead: int = 0
    oldest: float | None = None


@frozen
class Delivery:
    """An event that a webhook has not been told yet. Times in POSIX seconds."""

    id: int
    event: str
    kind: str
    subject: str
    at: float
    attempts: int
    last_error: str | None
    due: float
    dead: bool
    data: Mapping[str, object] = field(repr=False)


DATA = "CASE WHEN w.namespace_id IS NULL THEN d.data ELSE d.data - 'error' END"
"""What an event says: a store's own words, which name it and its buckets, are for the registry's webhooks alone."""
_HERE = "(SELECT n.name FROM namespace n WHERE n.id = w.namespace_id) IS NOT DISTINCT FROM $1::text"
_LINES = f"""
    SELECT $1::text AS namespace, w.name, w.url, w.events, w.active,
        count(d.id) FILTER (WHERE d.dead_at IS NULL) AS pending, count(d.id) FILTER (WHERE d.dead_at IS NOT NULL) AS dead,
        extract(epoch FROM min(d.occurred_at))::float8 AS oldest
    FROM webhook w LEFT JOIN delivery d ON d.webhook_id = w.id WHERE {_HERE}
"""  # noqa: S608


async def list_webhooks(database: Database, namespace: str | None) -> Sequence[Webhook]:
    """Return the webhooks of a namespace, or of the whole registry (None), by name."""
    rows = await database.fetch(f"{_LINES} GROUP BY w.id ORDER BY w.name", namespace)
    return [_webhook(row) for row in rows]


async def read_webhook(database: Database, namespace: str | None, name: str) -> Webhook | None:
    """Return one of them."""
    row = await database.fetch_row(f"{_LINES} AND w.name = $2 GROUP BY w.id", namespace, name)
    return None if row is None else _webhook(row)


async def write_webhook(database: Database, webhook: Webhook, secret: bytes, *, change_secret: bool, most: int) -> str:
    """Make or replace a webhook; return "made", "changed", or "too many" where there are `most` already.

    One that exists keeps its secret unless `change_secret`. A namespace that nobody has pushed to yet is made.
    """
    row = await database.fetch_row(
        """
        WITH here AS MATERIALIZED (SELECT CASE WHEN $1::text IS NULL THEN NULL ELSE hold_namespace($1) END AS id WHERE in_time($0)),
        others AS (SELECT w.name FROM webhook w, here WHERE w.namespace_id IS NOT DISTINCT FROM here.id AND w.name <> $2),
        written AS (
            INSERT INTO webhook AS w (namespace_id, name, url, secret, events, active)
            SELECT here.id, $2, $3, $4, $5, $6 FROM here WHERE (SELECT count(*) FROM others) < $8
            ON CONFLICT (namespace_id, name) DO UPDATE SET url = excluded.url, events = excluded.events, active = excluded.active,
                secret = CASE WHEN $7 THEN excluded.secret ELSE w.secret END
            RETURNING xmax = 0 AS fresh)
        SELECT fresh FROM written
        """,
        webhook.namespace,
        webhook.name,
        webhook.url,
        secret,
        list(webhook.events),
        webhook.active,
        change_secret,
        most,
    )
    if row is None:
        return "too many"
    return "made" if row["fresh"] else "changed"


async def delete_webhook(database: Database, namespace: str | None, name: str) -> bool:
    """Delete a webhook with what it has not been told. False: there is none."""
    rows = await database.fetch(
        f"DELETE FROM webhook w WHERE {_HERE} AND w.name = $2 AND in_time($0) RETURNING w.id",  # noqa: S608
        namespace,
        name,
    )
    return bool(rows)


async def list_deliveries(
    database: Database, namespace: str | None, name: str, *, dead: bool | None, after: int, most: int
) -> Sequence[Delivery]:
    """Return up to `most` deliveries with an id beyond `after`, oldest first; only those that are dead, or are not."""
    rows = await database.fetch(
        f"""
        SELECT d.id, d.event_id::text AS event, d.kind, d.subject, d.attempts, d.last_error, {DATA} AS data,
            d.dead_at IS NOT NULL AS dead,
            extract(epoch FROM d.occurred_at)::float8 AS at, extract(epoch FROM d.due_at)::float8 AS due
        FROM webhook w JOIN delivery d ON d.webhook_id = w.id
        WHERE {_HERE} AND w.name = $2 AND d.id > $4 AND ($3::boolean IS NULL OR (d.dead_at IS NOT NULL) = $3)
        ORDER BY d.id LIMIT $5
        """,  # noqa: S608
        namespace,
        name,
        dead,
        after,
        most,
    )
    return [
        Delivery(
            row["id"],
            row["event"],
            row["kind"],
            row["subject"],
            row["at"],
            row["attempts"],
            row["last_error"],
            row["due"],
            row["dead"],
            json.loads(row["data"]),
        )
        for row in rows
    ]


async def redeliver(database: Database, namespace: str | None, name: str, delivery: int | None) -> int:
    """Make one delivery due at once, or all dead ones (None); return how many."""
    rows = await database.fetch(
        f"""
        WITH asked AS (
            SELECT d.id FROM delivery d JOIN webhook w ON w.id = d.webhook_id WHERE {_HERE} AND w.name = $2
            AND (d.id = $3 OR ($3::bigint IS NULL AND d.dead_at IS NOT NULL)) ORDER BY d.id FOR UPDATE OF d)
        UPDATE delivery d SET due_at = now(), dead_at = NULL, attempts = 0 FROM asked WHERE d.id = asked.id RETURNING d.id
        """,  # noqa: S608
        namespace,
        name,
        delivery,
    )
    return len(rows)


def _webhook(row: Row) -> Webhook:
    return Webhook(
        row["namespace"],
        row["name"],
        row["url"],
        tuple(row["events"]),
        row["active"],
        row["pending"],
        row["dead"],
        row["oldest"],
    )
