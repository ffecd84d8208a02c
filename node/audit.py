"""Audit of a store: every copy read and hashed again, or a sample of them; and objects in it that the database does not know."""

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial

import trio
from attrs import evolve, field, frozen

from engines.contract import Engine, EngineError, ObjectMissing
from node.markers import read_marker
from node.records.audit import Copy, clear_suspicion, list_copies, note_verified, unknown_keys
from node.records.postgres import Database
from replication.digests import Digest
from replication.model import Blob, Placement
from replication.offload import in_thread
from replication.reader import NoGoodSource, Reader, ReaderSettings

_PAGE = 500
_DAY = 24 * 3600.0
_SILENT = 16
"""Copies in a row that cannot be read, after which a store is asked whether it answers at all."""

Distrust = Callable[[int, str, str, str], Awaitable[None]]
"""Marks a copy suspect (`Ledger.mark_suspect`): blob id, location, key, reason."""


@frozen
class Finding:
    """One copy that is not as it should be."""

    digest: str
    location: str
    key: str
    reason: str
    bad: bool
    """Whether it is missing or wrong; otherwise it could not be read, which says nothing about it."""
    other_copies: int
    """Good copies elsewhere, out of which it is healed."""


@frozen
class AuditReport:
    """What an audit read. Sizes in bytes."""

    location: str
    copies: int = 0
    size: int = 0
    healed: int = 0
    """Copies that were suspect and are good."""
    findings: tuple[Finding, ...] = field(factory=tuple)
    stopped: str = ""
    """Why the rest was not read: the store did not answer any more."""

    @property
    def bad(self) -> int:
        """How many copies are missing or wrong."""
        return sum(finding.bad for finding in self.findings)


@frozen
class AuditSettings:
    """How an audit reads: `fraction` (0 to 1) of all copies, so many at a time, each in chunks of a MiB."""

    fraction: float = 1.0
    streams: int = 4
    stall: float = 5.0
    """Seconds of silence after which a copy counts as unreadable."""


async def verify_location(
    database: Database,
    engine: Engine,
    location: str,
    settings: AuditSettings,
    distrust: Distrust,
    progress: Callable[[AuditReport], None] = lambda _: None,
) -> AuditReport:
    """Read and hash the copies in a location again, and mark what is missing or wrong as suspect, which has it healed.

    Every copy is read from this location alone; memory is bounded by the streams. It ends early (`stopped`) where the store gives
    neither copies nor its marker. Raises LedgerUnavailable.
    """
    report, silent = AuditReport(location), 0
    send, receive = trio.open_memory_channel[Copy](settings.streams)

    async def feed() -> None:
        async with send:
            after = 0
            while copies := await list_copies(database, location, after, _PAGE, settings.fraction):
                for copy in copies:
                    await send.send(copy)
                after = copies[-1].blob.id

    async def worker() -> None:
        nonlocal report, silent
        async for copy in receive:
            finding = await _check(engine, copy, settings)
            healed = 0
            if finding is None and copy.unread:
                await note_verified(database, copy.blob.id, location, copy.placement.key)
            if finding is None and copy.placement.suspect:
                healed = await clear_suspicion(database, copy.blob.id, location, copy.placement.key)
            elif finding is not None and finding.bad:
                await distrust(copy.blob.id, location, copy.placement.key, f"audit: {finding.reason}")
            report = evolve(
                report,
                copies=report.copies + 1,
                size=report.size + copy.blob.size,
                healed=report.healed + healed,
                findings=report.findings if finding is None else (*report.findings, finding),
            )
            progress(report)
            silent = 0 if finding is None or finding.bad else silent + 1
            if silent >= _SILENT:
                silent = 0
                try:
                    await read_marker(engine)
                except EngineError as error:
                    report = evolve(report, stopped=f"{type(error).__name__}: {error}")
                    nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(feed)
        for _ in range(settings.streams):
            nursery.start_soon(worker)
    return report


async def _check(engine: Engine, copy: Copy, settings: AuditSettings) -> Finding | None:
    """Read one copy; return what is wrong with it."""
    blob, placement = copy.blob, evolve(copy.placement, suspect=False)
    reasons: list[str] = []

    def suspect(_blob: Blob, _placement: Placement, reason: str) -> None:
        reasons.append(reason)

    def found(reason: str, *, bad: bool) -> Finding:
        return Finding(blob.digest, placement.location, placement.key, reason, bad, copy.others)

    digest = Digest.parse(blob.digest)
    hasher = hashlib.new(digest.algorithm)
    reader = Reader({placement.location: engine}, _unheard, suspect, ReaderSettings(stall=settings.stall))
    try:
        facts = await engine.head(placement.key)
        if facts.size != blob.size:
            return found(f"it has {facts.size} bytes, not {blob.size}", bad=True)
        async with reader.open_blob(blob, [placement]) as stream:
            async for chunk in stream:
                await in_thread(len(chunk), partial(hasher.update, chunk))
    except ObjectMissing as error:
        return found(f"ObjectMissing: {error}", bad=True)
    except EngineError as error:
        return found(f"{type(error).__name__}: {error}", bad=False)
    except NoGoodSource as error:
        return found(reasons[0] if reasons else str(error), bad=bool(reasons))
    if hasher.hexdigest() != digest.hex:
        return found(f"its digest is {digest.algorithm}:{hasher.hexdigest()}", bad=True)
    return None


def _unheard(
    location: str, ok: bool, latency: float | None = None, reason: str | None = None, lied: bool = False
) -> None:
    """Take in what a read says about the store's health: an audit has no board."""


@frozen
class Orphan:
    """An object that the database does not know. `age` in seconds, None where the store does not say."""

    key: str
    size: int
    age: float | None

    @property
    def old(self) -> bool:
        """Whether it is certainly older than a day: nothing that still runs can have written it."""
        return self.age is not None and self.age > _DAY


async def find_orphans(database: Database, engine: Engine, location: str, now: float) -> AsyncIterator[Orphan]:
    """Yield the objects below the engine's prefix that no row has (`unknown_keys`); our own `_antipode/` aside.

    `now` is POSIX seconds. Raises EngineError, LedgerUnavailable.
    """
    own, after = f"{engine.prefix}_antipode/", None
    while True:
        page = await engine.list_keys(engine.prefix, after)
        # Listed before it is asked: a key is committed before its object is written.
        unknown = await unknown_keys(database, location, [key for key in page.keys if not key.startswith(own)])
        for key in page.keys:
            if key in unknown:
                try:
                    facts = await engine.head(key)
                except ObjectMissing:
                    continue  # It was deleted, and forgotten, since it was listed.
                yield Orphan(key, facts.size, None if facts.modified is None else max(0.0, now - facts.modified))
        if page.after is None:
            return
        after = page.after
