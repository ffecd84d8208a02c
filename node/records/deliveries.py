"""The outbox: what webhooks have not been told yet. Filled by triggers in the transactions of the facts. One statement each."""

import json
from collections.abc import Mapping, Sequence

from attrs import field, frozen

from node.records.postgres import Database
from node.records.webhooks import DATA


@frozen
class Due:
    """A delivery that its claimant has until its lease ends. `at`: POSIX seconds."""

    id: int
    webhook: int
    attempts: int
    """This one included."""
    url: str = field(repr=False)
    secret: bytes = field(repr=False)
    event: str
    kind: str
    subject: str
    at: float
    data: Mapping[str, object] = field(repr=False)


async def claim_deliveries(
    database: Database, *, most: int, each: int, lease: float, busy: Sequence[int] = ()
) -> Sequence[Due]:
    """Claim up to `most` due deliveries for `lease` seconds, the longest due first.

    Of one webhook at most `each`, with those that the caller has under way already: `busy` has the webhook of each.
    """
    rows = await database.fetch(
        f"""
        WITH due AS (
            SELECT d.id FROM webhook w CROSS JOIN LATERAL (
                SELECT q.id, q.due_at FROM delivery q
                WHERE q.webhook_id = w.id AND q.dead_at IS NULL AND q.due_at <= now()
                ORDER BY q.due_at LIMIT greatest(0, $2 - cardinality(array_positions($4::bigint[], w.id)))
                FOR UPDATE SKIP LOCKED) d
            WHERE w.active ORDER BY d.due_at LIMIT $1)
        UPDATE delivery d SET attempts = d.attempts + 1, due_at = now() + $3 * interval '1 second'
        FROM due, webhook w WHERE d.id = due.id AND w.id = d.webhook_id
        RETURNING d.id, d.webhook_id, d.attempts, w.url, w.secret, d.event_id::text AS event, d.kind, d.subject, {DATA} AS data,
            extract(epoch FROM d.occurred_at)::float8 AS at
        """,  # noqa: S608  # a constant
        most,
        each,
        lease,
        list(busy),
    )
    return [
        Due(
            row["id"],
            row["webhook_id"],
            row["attempts"],
            row["url"],
            row["secret"],
            row["event"],
            row["kind"],
            row["subject"],
            row["at"],
            json.loads(row["data"]),
        )
        for row in rows
    ]


async def delivered(database: Database, due: Due) -> None:
    """Forget a delivery that was taken."""
    await database.fetch("DELETE FROM delivery WHERE id = $1", due.id)


async def postpone(database: Database, due: Due, reason: str, seconds: float | None) -> None:
    """Say why a delivery was not taken, and try it again in so many seconds; None: it is dead until somebody asks for it."""
    await database.fetch(
        "UPDATE delivery SET last_error = $3, due_at = now() + coalesce($4, 0) * interval '1 second', "
        "dead_at = CASE WHEN $4::float8 IS NULL THEN now() END WHERE id = $1 AND attempts = $2 AND dead_at IS NULL",
        due.id,
        due.attempts,
        reason,
        seconds,
    )


async def settle_arrivals(database: Database, most: int) -> int:
    """Look at up to `most` images that webhooks want to know of when a location has them; return how many have arrived."""
    row = await database.fetch_row("SELECT settle_arrivals($1) AS told", most)
    assert row is not None
    return int(row["told"])


async def tell_location(database: Database, kind: str, location: str, node: str, reason: str) -> None:
    """Put into the outbox that a node finds a location down, or well again."""
    await database.fetch(
        "SELECT tell($1, NULL, $2, $3::jsonb)",
        kind,
        location,
        json.dumps({"location": location, "node": node, "reason": reason}),
    )


async def bound_deliveries(database: Database, *, pending: int, dead: int, dead_seconds: float) -> tuple[int, int]:
    """Keep the outbox bounded per webhook: the oldest beyond `pending` become dead, the oldest dead beyond `dead` go.

    Dead ones go after `dead_seconds`, too. Returns how many became dead and how many went.
    """
    row = await database.fetch_row(
        """
        WITH ranked AS (
            SELECT d.id, d.dead_at, row_number() OVER (PARTITION BY d.webhook_id, d.dead_at IS NULL ORDER BY d.id DESC) AS place
            FROM delivery d),
        held AS (
            SELECT d.id FROM delivery d WHERE d.id IN (
                SELECT id FROM ranked WHERE place > CASE WHEN dead_at IS NULL THEN $1::bigint ELSE $2::bigint END
                OR dead_at < now() - $3 * interval '1 second') ORDER BY d.id FOR UPDATE SKIP LOCKED),
        given_up AS (
            UPDATE delivery d SET dead_at = now(), last_error = coalesce(d.last_error, 'too many were waiting before it')
            FROM ranked r JOIN held USING (id)
            WHERE d.id = r.id AND d.dead_at IS NULL AND r.dead_at IS NULL AND r.place > $1 RETURNING 1),
        gone AS (
            DELETE FROM delivery d USING ranked r JOIN held USING (id) WHERE d.id = r.id AND d.dead_at IS NOT NULL
            AND (r.place > $2 OR d.dead_at < now() - $3 * interval '1 second') RETURNING 1)
        SELECT (SELECT count(*) FROM given_up) AS given_up, (SELECT count(*) FROM gone) AS gone
        """,
        pending,
        dead,
        dead_seconds,
    )
    assert row is not None
    return row["given_up"], row["gone"]
