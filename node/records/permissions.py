"""Permissions on repositories, their visibility, and the permissions that new repositories begin with. One statement each."""

from collections.abc import Sequence
from enum import Enum

from attrs import frozen

from node.auth.model import Role
from node.names import namespace_of
from node.records.postgres import Database, Row


@frozen
class Grantee:
    """Who is given a permission: an account by its name, or a team of the repository's organisation."""

    account: str | None = None
    team: str | None = None


@frozen
class Permission:
    """A permission on a repository."""

    grantee: Grantee
    role: Role


class Granting(Enum):
    """What became of a permission that was to be given or taken away."""

    DONE = "done"
    NO_REPOSITORY = "no repository"
    NO_GRANTEE = "no grantee"
    """No such account or team, or it had no such permission."""


# A team's organisation is the account that has the repository's namespace's name. $2 account, $3 team. They are locked before the
# repository, as whoever deletes an account or a team has them.
_GRANTEE = """
    their_account AS (SELECT id FROM account WHERE name = $2 AND kind <> 'organization' FOR KEY SHARE),
    their_team AS (
        SELECT t.id FROM repository r JOIN namespace n ON n.id = r.namespace_id JOIN account o ON o.name = n.name
        JOIN team t ON t.organization_id = o.id WHERE r.name = $1 AND t.name = $3 FOR KEY SHARE OF t),
    grantee AS MATERIALIZED (
        SELECT id AS account_id, NULL::bigint AS team_id FROM their_account UNION ALL SELECT NULL, id FROM their_team),
    repo AS (
        SELECT id FROM repository WHERE name = $1 AND in_time($0) AND (SELECT count(*) FROM grantee) >= 0 FOR NO KEY UPDATE)
"""


async def set_permission(database: Database, repository: str, grantee: Grantee, role: Role) -> Granting:
    """Give a user, a robot or a team a permission on a repository, in place of the one it had there."""
    row = await database.fetch_row(
        f"""
        WITH {_GRANTEE},
        changed AS (
            UPDATE permission p SET role = $4 FROM repo, grantee g WHERE p.repository_id = repo.id
            AND (p.account_id = g.account_id OR p.team_id = g.team_id) RETURNING p.id),
        made AS (
            INSERT INTO permission (repository_id, account_id, team_id, role)
            SELECT repo.id, g.account_id, g.team_id, $4 FROM repo, grantee g WHERE NOT EXISTS (SELECT FROM changed)
            ON CONFLICT DO NOTHING)
        SELECT EXISTS (SELECT FROM repo) AS repository, EXISTS (SELECT FROM grantee) AS grantee
        """,  # noqa: S608  # a constant of this module
        repository,
        grantee.account,
        grantee.team,
        int(role),
    )
    return _granting(row)


async def remove_permission(database: Database, repository: str, grantee: Grantee) -> Granting:
    """Take the permission of a user, a robot or a team on a repository away."""
    row = await database.fetch_row(
        f"""
        WITH {_GRANTEE},
        gone AS (
            DELETE FROM permission p USING repo, grantee g WHERE p.repository_id = repo.id
            AND (p.account_id = g.account_id OR p.team_id = g.team_id) RETURNING p.id)
        SELECT EXISTS (SELECT FROM repo) AS repository, EXISTS (SELECT FROM gone) AS grantee
        """,  # noqa: S608
        repository,
        grantee.account,
        grantee.team,
    )
    return _granting(row)


def _granting(row: Row | None) -> Granting:
    assert row is not None
    if not row["repository"]:
        return Granting.NO_REPOSITORY
    return Granting.DONE if row["grantee"] else Granting.NO_GRANTEE


async def list_permissions(database: Database, repository: str) -> Sequence[Permission] | None:
    """Return the permissions on a repository, accounts before teams, by name. None: no such repository."""
    rows = await database.fetch(
        """
        SELECT a.name AS account, t.name AS team, p.role
        FROM repository r LEFT JOIN permission p ON p.repository_id = r.id
        LEFT JOIN account a ON a.id = p.account_id LEFT JOIN team t ON t.id = p.team_id
        WHERE r.name = $1 ORDER BY a.name NULLS LAST, t.name
        """,
        repository,
    )
    if not rows:
        return None
    return [_permission(row) for row in rows if row["role"] is not None]


def _permission(row: Row) -> Permission:
    return Permission(Grantee(row["account"], row["team"]), Role(row["role"]))


async def set_visibility(database: Database, repository: str, *, public: bool) -> bool:
    """Make a repository public or private. False: no such repository."""
    # All at once: a row that its transaction changes a second time has its namespace looked up, and waits for whoever deletes that.
    row = await database.fetch_row(
        "UPDATE repository SET public = $2, made_for_push = NULL WHERE name = $1 AND in_time($0) RETURNING id",
        repository,
        public,
    )
    return row is not None


async def is_public(database: Database, repository: str) -> bool | None:
    """Tell whether anybody may pull from a repository. None: no such repository."""
    row = await database.fetch_row("SELECT public FROM repository WHERE name = $1", repository)
    return None if row is None else bool(row["public"])


async def create_repository(
    database: Database,
    repository: str,
    library: str,
    creator: str | None,
    *,
    public: bool = False,
    for_push: bool = False,
) -> bool:
    """Make a repository with what its namespace gives to new ones; its creator gets admin.

    False: there is one already, or the account that has the namespace's name is being deleted. One that is made `for_push` goes
    again when that comes to nothing: `settle_new_repositories`.
    """
    row = await database.fetch_row(
        """
        WITH creator AS (SELECT id FROM account WHERE name = $3 AND kind <> 'organization'),
        owner AS (SELECT id FROM account WHERE name = $2),
        given AS (
            SELECT c.id AS account_id, NULL::bigint AS team_id, 3 AS role FROM creator c WHERE $3 <> $2
            UNION ALL
            SELECT d.account_id, d.team_id, d.role FROM default_permission d JOIN owner ON owner.id = d.namespace_id
            WHERE d.creator_id IS NULL OR d.creator_id = (SELECT id FROM creator)),
        -- The namespace, those who are given something, and the repository, as whoever deletes one of them comes to them.
        home AS MATERIALIZED (SELECT hold_namespace($2) AS id WHERE in_time($0)),
        accounts AS MATERIALIZED (
            SELECT id FROM account WHERE id IN (SELECT account_id FROM given UNION ALL SELECT id FROM owner)
            AND EXISTS (SELECT FROM home) ORDER BY id FOR KEY SHARE),
        teams AS MATERIALIZED (
            SELECT id FROM team WHERE id IN (SELECT team_id FROM given) AND (SELECT count(*) FROM accounts) >= 0
            ORDER BY id FOR KEY SHARE),
        new AS (
            INSERT INTO repository (namespace_id, name, public, made_for_push)
            SELECT home.id, $1, $4, CASE WHEN $5 THEN now() END FROM home WHERE (SELECT count(*) FROM teams) >= 0
            AND NOT EXISTS (SELECT FROM owner WHERE id NOT IN (SELECT id FROM accounts))
            ON CONFLICT (name) DO NOTHING RETURNING id),
        permissions AS (
            INSERT INTO permission (repository_id, account_id, team_id, role)
            SELECT new.id, g.account_id, g.team_id, max(g.role) FROM new, given g
            WHERE g.account_id IN (SELECT id FROM accounts) OR g.team_id IN (SELECT id FROM teams) GROUP BY 1, 2, 3)
        SELECT id FROM new
        """,
        repository,
        namespace_of(repository, library),
        creator,
        public,
        for_push,
    )
    return row is not None


async def unmake_repository(database: Database, repository: str) -> bool:
    """Delete a repository that was made for a push and has, and had, nothing. False: there is none, or it stays.

    It stays when it has a blob, a manifest, a tag or an upload, and when somebody has changed its permissions, its visibility or
    which of its tags are immutable. It stays while collection is paused, too: what an older database knows of it is not all, and
    a repair would take it for deleted.
    """
    row = await database.fetch_row(
        "SELECT CASE WHEN collection_paused() THEN false ELSE unmake_untouched($1) END AS gone WHERE in_time($0)",
        repository,
    )
    assert row is not None
    return bool(row["gone"])


async def settle_new_repositories(database: Database, age: float, most: int) -> int:
    """Look at up to `most` repositories that were made for a push and have no upload any more, for `age` seconds.

    Those that have nothing are deleted; the others stay whatever becomes of later uploads. Returns how many were looked at: none
    while collection is paused.
    """
    rows = await database.fetch(
        """
        SELECT r.name FROM repository r WHERE r.made_for_push < now() - $1 * interval '1 second'
        AND NOT EXISTS (SELECT FROM upload u WHERE u.repository_id = r.id) AND NOT collection_paused()
        ORDER BY r.made_for_push LIMIT $2
        """,
        age,
        most,
    )
    for row in rows:
        if not await unmake_repository(database, row["name"]):
            await database.fetch(
                "UPDATE repository r SET made_for_push = NULL WHERE r.name = $1 AND r.made_for_push IS NOT NULL "
                "AND NOT EXISTS (SELECT FROM upload u WHERE u.repository_id = r.id)",
                row["name"],
            )
    return len(rows)
