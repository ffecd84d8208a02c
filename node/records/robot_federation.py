"""Rules about which tokens of identity providers count for a robot, as its owners made them by the API. One statement each."""

from collections.abc import Sequence

from attrs import frozen

from node.records.postgres import Database

MOST = 50
"""Rules of a robot: each is looked at with every token."""


@frozen
class Rule:
    """A rule; its texts as in ROBOT_FEDERATION. `created_at` in POSIX seconds."""

    id: int
    robot: str
    issuer: str
    audience: str
    subject: str
    created_at: float


_COLUMNS = (
    """f.id, a.name AS robot, f.issuer, f.audience, f.subject, extract(epoch FROM f.created_at)::float8 AS created_at"""
)


async def add_rule(database: Database, robot: str, issuer: str, audience: str, subject: str) -> Rule | None:
    """Make a rule; the same again is that one. None: there is no such robot, or it has too many."""
    row = await database.fetch_row(
        f"""
        WITH a AS (
            SELECT id, name FROM account r WHERE name = $1 AND kind = 'robot' AND in_time($0)
            AND {MOST} > (SELECT count(*) FROM robot_federation WHERE robot_id = r.id)),
        f AS (
            INSERT INTO robot_federation AS l (robot_id, issuer, audience, subject) SELECT a.id, $2, $3, $4 FROM a
            ON CONFLICT (robot_id, issuer, audience, subject) DO UPDATE SET issuer = l.issuer RETURNING *)
        SELECT {_COLUMNS} FROM f, a
        """,  # noqa: S608  # constants of this module
        robot,
        issuer,
        audience,
        subject,
    )
    return None if row is None else Rule(**row)


async def list_rules(database: Database, robot: str) -> Sequence[Rule]:
    """Return a robot's rules, the oldest first."""
    rows = await database.fetch(
        f"SELECT {_COLUMNS} FROM robot_federation f JOIN account a ON a.id = f.robot_id WHERE a.name = $1 ORDER BY f.id",  # noqa: S608
        robot,
    )
    return [Rule(**row) for row in rows]


async def remove_rule(database: Database, robot: str, rule: int) -> bool:
    """Take a rule away; what was issued by it is void. False: the robot has none of that id."""
    row = await database.fetch_row(
        """
        DELETE FROM robot_federation f USING account a
        WHERE f.id = $2 AND a.id = f.robot_id AND a.name = $1 AND in_time($0) RETURNING f.id
        """,
        robot,
        rule,
    )
    return row is not None
