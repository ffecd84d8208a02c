"""Reconciliation in pages: facts of blobs that may not be as they must, decisions applied while those facts hold, shared rounds."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from attrs import frozen

from node.records.locations import note_drained, purge_removed
from node.records.policies import place_tags, ruled_tags
from node.records.postgres import Database, Row
from replication.model import Blob, LocationState, Placement
from replication.reconcile import BlobFacts, Settlement
from replication.rounds import (
    Applied,
    Candidate,
    CandidatePage,
    ClaimedPage,
    PageKind,
    Spare,
    Unproven,
    UnprovenPage,
)

LEASE_SECONDS = 60.0
"""How long a node may take for one page of a round before another node takes it."""

_SECONDS = 30.0
_TAGS_AT_ONCE = 500
_LOOKED_AT = 5000
"""Copies in locations that are being emptied that one statement looks at."""


@frozen
class PostgresRounds:
    """The rounds of one database (`replication.rounds.Rounds`)."""

    database: Database

    async def claim_page(self, most: int, between_rounds: float) -> ClaimedPage:
        """Take the next piece of the round that all nodes do together; `ask_for_round` makes them hurry."""
        row = await self.database.fetch_row(
            "SELECT * FROM claim_reconciliation($1, $2, $3)", most, LEASE_SECONDS, between_rounds
        )
        assert row is not None
        return ClaimedPage(PageKind(row["kind"]), row["after_blob"] or 0, row["last_blob"] or 0, row["hurry"])

    async def finish_page(self, page: ClaimedPage) -> None:
        """Say that a piece is done."""
        if page.kind is PageKind.TAGS:
            await self.database.fetch(
                'UPDATE bookmark SET value = value || \'{"phase": "blobs", "after": 0, "until": null}\', updated_at = now() '
                "WHERE name = 'reconcile' AND value->>'phase' = 'tags'"
            )
        else:
            await self.database.fetch("DELETE FROM reconcile_page WHERE after_blob = $1", page.after)

    async def find_candidates(self, after: int, upto: int | None, most: int, *, replicate: bool) -> CandidatePage:
        """Look at a page of blobs; only those that are not simply as they must be are looked at closely."""
        rows = await self.database.fetch(
            """
            WITH page AS (
                SELECT b.id, b.digest, b.size FROM blob b WHERE b.id > $1 AND ($2::bigint IS NULL OR b.id <= $2)
                ORDER BY b.id LIMIT $3),
            looked AS (
                SELECT page.*, ARRAY(SELECT r FROM blob_required(page.id) r) AS required,
                    ARRAY(SELECT p.location_id FROM placement p WHERE p.blob_id = page.id) AS placed,
                    ARRAY(SELECT p.location_id FROM placement p WHERE p.blob_id = page.id AND p.state = 'present') AS good,
                    ARRAY(SELECT t.location_id FROM task t WHERE t.blob_id = page.id) AS tasks,
                    EXISTS (SELECT FROM placement p JOIN location l ON l.id = p.location_id AND l.state IN ('active', 'paused')
                        WHERE p.blob_id = page.id AND p.state = 'present') AS stays
                FROM page),
            found AS (
                SELECT id FROM looked WHERE CASE WHEN $4 THEN NOT (required <@ (good || tasks) AND (placed || tasks) <@ required
                    AND NOT tasks && good) ELSE NOT stays END)
            SELECT page.id, page.digest, page.size, CASE WHEN found.id IS NULL THEN NULL ELSE blob_facts(page.id) END AS facts
            FROM page LEFT JOIN found ON found.id = page.id ORDER BY page.id
            """,
            after,
            upto,
            most,
            replicate,
            deadline=_SECONDS,
        )
        candidates = tuple(
            Candidate(row["id"], row["digest"], row["size"], read_facts(row["facts"]), row["facts"])
            for row in rows
            if row["facts"] is not None
        )
        last = rows[-1]["id"] if len(rows) == most and rows[-1]["id"] != upto else None
        return CandidatePage(candidates, len(rows), last)

    async def apply_settlements(
        self, settlements: Sequence[tuple[Candidate, Settlement]], keep_seconds: float
    ) -> Sequence[Applied]:
        """Apply decisions in one statement."""
        rows = await self.database.fetch(
            """
            SELECT settle_blob(u.blob_id, u.facts, ARRAY(SELECT jsonb_array_elements_text(u.change->0)),
                ARRAY(SELECT jsonb_array_elements_text(u.change->1)),
                ARRAY(SELECT jsonb_array_elements_text(u.change->2)), $4) AS outcome
            FROM unnest($1::bigint[], $2::jsonb[], $3::jsonb[]) WITH ORDINALITY AS u (blob_id, facts, change, place)
            ORDER BY u.place
            """,
            [candidate.blob_id for candidate, _ in settlements],
            [candidate.document for candidate, _ in settlements],
            [json.dumps([made.owe, made.strike, made.trim]) for _, made in settlements],
            keep_seconds,
            deadline=_SECONDS,
        )
        return [Applied(row["outcome"]) for row in rows]

    async def claim_trims(self, blobs: Sequence[int], lease_seconds: float) -> Sequence[Spare]:
        """Take blobs for a trim in one statement; leases of nodes that died are forgotten with it."""
        rows = await self.database.fetch(
            """
            WITH late AS (
                DELETE FROM trim_lease WHERE blob_id IN (
                    SELECT blob_id FROM trim_lease WHERE until < now() - interval '1 day' AND blob_id <> ALL($1::bigint[])
                    LIMIT 1000 FOR UPDATE SKIP LOCKED)),
            taken AS (
                INSERT INTO trim_lease AS t (blob_id, until)
                SELECT b.id, now() + $2 * interval '1 second' FROM blob b
                WHERE b.id = ANY($1::bigint[]) AND NOT collection_paused() ORDER BY b.id
                ON CONFLICT (blob_id) DO UPDATE SET until = excluded.until WHERE t.until < now() RETURNING blob_id)
            SELECT b.id, b.digest, b.size, b.pieces, b.macs, blob_facts(b.id) AS facts,
                array_agg(l.name ORDER BY l.id) AS locations, array_agg(p.key ORDER BY l.id) AS keys,
                array_agg(p.state = 'suspect' ORDER BY l.id) AS suspects
            FROM taken JOIN blob b ON b.id = taken.blob_id JOIN placement p ON p.blob_id = b.id
            JOIN location l ON l.id = p.location_id GROUP BY b.id ORDER BY b.id
            """,
            list(blobs),
            lease_seconds,
            deadline=_SECONDS,
        )
        return [_spare(row) for row in rows]

    async def finish_trims(self, blobs: Sequence[int]) -> None:
        """Give taken blobs back."""
        await self.database.fetch(
            "DELETE FROM trim_lease WHERE blob_id IN (SELECT blob_id FROM trim_lease WHERE blob_id = ANY($1::bigint[]) "
            "ORDER BY blob_id FOR UPDATE)",
            list(blobs),
        )

    async def claim_unproven(self, after: int, most: int, lease_seconds: float, slowest: int) -> UnprovenPage:
        """Take blobs of locations that are being emptied, in one statement."""
        rows = await self.database.fetch(
            """
            WITH looked AS MATERIALIZED (
                SELECT p.blob_id, p.location_id, e.emptying_since FROM placement p JOIN location e ON e.id = p.location_id
                WHERE e.state IN ('draining', 'drained') AND p.blob_id > $1 ORDER BY p.blob_id LIMIT $5),
            page AS MATERIALIZED (
                SELECT DISTINCT k.blob_id FROM looked k
                WHERE NOT outlives(k.blob_id, k.location_id, k.emptying_since) AND EXISTS (
                    SELECT FROM placement q JOIN location l ON l.id = q.location_id
                    WHERE q.blob_id = k.blob_id AND q.location_id <> k.location_id AND q.state = 'present'
                    AND l.state IN ('active', 'draining', 'drained'))
                ORDER BY 1 LIMIT $2),
            taken AS (
                INSERT INTO trim_lease AS t (blob_id, until)
                SELECT b.id, now() + ($3 + (sum(b.size) OVER ())::float8 / $4) * interval '1 second'
                FROM page JOIN blob b ON b.id = page.blob_id ORDER BY b.id
                ON CONFLICT (blob_id) DO UPDATE SET until = excluded.until WHERE t.until < now() RETURNING blob_id),
            item AS (
                SELECT b.id, b.digest, b.size, b.pieces, b.macs, array_agg(l.name ORDER BY l.id) AS locations,
                    array_agg(p.key ORDER BY l.id) AS keys, array_agg(p.state = 'suspect' ORDER BY l.id) AS suspects,
                    coalesce(array_agg(l.name) FILTER (
                        WHERE l.state <> 'active' AND NOT outlives(b.id, l.id, l.emptying_since)), '{}') AS leaving
                FROM taken JOIN blob b ON b.id = taken.blob_id JOIN placement p ON p.blob_id = b.id
                JOIN location l ON l.id = p.location_id AND l.state IN ('active', 'draining', 'drained') GROUP BY b.id),
            -- A blob may be in several: its other rows may be behind the end of what was looked at.
            last AS (
                SELECT CASE WHEN (SELECT count(*) FROM page) = $2 THEN (SELECT max(blob_id) FROM page)
                    WHEN (SELECT count(*) FROM looked) = $5 THEN (SELECT max(blob_id) - 1 FROM looked) END AS last)
            SELECT last.last, item.* FROM last LEFT JOIN item ON true ORDER BY item.id
            """,
            after,
            most,
            lease_seconds,
            float(slowest),
            _LOOKED_AT,
            deadline=_SECONDS,
        )
        items = tuple(
            Unproven(
                Blob(row["id"], row["digest"], row["size"], row["pieces"], row["macs"]),
                _placements(row),
                frozenset(row["leaving"]),
            )
            for row in rows
            if row["id"] is not None
        )
        return UnprovenPage(items, rows[0]["last"])

    async def note_proven(self, copies: Sequence[tuple[int, Placement]]) -> None:
        """Write reads down, of copies that are still what they were."""
        await self.database.fetch(
            """
            INSERT INTO proven_copy (blob_id, location_id, key)
            SELECT p.blob_id, p.location_id, p.key
            FROM unnest($1::bigint[], $2::text[], $3::text[]) AS u (blob_id, location, key) JOIN location l ON l.name = u.location
            JOIN placement p ON p.blob_id = u.blob_id AND p.location_id = l.id AND p.key = u.key AND p.state = 'present'
            ORDER BY 1, 2 ON CONFLICT (blob_id, location_id) DO UPDATE SET key = excluded.key, proven_at = excluded.proven_at
            """,
            [blob for blob, _ in copies],
            [copy.location for _, copy in copies],
            [copy.key for _, copy in copies],
        )

    async def compile_tags(self) -> int:
        """Give tags the locations of their policies, a page of tags at a time."""
        changed, after = 0, (0, "")
        while True:
            page = await ruled_tags(self.database, after, _TAGS_AT_ONCE)
            if page.tags:
                changed += await place_tags(self.database, page.tags)
            if page.after is None:
                return changed
            after = page.after

    async def forget_wishes(self) -> None:
        """Drop wishes whose time is over."""
        await self.database.fetch("DELETE FROM wanted WHERE until < now()")

    async def note_drained(self) -> Sequence[str]:
        """Look which locations are drained."""
        return await note_drained(self.database)

    async def purge_removed(self) -> int:
        """Take rows of removed locations away."""
        return await purge_removed(self.database)


def _spare(row: Row) -> Spare:
    return Spare(
        Candidate(row["id"], row["digest"], row["size"], read_facts(row["facts"]), row["facts"]),
        Blob(row["id"], row["digest"], row["size"], row["pieces"], row["macs"]),
        _placements(row),
    )


def _placements(row: Row) -> tuple[Placement, ...]:
    copies = zip(row["locations"], row["keys"], row["suspects"], strict=True)
    return tuple(Placement(*copy) for copy in copies)


def read_facts(document: str) -> BlobFacts:
    """Return the facts that a document of the database's function `blob_facts` spells."""
    given: Mapping[str, Any] = json.loads(document)
    return BlobFacts(
        linked=given["linked"],
        required=frozenset(given["required"]),
        forbidden=frozenset(given["forbidden"]),
        placed={at: state == "present" for at, state in given["placed"].items()},
        tasks=given["tasks"],
        states=tuple((at, LocationState(state)) for at, state in given["states"]),
    )


async def ask_for_round(database: Database) -> None:
    """Make the nodes hurry until a whole round was done that begins after this: a policy, or a location's state, has changed."""
    await database.fetch(
        """
        INSERT INTO bookmark (name, value) VALUES ('reconcile', '{"round": 1, "phase": "tags", "after": 0, "hurry_before": 2}')
        ON CONFLICT (name) DO UPDATE SET value = bookmark.value
            || jsonb_build_object('hurry_before', (bookmark.value->>'round')::bigint + 2), updated_at = now()
        """
    )


@frozen
class RoundState:
    """Where the shared round is. `completed_seconds` is how long ago the latest one ended, None if none ever did."""

    number: int
    hurry: bool
    done_upto: int
    completed_seconds: float | None


async def look_at_round(database: Database) -> RoundState:
    """Return where the shared round is."""
    row = await database.fetch_row(
        """
        SELECT (value->>'round')::bigint AS round, (value->>'hurry_before')::bigint AS before, (value->>'after')::bigint AS after,
            extract(epoch FROM now() - (value->>'completed_at')::timestamptz)::float8 AS completed
        FROM bookmark WHERE name = 'reconcile'
        """
    )
    if row is None:
        return RoundState(0, False, 0, None)
    return RoundState(row["round"], row["round"] < row["before"], row["after"], row["completed"])


async def count_blobs(database: Database) -> int:
    """Return about how many blobs there are: exact where they are few."""
    row = await database.fetch_row(
        "SELECT CASE WHEN c.reltuples < 10000 THEN (SELECT count(*) FROM blob) ELSE c.reltuples::bigint END AS blobs "
        "FROM pg_class c WHERE c.oid = 'blob'::regclass"
    )
    assert row is not None
    return int(row["blobs"])
