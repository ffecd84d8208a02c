"""The audit log: who did what to which repository, from where, through which node, when. Written, read in pages, and let go.

Pushes and deletes write their line in their own statement (`NOTED`), so that neither can be without the other.
"""

import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from attrs import Factory, field, frozen

from node.records.postgres import Database


@frozen
class Line:
    """What somebody did. Names, because a line outlives what it is about; empty or None where there is none."""

    action: str
    actor: str = ""
    """The account; empty for nobody in particular; `cli:USER@HOST`, as the system calls them, for the command line."""
    namespace: str | None = None
    repository: str | None = None
    detail: Mapping[str, object] = field(default=Factory(dict), repr=False)
    client: str = ""
    node: str = ""
    request: str = ""

    def text(self) -> str:
        """Return it as JSON, as statements take it."""
        return _JSON.encode({name: getattr(self, name) for name in _COLUMNS})


class Pull(NamedTuple):
    """A pull of a manifest as it waits for its line. A tuple: a `Line` takes a warm pull 2 us more to make, and 4 to write."""

    at: float
    """POSIX seconds."""
    actor: str
    namespace: str
    repository: str
    reference: str
    digest: str
    client: str
    request: str


_JSON = json.JSONEncoder(default=dict)
_COLUMNS = ("action", "actor", "namespace", "repository", "detail", "client", "node", "request")
_TYPED = (
    "(action text, actor text, namespace text, repository text, detail jsonb, client text, node text, request text)"
)


def noted(source: str, parameter: str) -> str:
    """Return the part of a WITH that writes the line in a parameter (JSON, or NULL for none) for each row of `source`."""
    return f"""
        audited AS (
            INSERT INTO audit ({", ".join(_COLUMNS)}) SELECT a.* FROM {source}
            CROSS JOIN LATERAL jsonb_to_record({parameter}::jsonb) AS a {_TYPED} WHERE {parameter}::jsonb IS NOT NULL)
    """  # noqa: S608  # constants of the callers


async def write_lines(database: Database, lines: Sequence[Line], at: Sequence[float] | None = None) -> None:
    """Write lines in one transaction; `at` has when each happened (POSIX seconds; without: now)."""
    await database.fetch(
        f"""
        INSERT INTO audit (at, {", ".join(_COLUMNS)})
        SELECT coalesce(to_timestamp(u.at), now()), a.* FROM unnest($1::text[], $2::float8[]) AS u (line, at)
        CROSS JOIN LATERAL jsonb_to_record(u.line::jsonb) AS a {_TYPED}
        """,  # noqa: S608
        [line.text() for line in lines],
        [None] * len(lines) if at is None else list(at),
    )


async def write_pulls(database: Database, node: str, pulls: Sequence[Pull]) -> None:
    """Write the lines of pulls from `node` in one transaction, column by column: there are very many of them."""
    await database.fetch(
        f"""
        INSERT INTO audit (at, {", ".join(_COLUMNS)})
        SELECT to_timestamp(p.at), 'pull', p.actor, p.namespace, p.repository,
            jsonb_build_object('reference', p.reference, 'digest', p.digest), p.client, $1, p.request
        FROM unnest($2::float8[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[], $9::text[])
            AS p ({", ".join(Pull._fields)})
        """,  # noqa: S608
        node,
        *(list(column) for column in zip(*pulls, strict=True)),
    )


@frozen
class Kept:
    """A line as it was kept. `at`: POSIX seconds."""

    id: int
    at: float
    line: Line


@frozen
class Filter:
    """Which lines; None counts for all. Times in POSIX seconds."""

    namespace: str | None = None
    repository: str | None = None
    actor: str | None = None
    action: str | None = None
    since: float | None = None
    until: float | None = None
    owner: str | None = None
    """Only what was done since the account of this name was made: what was there before was another's."""


async def read_lines(database: Database, wanted: Filter, before: int | None, most: int) -> Sequence[Kept]:
    """Return up to `most` lines, the latest first, with an id below `before`."""
    rows = await database.fetch(
        f"""
        SELECT id, extract(epoch FROM at)::float8 AS at, {", ".join(_COLUMNS)} FROM audit
        WHERE ($1::text IS NULL OR namespace = $1) AND ($2::text IS NULL OR repository = $2)
        AND ($3::text IS NULL OR actor = $3) AND ($4::text IS NULL OR action = $4)
        AND ($5::float8 IS NULL OR at >= to_timestamp($5)) AND ($6::float8 IS NULL OR at < to_timestamp($6))
        AND ($7::bigint IS NULL OR id < $7)
        AND at >= coalesce((SELECT created_at FROM account WHERE name = $9), '-infinity') ORDER BY id DESC LIMIT $8
        """,  # noqa: S608
        wanted.namespace,
        wanted.repository,
        wanted.actor,
        wanted.action,
        wanted.since,
        wanted.until,
        before,
        most,
        wanted.owner,
    )
    return [
        Kept(
            row["id"],
            row["at"],
            Line(
                row["action"],
                row["actor"],
                row["namespace"],
                row["repository"],
                json.loads(row["detail"]),
                row["client"],
                row["node"],
                row["request"],
            ),
        )
        for row in rows
    ]


async def drop_lines(database: Database, older: float, most: int) -> int:
    """Let up to `most` lines go that are older than so many seconds; return how many went."""
    rows = await database.fetch(
        "DELETE FROM audit WHERE id IN (SELECT id FROM audit WHERE at < now() - $1 * interval '1 second' "
        "ORDER BY at LIMIT $2 FOR UPDATE SKIP LOCKED) RETURNING id",
        older,
        most,
    )
    return len(rows)
