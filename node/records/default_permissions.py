"""Default permissions: what a namespace's new repositories begin with (Quay: prototypes). One statement each."""

from collections.abc import Sequence

from attrs import frozen

from node.auth.model import Role
from node.records.permissions import Grantee
from node.records.postgres import Database, Row


@frozen
class DefaultPermission:
    """A permission that repositories of a namespace get when `creator` (None: anybody) makes them."""

    id: int
    grantee: Grantee
    role: Role
    creator: str | None = None


def _default(row: Row) -> DefaultPermission:
    return DefaultPermission(row["id"], Grantee(row["account"], row["team"]), Role(row["role"]), row["creator"])


async def add_default(
    database: Database, namespace: str, grantee: Grantee, role: Role, creator: str | None = None
) -> DefaultPermission | None:
    """Add a default permission, or change the role of the one that is there. None: one of the names is unknown."""
    row = await database.fetch_row(
        """
        WITH o AS (SELECT id FROM account WHERE name = $1 AND kind <> 'robot'),
        c AS (SELECT id FROM account WHERE name = $5 AND kind <> 'organization' UNION ALL SELECT NULL WHERE $5::text IS NULL),
        g AS (
            SELECT id AS account_id, NULL::bigint AS team_id FROM account WHERE name = $2 AND kind <> 'organization'
            UNION ALL SELECT NULL, t.id FROM team t JOIN o ON o.id = t.organization_id WHERE t.name = $3)
        INSERT INTO default_permission AS d (namespace_id, creator_id, account_id, team_id, role)
        SELECT o.id, c.id, g.account_id, g.team_id, $4 FROM o, c, g WHERE in_time($0)
        ON CONFLICT (namespace_id, coalesce(creator_id, 0), coalesce(account_id, 0), coalesce(team_id, 0))
        DO UPDATE SET role = excluded.role
        RETURNING d.id, $2::text AS account, $3::text AS team, d.role, $5::text AS creator
        """,
        namespace,
        grantee.account,
        grantee.team,
        int(role),
        creator,
    )
    return None if row is None else _default(row)


async def remove_default(database: Database, namespace: str, default: int) -> bool:
    """Take a default permission of a namespace away by its id. False: it has none of that id."""
    row = await database.fetch_row(
        """
        DELETE FROM default_permission d USING account o
        WHERE d.id = $2 AND o.id = d.namespace_id AND o.name = $1 AND in_time($0) RETURNING d.id
        """,
        namespace,
        default,
    )
    return row is not None


async def list_defaults(database: Database, namespace: str) -> Sequence[DefaultPermission]:
    """Return the default permissions of a namespace in the order in which they were made."""
    rows = await database.fetch(
        """
        SELECT d.id, a.name AS account, t.name AS team, d.role, c.name AS creator
        FROM account o JOIN default_permission d ON d.namespace_id = o.id LEFT JOIN account a ON a.id = d.account_id
        LEFT JOIN team t ON t.id = d.team_id LEFT JOIN account c ON c.id = d.creator_id
        WHERE o.name = $1 ORDER BY d.id
        """,
        namespace,
    )
    return [_default(row) for row in rows]
