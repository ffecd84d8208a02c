"""The token that makes the first superuser, once. One statement each."""

from node.records.accounts import COLUMNS, Account, account_of
from node.records.postgres import Database


async def offer_bootstrap(database: Database, secret: str, patience: float) -> bool:
    """Put a token's hash there, while there is no user; tell whether this one counts.

    One that another node has put there less than `patience` seconds ago goes on counting.
    """
    row = await database.fetch_row(
        """
        INSERT INTO bootstrap AS b (secret) SELECT $1 WHERE NOT EXISTS (SELECT FROM account WHERE kind = 'user')
        ON CONFLICT (only_row) DO UPDATE SET secret = excluded.secret, created_at = now()
        WHERE b.created_at < now() - $2::float8 * interval '1 second' RETURNING b.secret
        """,
        secret,
        patience,
    )
    return row is not None


async def is_bootstrap(database: Database, secret: str) -> bool:
    """Tell whether a token of this hash makes the first superuser."""
    row = await database.fetch_row(
        "SELECT FROM bootstrap WHERE secret = $1 AND NOT EXISTS (SELECT FROM account WHERE kind = 'user')", secret
    )
    return row is not None


async def use_bootstrap(database: Database, secret: str, name: str, password: str) -> Account | None:
    """Make the first user, a superuser, and use the token up. None: it is not good any more, or the name is taken."""
    row = await database.fetch_row(
        f"""
        WITH used AS (
            DELETE FROM bootstrap WHERE secret = $1 AND NOT EXISTS (SELECT FROM account WHERE kind = 'user' OR name = $2)
            RETURNING only_row)
        INSERT INTO account AS a (name, kind, secret, superuser) SELECT $2, 'user', $3, true FROM used WHERE in_time($0)
        ON CONFLICT DO NOTHING RETURNING {COLUMNS}
        """,  # noqa: S608  # constants of another module
        secret,
        name,
        password,
    )
    return None if row is None else account_of(row)
