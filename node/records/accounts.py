"""Accounts: users, organisations and their robots. One statement each; names must be checked before (`node/names.py`)."""

from collections.abc import Sequence
from enum import Enum

from attrs import field, frozen

from node.auth.model import Kind
from node.records.auditlog import Line, noted
from node.records.postgres import Database, Row

OWNERS = "owners"
"""The team of admins that every organisation begins with."""


@frozen
class Account:
    """An account. `owner` is a robot's; `created_at` in POSIX seconds."""

    id: int
    name: str
    kind: Kind
    owner: str | None = None
    email: str | None = None
    description: str | None = None
    superuser: bool = False
    enabled: bool = True
    created_at: float = 0.0
    generation: int = 0
    """Counts changes of the secret."""
    secret: str | None = field(default=None, repr=False)
    """Of a user the password's hash, or the mark of the directory that proves it (`node/auth/linking.py`); of a robot `sha256:`
    and the hash of its token; None: it cannot log in."""


COLUMNS = """a.id, a.name, a.kind, (SELECT o.name FROM account o WHERE o.id = a.owner_id) AS owner, a.email, a.description,
    a.superuser, a.enabled, extract(epoch FROM a.created_at)::float8 AS created_at, a.generation, a.secret"""


def account_of(row: Row) -> Account:
    """Return the account in a row of `COLUMNS`."""
    return Account(
        row["id"],
        row["name"],
        Kind(row["kind"]),
        row["owner"],
        row["email"],
        row["description"],
        row["superuser"],
        row["enabled"],
        row["created_at"],
        row["generation"],
        row["secret"],
    )


FREE = """NOT EXISTS (SELECT FROM account WHERE name = $1) AND ({adopt} OR NOT EXISTS (
    SELECT FROM namespace n JOIN repository r ON r.namespace_id = n.id WHERE n.name = $1))"""
"""A namespace that has repositories already belongs to whoever gets its name: only who may do that anyway gets it."""


async def create_user(
    database: Database,
    name: str,
    secret: str | None,
    *,
    email: str | None = None,
    superuser: bool = False,
    adopt: bool = False,
    line: Line | None = None,
) -> Account | None:
    """Make a user with a password's hash. None: the name is taken, or, without `adopt`, its namespace has repositories.

    `line` goes into the audit log with it.
    """
    row = await database.fetch_row(
        f"""
        WITH made AS (
            INSERT INTO account (name, kind, secret, email, superuser) SELECT $1, 'user', $2, $3, $4
            WHERE {FREE.format(adopt="$5")} AND in_time($0) ON CONFLICT DO NOTHING RETURNING *),
        {noted("made", "$6")}
        SELECT {COLUMNS} FROM made a
        """,  # noqa: S608  # constants of this module
        name,
        secret,
        email,
        superuser,
        adopt,
        None if line is None else line.text(),
    )
    return None if row is None else account_of(row)


async def create_organization(
    database: Database, name: str, creator: str | None, *, email: str | None = None, adopt: bool = False
) -> Account | None:
    """Make an organisation with a team of admins, `owners`, that has `creator` in it. None as for users."""
    row = await database.fetch_row(
        f"""
        WITH a AS (
            INSERT INTO account (name, kind, email) SELECT $1, 'organization', $2
            WHERE {FREE.format(adopt="$4")} AND in_time($0) ON CONFLICT DO NOTHING RETURNING *),
        owners AS (INSERT INTO team (organization_id, name, role) SELECT a.id, '{OWNERS}', 3 FROM a RETURNING id),
        member AS (
            INSERT INTO team_member (team_id, account_id)
            SELECT owners.id, c.id FROM owners, account c WHERE c.name = $3 AND c.kind = 'user')
        SELECT {COLUMNS} FROM a
        """,  # noqa: S608
        name,
        email,
        creator,
        adopt,
    )
    return None if row is None else account_of(row)


async def create_robot(
    database: Database, owner: str, name: str, secret: str, *, description: str | None = None
) -> Account | None:
    """Make the robot `owner+name` with its token's hash. None: there is one, or no such user or organisation."""
    row = await database.fetch_row(
        f"""
        INSERT INTO account AS a (name, kind, owner_id, secret, description)
        SELECT o.name || '+' || $2, 'robot', o.id, $3, $4 FROM account o WHERE o.name = $1 AND o.kind <> 'robot'
        AND in_time($0)
        ON CONFLICT DO NOTHING RETURNING {COLUMNS}
        """,  # noqa: S608
        owner,
        name,
        secret,
        description,
    )
    return None if row is None else account_of(row)


async def find_account(database: Database, name: str) -> Account | None:
    """Return an account by its name."""
    row = await database.fetch_row(f"SELECT {COLUMNS} FROM account a WHERE a.name = $1", name)  # noqa: S608
    return None if row is None else account_of(row)


async def any_user(database: Database) -> bool:
    """Tell whether there is any user at all."""
    row = await database.fetch_row("SELECT EXISTS (SELECT FROM account WHERE kind = 'user') AS found")
    assert row is not None
    return bool(row["found"])


async def list_accounts(
    database: Database, kind: Kind, *, owner: str | None = None, after: str = "", most: int = 100
) -> Sequence[Account]:
    """Return accounts of a kind by name, after `after`; of robots those of `owner`, where it is given."""
    rows = await database.fetch(
        f"""
        SELECT {COLUMNS} FROM account a WHERE a.kind = $1 AND a.name > $3 AND ($2::text IS NULL OR a.owner_id = (
            SELECT id FROM account WHERE name = $2)) ORDER BY a.name LIMIT $4
        """,  # noqa: S608
        kind.value,
        owner,
        after,
        most,
    )
    return [account_of(row) for row in rows]


async def set_secret(database: Database, name: str, secret: str | None) -> bool:
    """Set a user's password's or robot's token's hash; whatever was issued before is void. False: no such account."""
    row = await database.fetch_row(
        "UPDATE account SET secret = $2, generation = generation + 1 "
        "WHERE name = $1 AND kind <> 'organization' AND in_time($0) RETURNING id",
        name,
        secret,
    )
    return row is not None


async def upgrade_secret(database: Database, account: int, old: str, new: str) -> None:
    """Replace a password's hash by another of the same password, if it is still `old`. Nothing becomes void."""
    await database.fetch("UPDATE account SET secret = $3 WHERE id = $1 AND secret = $2", account, old, new)


async def update_account(
    database: Database,
    name: str,
    *,
    email: str | None = None,
    description: str | None = None,
    enabled: bool | None = None,
    superuser: bool | None = None,
) -> Account | None:
    """Change what is given of an account and return it; an empty text clears. None: no such account.

    Only users can be superusers: for others `superuser` changes nothing.
    """
    row = await database.fetch_row(
        f"""
        UPDATE account a SET email = CASE WHEN $2::text IS NULL THEN a.email ELSE nullif($2, '') END,
            description = CASE WHEN $3::text IS NULL THEN a.description ELSE nullif($3, '') END,
            enabled = coalesce($4, a.enabled), superuser = a.kind = 'user' AND coalesce($5, a.superuser)
        WHERE a.name = $1 AND in_time($0) RETURNING {COLUMNS}
        """,  # noqa: S608
        name,
        email,
        description,
        enabled,
        superuser,
    )
    return None if row is None else account_of(row)


async def link_account(database: Database, account: int, mark: str, line: Line) -> None:
    """Let a directory prove a user, who has no password of their own; otherwise nothing changes, nor is `line` written."""
    await database.fetch(
        f"""
        WITH linked AS (
            UPDATE account SET secret = $2 WHERE id = $1 AND secret IS NULL AND kind = 'user' AND in_time($0) RETURNING id),
        {noted("linked", "$3")}
        SELECT id FROM linked
        """,  # noqa: S608
        account,
        mark,
        line.text(),
    )


class Deletion(Enum):
    """What became of a request to delete an account."""

    DONE = "done"
    UNKNOWN = "unknown"
    IN_USE = "in use"
    """Its namespace has repositories: they must go first."""


async def delete_account(database: Database, name: str) -> Deletion:
    """Delete an account with its robots, teams and permissions, unless its namespace has repositories.

    What it had set for its namespace goes, too: whoever gets the name next shall not have its webhooks. What superusers have set
    for the namespace, a policy or a quota, stays.
    """
    row = await database.fetch_row(
        """
        WITH used AS (SELECT FROM namespace n JOIN repository r ON r.namespace_id = n.id WHERE n.name = $1 LIMIT 1),
        there AS MATERIALIZED (SELECT id FROM account WHERE name = $1 AND NOT EXISTS (SELECT FROM used) AND in_time($0)),
        -- Whoever makes a repository there shares the account, and may just have done so.
        held AS MATERIALIZED (SELECT id FROM there WHERE CASE WHEN hold_account(id) THEN NOT is_used_by_now($1) END),
        gone AS (DELETE FROM account a USING held WHERE a.id = held.id RETURNING a.name),
        empty AS (SELECT n.id FROM namespace n JOIN gone ON gone.name = n.name),
        hooks AS (DELETE FROM webhook w USING empty WHERE w.namespace_id = empty.id),
        patterns AS (DELETE FROM immutable_pattern p USING empty WHERE p.namespace_id = empty.id),
        usual AS (UPDATE namespace n SET tag_expiration = NULL FROM empty WHERE n.id = empty.id)
        SELECT EXISTS (SELECT FROM gone) AS gone, EXISTS (SELECT FROM account WHERE name = $1) AS found
        """,
        name,
    )
    assert row is not None
    if row["gone"]:
        return Deletion.DONE
    return Deletion.IN_USE if row["found"] else Deletion.UNKNOWN
