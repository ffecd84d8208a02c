"""Teams that follow a group elsewhere: bound, claimed by one node at a time, and their members changed. One statement each."""

from collections.abc import Collection, Sequence

from attrs import frozen

from node.auth.memberships import Bound, Membership
from node.records.auditlog import Line, noted
from node.records.postgres import Database, Row
from node.records.teams import OTHERS, TeamDeletion, outcome_of


async def bind_team(database: Database, organization: str, team: str, service: str, group: str) -> TeamDeletion:
    """Let a group decide who is in a team, in place of the group that did before.

    The same again changes nothing, but that a team which waits with letting very many people go does so soon.
    An identity provider says who is in a group only when they log in, so the users that are in the team leave it until then. A
    directory is asked soon. The last team that has an admin of the organisation is not bound: nobody might be in the group.
    """
    row = await database.fetch_row(
        f"""
        WITH t AS (
            SELECT t.* FROM team t JOIN account o ON o.id = t.organization_id
            WHERE o.name = $1 AND t.name = $2 AND in_time($0) FOR KEY SHARE OF t),
        fit AS (
            SELECT t.id FROM t WHERE t.role < 3
            OR NOT EXISTS (
                SELECT FROM team_member m JOIN account a ON a.id = m.account_id WHERE m.team_id = t.id AND a.kind = 'user')
            OR EXISTS (SELECT FROM team_sync s WHERE (s.team_id, s.service, s.group_name) = (t.id, $3, $4))
            OR {OTHERS.format(team="t", besides="ot.id <> t.id")}),
        bound AS (
            INSERT INTO team_sync AS s (team_id, service, group_name) SELECT id, $3, $4 FROM fit
            ON CONFLICT (team_id) DO UPDATE SET service = excluded.service, group_name = excluded.group_name,
                created_at = now(), synced_at = NULL, leased_until = NULL, held_since = NULL
            WHERE (s.service, s.group_name) <> (excluded.service, excluded.group_name)
                OR (s.service = 'ldap' AND s.held_since IS NOT NULL) RETURNING team_id, service),
        held AS MATERIALIZED (
            SELECT m.team_id, m.account_id FROM team_member m JOIN bound b ON b.team_id = m.team_id AND b.service = 'oidc'
            JOIN account a ON a.id = m.account_id AND a.kind = 'user' ORDER BY m.team_id, m.account_id FOR UPDATE OF m),
        left_it AS (
            DELETE FROM team_member m USING held h
            WHERE (SELECT count(*) FROM held) > 0 AND m.team_id = h.team_id AND m.account_id = h.account_id)
        SELECT EXISTS (SELECT FROM fit) AS gone, EXISTS (SELECT FROM t) AS found
        """,  # noqa: S608  # a constant
        organization,
        team,
        service,
        group,
    )
    return outcome_of(row)


async def unbind_team(database: Database, organization: str, team: str) -> bool:
    """Let nobody else decide who is in a team any more; who is in it stays. False: no such team, or no group decided."""
    row = await database.fetch_row(
        """
        DELETE FROM team_sync s USING team t, account o
        WHERE t.id = s.team_id AND o.id = t.organization_id AND o.name = $1 AND t.name = $2 AND in_time($0) RETURNING t.id
        """,
        organization,
        team,
    )
    return row is not None


BOUND = """s.team_id, o.name AS organization, t.name, s.group_name, s.synced_at IS NOT NULL AS synced,
    extract(epoch FROM now() - s.held_since)::float8 AS held"""
NAMED = "JOIN team t ON t.id = s.team_id JOIN account o ON o.id = t.organization_id"


def bound_of(row: Row) -> Bound:
    """Return the team of a row that has `BOUND`."""
    return Bound(row["team_id"], row["organization"], row["name"], row["group_name"], row["synced"], row["held"])


@frozen
class Standing:
    """The teams that a service's groups decide, and in which of them somebody is."""

    bound: Sequence[Bound]
    present: frozenset[Membership]


async def standing_of(database: Database, service: str, account: int) -> Standing:
    """Return where somebody stands in a service's teams."""
    rows = await database.fetch(
        f"""
        SELECT {BOUND}, m.account_id IS NOT NULL AS present FROM team_sync s {NAMED}
        LEFT JOIN team_member m ON m.team_id = s.team_id AND m.account_id = $2 WHERE s.service = $1
        """,  # noqa: S608  # constants of this module
        service,
        account,
    )
    return Standing(
        [bound_of(row) for row in rows], frozenset((row["team_id"], account) for row in rows if row["present"])
    )


async def claim_stale(database: Database, service: str, stale: float, lease: float, most: int) -> Sequence[Bound]:
    """Claim up to `most` teams for `lease` seconds that were not synchronised for `stale` seconds, the oldest first.

    Those that somebody has tried in vain come behind the others.
    """
    rows = await database.fetch(
        f"""
        WITH due AS (
            SELECT team_id FROM team_sync WHERE service = $1 AND (leased_until IS NULL OR leased_until < now())
            AND (synced_at IS NULL OR synced_at < now() - $2 * interval '1 second')
            ORDER BY coalesce(leased_until, synced_at) NULLS FIRST, team_id LIMIT $4 FOR UPDATE SKIP LOCKED),
        s AS (
            UPDATE team_sync SET leased_until = now() + $3 * interval '1 second' FROM due
            WHERE team_sync.team_id = due.team_id RETURNING team_sync.*)
        SELECT {BOUND} FROM s {NAMED}
        """,  # noqa: S608
        service,
        stale,
        lease,
        most,
    )
    return [bound_of(row) for row in rows]


async def note_synced(database: Database, bound: Sequence[Bound], held: Collection[int] = ()) -> None:
    """Note that these teams were synchronised just now, those that the same group still decides.

    `held`: those of them that wait with letting people go.
    """
    await database.fetch(
        """
        WITH d AS (
            SELECT s.team_id FROM unnest($1::bigint[], $2::text[]) AS d (team_id, group_name)
            JOIN team_sync s ON s.team_id = d.team_id AND s.group_name = d.group_name ORDER BY s.team_id FOR NO KEY UPDATE OF s)
        UPDATE team_sync s SET synced_at = now(), leased_until = NULL,
            held_since = CASE WHEN s.team_id = ANY($3::bigint[]) THEN coalesce(s.held_since, now()) END
        FROM d WHERE s.team_id = d.team_id
        """,
        [line.team for line in bound],
        [line.group for line in bound],
        list(held),
    )


@frozen
class Overdue:
    """How many teams are to be synchronised, and for how many seconds the one that waits longest was not."""

    teams: int
    seconds: float
    held: Sequence[str] = ()
    """Some of those that wait with letting very many people go: ORGANIZATION/TEAM."""


async def overdue_teams(database: Database, service: str, stale: float) -> Overdue:
    """Return which teams of a service were not synchronised for `stale` seconds."""
    row = await database.fetch_row(
        """
        SELECT count(*) FILTER (WHERE due) AS teams,
            array(SELECT o.name || '/' || t.name FROM team_sync s JOIN team t ON t.id = s.team_id
                JOIN account o ON o.id = t.organization_id
                WHERE s.service = $1 AND s.held_since IS NOT NULL ORDER BY s.held_since, s.team_id LIMIT 10) AS held,
            coalesce(extract(epoch FROM now() - min(coalesce(synced_at, created_at)) FILTER (WHERE due)), 0)::float8 AS seconds
        FROM (
            SELECT *, synced_at IS NULL OR synced_at < now() - $2 * interval '1 second' AS due FROM team_sync
            WHERE service = $1) s
        """,
        service,
        stale,
    )
    assert row is not None
    return Overdue(row["teams"], row["seconds"], tuple(row["held"]))


@frozen
class TeamTotals:
    """The teams that follow a service's groups, in numbers. Times in seconds."""

    service: str
    teams: int
    oldest: float
    """How long ago the one was synchronised with a directory that waits longest, or was bound."""
    held: int
    """How many wait with letting very many people go."""


async def look_at_teams(database: Database, deadline: float = 10.0) -> Sequence[TeamTotals]:
    """Return the numbers of each service that decides about teams. Raises DatabaseUnavailable."""
    rows = await database.fetch(
        """
        SELECT service, count(*) AS teams, count(*) FILTER (WHERE held_since IS NOT NULL) AS held,
            greatest(0, extract(epoch FROM now() - min(coalesce(synced_at, created_at))))::float8 AS oldest
        FROM team_sync GROUP BY service
        """,
        deadline=deadline,
    )
    return [TeamTotals(row["service"], row["teams"], row["oldest"], row["held"]) for row in rows]


@frozen
class Candidate:
    """A user who is in one of the teams, or whom the service proves, and so might be. `teams`: those that they are in."""

    account: int
    name: str
    linked: bool
    """Whether the service proves them: nobody else is in its groups, whatever they are called."""
    teams: frozenset[int]


async def list_candidates(database: Database, mark: str, teams: Sequence[int]) -> Sequence[Candidate]:
    """Return everybody whom a synchronisation of these teams is about. `mark` begins the secrets of those whom it proves."""
    rows = await database.fetch(
        """
        SELECT a.id, a.name, coalesce(a.secret = $1 || a.name, false) AS linked,
            array(SELECT m.team_id FROM team_member m WHERE m.account_id = a.id AND m.team_id = ANY($2::bigint[])) AS teams
        FROM account a WHERE a.kind = 'user' AND (a.secret = $1 || a.name
            OR EXISTS (SELECT FROM team_member m WHERE m.account_id = a.id AND m.team_id = ANY($2::bigint[])))
        """,
        mark,
        list(teams),
    )
    return [Candidate(row["id"], row["name"], row["linked"], frozenset(row["teams"])) for row in rows]


@frozen
class Step:
    """A membership that begins or ends because of a group, and the audit log's line about it."""

    bound: Bound
    account: int
    joins: bool
    line: Line


@frozen
class Done:
    """How many memberships began and ended."""

    joined: int
    left: int


async def take_steps(database: Database, service: str, steps: Sequence[Step], believed: float | None = None) -> Done:
    """Begin and end memberships in one transaction, and return how many; each has its line in the audit log.

    One that is to begin and is there is confirmed. With `believed` none ends that was confirmed within so many seconds.

    What another group, or nobody, decides by now is left as it is.
    """
    row = await database.fetch_row(
        f"""
        -- Each kind in one order, and all before the first membership changes: teams, what decides them, accounts.
        WITH teams AS (SELECT id FROM team WHERE id = ANY($2::bigint[]) AND in_time($0) ORDER BY id FOR KEY SHARE),
        deciding AS (
            SELECT s.* FROM team_sync s WHERE s.team_id IN (SELECT id FROM teams) ORDER BY s.team_id FOR SHARE),
        accounts AS (
            SELECT id FROM account WHERE id = ANY($3::bigint[]) AND (SELECT count(*) FROM deciding) > 0 ORDER BY id FOR KEY SHARE),
        bound AS (
            SELECT w.* FROM unnest($2::bigint[], $3::bigint[], $4::text[], $5::boolean[], $6::text[])
                AS w (team_id, account_id, group_name, joins, line)
            JOIN deciding s ON s.team_id = w.team_id AND s.service = $1 AND s.group_name = w.group_name
            JOIN accounts a ON a.id = w.account_id ORDER BY w.team_id, w.account_id),
        members AS (
            SELECT m.team_id, m.account_id FROM team_member m JOIN bound USING (team_id, account_id)
            ORDER BY m.team_id, m.account_id FOR UPDATE OF m),
        joined AS (
            INSERT INTO team_member (team_id, account_id)
            SELECT team_id, account_id FROM bound WHERE joins AND (SELECT count(*) FROM members) >= 0 ORDER BY 1, 2
            ON CONFLICT DO NOTHING RETURNING team_id, account_id),
        confirmed AS (
            UPDATE team_member m SET confirmed_at = now() FROM bound b
            WHERE b.joins AND m.team_id = b.team_id AND m.account_id = b.account_id),
        left_it AS (
            DELETE FROM team_member m USING bound b
            WHERE NOT b.joins AND m.team_id = b.team_id AND m.account_id = b.account_id
            AND ($7::float8 IS NULL OR m.confirmed_at < now() - $7::float8 * interval '1 second')
            RETURNING m.team_id, m.account_id),
        done AS (
            SELECT b.line FROM bound b JOIN (SELECT * FROM joined UNION ALL SELECT * FROM left_it) d USING (team_id, account_id)
            ORDER BY NOT b.joins, team_id, account_id),
        {noted("done", "done.line")}
        SELECT (SELECT count(*) FROM joined) AS joined, (SELECT count(*) FROM left_it) AS left_it
        """,  # noqa: S608
        service,
        [step.bound.team for step in steps],
        [step.account for step in steps],
        [step.bound.group for step in steps],
        [step.joins for step in steps],
        [step.line.text() for step in steps],
        believed,
    )
    assert row is not None
    return Done(row["joined"], row["left_it"])
