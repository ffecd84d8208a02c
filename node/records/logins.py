"""What a login needs: the account, and how far the access log was at that moment. One statement each.

A robot is disabled with its owner: whoever may not log in has often made some.
"""

from uuid import UUID

from attrs import evolve, frozen

from node.records.accounts import COLUMNS, Account, account_of
from node.records.postgres import Database, Row


@frozen
class Login:
    """An account that somebody says to be. `ends`: when the application token that was shown ends (POSIX seconds)."""

    account: Account
    epoch: int
    token: UUID | None = None
    ends: float | None = None


_EPOCH = """coalesce((SELECT number FROM access_epoch), 0) AS epoch,
    coalesce((SELECT o.enabled FROM account o WHERE o.id = a.owner_id), true) AS owner_enabled"""
_TOKEN_COLUMNS = "t.id AS token, extract(epoch FROM t.expires_at)::float8 AS ends"  # noqa: S105  # SQL


def _login(row: Row | None) -> Login | None:
    if row is None:
        return None
    account = account_of(row)
    if not row["owner_enabled"]:
        account = evolve(account, enabled=False)
    return Login(account, row["epoch"], row.get("token"), row.get("ends"))


async def find_by_name(database: Database, name: str) -> Login | None:
    """Return the account of this name."""
    return _login(await database.fetch_row(f"SELECT {COLUMNS}, {_EPOCH} FROM account a WHERE a.name = $1", name))  # noqa: S608


async def find_by_token(database: Database, secret: str) -> Login | None:
    """Return the account whose application token has this hash, if the token has not ended."""
    return _login(
        await database.fetch_row(
            f"""
            SELECT {COLUMNS}, {_EPOCH}, {_TOKEN_COLUMNS} FROM application_token t JOIN account a ON a.id = t.account_id
            WHERE t.secret = $1 AND (t.expires_at IS NULL OR t.expires_at > now())
            """,  # noqa: S608
            secret,
        )
    )


async def find_renewal(
    database: Database, name: str, generation: int, token: UUID | None, number: int | None, issued: float
) -> Login | None:
    """Return the account of this name, if its secret is still of this generation, and the application token is there and good.

    It must be the very account of this number; where that is not known, one that was there already at `issued` (POSIX seconds).
    """
    return _login(
        await database.fetch_row(
            f"""
            SELECT {COLUMNS}, {_EPOCH}, {_TOKEN_COLUMNS} FROM account a
            LEFT JOIN application_token t ON t.account_id = a.id AND t.id = $3 AND (t.expires_at IS NULL OR t.expires_at > now())
            WHERE a.name = $1 AND a.generation = $2 AND ($3::uuid IS NULL OR t.id IS NOT NULL)
            AND (a.id = $4 OR ($4::bigint IS NULL AND a.created_at < to_timestamp($5)))
            """,  # noqa: S608
            name,
            generation,
            token,
            number,
            issued,
        )
    )
