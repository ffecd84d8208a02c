"""Teams of organisations and who is in them. One statement each."""

from collections.abc import Sequence
from enum import Enum

from attrs import frozen

from node.auth.model import Kind, TeamRole
from node.records.postgres import Database, Row


@frozen
class Sync:
    """The group that decides who of the users is in a team. `synced_at` in POSIX seconds."""

    service: str
    """`ldap` or `oidc`."""
    group: str
    synced_at: float | None = None
    """When a directory was last asked for its members; None: not yet, or an identity provider says it at each login."""


@frozen
class Team:
    """A team of an organisation. `sync`: what decides who is in it; None: its organisation."""

    organization: str
    name: str
    role: TeamRole
    description: str | None = None
    members: int = 0
    sync: Sync | None = None


class TeamSynced(Exception):
    """A group decides which users are in a team: none of them is put in or taken out by hand. The text names the team."""


def _team(row: Row) -> Team:
    sync = None if row["service"] is None else Sync(row["service"], row["group_name"], row["synced_at"])
    return Team(row["organization"], row["name"], TeamRole(row["role"]), row["description"], row["members"], sync)


_TEAM = """o.name AS organization, t.name, t.role, t.description,
    (SELECT count(*) FROM team_member m WHERE m.team_id = t.id) AS members,
    (SELECT s.service FROM team_sync s WHERE s.team_id = t.id) AS service,
    (SELECT s.group_name FROM team_sync s WHERE s.team_id = t.id) AS group_name,
    (SELECT extract(epoch FROM s.synced_at)::float8 FROM team_sync s WHERE s.team_id = t.id) AS synced_at"""


async def put_team(
    database: Database, organization: str, name: str, role: TeamRole | None = None, description: str | None = None
) -> Team | None:
    """Make a team, or change what is given of one that is there. None: no such organisation."""
    row = await database.fetch_row(
        f"""
        WITH o AS (SELECT id, name FROM account WHERE name = $1 AND kind = 'organization'),
        t AS (
            INSERT INTO team AS t (organization_id, name, role, description)
            SELECT o.id, $2, coalesce($3, 1), $4 FROM o WHERE in_time($0)
            ON CONFLICT (organization_id, name)
            DO UPDATE SET role = coalesce($3, t.role), description = coalesce($4, t.description) RETURNING *)
        SELECT {_TEAM} FROM t, o
        """,  # noqa: S608  # a constant of this module
        organization,
        name,
        None if role is None else int(role),
        description,
    )
    return None if row is None else _team(row)


async def find_team(database: Database, organization: str, name: str) -> Team | None:
    """Return a team by its name."""
    row = await database.fetch_row(
        f"SELECT {_TEAM} FROM team t JOIN account o ON o.id = t.organization_id WHERE o.name = $1 AND t.name = $2",  # noqa: S608
        organization,
        name,
    )
    return None if row is None else _team(row)


async def list_teams(database: Database, organization: str, *, after: str = "", most: int = 100) -> Sequence[Team]:
    """Return the teams of an organisation by name, after `after`."""
    rows = await database.fetch(
        f"""
        SELECT {_TEAM} FROM team t JOIN account o ON o.id = t.organization_id
        WHERE o.name = $1 AND t.name > $2 ORDER BY t.name LIMIT $3
        """,  # noqa: S608
        organization,
        after,
        most,
    )
    return [_team(row) for row in rows]


class TeamDeletion(Enum):
    """What became of a request to take a team, or a member of one, away."""

    DONE = "done"
    UNKNOWN = "unknown"
    LAST_ADMIN = "last admin"
    """Nobody would administer the organisation any more."""


OTHERS = """EXISTS (
    SELECT FROM team ot JOIN team_member om ON om.team_id = ot.id JOIN account oa ON oa.id = om.account_id
    WHERE ot.organization_id = {team}.organization_id AND ot.role = 3 AND oa.kind = 'user' AND {besides})"""
"""That somebody else is left in a team of admins."""


async def delete_team(database: Database, organization: str, name: str) -> TeamDeletion:
    """Delete a team with what it was given. The last team of admins that has a user in it stays."""
    row = await database.fetch_row(
        f"""
        WITH t AS (
            SELECT t.* FROM team t JOIN account o ON o.id = t.organization_id
            WHERE o.name = $1 AND t.name = $2 AND in_time($0)),
        held AS MATERIALIZED (SELECT id FROM t WHERE hold_team(id)),
        gone AS (
            DELETE FROM team USING t, held WHERE team.id = t.id AND held.id = t.id AND (t.role < 3
                OR NOT EXISTS (SELECT FROM team_member m WHERE m.team_id = t.id)
                OR {OTHERS.format(team="t", besides="ot.id <> t.id")}) RETURNING team.id)
        SELECT EXISTS (SELECT FROM gone) AS gone, EXISTS (SELECT FROM t) AS found
        """,  # noqa: S608
        organization,
        name,
    )
    return outcome_of(row)


def outcome_of(row: Row | None) -> TeamDeletion:
    """Return what became of a request, by a row that says whether it was done (`gone`) and whether there was anything (`found`)."""
    assert row is not None
    if row["gone"]:
        return TeamDeletion.DONE
    return TeamDeletion.LAST_ADMIN if row["found"] else TeamDeletion.UNKNOWN


_DECIDED = "a.kind = 'user' AND EXISTS (SELECT FROM team_sync s WHERE s.team_id = t.id)"


def _check_decided(row: Row | None, team: str) -> None:
    if row is not None and row["synced"]:
        raise TeamSynced(team)


async def add_member(database: Database, organization: str, team: str, account: str) -> bool:
    """Put a user, or a robot of the organisation, into a team. False: no such team, or nobody whom it can have.

    Raises TeamSynced.
    """
    row = await database.fetch_row(
        f"""
        -- Before the team and its robot, as whoever deletes it has all three.
        WITH o AS MATERIALIZED (SELECT id FROM account WHERE name = $1 AND in_time($0) FOR KEY SHARE),
        new AS (
            SELECT t.id AS team_id, a.id AS account_id, {_DECIDED} AS synced
            FROM team t JOIN o ON o.id = t.organization_id, account a
            WHERE t.name = $2 AND a.name = $3 AND (a.kind = 'user' OR a.owner_id = o.id)),
        made AS (
            INSERT INTO team_member (team_id, account_id) SELECT team_id, account_id FROM new WHERE NOT synced
            ON CONFLICT DO NOTHING)
        SELECT synced FROM new
        """,  # noqa: S608  # a constant of this module
        organization,
        team,
        account,
    )
    _check_decided(row, team)
    return row is not None


async def remove_member(database: Database, organization: str, team: str, account: str) -> TeamDeletion:
    """Take somebody out of a team. The organisation's last admin stays. Raises TeamSynced."""
    row = await database.fetch_row(
        f"""
        WITH m AS (
            SELECT m.team_id, m.account_id, t.organization_id, t.role, a.kind, {_DECIDED} AS synced FROM team_member m
            JOIN team t ON t.id = m.team_id JOIN account o ON o.id = t.organization_id JOIN account a ON a.id = m.account_id
            WHERE o.name = $1 AND t.name = $2 AND a.name = $3 AND in_time($0)),
        gone AS (
            DELETE FROM team_member tm USING m WHERE tm.team_id = m.team_id AND tm.account_id = m.account_id
            AND NOT m.synced AND (m.role < 3 OR m.kind <> 'user'
                OR {OTHERS.format(team="m", besides="(om.team_id, om.account_id) <> (m.team_id, m.account_id)")})
            RETURNING tm.team_id)
        SELECT EXISTS (SELECT FROM gone) AS gone, EXISTS (SELECT FROM m) AS found, EXISTS (SELECT FROM m WHERE synced) AS synced
        """,  # noqa: S608
        organization,
        team,
        account,
    )
    _check_decided(row, team)
    return outcome_of(row)


@frozen
class Member:
    """Somebody in a team."""

    name: str
    kind: Kind


async def list_members(
    database: Database, organization: str, team: str, *, after: str = "", most: int = 100
) -> Sequence[Member]:
    """Return who is in a team by name, after `after`."""
    rows = await database.fetch(
        """
        SELECT a.name, a.kind FROM team_member m JOIN team t ON t.id = m.team_id
        JOIN account o ON o.id = t.organization_id JOIN account a ON a.id = m.account_id
        WHERE o.name = $1 AND t.name = $2 AND a.name > $3 ORDER BY a.name LIMIT $4
        """,
        organization,
        team,
        after,
        most,
    )
    return [Member(row["name"], Kind(row["kind"])) for row in rows]


async def teams_of(database: Database, account: str) -> Sequence[Team]:
    """Return the teams that somebody is in, by organisation and name."""
    rows = await database.fetch(
        f"""
        SELECT {_TEAM} FROM account a JOIN team_member tm ON tm.account_id = a.id JOIN team t ON t.id = tm.team_id
        JOIN account o ON o.id = t.organization_id WHERE a.name = $1 ORDER BY o.name, t.name
        """,  # noqa: S608
        account,
    )
    return [_team(row) for row in rows]
