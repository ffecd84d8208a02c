"""The nodes and the locations as rows: who lives, what the operators want of each store, which bucket belongs to which name."""

import json
from collections.abc import Mapping, Sequence
from uuid import UUID

from attrs import frozen

from node.records.postgres import Database
from replication.model import ClusterView, Drill, LocationState, NodeView
from replication.plan import SILENT_AFTER

_MOST_OF_A_REASON = 500
"""Characters."""


@frozen
class Membership:
    """This node as its row says: its id is new at every start."""

    id: UUID
    preference: tuple[str, ...]
    defaults: tuple[str, ...]
    version: str
    locations: tuple[str, ...] | None = None
    """What its configuration has; None where that does not matter."""


@frozen
class LocationRow:
    """A location: its state, and the text that a marker object in its store must repeat."""

    name: str
    state: LocationState
    marker: str
    empty: bool
    """Whether no blob was ever placed there (a missing marker may then be written)."""


async def enrol_locations(
    database: Database, names: Sequence[str], defaults: Sequence[str]
) -> Mapping[str, LocationRow]:
    """Make sure that every location of the configuration has a row, and return all rows by name.

    Where the database has no default list yet, `defaults` becomes it.
    """
    await database.fetch("SELECT enrol_locations($1, $2)", list(names), list(defaults))
    rows = await database.fetch(
        "SELECT name, state, marker, NOT EXISTS (SELECT FROM placement p WHERE p.location_id = l.id) AS empty FROM location l"
    )
    return {
        row["name"]: LocationRow(row["name"], LocationState(row["state"]), str(row["marker"]), row["empty"])
        for row in rows
    }


async def default_locations(database: Database) -> tuple[str, ...]:
    """Return the database's default list, which counts."""
    rows = await database.fetch(
        "SELECT l.name FROM default_location d JOIN location l ON l.id = d.location_id ORDER BY l.id"
    )
    return tuple(row["name"] for row in rows)


async def heartbeat(
    database: Database,
    member: Membership,
    *,
    draining: bool,
    forget_after: float,
    throughput: Mapping[str, float] | None = None,
    down: Mapping[str, float] | None = None,
    why_down: Mapping[str, str] | None = None,
) -> ClusterView:
    """Say that this node lives; return the other nodes and the locations' states. Nodes silent for long are forgotten.

    `throughput` is what this node's copies bring into each location, bytes per second, and `down` for how many seconds it has seen
    which locations down, and `why_down` the reasons, so that any node can tell.
    """
    rows = await database.fetch(
        """
        WITH me AS (
            INSERT INTO node (id, preference, defaults, version, draining, throughput, down, locations, down_reasons)
            VALUES ($1, $2, $3, $4, $5, $7::jsonb, (
                SELECT coalesce(jsonb_object_agg(key, extract(epoch FROM now()) - value::float8), '{}')
                FROM jsonb_each_text($8::jsonb)), $9::text[], $10::jsonb)
            ON CONFLICT (id) DO UPDATE SET seen_at = now(), draining = excluded.draining, throughput = excluded.throughput,
                down = excluded.down, down_reasons = excluded.down_reasons
            RETURNING id),
        -- Waits for nobody: it may be one that was silent for long and now lives, and is about to forget this one.
        gone AS (DELETE FROM node WHERE id IN (
            SELECT n.id FROM node n JOIN me ON me.id <> n.id WHERE n.seen_at < now() - $6 * interval '1 second'
            FOR UPDATE OF n SKIP LOCKED))
        SELECT 'node' AS kind, id::text AS name, preference, extract(epoch FROM now() - seen_at)::float8 AS silent, draining,
            NULL AS state, NULL::float8 AS ran
        FROM node WHERE id <> $1
        UNION ALL SELECT 'location', name, NULL, NULL, NULL, state, NULL FROM location
        UNION ALL SELECT 'drill', l.name, NULL, extract(epoch FROM d.until - now())::float8, d.balancer, NULL,
            extract(epoch FROM now() - d.begun_at)::float8
        FROM drill d JOIN location l ON l.id = d.location_id WHERE d.until > now()
        UNION ALL SELECT 'clock', '', NULL, extract(epoch FROM clock_timestamp())::float8, NULL, NULL, NULL
        """,
        member.id,
        list(member.preference),
        sorted(member.defaults),
        member.version,
        draining,
        forget_after,
        json.dumps(dict(throughput or {})),
        json.dumps(dict(down or {})),
        None if member.locations is None else sorted(member.locations),
        json.dumps({name: reason[:_MOST_OF_A_REASON] for name, reason in (why_down or {}).items()}),
    )
    return ClusterView(
        tuple(
            NodeView(row["name"], tuple(row["preference"]), max(0.0, row["silent"]), row["draining"])
            for row in rows
            if row["kind"] == "node"
        ),
        {row["name"]: LocationState(row["state"]) for row in rows if row["kind"] == "location"},
        {row["name"]: Drill(row["silent"], row["draining"], row["ran"]) for row in rows if row["kind"] == "drill"},
        next(row["silent"] for row in rows if row["kind"] == "clock"),
    )


async def living_nodes(database: Database, me: UUID, live_seconds: float) -> frozenset[str]:
    """Return the ids of the nodes besides `me` whose heartbeat came in the last `live_seconds`, as of this moment.

    A node has its row before it answers its first request, so none that answers is missing here; heartbeats tell of it later.
    """
    rows = await database.fetch(
        "SELECT id::text AS id FROM node WHERE id <> $1 AND seen_at > now() - $2 * interval '1 second'",
        me,
        live_seconds,
    )
    return frozenset(row["id"] for row in rows)


@frozen
class Knowing:
    """What a live node says of itself."""

    preference: tuple[str, ...]
    locations: tuple[str, ...] | None
    """What its configuration has; None for a node of a release before, which does not say."""


async def what_nodes_know(database: Database) -> Sequence[Knowing]:
    """Return the nodes that live and do not stop."""
    rows = await database.fetch(
        "SELECT preference, locations FROM node WHERE NOT draining AND seen_at > now() - $1 * interval '1 second' ORDER BY id",
        SILENT_AFTER,
    )
    return [
        Knowing(tuple(row["preference"]), None if row["locations"] is None else tuple(row["locations"])) for row in rows
    ]


async def agree_on_defaults(database: Database, live_seconds: float) -> tuple[str, ...] | None:
    """Make the default list that all live nodes name the database's, if they named another one before; return it if it changed.

    As long as they go on naming the same, what `policy apply` or `location add --default` made the database's stays.
    """
    rows = await database.fetch(
        """
        -- One node at a time, as when locations are enrolled.
        WITH turn AS (SELECT pg_advisory_xact_lock(x'616e746b'::integer)),
        live AS (SELECT DISTINCT defaults FROM turn, node WHERE seen_at > now() - $1 * interval '1 second'),
        new_wish AS (
            SELECT defaults FROM live WHERE (SELECT count(*) FROM live) = 1 AND cardinality(defaults) > 0
            AND NOT EXISTS (SELECT FROM agreed_default a WHERE a.names @> defaults AND a.names <@ defaults)),
        noted AS (
            INSERT INTO agreed_default (names) SELECT defaults FROM new_wish
            ON CONFLICT (one) DO UPDATE SET names = excluded.names),
        agreed AS (SELECT unnest(defaults) AS name FROM new_wish),
        gone AS (
            DELETE FROM default_location d WHERE EXISTS (SELECT FROM agreed)
            AND d.location_id NOT IN (SELECT l.id FROM location l JOIN agreed USING (name)) RETURNING location_id),
        new AS (
            INSERT INTO default_location (location_id) SELECT l.id FROM location l JOIN agreed USING (name)
            ON CONFLICT DO NOTHING RETURNING location_id)
        SELECT name FROM agreed WHERE EXISTS (SELECT FROM gone) OR EXISTS (SELECT FROM new)
        """,
        live_seconds,
    )
    return tuple(sorted(row["name"] for row in rows)) or None


async def sign_off(database: Database, member: Membership) -> None:
    """Take this node's row out: its work is free for others at once."""
    await database.fetch("DELETE FROM node WHERE id = $1", member.id)
