"""Application tokens: passwords of an account for one purpose each, with an end. Only their hashes are kept. One statement each."""

from collections.abc import Sequence
from uuid import UUID

from attrs import frozen

from node.records.auditlog import Line, noted
from node.records.postgres import Database


@frozen
class ApplicationToken:
    """A token without its secret. Times in POSIX seconds; `expires_at` of None: never."""

    id: UUID
    account: str
    title: str
    created_at: float
    expires_at: float | None = None


_COLUMNS = """t.id, a.name AS account, t.title, extract(epoch FROM t.created_at)::float8 AS created_at,
    extract(epoch FROM t.expires_at)::float8 AS expires_at"""


async def create_token(
    database: Database, account: str, title: str, secret: str, lifetime: float | None, *, line: Line | None = None
) -> ApplicationToken | None:
    """Make a token of a user or robot with its secret's hash; `lifetime` in seconds. None: no such account.

    `line` goes into the audit log with it.
    """
    row = await database.fetch_row(
        f"""
        WITH a AS (SELECT id, name FROM account WHERE name = $1 AND kind <> 'organization' AND in_time($0)),
        t AS (
            INSERT INTO application_token (account_id, title, secret, expires_at)
            SELECT a.id, $2, $3, now() + $4::float8 * interval '1 second' FROM a RETURNING *),
        {noted("t", "$5")}
        SELECT {_COLUMNS} FROM t, a
        """,  # noqa: S608  # a constant of this module
        account,
        title,
        secret,
        lifetime,
        None if line is None else line.text(),
    )
    return None if row is None else ApplicationToken(**row)


async def list_tokens(database: Database, account: str) -> Sequence[ApplicationToken]:
    """Return the tokens of an account, the oldest first; those that ended are left out."""
    rows = await database.fetch(
        f"""
        SELECT {_COLUMNS} FROM application_token t JOIN account a ON a.id = t.account_id
        WHERE a.name = $1 AND (t.expires_at IS NULL OR t.expires_at > now()) ORDER BY t.created_at, t.id
        """,  # noqa: S608
        account,
    )
    return [ApplicationToken(**row) for row in rows]


async def delete_token(database: Database, account: str, token: UUID) -> bool:
    """Take a token of an account away; what was issued with it is void. False: it has none of that id."""
    row = await database.fetch_row(
        """
        DELETE FROM application_token t USING account a
        WHERE t.id = $2 AND a.id = t.account_id AND a.name = $1 AND in_time($0) RETURNING t.id
        """,
        account,
        token,
    )
    return row is not None


async def drop_ended_tokens(database: Database) -> int:
    """Delete the tokens that ended more than a day ago; return how many."""
    rows = await database.fetch(
        "DELETE FROM application_token WHERE id IN (SELECT id FROM application_token "
        "WHERE expires_at < now() - interval '1 day' FOR UPDATE SKIP LOCKED) RETURNING id"
    )
    return len(rows)
