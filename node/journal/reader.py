"""Reads the journals of all stores into the database, where the last word about each thing is kept (`journal_fact`)."""

from collections.abc import Mapping, Sequence

from attrs import define, field, frozen

from engines.contract import Engine, EngineError
from node.findings import Finding, Tell
from node.journal.facts import Damaged, Entry, JournalKey, decode, read_key
from node.journal.store import key_pages, read_object
from node.records.postgres import Database
from node.records.replay import stage

_OVERLAP = 600.0
"""Seconds before a snapshot's beginning from which on entries count as well: no statement takes so long."""

_STAGE = 5000


@frozen
class Journals:
    """What was read. Times in POSIX seconds, None where there is none."""

    objects: int
    entries: int
    until: float | None
    """When the last change was made that a store's journal has."""
    snapshot_at: float | None
    """When the snapshot was begun from which on changes were taken."""


@define
class _Found:
    """The journal objects of the stores, by location."""

    keys: dict[str, dict[str, JournalKey]] = field(factory=dict)

    def newest_first(self) -> Sequence[tuple[str, str, float]]:
        """Return location, key and beginning of the snapshots that are complete by their keys, newest first."""
        complete = [
            (location, key, said.hour)
            for location, keys in self.keys.items()
            for key, said in keys.items()
            if said.kind == "complete"
        ]
        return sorted(complete, key=lambda one: (-one[2], one[0]))


async def list_journals(engines: Mapping[str, Engine], tell: Tell) -> Mapping[str, Mapping[str, JournalKey]]:
    """Return the journal objects of every store that can be listed, by location; tells of the others."""
    found: dict[str, dict[str, JournalKey]] = {}
    for location, engine in sorted(engines.items()):
        try:
            async for keys in key_pages(engine, f"{engine.prefix}journal/"):
                for key in keys:
                    said = read_key(engine.prefix, key)
                    if said is not None:
                        found.setdefault(location, {})[key] = said
        except EngineError as error:
            tell(Finding("unreachable", location, str(error), "its journal was not read to the end"))
    return found


async def read_journals(
    database: Database, engines: Mapping[str, Engine], found: Mapping[str, Mapping[str, JournalKey]], tell: Tell
) -> Journals:
    """Stage the newest snapshot that is whole, and the changes of all journals since. Raises LedgerUnavailable.

    What is gone by a change before the snapshot stays gone: a backup may be older than that. Damaged objects are told of, and what
    the other stores' journals say of their time counts.
    """
    listed = _Found({location: dict(keys) for location, keys in found.items()})
    objects = entries = 0
    snapshot_at: float | None = None
    for location, key, begun in listed.newest_first():
        pages = await _whole_snapshot(engines[location], listed.keys[location], key, begun)
        if pages is None:
            tell(Finding("damaged", location, key, "a page of this snapshot is missing: an older one is taken"))
            continue
        staged = await _stage_all(database, engines[location], location, pages, float("-inf"), tell)
        objects, entries, snapshot_at = objects + len(pages), entries + staged.entries, begun
        break
    until = snapshot_at
    for location, keys in sorted(listed.keys.items()):
        changes = sorted(key for key, said in keys.items() if said.kind in ("batch", "hour"))
        since = float("-inf") if snapshot_at is None else snapshot_at - _OVERLAP
        staged = await _stage_all(database, engines[location], location, changes, since, tell)
        objects, entries = objects + len(changes), entries + staged.entries
        if staged.until is not None:
            until = staged.until if until is None else max(until, staged.until)
    return Journals(objects, entries, until, snapshot_at)


async def _whole_snapshot(
    engine: Engine, keys: Mapping[str, JournalKey], complete: str, begun: float
) -> Sequence[str] | None:
    """Return the pages of a snapshot, None unless all are there and its end can be read."""
    pages = sorted(key for key, said in keys.items() if said.kind == "page" and said.hour == begun)
    try:
        head, _ = decode(await read_object(engine, complete))
    except (EngineError, Damaged):
        return None
    return pages if head.get("pages") == len(pages) else None


@frozen
class _Staged:
    entries: int
    until: float | None


async def _stage_all(
    database: Database, engine: Engine, location: str, keys: Sequence[str], since: float, tell: Tell
) -> _Staged:
    total, until = 0, None
    waiting: list[Entry] = []
    for key in keys:
        try:
            _, entries = decode(await read_object(engine, key))
        except (EngineError, Damaged) as error:
            tell(Finding("damaged", location, key, str(error)))
            continue
        latest = max((entry.at / 1e6 for entry in entries), default=None)
        until = latest if until is None or (latest is not None and latest > until) else until
        waiting += [entry for entry in entries if entry.fact is None or entry.at / 1e6 >= since]
        if len(waiting) >= _STAGE:
            total += len(waiting)
            await stage(database, waiting)
            waiting = []
    if waiting:
        total += len(waiting)
        await stage(database, waiting)
    return _Staged(total, until)
