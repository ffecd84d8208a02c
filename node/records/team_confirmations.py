"""When a login last confirmed that somebody is in a team that an identity provider's group decides. One statement each."""

from collections.abc import Sequence

from attrs import frozen

from node.auth.memberships import Bound
from node.records.postgres import Database
from node.records.team_sync import BOUND, NAMED, bound_of


@frozen
class Unconfirmed:
    """Somebody who is in a team by a login that is long ago. `confirmed` in POSIX seconds."""

    bound: Bound
    account: int
    name: str
    confirmed: float


async def list_unconfirmed(database: Database, service: str, seconds: float, most: int) -> Sequence[Unconfirmed]:
    """Return up to `most` users of a service's teams whom no login has confirmed there for `seconds`."""
    rows = await database.fetch(
        f"""
        SELECT {BOUND}, a.id AS account, a.name AS member, extract(epoch FROM m.confirmed_at)::float8 AS confirmed
        FROM team_sync s {NAMED} JOIN team_member m ON m.team_id = s.team_id
        JOIN account a ON a.id = m.account_id AND a.kind = 'user'
        WHERE s.service = $1 AND m.confirmed_at < now() - $2::float8 * interval '1 second'
        ORDER BY m.confirmed_at LIMIT $3
        """,  # noqa: S608  # constants
        service,
        seconds,
        most,
    )
    return [Unconfirmed(bound_of(row), row["account"], row["member"], row["confirmed"]) for row in rows]
