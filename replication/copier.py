"""Pays one copy task: verified parts out of the best sources, in parallel, into the destination."""

from collections.abc import Awaitable, Callable, Iterable, Mapping
from enum import Enum
from functools import partial
from typing import Protocol, TypeVar

import trio
from attrs import define, evolve, field, frozen

from engines.contract import Engine, Part, StreamingEngine
from replication.bandwidth import Bandwidth
from replication.destination import ONE_CALL, UNVERIFIED, Destination, LeaseLost, WriteFailed
from replication.digests import PartLayout, part_layout
from replication.finishing import Finishing
from replication.macs import PieceProofs, ProofMaker
from replication.model import CopyTask, Placement
from replication.offload import Offload, in_thread
from replication.parts import PartPool, Share
from replication.plan import backoff
from replication.ports import CopyOutcome, Ledger, LedgerUnavailable
from replication.reader import NoGoodSource, Reader, Transfer
from replication.relay import Relay, Send
from replication.within import Within, WithinLimits
from replication.workers import each

MIB = 1 << 20
T = TypeVar("T")


class CopyEnd(Enum):
    """How a try to pay a task ended."""

    PLACED = "placed"
    SUPERSEDED = "superseded"
    NO_SOURCE = "no good source"
    DESTINATION_FAILED = "the destination failed"
    LEASE_LOST = "lease lost"
    LEDGER_UNAVAILABLE = "the ledger is unavailable"


@frozen
class CopyReport:
    """What one try did. `error` is empty when the debt is paid. Bytes, seconds."""

    end: CopyEnd
    error: str = ""
    fetched: int = 0
    kept: int = 0
    """Bytes that an earlier try had brought to the destination already."""
    seconds: float = 0.0
    source: str = ""
    """The location that most likely sent the bytes: the best of those that were still good at the end."""
    unreached: tuple[str, ...] = ()
    """Of a try that failed: the locations but for which it might not have. None: every copy was read, and none is right."""


@frozen
class CopierSettings:
    """Sizes in bytes, durations in seconds."""

    part_size: int = 5 * MIB
    parts_per_blob: int = 4
    whole: int = 0
    """Blobs up to this size are copied with one read and one write, like those of one part: for 16 MiB that saves eight of ten
    calls, a third of the store's time and two thirds of ours (`scripts/bench copy`)."""
    write_deadline: float = 60.0
    """Longest time for one call to the destination, whatever its engine does."""
    within: WithinLimits = field(factory=WithinLimits)
    """For copies that a store makes by itself."""
    ledger_tries: int = 4
    """How often a finished copy is told to a ledger that does not answer, before the lease is left to run out."""


class SharedFetch(Protocol):
    """A fetch of the blob that is under way anyway."""

    async def part(self, start: int, length: int, memory: Callable[[], Awaitable[object]]) -> bytes | None:
        """Return the verified bytes [start, start + length), for which it has waited for `memory`.

        None where the sources must be read instead; there may be no memory then.
        """
        ...


def _nothing_shared(_digest: str) -> SharedFetch | None:
    return None


@define(eq=False)
class _Job:
    """One task being paid; a copy that must begin anew changes the task's key."""

    task: CopyTask
    transfer: Transfer
    layout: PartLayout
    sources: tuple[Placement, ...]

    @property
    def source(self) -> str:
        """The location of the best source, "" if there is none."""
        return self.sources[0].location if self.sources else ""


def _learnt(job: _Job) -> PieceProofs:
    """Return what is known of a blob with pieces when all of it has been copied."""
    check = job.transfer.check
    return PieceProofs(job.task.blob.pieces, None if check is None else check.learnt())


class Copier:
    """Copies blobs into locations. Safe for any number of tasks at once; they share the memory of `pool`.

    `choose` orders a task's placements, best first (`choose_sources` over this node's preference and the current board).
    `bandwidth` is by location; where one is missing there is no limit. `shared` finds the fetch of a blob, by its digest, that
    clients read from at the moment: the copy takes its parts from there. `settings` may be replaced at any time.
    """

    def __init__(
        self,
        engines: Mapping[str, Engine],
        reader: Reader,
        ledger: Ledger,
        pool: PartPool,
        choose: Callable[[Iterable[Placement]], tuple[Placement, ...]],
        settings: CopierSettings,
        bandwidth: Mapping[str, Bandwidth] | None = None,
        offload: Offload = in_thread,
        shared: Callable[[str], SharedFetch | None] = _nothing_shared,
    ) -> None:
        self._engines = engines
        self._reader = reader
        self._bringing = 0
        self._finishing = Finishing(ledger, lambda: self._bringing > 0)
        self._pool = pool
        self._choose = choose
        self.settings = settings
        self._shared = shared
        self._bandwidth = bandwidth or {}
        self._offload = offload
        self._relay = Relay(engines, pool)
        self._destination = Destination(engines, ledger, lambda: self.settings.write_deadline)
        self._within = Within(
            engines,
            self._destination,
            pool,
            self._bandwidth,
            offload,
            lambda: self.settings.parts_per_blob,
            lambda: self.settings.part_size,
            settings.within,
            reader.macs,
        )

    async def pay(self, task: CopyTask, landed: Callable[[], None] = lambda: None) -> CopyReport:
        """Try to pay a task whose lease is ours, and record the placement when every byte was verified.

        `landed` is called when all bytes are there and only the ledger is left to be told: from then on it loads no store.
        Returns how it ended; it is the caller who gives a failed task back. Cancelling it is safe at any point: what the
        destination has by then is found again by the next try.
        """
        began = trio.current_time()
        sources = self._choose(task.placements)
        job = _Job(
            task,
            self._reader.begin(task.blob, sources, learn=True),
            part_layout(task.blob.size, self.settings.part_size),
            sources,
        )
        try:
            proofs, fetched = await self._bring(job)
            landed()
            report = await self._end(job, proofs, fetched)
        except NoGoodSource as error:
            left_out = {copy.location for copy in task.placements} - {copy.location for copy in sources}
            report = CopyReport(CopyEnd.NO_SOURCE, str(error), unreached=tuple(sorted(left_out.union(error.unreached))))
        except WriteFailed as error:
            report = CopyReport(
                CopyEnd.DESTINATION_FAILED, f"{task.destination}: {error}", unreached=(task.destination,)
            )
        except LeaseLost:
            report = CopyReport(CopyEnd.LEASE_LOST, "another node has the task")
        except LedgerUnavailable as error:
            report = CopyReport(CopyEnd.LEDGER_UNAVAILABLE, str(error))
        return evolve(report, seconds=trio.current_time() - began, source=job.transfer.roster.best() or job.source)

    async def _bring(self, job: _Job) -> tuple[PieceProofs, int]:
        """Let the destination have all bytes; return what is to be kept of its pieces, and how many bytes were fetched."""
        self._bringing += 1
        try:
            return await self._bring_somehow(job)
        finally:
            self._bringing -= 1
            self._finishing.look()

    async def _bring_somehow(self, job: _Job) -> tuple[PieceProofs, int]:
        size = job.task.blob.size
        if job.task.upload == ONE_CALL:
            job.task = await self._destination.anew(job.task)
        source = None if job.layout.count == 1 else self._within.source_of(job.task, job.sources)
        if source is not None:
            whole = await self._within.copy(job.task, source)
            if whole is not None:
                return whole, size
            # Whatever stands there now, or comes there when all has been forgotten, it is nobody's verified work.
            job.task = await self._destination.anew(job.task)
        elif job.task.upload is not None and job.task.upload.startswith(UNVERIFIED):
            # The same: an earlier try may have made an object of it, which nobody has read back.
            await self._destination.abandon(job.task, job.task.upload.removeprefix(UNVERIFIED))
            job.task = await self._destination.anew(job.task)
        if job.layout.count == 1 or (size <= self.settings.whole and job.task.upload is None):
            return await self._copy_small(job), size
        if job.task.blob.pieces is None:
            return await self._copy_serially(job, sources=[c.placement for c in job.transfer.roster.candidates]), size
        fetched = await self._copy_in_parallel(job)
        return _learnt(job), fetched

    async def _end(self, job: _Job, proofs: PieceProofs, fetched: int) -> CopyReport:
        """Record the copy. The ledger takes the same report twice, so one whose answer was lost is repeated."""
        tries = 0
        while True:
            tries += 1
            try:
                outcome = await self._finishing.finish(job.task, proofs)
                break
            except LedgerUnavailable:
                if tries >= self.settings.ledger_tries:
                    raise
                await trio.sleep(backoff(tries, 0.5, base=0.2, cap=5.0))
        end = CopyEnd.PLACED if outcome is CopyOutcome.PLACED else CopyEnd.SUPERSEDED
        return CopyReport(end, fetched=fetched, kept=job.task.blob.size - fetched)

    async def _copy_small(self, job: _Job) -> PieceProofs:
        """Copy a blob with one plain write; return what is to be kept of its pieces."""
        blob = job.task.blob
        if job.task.upload is not None or (job.task.claimed_before and blob.size > MIB):
            # Parts were smaller at an earlier try: nothing else would ever delete what it left under the key, which lives on.
            await self._destination.abandon(job.task, None)
        await self._wait_for_bandwidth(job, blob.size)
        relayed = await self._relayed(
            job, 0, blob.size, lambda engine: partial(self._destination.put_stream, job.task, engine)
        )
        if relayed:
            return _learnt(job)
        async with self._pool.open(blob.size) as share:
            data = await self._read_part(job, 0, blob.size, share) if blob.size else b""
            proofs = _learnt(job)
            if blob.pieces is None:
                maker = ProofMaker(self._reader.macs.current)
                await self._offload(blob.size, lambda: maker.add(data))
                proofs = maker.proofs()
            await self._destination.put(job.task, data)
        return proofs

    async def _copy_in_parallel(self, job: _Job) -> int:
        """Copy the parts that the destination does not have; return the bytes fetched."""
        upload, done = await self._resume(job)
        if upload is None:
            return 0
        fetched = 0

        async def copy(number: int) -> None:
            nonlocal fetched
            done[number] = await self._copy_part(job, upload, number)
            fetched += done[number].size

        missing = [number for number in range(1, job.layout.count + 1) if number not in done]
        at_once = min(self.settings.parts_per_blob, job.layout.count)
        await each(missing, at_once, copy, (NoGoodSource, WriteFailed))
        await self._destination.finish(job.task, upload, done)
        return fetched

    async def _copy_part(self, job: _Job, upload: str, number: int) -> Part:
        start, length = job.layout.span(number)
        await self._wait_for_bandwidth(job, length)
        part = await self._relayed(
            job,
            start,
            length,
            lambda engine: partial(self._destination.put_part_stream, job.task, engine, upload, number, length),
        )
        if part is not None:
            return part
        # The memory is free again when the part was both verified and acknowledged, not before.
        async with self._pool.open(length) as share:
            data = await self._read_part(job, start, length, share)
            return await self._destination.put_part(job.task, upload, number, data)

    async def _relayed(
        self, job: _Job, start: int, length: int, send: Callable[[StreamingEngine], Send[T]]
    ) -> T | None:
        """Bring bytes over by a relay; return what `send` returned, None where they must go through memory."""
        engine = self._relay.destination(job.task.destination, job.transfer)
        if engine is None:
            return None
        return await self._relay.bring(
            job.transfer, start, length, send(engine), lambda: self._shared(job.task.blob.digest) is not None
        )

    async def _read_part(self, job: _Job, start: int, length: int, share: Share) -> bytes:
        """Return verified bytes, with memory for them out of the share."""

        async def memory() -> None:
            if share.held < share.claim:
                await share.grow(share.claim - share.held)

        shared = self._shared(job.task.blob.digest)
        data = None if shared is None else await shared.part(start, length, memory)
        if data is None:
            await memory()
            data = await job.transfer.read_part(start, length)
        return data

    async def _copy_serially(self, job: _Job, sources: Iterable[Placement]) -> PieceProofs:
        """Copy a blob that has no pieces: parts go out unverified, the last one only when the digest was right.

        Nothing of an earlier try can be trusted, so it begins anew. Returns what is to be kept of the pieces.
        """
        task, layout = job.task, job.layout
        if task.upload is not None:
            await self._destination.abandon(task, task.upload)
        upload = await self._destination.begin(task, verified=False)
        done: dict[int, Part] = {}
        maker = ProofMaker(self._reader.macs.current)
        async with (
            self._pool.hold(layout.part),
            self._reader.open_blob(task.blob, sources) as stream,
        ):
            part = bytearray()
            async for chunk in stream:
                await self._wait_for_bandwidth(job, len(chunk))
                await self._offload(len(chunk), partial(maker.add, chunk))
                part += chunk
                if len(part) == layout.part:
                    done[len(done) + 1] = await self._destination.put_part(task, upload, len(done) + 1, bytes(part))
                    part.clear()
            if part:
                done[len(done) + 1] = await self._destination.put_part(task, upload, len(done) + 1, bytes(part))
        await self._destination.finish(job.task, upload, done)
        return maker.proofs()

    async def _resume(self, job: _Job) -> tuple[str | None, dict[int, Part]]:
        """Return the open multi-part write and the parts it has; None for the write when the whole object is there already.

        Whatever is in that write, and whatever object is under the task's key, came from verified bytes, because keys are never
        shared, and what a try wrote when the blob had no pieces yet, or the store copied by itself, has another key.
        """
        task, layout = job.task, job.layout
        if task.upload is None:
            return await self._destination.begin(task), {}
        listed = await self._destination.parts(task)
        if listed is None:
            if await self._destination.is_complete(task):
                return None, {}
            return await self._destination.begin(task), {}
        if all(1 <= number <= layout.count and part.size == layout.span(number)[1] for number, part in listed.items()):
            return task.upload, listed
        # Cut differently: another part size was configured then.
        await self._destination.abandon(task, task.upload)
        return await self._destination.begin(task), {}

    async def _wait_for_bandwidth(self, job: _Job, nbytes: int) -> None:
        for location in dict.fromkeys((job.source, job.task.destination)):
            if location in self._bandwidth:
                await self._bandwidth[location].take(nbytes)
