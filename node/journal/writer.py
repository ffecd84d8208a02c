"""The journal writer: brings what the database notes into every location's store, so that the stores alone can tell it all.

Nothing here is on a push's way: changes are noted in the push's own transaction (schema 0010) and written from there, in order,
by whichever node holds a location's lease. A crash at any moment repeats a write under a new key, which changes nothing: the last
word about a thing counts. One location that hangs delays no other.
"""

import json
from collections.abc import Mapping, Sequence
from uuid import UUID, uuid4

import structlog
import trio
from attrs import define, field, frozen

from engines.contract import Engine, EngineError
from node.journal.facts import (
    Damaged,
    Entry,
    StoredManifest,
    decode,
    encode,
    encode_manifest,
    journal_key,
    last_words,
)
from node.journal.store import read_object
from node.markers import NotOurs, check_marker
from node.records.journal import (
    Batches,
    Turn,
    claim_journal,
    finish_batches,
    finish_merge,
    next_batches,
    next_merge,
    prune_journal,
    release_journal,
    renew_journal,
    reserve_object,
    seal,
)
from node.records.journal_snapshots import PHASES, begin_snapshot, finish_page, read_page
from node.records.postgres import Database
from node.records.unstored import claim_manifests, note_manifests
from replication.ports import LedgerUnavailable

_log = structlog.get_logger("antipode.journal")

_FAILURES_SAID = 10

_TRIES = 3
"""A store may send wrong bytes and have the right ones."""


@frozen
class JournalSettings:
    """Durations in seconds."""

    every: float = 10.0
    """JOURNAL_FREQUENCY: how long what was committed waits at most before it is written."""
    retention: float = 14 * 86400.0
    """JOURNAL_RETENTION."""
    snapshot_every: float = 86400.0
    """JOURNAL_SNAPSHOT_FREQUENCY."""
    lease: float = 120.0
    step_deadline: float = 60.0
    """For what lies between two renewals of the lease."""
    manifests: int = 20
    """Manifests claimed at once: what is held in memory."""
    at_once: int = 4
    page: int = 5000
    merge: int = 50_000
    """Entries that one object of an hour may have."""


class _LeaseLost(Exception):
    """Somebody else writes this location's journal by now."""


@define(eq=False)
class JournalWriter:
    """One node's part in writing the journals. `run` is its service."""

    _database: Database = field(alias="database")
    _engines: Mapping[str, Engine] = field(alias="engines")
    _settings: JournalSettings = field(factory=JournalSettings, alias="settings")
    _lease: UUID = field(factory=uuid4, init=False)
    _failures: dict[str, int] = field(factory=dict, init=False)
    _known: set[tuple[str, str]] = field(factory=set, init=False)
    """Locations whose store has shown its marker."""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Write for ever. Ends by cancellation; a database or a store that is away is asked again next time."""
        task_status.started()
        async with trio.open_nursery() as nursery:
            for location in self._engines:
                nursery.start_soon(self._keep, location)
            while True:
                try:
                    await seal(self._database)
                except LedgerUnavailable as error:
                    _log.warning("journal not sealed: the database is away", reason=str(error))
                await trio.sleep(self._settings.every)

    async def _keep(self, location: str) -> None:
        while True:
            # Half a turn after the sealing of the round.
            await trio.sleep(self._settings.every / 2)
            try:
                await self.write(location)
            except LedgerUnavailable as error:
                _log.warning("journal postponed: the database is away", location=location, reason=str(error))
            await trio.sleep(self._settings.every / 2)

    async def write(self, location: str) -> bool:
        """Bring one location's journal up to what is sealed, if no other node is at it; return whether that was done.

        Raises LedgerUnavailable.
        """
        settings = self._settings
        turn = await claim_journal(self._database, location, self._lease, settings.lease)
        if turn is None:
            return False
        error: str | None = None
        try:
            await self._look_whose(turn)
            await self._bring_up(turn)
        except _LeaseLost:
            return False
        except NotOurs as refused:
            error = str(refused)
        except trio.TooSlowError:
            error = f"the store did not take it within {settings.step_deadline:g} s"
        except EngineError as failure:
            error = f"{type(failure).__name__}: {failure}"
        self._note(location, error)
        await release_journal(self._database, turn, error)
        return error is None

    def _note(self, location: str, error: str | None) -> None:
        """Say the first failure of a row and then one of ten: it is in the metrics all the time."""
        failures = self._failures.get(location, 0)
        self._failures[location] = failures + 1 if error else 0
        if error and failures % _FAILURES_SAID == 0:
            _log.warning("journal not written: the store does not take it", location=location, reason=error)
        elif failures and not error:
            _log.info("journal is written again", location=location)

    async def _look_whose(self, turn: Turn) -> None:
        """Refuse a store that another database means: to one that is new, all that its journal knows would be gone."""
        if (turn.location, turn.marker) not in self._known:
            with trio.fail_after(self._settings.step_deadline):
                await check_marker(self._engines[turn.location], turn.marker)
            self._known.add((turn.location, turn.marker))

    async def _bring_up(self, turn: Turn) -> None:
        while (batches := await next_batches(self._database, turn)) is not None:
            await self._write_batches(turn, batches)
            await self._renew(turn)
        settings = self._settings
        # A database that was restored knows less than the journals: what it lacks must not look like something that is gone.
        if not turn.paused and (turn.snapshot_at is None or turn.now - turn.snapshot_at >= settings.snapshot_every):
            await self._snapshot(turn)
        while (merge := await next_merge(self._database, turn, settings.merge)) is not None:
            entries: list[Entry] = []
            for key in merge.keys:
                entries += await self._read(turn.location, key)
            last = last_words(entries)
            written = await self._put(turn, "hour", merge.hour, encode("hour", last))
            if not await finish_merge(self._database, turn, written, len(last), merge.keys):
                raise _LeaseLost
            await self._renew(turn)
        await prune_journal(self._database, turn, settings.retention)

    async def _read(self, location: str, key: str) -> Sequence[Entry]:
        """Return what a journal object says, which is then deleted: nothing where it is damaged however often it is read."""
        for tries in range(1, _TRIES + 1):
            with trio.fail_after(self._settings.step_deadline):
                data = await read_object(self._engines[location], key)
            try:
                return decode(data)[1]
            except Damaged as error:
                if tries == _TRIES:
                    _log.error(
                        "a journal object is damaged: what others say of its time counts", key=key, reason=str(error)
                    )
        return ()

    async def _renew(self, turn: Turn) -> None:
        if not await renew_journal(self._database, turn, self._settings.lease):
            raise _LeaseLost

    async def _write_batches(self, turn: Turn, batches: Batches) -> None:
        """The manifests first: what a journal names is there."""
        while await self._write_manifests(turn, batches, (0, 0)) is not None:
            await self._renew(turn)
        data = encode("batch", batches.entries, {"first": batches.first, "last": batches.last})
        key = await self._put(turn, "batch", batches.hour, data)
        if not await finish_batches(self._database, turn, key, len(batches.entries), batches.last):
            raise _LeaseLost

    async def _put(self, turn: Turn, kind: str, hour: float, data: bytes) -> str:
        engine = self._engines[turn.location]
        key = journal_key(engine.prefix, kind, hour, uuid4().hex)
        if not await reserve_object(self._database, turn, key, kind, hour):
            raise _LeaseLost
        with trio.fail_after(self._settings.step_deadline):
            await engine.put(key, data)
        return key

    async def _write_manifests(
        self, turn: Turn, batches: Batches | None, after: tuple[int, int]
    ) -> tuple[int, int] | None:
        """Write some of the manifests that the store lacks; return the place of the last, None if there was none."""
        engine, settings = self._engines[turn.location], self._settings
        claimed = await claim_manifests(self._database, turn, engine.prefix, batches, after, settings.manifests)
        if not claimed:
            return None
        todo, failed = iter(claimed), list[EngineError]()

        async def worker() -> None:
            for one in todo:
                stored = StoredManifest(one.repository, one.digest, one.media_type, one.subject, one.at, one.body)
                try:
                    await engine.put(one.key, encode_manifest(stored))
                except EngineError as error:
                    failed.append(error)
                    nursery.cancel_scope.cancel()

        with trio.fail_after(settings.step_deadline):
            async with trio.open_nursery() as nursery:
                for _ in range(settings.at_once):
                    nursery.start_soon(worker)
        if failed:
            raise failed[0]
        await note_manifests(self._database, turn.location, [one.key for one in claimed])
        return claimed[-1].repository_id, claimed[-1].manifest_id

    async def _snapshot(self, turn: Turn) -> None:
        """Write all that is so now, in pages; one that was begun before, by whichever node, goes on where it was."""
        if turn.started_at is not None and turn.cursor is not None:
            begun, (phase, after, pages) = turn.started_at, json.loads(turn.cursor)
        else:
            started = await begin_snapshot(self._database, turn)
            if started is None:
                raise _LeaseLost
            begun, phase, after, pages = started, 0, (0, ""), 0
        place: tuple[int, int] | None = (0, 0)
        while place is not None:
            place = await self._write_manifests(turn, None, place)
            await self._renew(turn)
        while phase < len(PHASES):
            page = await read_page(self._database, PHASES[phase], (after[0], after[1]), self._settings.page)
            phase, after, pages = (
                (phase + 1, (0, ""), pages + 1) if page.after is None else (phase, page.after, pages + 1)
            )
            await self._write_page(turn, begun, page.entries, (phase, after, pages))
            await self._renew(turn)
        key = await self._put(turn, "complete", begun, encode("complete", (), {"pages": pages}))
        if not await finish_page(self._database, turn, key, 0, None):
            raise _LeaseLost
        _log.info("journal snapshot is complete", location=turn.location, pages=pages)

    async def _write_page(self, turn: Turn, begun: float, entries: tuple[Entry, ...], cursor: Sequence[object]) -> None:
        key = await self._put(turn, "page", begun, encode("page", entries))
        if not await finish_page(self._database, turn, key, len(entries), cursor):
            raise _LeaseLost
