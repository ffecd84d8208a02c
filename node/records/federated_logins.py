"""Who of an identity provider's people has which account, by its name of itself and its subject for them. One statement each."""

from collections.abc import Sequence

from attrs import frozen

from node.records.accounts import COLUMNS, FREE, Account, account_of
from node.records.auditlog import Line, noted
from node.records.postgres import Database

MARK = "oidc:"
"""Begins the secret of an account that a provider proves: what no password has as its hash, and no directory as its mark."""


@frozen
class Link:
    """Somebody of a provider who has an account. `created_at` in POSIX seconds."""

    account: str
    issuer: str
    subject: str
    created_at: float


_LINK = "a.name AS account, f.issuer, f.subject, extract(epoch FROM f.created_at)::float8 AS created_at"


async def find_linked(database: Database, issuer: str, subject: str) -> Account | None:
    """Return the account of a provider's person."""
    row = await database.fetch_row(
        f"""
        SELECT {COLUMNS} FROM federated_login f JOIN account a ON a.id = f.account_id
        WHERE f.issuer = $1 AND f.subject = $2
        """,  # noqa: S608  # a constant
        issuer,
        subject,
    )
    return None if row is None else account_of(row)


async def create_linked(
    database: Database, name: str, email: str | None, issuer: str, subject: str, line: Line
) -> Account | None:
    """Make a user for a provider's person, with its line of the audit log.

    None: the name is taken, its namespace has repositories, or the person has an account meanwhile.
    """
    row = await database.fetch_row(
        f"""
        WITH made AS (
            INSERT INTO account (name, kind, secret, email) SELECT $1, 'user', '{MARK}' || $1, $2
            WHERE {FREE.format(adopt="false")} AND in_time($0)
            AND NOT EXISTS (SELECT FROM federated_login WHERE issuer = $3 AND subject = $4) ON CONFLICT DO NOTHING RETURNING *),
        linked AS (INSERT INTO federated_login (issuer, subject, account_id) SELECT $3, $4, id FROM made RETURNING issuer),
        {noted("made", "$5")}
        SELECT {COLUMNS} FROM made a, linked
        """,  # noqa: S608
        name,
        email,
        issuer,
        subject,
        line.text(),
    )
    return None if row is None else account_of(row)


async def add_link(database: Database, name: str, issuer: str, subject: str) -> Link | None:
    """Let a provider's person have a user's account. None: there is no such user, or the person has another's."""
    row = await database.fetch_row(
        f"""
        -- Before whom it belongs to, as whoever deletes it has both.
        WITH a AS (SELECT id, name, secret FROM account WHERE name = $1 AND kind = 'user' AND in_time($0) FOR NO KEY UPDATE),
        f AS (
            INSERT INTO federated_login AS l (issuer, subject, account_id) SELECT $2, $3, a.id FROM a
            ON CONFLICT (issuer, subject) DO UPDATE SET account_id = l.account_id
            WHERE l.account_id = excluded.account_id RETURNING *),
        marked AS (
            UPDATE account SET secret = '{MARK}' || name WHERE id IN (SELECT account_id FROM f) AND secret IS NULL)
        SELECT {_LINK} FROM f JOIN a ON a.id = f.account_id
        """,  # noqa: S608
        name,
        issuer,
        subject,
    )
    return None if row is None else Link(**row)


async def list_links(database: Database, name: str) -> Sequence[Link]:
    """Return whom an account belongs to."""
    rows = await database.fetch(
        f"""
        SELECT {_LINK} FROM federated_login f JOIN account a ON a.id = f.account_id WHERE a.name = $1
        ORDER BY f.issuer, f.subject
        """,  # noqa: S608
        name,
    )
    return [Link(**row) for row in rows]


async def remove_link(database: Database, name: str, issuer: str, subject: str) -> bool:
    """Take an account from a provider's person: their next login is that of a stranger. False: it was not theirs."""
    row = await database.fetch_row(
        """
        DELETE FROM federated_login f USING account a
        WHERE a.id = f.account_id AND a.name = $1 AND f.issuer = $2 AND f.subject = $3 AND in_time($0) RETURNING f.subject
        """,
        name,
        issuer,
        subject,
    )
    return row is not None
