"""What is owed, what keeps failing, what would be lost, and what is where it is only by sharing: for operators."""

from collections.abc import Sequence

from attrs import asdict

from node.api.frame import Json, Problem, Wrong
from node.records.debt import count_running, list_down, list_stalled
from node.records.journal import JournalLag, journal_lag
from node.records.postgres import Database
from node.records.reconcile import look_at_round
from node.records.residency import known_names, list_shared_blobs
from node.records.risk import risk_totals, tags_at_risk
from node.records.totals import look_at_totals

RESIDENCY_NOTE = "Residency is about blobs. Manifests and tags live in PostgreSQL, which all locations share."


async def replication_status(database: Database) -> Json:
    """Return the debt of every location: blobs, bytes, the oldest, what runs, what is stalled; and how far the reconciler is.

    `down_seconds` is for how long all live nodes have seen a location down; None where any of them sees it well.
    """
    down = await list_down(database)
    totals, running, at = await look_at_totals(database), await count_running(database), await look_at_round(database)
    return {
        "locations": [
            {
                "location": line.location,
                "debt_blobs": line.debt_blobs,
                "debt_bytes": line.debt_bytes,
                "oldest_seconds": round(line.oldest_debt, 1),
                "running": running.get(line.location, 0),
                "stalled": line.stalled,
                "dead_objects": line.dead_objects,
                "down_seconds": None if (seconds := down.get(line.location)) is None else round(seconds, 1),
            }
            for line in totals
        ],
        "reconciliation": {
            "round": at.number,
            "hurry": at.hurry,
            "completed_seconds_ago": None if at.completed_seconds is None else round(at.completed_seconds, 1),
        },
    }


async def stalled_copies(database: Database, location: str | None, most: int) -> Json:
    """Return the copies that keep failing, with their last error and since when. They are still retried.

    Raises Problem (404) for an unknown location.
    """
    if location is not None and "location" not in await known_names(database, location):
        raise _no_such_location(location)
    return {"stalled": [asdict(line) for line in await list_stalled(database, location, most)]}


async def replication_risk(database: Database, location: str | None, most: int) -> Json:
    """Return for every location, or for one, what would be lost if it died now: totals, and the first tags.

    `database` says the same of the database: changes that no store's journal has yet, and how far each journal is.
    Raises Problem (404) for an unknown location.
    """
    totals = await risk_totals(database, location)
    if location is not None and not totals:
        raise _no_such_location(location)
    lines: list[Json] = []
    for total in totals:
        line: Json = {
            "location": total.location,
            "blobs": total.blobs,
            "bytes": total.size,
            "oldest_seconds": None if total.oldest is None else round(total.oldest, 1),
        }
        page = await tags_at_risk(database, total.location, most) if total.blobs and most else None
        line["tags"] = [] if page is None else [asdict(tag) for tag in page.tags]
        line["more_tags"] = page is not None and page.more
        lines.append(line)
    return {"risk": lines, "database": _database_risk(await journal_lag(database))}


def _no_such_location(name: str) -> Problem:
    return Problem(404, "no such location", f"{name[:100]} is not a location of this registry")


def _database_risk(journals: Sequence[JournalLag]) -> Json:
    """What would be lost if the database died now: what no store's journal has yet."""
    best = min(journals, key=lambda journal: (journal.entries, journal.oldest), default=None)
    return {
        "changes": None if best is None else best.entries,
        "oldest_seconds": None if best is None else round(best.oldest, 1),
        "journals": [
            {
                "location": journal.location,
                "changes": journal.entries,
                "oldest_seconds": round(journal.oldest, 1),
                "snapshot_seconds_ago": None if journal.snapshot_age is None else round(journal.snapshot_age, 1),
                "failing_seconds": None if journal.failing is None else round(journal.failing, 1),
                "error": journal.error,
            }
            for journal in journals
        ],
    }


async def residency(database: Database, name: str, after: tuple[int, int] = (0, 0), most: int = 1000) -> Json:
    """Return the blobs that are in a location (`name`) although a namespace that links them forbids it; or those of a namespace.

    `after` is the `next` of the page before. Raises Problem (404) when `name` is neither.
    """
    kinds = await known_names(database, name)
    if not kinds:
        wrong = (Wrong("name", name[:100], "the name of a location or of a namespace"),)
        raise Problem(404, "no such location or namespace", f"{name[:100]} is neither", wrong=wrong)
    location = name if "location" in kinds else None
    page = await list_shared_blobs(database, location, None if location else name, after, most)
    return {
        "location" if location else "namespace": name,
        "blobs": [
            {**asdict(blob), "reason": "shared" if blob.allowing else "until another copy is good"}
            for blob in page.blobs
        ],
        "next": None if page.after is None else list(page.after),
        "note": RESIDENCY_NOTE,
    }
