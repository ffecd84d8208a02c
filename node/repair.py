"""Repair after the database was restored from a backup: the records against the stores, in both directions.

0. A location that came after the backup gets the marker that its store bears. What the stores' journals know and the records do
   not is replayed (`node/journal/replay.py`): what came after the backup.
1. Every copy that the records have is looked for in its store. One that is gone becomes suspect, and is healed from another.
2. Every object below our prefixes that the records do not know is named, and adopted as a copy where its bytes, read and hashed,
   are those of a blob that lacks one there. Nothing is deleted.
3. A blob whose copies are all gone is lost: it is named with the tags that need it, and has no copies any more, so that the next
   push of it uploads it.

Works in pages with bounded memory, while nodes run: keys are never used twice, so what is found under a key stays true.
"""

import hashlib
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from uuid import UUID

import trio
from attrs import evolve, field, frozen

from engines.contract import Engine, EngineError, ObjectMissing
from node.audit import Distrust, Orphan, find_orphans
from node.findings import Finding as Finding
from node.findings import Tell
from node.journal.reader import list_journals, read_journals
from node.journal.replay import Replayed, replay
from node.markers import NotOurs, check_marker
from node.records.audit import Copy, list_copies
from node.records.collect import pause
from node.records.postgres import Database
from node.records.repair import (
    GONE,
    LostBlob,
    adopt_object,
    candidates_for,
    count_dead,
    empty_locations,
    read_markers,
    remove_lost,
    without_copies,
)
from node.records.replay import staged, take_location
from node.records.replay_turn import clear_facts, resume_after, take_turn
from replication.model import Blob
from replication.offload import in_thread

_PAGE = 500
_AT_ONCE = 8
_READ = 1 << 20
_NAMED = re.compile(r"/?(sha256|sha512)/[0-9a-f]{2}/([0-9a-f]+)\.[^/]*$")


@frozen
class RepairReport:
    """How much was looked at and found. Counts."""

    copies: int = 0
    gone: int = 0
    """Copies whose object is not there."""
    unknown: int = 0
    """Objects that the records do not know, besides the adopted ones."""
    adopted: int = 0
    lost: int = 0
    """Blobs without any copy left."""
    dead: int = 0
    """Objects that the records want deleted."""
    replayed: Replayed = field(factory=Replayed)
    """What came back from the journals."""
    unreachable: tuple[str, ...] = ()
    """Locations whose store could not be looked at to the end, or belongs to another location."""

    @property
    def complete(self) -> bool:
        """Whether every location was looked at to the end."""
        return not self.unreachable


async def repair(
    database: Database,
    engines: Mapping[str, Engine],
    distrust: Distrust,
    tell: Tell,
    library: str = "library",
) -> RepairReport:
    """Do all of the above; collection is paused until it was done, and all locations could be looked at. Raises LedgerUnavailable.

    Raises Overtaken where another one began meanwhile: collection stays paused until that has ended. `tell` hears of every finding
    as it is made. `library` is LIBRARY_NAMESPACE.
    """
    await pause(database)
    turn = await take_turn(database)
    markers = await _take_markers(database, engines, turn, tell)
    believed = {at: engines[at] for at in markers if at in engines and await _is_ours(engines[at], markers[at])}
    replayed = await replay(database, believed, library, tell, turn=turn)
    report = RepairReport(replayed=replayed, dead=await count_dead(database), unreachable=replayed.unreached)
    for location in sorted(set(markers) & set(engines)):
        engine = engines[location]
        try:
            await check_marker(engine, markers[location])
            report = await _check_copies(database, engine, location, distrust, tell, report)
            report = await check_objects(database, engine, location, tell, report)
        except (NotOurs, EngineError) as error:
            tell(Finding("unreachable", location, str(error)))
            report = evolve(report, unreachable=tuple(dict.fromkeys((*report.unreachable, location))))
    report = evolve(report, lost=await name_lost(database, tell))
    if report.complete:
        await resume_after(database, turn)
    return report


async def _take_markers(database: Database, engines: Mapping[str, Engine], turn: UUID, tell: Tell) -> Mapping[str, str]:
    """Return the markers of the locations; of one that came after the backup, that of its store, if the journals know it, too.

    A node that starts gives such a location a marker of its own, which its store does not bear.
    """
    markers = dict(await read_markers(database))
    ours = {at: engines[at] for at in markers if at in engines and await _is_ours(engines[at], markers[at])}
    new = [at for at in await empty_locations(database) if at in engines and at not in ours]
    if not new:
        return markers
    await clear_facts(database, turn)
    await read_journals(database, ours, await list_journals(ours, tell), tell)
    for named in await staged(database, "location"):
        marker = None if named.fact is None else str(named.fact["marker"])
        if named.name in new and marker is not None and await _is_ours(engines[named.name], marker):
            await take_location(database, named.name, marker, None)
            markers[named.name] = marker
            tell(Finding("marker", named.name, marker, "it came after the backup: restart the nodes that have it"))
    return markers


async def name_lost(database: Database, tell: Tell) -> int:
    """Tell of every blob without any copy left, with what needs it; return how many. Raises LedgerUnavailable."""
    told: set[int] = set()

    def say(blobs: Sequence[LostBlob]) -> int:
        for blob in blobs:
            if blob.id not in told:
                tell(Finding("lost", None, blob.digest, f"needed by {', '.join(blob.needed_by) or 'nothing'}"))
        told.update(blob.id for blob in blobs)
        return blobs[-1].id

    after = 0
    while lost := await remove_lost(database, after):
        after = say(lost)
    after = 0
    while lost := await without_copies(database, after):
        after = say(lost)
    return len(told)


async def _is_ours(engine: Engine, marker: str) -> bool:
    """Whether a store is the location's, as far as it can be asked now; the repair itself says why it is not."""
    try:
        await check_marker(engine, marker)
    except (NotOurs, EngineError):
        return False
    return True


async def _check_copies(
    database: Database, engine: Engine, location: str, distrust: Distrust, tell: Tell, report: RepairReport
) -> RepairReport:
    after = 0
    while copies := await list_copies(database, location, after, _PAGE, 1.0):
        for copy, reason in await _look_for(engine, copies):
            tell(Finding("gone", location, copy.blob.digest, f"{reason}; {copy.others} other good copies"))
            await distrust(copy.blob.id, location, copy.placement.key, f"{GONE}{reason}")
            report = evolve(report, gone=report.gone + 1)
        report = evolve(report, copies=report.copies + len(copies))
        after = copies[-1].blob.id
    return report


async def _look_for(engine: Engine, copies: Sequence[Copy]) -> Sequence[tuple[Copy, str]]:
    """Return the copies whose objects are not there, or have another size, with the reason. Raises EngineError."""
    missing: list[tuple[Copy, str]] = []
    todo = iter(copies)

    async def worker() -> None:
        for copy in todo:
            try:
                facts = await engine.head(copy.placement.key)
            except ObjectMissing:
                missing.append((copy, f"no object under {copy.placement.key}"))
                continue
            if facts.size != copy.blob.size:
                missing.append((copy, f"{facts.size} bytes under {copy.placement.key}, not {copy.blob.size}"))

    await _all_at_once(worker)
    return missing


async def _all_at_once(worker: Callable[[], Awaitable[None]]) -> None:
    """Run so many workers; the first error ends them all and is raised by itself."""
    first: list[EngineError] = []

    async def one() -> None:
        try:
            await worker()
        except EngineError as error:
            first.append(error)
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        for _ in range(_AT_ONCE):
            nursery.start_soon(one)
    if first:
        raise first[0]


async def check_objects(
    database: Database, engine: Engine, location: str, tell: Tell, report: RepairReport
) -> RepairReport:
    """Name the objects that the records do not know, and adopt those that a blob lacks. Raises EngineError, LedgerUnavailable."""
    async for orphan in find_orphans(database, engine, location, time.time()):
        blob = await _prove(database, engine, location, orphan)
        if blob is not None and await adopt_object(database, blob.id, location, orphan.key):
            tell(Finding("adopted", location, blob.digest, f"as {orphan.key}"))
            report = evolve(report, adopted=report.adopted + 1)
        else:
            tell(Finding("unknown", location, orphan.key, f"{orphan.size} bytes"))
            report = evolve(report, unknown=report.unknown + 1)
    return report


async def _prove(database: Database, engine: Engine, location: str, orphan: Orphan) -> Blob | None:
    """Return the blob that lacks a copy here and whose digest the object's bytes have. Reads only what may be one."""
    named = _NAMED.search(orphan.key)
    digest = f"{named[1]}:{named[2]}" if named else None
    blobs = await candidates_for(database, location, digest, orphan.size)
    if not blobs:
        return None
    hashers = {name: hashlib.new(name) for name in {blob.digest.partition(":")[0] for blob in blobs}}
    try:
        async with engine.open(orphan.key) as reader:
            while data := await reader.receive(_READ):
                for hasher in hashers.values():
                    await in_thread(len(data), partial(hasher.update, data))
    except ObjectMissing:
        return None
    found = {f"{name}:{hasher.hexdigest()}" for name, hasher in hashers.items()}
    return next((blob for blob in blobs if blob.digest in found), None)
