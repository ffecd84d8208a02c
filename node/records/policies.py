"""Placement policies of namespaces: read, written with their compiled sets, and recompiled for the tags that exist."""

import json
from collections.abc import Sequence

from attrs import frozen

from node.records.postgres import Database
from replication.policy import NO_POLICY, Policy, dump_policy, parse_policy


def load_policy(text: str | None) -> Policy:
    """Return the policy that a row's JSON spells. It was checked when it was written; a location that went since is kept."""
    if text is None:
        return NO_POLICY
    document = json.loads(text)
    named = {*document.get("required", ()), *document.get("never", ())}
    for rule in document.get("tags", ()):
        named.update(rule["locations"])
    # Checked against its own locations and one more: a *never* of all that it names is no mistake here.
    return parse_policy(document, {*named, ""})


@frozen
class PolicyRow:
    """A namespace's policy; version 0 and no rules where nobody ever set one."""

    namespace: str
    policy: Policy
    version: int


async def read_policy(database: Database, namespace: str) -> PolicyRow:
    """Return a namespace's policy, the empty one for a namespace that does not exist."""
    row = await database.fetch_row("SELECT policy, version FROM namespace WHERE name = $1", namespace)
    return (
        PolicyRow(namespace, NO_POLICY, 0)
        if row is None
        else PolicyRow(namespace, load_policy(row["policy"]), row["version"])
    )


async def list_policies(database: Database) -> Sequence[PolicyRow]:
    """Return the policies of all namespaces that have rules, by name."""
    rows = await database.fetch("SELECT name, policy, version FROM namespace WHERE policy IS NOT NULL ORDER BY name")
    return [PolicyRow(row["name"], load_policy(row["policy"]), row["version"]) for row in rows]


async def write_policy(database: Database, namespace: str, policy: Policy, expected: int | None = None) -> int | None:
    """Set a namespace's policy and its compiled sets in one transaction; return the new version.

    With `expected`, only if that is still its version; else None. `NO_POLICY` removes the rules. Tags that exist are recompiled by
    `recompile_tags`, and debt follows at the next reconciliation.
    """
    row = await database.fetch_row(
        """
        WITH old AS (SELECT id, version FROM namespace WHERE name = $1 FOR UPDATE),
        here AS (
            INSERT INTO namespace AS n (name, policy, own_locations, version) SELECT $1, $2::jsonb, $3, 1
            WHERE in_time($0) AND ($6::bigint IS NULL OR $6 = coalesce((SELECT version FROM old), 0))
            ON CONFLICT (name)
            DO UPDATE SET policy = excluded.policy, own_locations = excluded.own_locations, version = n.version + 1
            RETURNING id, version),
        less AS (
            DELETE FROM namespace_location nl USING here WHERE nl.namespace_id = here.id
            AND nl.location_id NOT IN (SELECT id FROM location WHERE name = ANY($4::text[]))),
        more AS (
            INSERT INTO namespace_location (namespace_id, location_id) SELECT here.id, l.id FROM here, location l
            WHERE l.name = ANY($4::text[]) ON CONFLICT DO NOTHING),
        fewer_never AS (
            DELETE FROM namespace_never nv USING here WHERE nv.namespace_id = here.id
            AND nv.location_id NOT IN (SELECT id FROM location WHERE name = ANY($5::text[]))),
        more_never AS (
            INSERT INTO namespace_never (namespace_id, location_id) SELECT here.id, l.id FROM here, location l
            WHERE l.name = ANY($5::text[]) ON CONFLICT DO NOTHING)
        SELECT version FROM here
        """,
        namespace,
        None if policy == NO_POLICY else json.dumps(dump_policy(policy)),
        policy.required is not None,
        sorted(policy.required or ()),
        sorted(policy.never),
        expected,
    )
    return None if row is None else int(row["version"])


@frozen
class TagPage:
    """Some tags as (repository id, tag, its namespace's policy); `after` is where the next page begins, None at the end."""

    tags: tuple[tuple[int, str, Policy], ...]
    after: tuple[int, str] | None


async def ruled_tags(database: Database, after: tuple[int, str], most: int) -> TagPage:
    """Return a page of the tags whose namespace has a policy, or that have locations from one."""
    rows = await database.fetch(
        """
        SELECT t.repository_id, t.name, n.policy FROM tag t JOIN repository r ON r.id = t.repository_id
        JOIN namespace n ON n.id = r.namespace_id
        WHERE (t.repository_id, t.name) > ($1, $2) AND (n.policy IS NOT NULL OR EXISTS (
            SELECT FROM tag_location tl WHERE tl.repository_id = t.repository_id AND tl.name = t.name))
        ORDER BY t.repository_id, t.name LIMIT $3
        """,
        after[0],
        after[1],
        most,
    )
    found = tuple((row["repository_id"], row["name"], load_policy(row["policy"])) for row in rows)
    return TagPage(found, (found[-1][0], found[-1][1]) if len(found) == most else None)


async def place_tags(database: Database, tags: Sequence[tuple[int, str, Policy]]) -> int:
    """Give tags the locations that their policies add and take others away; return how many rows changed."""
    keys = [(repository, tag) for repository, tag, _ in tags]
    places = [(repository, tag, at) for repository, tag, policy in tags for at in sorted(policy.for_tag(tag))]
    row = await database.fetch_row(
        """
        WITH homes AS (SELECT id FROM repository WHERE id = ANY($1::bigint[]) ORDER BY id FOR NO KEY UPDATE),
        held AS MATERIALIZED (
            SELECT t.repository_id, t.name FROM tag t JOIN unnest($1::bigint[], $2::text[]) AS u (repository_id, name)
            ON t.repository_id = u.repository_id AND t.name = u.name WHERE (SELECT count(*) FROM homes) > 0
            ORDER BY t.repository_id, t.name FOR NO KEY UPDATE OF t),
        wanted AS (
            SELECT u.repository_id, u.name, l.id AS location_id
            FROM unnest($3::bigint[], $4::text[], $5::text[]) AS u (repository_id, name, location)
            JOIN location l ON l.name = u.location
            JOIN held h ON h.repository_id = u.repository_id AND h.name = u.name),
        less AS (
            DELETE FROM tag_location tl USING held u WHERE (SELECT count(*) FROM held) > 0
            AND tl.repository_id = u.repository_id AND tl.name = u.name
            AND (tl.repository_id, tl.name, tl.location_id) NOT IN (SELECT repository_id, name, location_id FROM wanted)
            RETURNING 1),
        more AS (
            INSERT INTO tag_location (repository_id, name, location_id) SELECT repository_id, name, location_id FROM wanted
            ON CONFLICT DO NOTHING RETURNING 1)
        SELECT (SELECT count(*) FROM less) + (SELECT count(*) FROM more) AS changed
        """,
        [repository for repository, _ in keys],
        [tag for _, tag in keys],
        [repository for repository, _, _ in places],
        [tag for _, tag, _ in places],
        [at for _, _, at in places],
    )
    assert row is not None
    return int(row["changed"])
