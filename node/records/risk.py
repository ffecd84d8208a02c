"""What would be lost if a location died now: blobs whose only good copy is there, and the tags whose images they belong to."""

from collections.abc import Sequence
from datetime import UTC, datetime

from attrs import frozen

from node.records.postgres import Database

_MOST_BLOBS_AT_ONCE = 1000
_TAGS_PER_BLOB = 1000
_MOST_LOOKS = 25
_BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)


@frozen
class RiskTotal:
    """What only one location has."""

    location: str
    blobs: int
    size: int
    """Bytes."""
    oldest: float | None
    """Seconds since the oldest of these blobs has had no other good copy; None if there is none."""


async def risk_totals(database: Database, location: str | None = None) -> Sequence[RiskTotal]:
    """Return the totals of every location that is not removed, or of one. From maintained counts and an index, in no time."""
    rows = await database.fetch(
        """
        SELECT l.name, coalesce(s.blobs, 0)::bigint AS blobs, coalesce(s.bytes, 0)::bigint AS bytes, extract(epoch FROM
            now() - (SELECT c.since FROM sole_copy c WHERE c.location_id = l.id ORDER BY c.since LIMIT 1))::float8 AS oldest
        FROM location l
        LEFT JOIN LATERAL (
            SELECT sum(t.blobs) AS blobs, sum(t.bytes) AS bytes FROM sole_total t WHERE t.location_id = l.id) s ON true
        WHERE l.state <> 'removed' AND ($1::text IS NULL OR l.name = $1) ORDER BY l.name
        """,
        location,
    )
    return [RiskTotal(row["name"], row["blobs"], row["bytes"], row["oldest"]) for row in rows]


@frozen
class TagAtRisk:
    """A tag that could not be pulled any more, by the oldest of its blobs that would be lost. `since`: seconds."""

    repository: str
    tag: str
    digest: str
    since: float


@frozen
class RiskPage:
    """Some tags at risk; `more` says that there may be others."""

    tags: tuple[TagAtRisk, ...]
    more: bool


async def tags_at_risk(database: Database, location: str, most: int) -> RiskPage:
    """Return up to `most` tags whose closure, referrers included, has a blob whose only good copy is in this location.

    Oldest blob first. Blobs are looked at a few at a time, then more, so that the first page comes at once however many there are;
    blobs without any tag are passed over, and after some thousand of them in a row the page ends early, with `more`.
    """
    found: dict[tuple[str, str], TagAtRisk] = {}
    since, blob, more, at_once = _BEGINNING, 0, False, min(most + 1, _MOST_BLOBS_AT_ONCE)
    for _ in range(_MOST_LOOKS):
        rows = await database.fetch(
            f"""
            WITH batch AS MATERIALIZED (
                SELECT s.blob_id, s.since FROM sole_copy s WHERE s.location_id = (SELECT id FROM location WHERE name = $1)
                AND s.since >= $2 AND (s.since, s.blob_id) > ($2::timestamptz, $3) ORDER BY s.since, s.blob_id LIMIT $5),
            named AS (
                SELECT batch.since, batch.blob_id, t.repository_id, t.name
                FROM batch CROSS JOIN LATERAL (SELECT * FROM blob_tags(batch.blob_id) LIMIT {_TAGS_PER_BLOB}) t),
            first AS (
                SELECT repository_id, name, min(since) AS since FROM named GROUP BY 1, 2 ORDER BY 3, 1, 2 LIMIT $4)
            SELECT r.name AS repository, first.name AS tag, m.digest,
                extract(epoch FROM now() - first.since)::float8 AS age, NULL::timestamptz AS since, NULL::bigint AS blob
            FROM first JOIN repository r ON r.id = first.repository_id
            CROSS JOIN LATERAL (SELECT g.manifest_id FROM tag g
                WHERE g.repository_id = first.repository_id AND g.name = first.name COLLATE "C" OFFSET 0) t
            JOIN manifest m ON m.id = t.manifest_id
            UNION ALL
            (SELECT NULL, NULL, NULL, count(*) OVER ()::float8, since, blob_id FROM batch ORDER BY since DESC, blob_id DESC LIMIT 1)
            """,  # noqa: S608  # constants of this module
            location,
            since,
            blob,
            most + 1 + len(found),
            at_once,
        )
        ends = [row for row in rows if row["blob"] is not None]
        for row in rows:
            if row["blob"] is None:
                tag = TagAtRisk(row["repository"], row["tag"], row["digest"], max(0.0, row["age"]))
                found.setdefault((tag.repository, tag.tag), tag)
        more = bool(ends) and ends[0]["age"] == at_once
        if not more or len(found) > most:
            break
        since, blob, at_once = ends[0]["since"], ends[0]["blob"], min(4 * at_once, _MOST_BLOBS_AT_ONCE)
    tags = sorted(found.values(), key=lambda tag: (-tag.since, tag.repository, tag.tag))
    return RiskPage(tuple(tags[:most]), more or len(tags) > most)
