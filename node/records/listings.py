"""Pages of what is there: tags of a repository, referrers of a digest, the catalog. One statement each."""

from collections.abc import Sequence

from attrs import frozen

from node.records.postgres import Database


@frozen
class Page:
    """One page of names in byte order, and whether more follow."""

    names: tuple[str, ...]
    more: bool


def _page(names: Sequence[str], most: int) -> Page:
    return Page(tuple(names[:most]), len(names) > most)


async def list_tags(database: Database, repository: str, after: str, most: int) -> Page | None:
    """Return up to `most` tags behind `after` ("" for the first page), None for an unknown repository."""
    row = await database.fetch_row(
        "SELECT ARRAY(SELECT t.name FROM tag t WHERE t.repository_id = r.id AND t.name > $2 ORDER BY t.name LIMIT $3) AS names "
        "FROM repository r WHERE r.name = $1",
        repository,
        after,
        most + 1,
    )
    return None if row is None else _page(row["names"], most)


async def list_repositories(database: Database, after: str, most: int, reader: str | None = None) -> Page:
    """Return up to `most` names of repositories that hold a manifest, behind `after`.

    With the name of an account (empty: nobody's) only those that it may pull by its own rights; None for all.
    """
    rows = await database.fetch(
        """
        WITH me AS (SELECT id, name, kind FROM account WHERE name = $3),
        teams AS (
            SELECT t.id, t.organization_id, t.role FROM me
            JOIN team_member m ON m.account_id = me.id JOIN team t ON t.id = m.team_id)
        SELECT r.name FROM repository r JOIN namespace n ON n.id = r.namespace_id
        WHERE r.name > $1 AND EXISTS (SELECT FROM repository_manifest rm WHERE rm.repository_id = r.id)
        AND ($3::text IS NULL OR r.public
            OR EXISTS (SELECT FROM me WHERE me.name = n.name AND me.kind = 'user')
            OR EXISTS (SELECT FROM teams t JOIN account o ON o.id = t.organization_id WHERE o.name = n.name AND t.role = 3)
            OR EXISTS (
                SELECT FROM permission p WHERE p.repository_id = r.id
                AND (p.account_id = (SELECT id FROM me) OR p.team_id IN (SELECT id FROM teams))))
        ORDER BY r.name LIMIT $2
        """,
        after,
        most + 1,
        reader,
    )
    return _page([row["name"] for row in rows], most)


@frozen
class Referrer:
    """A manifest whose subject is the digest that was asked for."""

    digest: str
    media_type: str
    size: int
    artifact_type: str | None
    annotations: str | None
    """As JSON: there may be hundreds of thousands, which nobody here looks at."""


_MOST_ANNOTATED = 1 << 20
"""Bytes of manifests with annotations of one page, which has at least one."""


@frozen
class ReferrersPage:
    """One page of referrers in the order of their digests, and whether more follow."""

    referrers: tuple[Referrer, ...]
    more: bool


async def list_referrers(
    database: Database, repository: str, subject: str, artifact_type: str | None, after: str, most: int
) -> ReferrersPage:
    """Return manifests of the repository whose subject is this digest, of one artifact type if that is given.

    At most `most`, and fewer where their annotations are long: whoever may push decides how long those are, up to whole manifests.
    """
    # A manifest's length is known without reading it, and its annotations are never longer than three times that.
    rows = await database.fetch(
        """
        WITH page AS (
            SELECT m.digest, rm.media_type, octet_length(m.bytes) AS size, m.artifact_type, m.annotations
            FROM manifest m JOIN repository_manifest rm ON rm.manifest_id = m.id JOIN repository r ON r.id = rm.repository_id
            WHERE m.subject = $2 AND r.name = $1 AND ($3::text IS NULL OR m.artifact_type = $3) AND m.digest > $4
            ORDER BY m.digest LIMIT $5),
        counted AS (
            SELECT *, count(*) OVER () AS found, row_number() OVER line AS place,
                sum(CASE WHEN annotations IS NULL THEN 0 ELSE size END) OVER line AS length
            FROM page WINDOW line AS (ORDER BY digest))
        SELECT digest, media_type, size, artifact_type, annotations, found FROM counted
        WHERE place = 1 OR length <= $6 ORDER BY digest
        """,
        repository,
        subject,
        artifact_type,
        after,
        most + 1,
        _MOST_ANNOTATED,
    )
    found = [
        Referrer(
            row["digest"],
            row["media_type"],
            row["size"],
            row["artifact_type"],
            row["annotations"],
        )
        for row in rows
    ]
    kept = tuple(found[:most])
    return ReferrersPage(kept, bool(rows) and rows[0]["found"] > len(kept))
