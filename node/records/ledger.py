"""The `Ledger` of the core over PostgreSQL: claims, placements and debt. One statement per method."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from uuid import uuid4

from attrs import define, field

from node.clock_offset import ClockOffset
from node.records.members import Membership, heartbeat
from node.records.postgres import Database, Row
from replication.macs import PieceProofs
from replication.model import Blob, ClusterView, CopyTask, DeadObject, Placement
from replication.plan import AHEAD_BYTES
from replication.ports import CopyOutcome
from replication.throughput import Throughput

_PLACEMENTS = """
    LEFT JOIN LATERAL (
        SELECT array_agg(pl.name ORDER BY pl.id) AS locations, array_agg(p.key ORDER BY pl.id) AS keys,
            array_agg(p.state = 'suspect' ORDER BY pl.id) AS suspects
        FROM placement p JOIN location pl ON pl.id = p.location_id WHERE p.blob_id = b.id) held ON true
"""

# {which} says which tasks, $6 how many more ahead of time, of $7 bytes together (`plan.worth_claiming`). The order is that of
# `plan.precedence`, which the database has as task_precedence.
_CLAIM = f"""
    WITH due AS (
        -- Nothing is copied to where every namespace that links the blob says *never*, whoever asked for it.
        SELECT t.blob_id, t.location_id, t.key, t.size, t.key IS NOT NULL AS claimed_before,
            task_precedence(t.created_at, t.priority, t.size) AS place,
            blob_forbidden(t.blob_id, t.location_id) OR (
                SELECT p.state = 'present' FROM placement p WHERE p.blob_id = t.blob_id AND p.location_id = t.location_id
            ) IS TRUE AS paid
        FROM task t
        -- One location, not a join, and no EXISTS, for which all placements would be read: a claim out of a backlog of 100 000 then
        -- takes 1 ms and not 2 s.
        WHERE t.location_id = (SELECT id FROM location WHERE name = $1 AND state = 'active')
            AND {{which}} AND (t.lease_until IS NULL OR t.lease_until < now())
        ORDER BY task_precedence(t.created_at, t.priority, t.size) LIMIT $3::int + $6::int
        FOR UPDATE OF t SKIP LOCKED),
    ranked AS (SELECT due.*, row_number() OVER (ORDER BY place, blob_id) AS rank FROM due),
    taken AS (
        SELECT ranked.*, coalesce(sum(size) FILTER (WHERE rank > $3) OVER (ORDER BY rank), 0) <= $7::bigint AS taken FROM ranked),
    struck AS (
        DELETE FROM task t USING due WHERE due.paid AND t.blob_id = due.blob_id AND t.location_id = due.location_id
        RETURNING t.location_id, t.key),
    dead AS (
        -- A late finish of an earlier holder may have made this very key the placement.
        INSERT INTO dead_object (location_id, key) SELECT location_id, key FROM struck s WHERE key IS NOT NULL
        AND NOT EXISTS (SELECT FROM placement p WHERE p.location_id = s.location_id AND p.key = s.key)
        ON CONFLICT DO NOTHING),
    leased AS (
        UPDATE task t SET lease = $5 || ':' || t.blob_id || ':' || t.location_id,
            lease_until = now() + $4 * interval '1 second',
            key = coalesce(t.key, $2 || split_part(b.digest, ':', 1) || '/' || substr(split_part(b.digest, ':', 2), 1, 2)
                || '/' || split_part(b.digest, ':', 2) || '.' || replace(gen_random_uuid()::text, '-', ''))
        FROM taken JOIN blob b ON b.id = taken.blob_id
        WHERE taken AND NOT paid AND t.blob_id = taken.blob_id AND t.location_id = taken.location_id
        RETURNING t.*, taken.claimed_before, taken.place)
    SELECT leased.claimed_before, leased.place, leased.blob_id, leased.key, leased.parts_upload, leased.lease, leased.attempts,
        b.digest, b.size, b.pieces, b.macs,
        extract(epoch FROM now() - leased.created_at)::float8 AS age, held.locations, held.keys, held.suspects
    FROM leased JOIN blob b ON b.id = leased.blob_id {_PLACEMENTS}
    ORDER BY leased.place
"""  # noqa: S608  # constants of this module

_FINISH = """
    WITH told AS (
        SELECT a.*, l.id AS location_id
        FROM unnest($1::bigint[], $2::text[], $3::text[], $4::bytea[], $5::bytea[], $6::text[])
            WITH ORDINALITY a (blob_id, location, key, pieces, macs, lease, at) JOIN location l ON l.name = a.location),
    -- Rows are locked in one order, blobs first, so that two nodes which tell of the same ones wait for each other and not in a
    -- circle. So early, and as strongly as the counting of risk will need it.
    known AS (SELECT id FROM blob WHERE id = ANY($1) ORDER BY id FOR NO KEY UPDATE),
    -- A repeat of what is recorded says nothing new: since then the copy may have been distrusted, and be owed anew.
    repeated AS (
        SELECT q.blob_id, q.location_id FROM told JOIN placement q USING (blob_id, location_id) WHERE q.key = told.key),
    -- Whoever struck the task has buried its key: only a task that is still there makes it a placement.
    mine AS (
        SELECT t.blob_id, t.location_id, t.key FROM task t JOIN told USING (blob_id, location_id) JOIN known ON known.id = t.blob_id
        ORDER BY t.blob_id, t.location_id FOR UPDATE OF t),
    learnt AS (
        UPDATE blob b SET pieces = coalesce(b.pieces, told.pieces), macs = coalesce(told.macs, b.macs)
        FROM told JOIN known ON known.id = told.blob_id
        WHERE b.id = known.id AND (b.pieces IS NULL AND told.pieces IS NOT NULL OR told.macs IS NOT NULL)),
    -- Whatever they are by now: those that ours replaces may have been good when this began.
    before AS MATERIALIZED (
        SELECT p.blob_id, p.location_id, p.key FROM told
        JOIN mine ON (mine.blob_id, mine.location_id, mine.key) = (told.blob_id, told.location_id, told.key)
        JOIN placement p ON p.blob_id = told.blob_id AND p.location_id = told.location_id
        WHERE p.key <> told.key ORDER BY p.blob_id, p.location_id FOR NO KEY UPDATE OF p),
    placed AS (
        INSERT INTO placement AS p (blob_id, location_id, key)
        SELECT told.blob_id, told.location_id, told.key FROM told JOIN known ON known.id = told.blob_id
        WHERE EXISTS (
                SELECT FROM mine WHERE (mine.blob_id, mine.location_id, mine.key) = (told.blob_id, told.location_id, told.key))
            AND NOT EXISTS (SELECT FROM repeated r WHERE (r.blob_id, r.location_id) = (told.blob_id, told.location_id))
            AND (SELECT count(*) FROM before) >= 0
        ORDER BY told.blob_id, told.location_id
        ON CONFLICT (blob_id, location_id)
            DO UPDATE SET key = excluded.key, state = 'present', reason = NULL, created_at = now()
            WHERE p.state = 'suspect' RETURNING p.blob_id, p.location_id),
    ended AS (
        -- The same report, when it comes twice at once, finds its task gone and not yet the placement, which the other one has made
        -- since: it must not bury the key.
        SELECT told.*, CASE WHEN there.blob_id IS NULL THEN is_placed_by_now(told.blob_id, told.location_id, told.key) ELSE true END
            AS placed FROM told
        LEFT JOIN (SELECT * FROM placed UNION SELECT * FROM repeated) there USING (blob_id, location_id)),
    paid AS (
        DELETE FROM task t USING ended, mine
        WHERE (t.blob_id, t.location_id) = (ended.blob_id, ended.location_id)
        AND (t.blob_id, t.location_id) = (mine.blob_id, mine.location_id)
        -- A task of another key was owed anew when ours was struck, or paid.
        AND (t.lease = ended.lease OR t.key = ended.key)
        RETURNING t.location_id, t.key, ended.key AS ours),
    dead AS (
        INSERT INTO dead_object (location_id, key, not_before)
        SELECT location_id, key, now() + interval '1 minute' FROM (
            SELECT location_id, key FROM ended WHERE NOT placed
            UNION SELECT before.location_id, before.key FROM before JOIN placed USING (blob_id, location_id)
            UNION SELECT location_id, key FROM paid WHERE key <> ours) keys
        ON CONFLICT DO NOTHING)
    SELECT at FROM ended WHERE placed
"""


_LEASED = """
    leased AS (
        SELECT blob_id, location_id FROM task WHERE lease = ANY($1::text[]) ORDER BY blob_id, location_id FOR NO KEY UPDATE)
"""
"""The tasks of the leases in $1, locked in the order in which they are when they are finished."""


@define(eq=False)
class PostgresLedger:
    """See `replication.ports.Ledger`."""

    _database: Database = field(alias="database")
    _member: Membership = field(alias="member")
    _forget_nodes_after: float = field(default=24 * 3600.0, alias="forget_nodes_after")
    throughput: Throughput = field(factory=Throughput)
    """What this node's copies bring; told with every heartbeat."""
    down: Callable[[], Mapping[str, float]] = dict
    """For how many seconds this node has seen which locations down; told likewise."""
    why_down: Callable[[], Mapping[str, str]] = dict
    """And why."""
    clock: ClockOffset = field(factory=ClockOffset)
    """This machine's clock beside the database's, as heartbeats show it."""
    draining: bool = False

    async def claim_copies(
        self, location: str, key_prefix: str, most: int, lease_seconds: float, ahead: int = 0
    ) -> Sequence[CopyTask]:
        """Lease due tasks of `location`; a task whose blob has arrived meanwhile is struck off instead."""
        rows = await self._database.fetch(
            _CLAIM.format(which="t.due_at <= now()"),
            location,
            key_prefix,
            most,
            lease_seconds,
            uuid4().hex,
            ahead,
            AHEAD_BYTES,
        )
        return [_task(row, location) for row in rows]

    async def claim_copy(self, blob_id: int, location: str, key_prefix: str, lease_seconds: float) -> CopyTask | None:
        """Lease the task of one blob, due or not."""
        rows = await self._database.fetch(
            _CLAIM.format(which="t.blob_id = $8"), location, key_prefix, 1, lease_seconds, uuid4().hex, 0, 0, blob_id
        )
        return _task(rows[0], location) if rows else None

    async def raise_priority(self, blob_id: int, location: str, priority: int) -> bool:
        """Let one task go before others."""
        rows = await self._database.fetch(
            """
            UPDATE task t SET priority = greatest(t.priority, $3) FROM location l
            WHERE t.blob_id = $1 AND l.id = t.location_id AND l.name = $2 RETURNING t.blob_id
            """,
            blob_id,
            location,
            priority,
        )
        return bool(rows)

    async def renew(self, leases: Sequence[str], lease_seconds: float) -> frozenset[str]:
        """Extend leases; one that ran out but was not taken by anybody is still ours."""
        rows = await self._database.fetch(
            f"WITH {_LEASED} UPDATE task t SET lease_until = now() + $2 * interval '1 second' FROM leased l "  # noqa: S608
            "WHERE (t.blob_id, t.location_id) = (l.blob_id, l.location_id) RETURNING t.lease",
            list(leases),
            lease_seconds,
        )
        return frozenset(row["lease"] for row in rows)

    async def note_parts(self, task: CopyTask, upload: str) -> bool:
        """Remember the multi-part id of a copy."""
        rows = await self._database.fetch(
            "UPDATE task SET parts_upload = $2 WHERE lease = $1 RETURNING blob_id", task.lease, upload
        )
        return bool(rows)

    async def change_key(self, task: CopyTask) -> str | None:
        """Replace the nonce in the task's key."""
        row = await self._database.fetch_row(
            """
            WITH old AS (SELECT blob_id, location_id, key FROM task WHERE lease = $1 FOR UPDATE),
            dead AS (
                INSERT INTO dead_object (location_id, key, not_before)
                SELECT location_id, key, now() + interval '1 hour' FROM old
                WHERE NOT EXISTS (SELECT FROM placement p WHERE p.location_id = old.location_id AND p.key = old.key)
                ON CONFLICT DO NOTHING)
            UPDATE task t SET parts_upload = NULL,
                key = regexp_replace(old.key, '[^.]*$', replace(gen_random_uuid()::text, '-', ''))
            FROM old WHERE t.blob_id = old.blob_id AND t.location_id = old.location_id RETURNING t.key
            """,
            task.lease,
        )
        return None if row is None else str(row["key"])

    async def finish_copies(self, finished: Sequence[tuple[CopyTask, PieceProofs]]) -> Sequence[CopyOutcome]:
        """Record placements, pay debts; whatever object loses its place becomes a dead object."""
        outcomes: list[CopyOutcome] = []
        for batch in _apart(finished):
            tasks = [task for task, _ in batch]
            rows = await self._database.fetch(
                _FINISH,
                [task.blob.id for task in tasks],
                [task.destination for task in tasks],
                [task.key for task in tasks],
                [proofs.pieces for _, proofs in batch],
                [proofs.macs for _, proofs in batch],
                [task.lease for task in tasks],
            )
            placed = {row["at"] for row in rows}
            outcomes += [
                CopyOutcome.PLACED if at in placed else CopyOutcome.SUPERSEDED for at in range(1, len(batch) + 1)
            ]
        return outcomes

    async def fail_copy(self, task: CopyTask, error: str, retry_after: float, unreached: Sequence[str] = ()) -> None:
        """Give the task back with its error."""
        await self._database.fetch(
            """
            UPDATE task SET lease = NULL, lease_until = NULL, attempts = attempts + 1, last_error = $2,
                unreached = $4, failing_since = coalesce(failing_since, now()), due_at = now() + $3 * interval '1 second'
            WHERE lease = $1
            """,
            task.lease,
            error[:2000],
            retry_after,
            list(unreached) or None,
        )

    async def hand_back(self, leases: Sequence[str]) -> None:
        """Give tasks back unharmed."""
        await self._database.fetch(
            f"WITH {_LEASED} UPDATE task t SET lease = NULL, lease_until = NULL, due_at = least(t.due_at, now()) FROM leased l "  # noqa: S608
            "WHERE (t.blob_id, t.location_id) = (l.blob_id, l.location_id)",
            list(leases),
        )

    async def mark_suspect(self, blob_id: int, location: str, key: str, reason: str) -> None:
        """Distrust one copy and owe its location a good one."""
        await self._database.fetch(
            """
            WITH known AS (SELECT id FROM blob WHERE id = $1 FOR NO KEY UPDATE),
            bad AS (
                UPDATE placement p SET state = 'suspect', reason = $4 FROM location l, known
                WHERE p.blob_id = known.id AND l.id = p.location_id AND l.name = $2 AND p.key = $3
                RETURNING p.blob_id, p.location_id)
            INSERT INTO task (blob_id, location_id, size, priority)
            SELECT bad.blob_id, bad.location_id, b.size, 1 FROM bad JOIN blob b ON b.id = bad.blob_id
            ON CONFLICT (blob_id, location_id) DO UPDATE SET due_at = least(task.due_at, now())
            """,
            blob_id,
            location,
            key,
            reason[:500],
        )

    async def next_due(self, locations: Sequence[str]) -> float | None:
        """Return how long the scheduler may sleep."""
        row = await self._database.fetch_row(
            """
            SELECT extract(epoch FROM min(due) - now())::float8 AS seconds FROM location l, LATERAL (
                (SELECT greatest(t.due_at, coalesce(t.lease_until, t.due_at)) AS due FROM task t
                 WHERE t.location_id = l.id ORDER BY greatest(t.due_at, coalesce(t.lease_until, t.due_at)) LIMIT 1)
                UNION ALL
                (SELECT not_before FROM dead_object d WHERE d.location_id = l.id AND NOT collection_paused()
                 ORDER BY not_before LIMIT 1)) earliest
            WHERE l.name = ANY($1::text[])
            """,
            list(locations),
        )
        seconds = None if row is None else row["seconds"]
        return None if seconds is None else max(0.0, seconds)

    async def claim_dead(self, location: str, most: int, lease_seconds: float) -> Sequence[DeadObject]:
        """Lease dead objects whose time has come by moving that time; none while collection is paused.

        A database that is older than the stores takes for abandoned what has become a copy since: an upload that was open then.
        """
        rows = await self._database.fetch(
            """
            WITH due AS (
                SELECT d.id FROM dead_object d JOIN location l ON l.id = d.location_id
                WHERE l.name = $1 AND d.not_before <= now() AND NOT collection_paused()
                -- Keys are never used again, so these hold by construction; a mistake elsewhere must still not cost live bytes.
                AND NOT EXISTS (SELECT FROM placement p WHERE p.location_id = d.location_id AND p.key = d.key)
                AND NOT EXISTS (SELECT FROM upload u WHERE u.location_id = d.location_id AND d.key IN (u.key, u.tail_key))
                ORDER BY d.not_before LIMIT $2 FOR UPDATE OF d SKIP LOCKED)
            UPDATE dead_object d SET not_before = now() + $3 * interval '1 second' FROM due WHERE d.id = due.id
            RETURNING d.id, d.key, d.attempts
            """,
            location,
            most,
            lease_seconds,
        )
        return [DeadObject(row["id"], location, row["key"], row["attempts"]) for row in rows]

    async def finish_dead(self, ids: Sequence[int]) -> None:
        """Strike dead objects off."""
        await self._database.fetch("DELETE FROM dead_object WHERE id = ANY($1::bigint[])", list(ids))

    async def fail_dead(self, ids: Sequence[int], error: str, retry_after: float) -> None:
        """Try dead objects again later."""
        await self._database.fetch(
            "UPDATE dead_object SET attempts = attempts + 1, last_error = $2, not_before = now() + $3 * interval '1 second' "
            "WHERE id = ANY($1::bigint[])",
            list(ids),
            error[:2000],
            retry_after,
        )

    async def heartbeat(self) -> ClusterView:
        """Say that this node lives."""
        sent = self.clock.clock()
        view = await heartbeat(
            self._database,
            self._member,
            draining=self.draining,
            forget_after=self._forget_nodes_after,
            throughput=self.throughput.rates(),
            down=self.down(),
            why_down=self.why_down(),
        )
        if view.now is not None:
            self.clock.take(sent, view.now, self.clock.clock())
        return view


def _apart(finished: Sequence[tuple[CopyTask, PieceProofs]]) -> Iterator[Sequence[tuple[CopyTask, PieceProofs]]]:
    """Yield parts in none of which one place is named twice: a statement records each once."""
    batch: dict[tuple[int, str], tuple[CopyTask, PieceProofs]] = {}
    for task, proofs in finished:
        if (task.blob.id, task.destination) in batch:
            yield list(batch.values())
            batch = {}
        batch[task.blob.id, task.destination] = (task, proofs)
    if batch:
        yield list(batch.values())


def _task(row: Row, location: str) -> CopyTask:
    placements = zip(row["locations"] or (), row["keys"] or (), row["suspects"] or (), strict=True)
    return CopyTask(
        blob=Blob(row["blob_id"], row["digest"], row["size"], row["pieces"], row["macs"]),
        destination=location,
        key=row["key"],
        placements=tuple(Placement(*placement) for placement in placements),
        lease=row["lease"],
        upload=row["parts_upload"],
        attempts=row["attempts"],
        age=row["age"],
        claimed_before=row["claimed_before"],
        place=row["place"],
    )
