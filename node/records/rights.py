"""The facts behind a decision about access, read together and as of one moment; and what took rights away. One statement each."""

from collections.abc import Mapping, Sequence

from attrs import frozen

from node.auth.held import Held
from node.auth.model import Kind, Role, Standing, TeamRole
from node.names import namespace_of
from node.records.postgres import Database


async def read_standings(
    database: Database, account: str, repositories: Sequence[str], library: str
) -> Mapping[str, Standing]:
    """Return what an account (empty: nobody) is to each of these repositories, which need not exist."""
    rows = await database.fetch(
        """
        WITH me AS (SELECT id FROM account WHERE name = $1),
        teams AS (
            SELECT t.id, t.organization_id, t.role FROM me
            JOIN team_member m ON m.account_id = me.id JOIN team t ON t.id = m.team_id)
        SELECT asked.name, r.id IS NOT NULL AS present, coalesce(r.public, false) AS public, o.kind AS owner,
            coalesce((
                SELECT max(p.role) FROM permission p WHERE p.repository_id = r.id
                AND (p.account_id = (SELECT id FROM me) OR p.team_id IN (SELECT id FROM teams))), 0) AS role,
            coalesce((SELECT max(t.role) FROM teams t WHERE t.organization_id = o.id), 0) AS team_role,
            coalesce((SELECT number FROM access_epoch), 0) AS epoch
        FROM unnest($2::text[], $3::text[]) AS asked (name, namespace)
        LEFT JOIN repository r ON r.name = asked.name
        LEFT JOIN account o ON o.name = asked.namespace AND o.kind <> 'robot'
        """,
        account,
        list(repositories),
        [namespace_of(repository, library) for repository in repositories],
    )
    return {
        row["name"]: Standing(
            row["present"],
            row["public"],
            None if row["owner"] is None else Kind(row["owner"]),
            Role(row["role"]),
            TeamRole(row["team_role"]),
            row["epoch"],
        )
        for row in rows
    }


class RightsLapsed(Exception):
    """The rights by which something was to be done were taken away, or what proved them ended, before it was done."""


def lapsed(repository: str, account: str, epoch: str) -> str:
    """Return the part of a WITH that has a row where something was taken from an account, or on a repository, since `epoch`.

    What is named are parameters; the last two are those of `terms`. A node that stood still, or was cut off, knows of no change
    since, and what it does then shall not be what another node has refused meanwhile.
    """
    return (
        f"lapsed AS (SELECT WHERE EXISTS (SELECT FROM access_change "  # noqa: S608  # constants
        f"WHERE number > {epoch}::bigint AND (account = {account}::text OR repository = {repository})))"
    )


def terms(held: Held | None) -> tuple[str | None, int | None]:
    """Return the parameters of `lapsed`; None: it never has a row."""
    return (None, None) if held is None else (held.account, held.epoch)


@frozen
class Change:
    """Something that took rights away from an account, or from somebody on a repository."""

    number: int
    account: str | None
    repository: str | None


@frozen
class Changes:
    """The changes after a number, in order, and how far the log was."""

    number: int
    changes: tuple[Change, ...]
    all: bool = True
    """False: they were too many, and nothing that is older than `number` may be relied on."""


_MOST_CHANGES = 10_000


async def read_changes(database: Database, after: int | None, since: float) -> Changes:
    """Return the changes after a number; with None those of the last `since` seconds."""
    rows = await database.fetch(
        """
        WITH latest AS (SELECT coalesce(max(number), 0) AS number FROM access_epoch)
        SELECT latest.number AS latest, c.number, c.account, c.repository FROM latest LEFT JOIN (
            SELECT number, account, repository FROM access_change
            WHERE CASE WHEN $1::bigint IS NULL THEN at > now() - $2 * interval '1 second' ELSE number > $1 END
            ORDER BY number DESC LIMIT $3) c ON true
        """,
        after,
        since,
        _MOST_CHANGES + 1,
    )
    found = [Change(row["number"], row["account"], row["repository"]) for row in rows if row["number"] is not None]
    latest = rows[0]["latest"]
    return Changes(latest, tuple(reversed(found))) if len(found) <= _MOST_CHANGES else Changes(latest, (), all=False)


async def drop_old_changes(database: Database, age: float) -> int:
    """Forget the changes that are older than `age` seconds; return how many."""
    row = await database.fetch_row(
        """
        WITH gone AS (DELETE FROM access_change WHERE at < now() - $1 * interval '1 second' RETURNING 1)
        SELECT count(*) AS number FROM gone
        """,
        age,
    )
    assert row is not None
    return int(row["number"])
