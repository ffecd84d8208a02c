"""Reads the journals of all stores into the database, where the last word about each thing is kept (`journal_fact`)."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import structlog
import trio
from attrs import define, field, frozen

from engines.contract import Engine, EngineError, ObjectMissing
from node.findings import Finding, Tell
from node.journal.facts import Damaged, Entry, Fact, JournalKey, decode, read_key
from node.journal.store import key_pages, read_object
from node.markers import read_marker
from node.records.postgres import Database
from node.records.replay import stage

_log = structlog.get_logger("antipode.journal")

_OVERLAP = 600.0
"""Seconds before a snapshot's beginning from which on entries count as well: no statement takes so long."""

_STAGE = 5000
_TRIES = 3
_PAUSE = 1.0
"""Seconds between two tries: a store that is busy for a moment must not make a rescue do without what it has."""

GIVE_UP = 5
"""Objects in a row that a store did not give, after which it is asked for no more: there may be thousands, and all is repeated."""

_NOT_READ = "its journal was not read to the end"


@frozen
class Journals:
    """What was read. Times in POSIX seconds, None where there is none."""

    objects: int
    entries: int
    until: float | None
    """When the last change was made that a store's journal has."""
    snapshot_at: float | None
    """When the snapshot was begun from which on changes were taken."""
    gaps: bool = False
    """Whether there are snapshots and none could be read to the end."""
    unreached: frozenset[str] = frozenset()
    """Locations whose store did not give all that its journal has: what was read is not all that is known."""


@frozen
class Listing:
    """The journal objects of the stores, by location, and the locations whose store could not be listed."""

    keys: Mapping[str, Mapping[str, JournalKey]]
    unreached: frozenset[str] = frozenset()

    def newest_first(self) -> Sequence[tuple[str, str, float]]:
        """Return location, key and beginning of the snapshots that are complete by their keys, newest first."""
        complete = [
            (location, key, said.hour)
            for location, keys in self.keys.items()
            for key, said in keys.items()
            if said.kind == "complete"
        ]
        return sorted(complete, key=lambda one: (-one[2], one[0]))


async def list_journals(engines: Mapping[str, Engine], tell: Tell) -> Listing:
    """Return the journal objects of every store that can be listed, by location; tells of the others."""
    found: dict[str, dict[str, JournalKey]] = {}
    unreached: set[str] = set()
    for location, engine in sorted(engines.items()):
        try:
            async for keys in key_pages(engine, f"{engine.prefix}journal/"):
                for key in keys:
                    said = read_key(engine.prefix, key)
                    if said is not None:
                        found.setdefault(location, {})[key] = said
        except EngineError as error:
            tell(Finding("unreachable", location, str(error), _NOT_READ))
            unreached.add(location)
    return Listing(found, frozenset(unreached))


@define
class _Reading:
    """Journal objects on their way into the database."""

    database: Database
    engines: Mapping[str, Engine]
    tell: Tell
    entries: int = 0
    unreached: set[str] = field(factory=set)
    since: float | None = None
    waiting: list[Entry] = field(factory=list)
    silent: Counter[str] = field(factory=Counter)
    """Objects in a row that each store did not give."""

    async def read(self, location: str, key: str) -> tuple[Fact, Sequence[Entry]] | None:
        """Return what an object says; None, and told, where it is damaged or its store does not give it."""
        if self.silent[location] >= GIVE_UP:
            return None
        for tries in range(1, _TRIES + 1):
            try:
                data = await read_object(self.engines[location], key)
                self.silent[location] = 0
                return decode(data)
            except ObjectMissing as error:
                self.tell(Finding("damaged", location, key, str(error)))
                return None
            except Damaged as error:
                # Its store may have the right bytes all the same.
                if tries == _TRIES:
                    self.tell(Finding("damaged", location, key, str(error)))
                    return None
                _log.warning("a journal object came damaged, and is read again", key=key, reason=str(error))
                continue  # at once: no wait makes it better, and there may be thousands
            except EngineError as error:
                if tries == _TRIES:
                    self.tell(Finding("unreachable", location, f"{key}: {error}", _NOT_READ))
                    self.unreached.add(location)
                    self.silent[location] += 1
                    return None
                _log.warning("a journal object could not be read, and is tried again", key=key, reason=str(error))
            await trio.sleep(_PAUSE)
        raise AssertionError("unreachable")

    async def stage(self, entries: Iterable[Entry]) -> None:
        self.waiting += entries
        if len(self.waiting) >= _STAGE:
            await self.flush()

    async def flush(self) -> None:
        self.entries += len(self.waiting)
        if self.waiting:
            await stage(self.database, self.waiting, self.since)
        self.waiting = []


async def read_journals(database: Database, engines: Mapping[str, Engine], found: Listing, tell: Tell) -> Journals:
    """Stage the newest snapshot that is whole, and the changes of all journals since. Raises LedgerUnavailable.

    What is gone by a change before the snapshot, and not in that, stays gone: a backup may be older. Damaged objects are told of,
    and what the other stores' journals say of their time counts.
    """
    reading = _Reading(database, engines, tell, unreached=set(found.unreached))
    objects = 0
    snapshot_at: float | None = None
    newest_first = found.newest_first()
    for location, key, begun in newest_first:
        pages = await _whole_snapshot(reading, location, found.keys[location], key, begun)
        if pages is None:
            continue
        if await _is_foreign(reading, location, pages):
            tell(Finding("damaged", location, key, "this snapshot is of another database: an older one is taken"))
            continue
        objects += len(pages)
        if await _stage_snapshot(reading, location, pages):
            snapshot_at = begun
            break
        tell(Finding("damaged", location, key, "not all of this snapshot can be read: another one is read as well"))
    until = snapshot_at
    reading.since = since = None if snapshot_at is None else snapshot_at - _OVERLAP
    for location, keys in sorted(found.keys.items()):
        changes = sorted(key for key, said in keys.items() if said.kind in ("batch", "hour"))
        objects += len(changes)
        for key in changes:
            said = await reading.read(location, key)
            for entry in () if said is None else said[1]:
                until = entry.at / 1e6 if until is None else max(until, entry.at / 1e6)
            await reading.stage(
                entry
                for entry in (said[1] if said else ())
                if since is None or entry.fact is None or entry.at / 1e6 >= since
            )
    await reading.flush()
    gaps = snapshot_at is None and bool(newest_first)
    return Journals(objects, reading.entries, until, snapshot_at, gaps, frozenset(reading.unreached))


async def _whole_snapshot(
    reading: _Reading, location: str, keys: Mapping[str, JournalKey], complete: str, begun: float
) -> Sequence[str] | None:
    """Return the pages of a snapshot, None, and told, unless all are there and its end can be read."""
    pages = sorted(key for key, said in keys.items() if said.kind == "page" and said.hour == begun)
    said = await reading.read(location, complete)
    if said is None:
        return None
    if said[0].get("pages") != len(pages):
        reading.tell(
            Finding("damaged", location, complete, "a page of this snapshot is missing: an older one is taken")
        )
        return None
    return pages


async def _is_foreign(reading: _Reading, location: str, pages: Sequence[str]) -> bool:
    """Say whether a snapshot knows its own store by another marker than that bears: a node on an empty database wrote it."""
    try:
        marker = await read_marker(reading.engines[location])
    except EngineError:
        return False
    for key in pages if marker else ():
        said = await reading.read(location, key)
        for entry in said[1] if said else ():
            if (entry.kind, entry.name) == ("location", location) and entry.fact is not None:
                return str(entry.fact["marker"]).encode() != marker
    return False


async def _stage_snapshot(reading: _Reading, location: str, pages: Sequence[str]) -> bool:
    """Stage what a snapshot has; False: not all of it could be read."""
    whole = True
    for key in pages:
        said = await reading.read(location, key)
        whole = whole and said is not None
        await reading.stage(said[1] if said else ())
    await reading.flush()
    return whole
