"""Copies that a store makes by itself, between two of its buckets, and the reading back that proves them."""

import hashlib
from collections.abc import Callable, Iterable, Mapping

from attrs import frozen

from engines.contract import CopyingEngine, Engine, EngineError, EngineRefused, Part
from replication.bandwidth import Bandwidth
from replication.destination import UNVERIFIED, Destination, WriteFailed
from replication.digests import Digest, PartLayout, part_layout
from replication.macs import MacKeys, PieceCheck, PieceProofs, ProofMaker
from replication.model import CopyTask, Placement
from replication.offload import Offload
from replication.parts import PartPool
from replication.workers import each

MIB = 1 << 20
GIB = 1 << 30
SLOWEST = 16 * MIB
"""Bytes per second. A store that copies its own bytes more slowly on the whole counts as silent."""


class _WrongPiece(Exception):
    """A piece that was read back is not what it should be."""


@frozen
class WithinLimits:
    """What is copied in one call, and in which parts what is larger. Bytes."""

    whole: int = 5 * GIB
    """S3 copies no larger object in one call (CopyObject)."""
    part: int = GIB
    least: int = 5 * MIB
    """Smaller blobs are read and written: reading back costs as much."""


class Within:
    """Server-side copies. Where one cannot be made, or is wrong, the caller copies as usual, under another key.

    What the store copied is noted as unverified, so that nobody takes it for more until it has been read back.
    """

    def __init__(
        self,
        engines: Mapping[str, Engine],
        destination: Destination,
        pool: PartPool,
        bandwidth: Mapping[str, Bandwidth],
        offload: Offload,
        parallel: Callable[[], int],
        part_size: Callable[[], int],
        limits: WithinLimits | None = None,
        macs: MacKeys | None = None,
    ) -> None:
        self._engines = engines
        self._destination = destination
        self._pool = pool
        self._bandwidth = bandwidth
        self._offload = offload
        self._parallel = parallel
        self._part_size = part_size
        self._limits = limits or WithinLimits()
        self._macs = macs or MacKeys()
        self._refused: set[tuple[str, str]] = set()
        self.copied = 0
        """Blobs copied so since the start."""
        self.last_error = ""

    def source_of(self, task: CopyTask, sources: Iterable[Placement]) -> Placement | None:
        """Return the best copy that the destination's store can copy from by itself, None if there is none."""
        engine = self._engines[task.destination]
        if not isinstance(engine, CopyingEngine) or task.blob.size < self._limits.least:
            return None
        for source in sources:
            other = self._engines.get(source.location)
            if (
                not source.suspect
                and source.location != task.destination
                and other is not None
                and (source.location, task.destination) not in self._refused
                and engine.copies_from(other)
            ):
                return source
        return None

    async def copy(self, task: CopyTask, source: Placement) -> PieceProofs | None:
        """Let the store copy a blob, and return what is to be kept of its pieces when what stands there was read back right.

        None: copy it as usual, but under another key: what was sent here may still land. Raises WriteFailed when the destination is
        in trouble anyway, and LeaseLost.
        """
        engine, other = self._engines[task.destination], self._engines[source.location]
        assert isinstance(engine, CopyingEngine)
        size = task.blob.size
        try:
            if size <= self._limits.whole:
                if task.upload is not None:
                    await self._destination.distrust(task)
                await self._destination.expect_whole(task)
                with self._destination.limit("copy the object", 30 + size / SLOWEST):
                    facts = await engine.copy_object(other, source.key, task.key, size)
                if facts.size != size:
                    self.last_error = f"{source.location} gave {facts.size} of {size} bytes"
                    return None
            else:
                await self._copy_parts(task, source, engine, other)
        except EngineError as error:
            if isinstance(error, EngineRefused):
                self._refused.add((source.location, task.destination))
            self.last_error = f"{type(error).__name__}: {error}"
            return None
        proofs = await self.read_back(task)
        if proofs is not None:
            self.copied += 1
        return proofs

    async def _copy_parts(self, task: CopyTask, source: Placement, engine: CopyingEngine, other: Engine) -> None:
        layout = part_layout(task.blob.size, self._limits.part)
        upload, done = await self._resume(task, layout)
        if upload is None:
            return

        async def copy(number: int) -> None:
            start, length = layout.span(number)
            with self._destination.limit(f"copy part {number}", 30 + length / SLOWEST):
                done[number] = await engine.copy_part(other, source.key, task.key, upload, number, start, length)

        missing = [number for number in range(1, layout.count + 1) if number not in done]
        try:
            await each(missing, min(self._parallel(), layout.count), copy, (EngineError, WriteFailed))
        except (EngineError, WriteFailed):
            # The usual copy begins anew, and nobody else would know of this one.
            await self._destination.abandon(task, upload)
            raise
        await self._destination.finish(task, upload, done)

    async def _resume(self, task: CopyTask, layout: PartLayout) -> tuple[str | None, dict[int, Part]]:
        """Return the open multi-part write and its parts, whoever wrote them; None when the object is whole already.

        All of it is read back in the end.
        """
        if task.upload is None:
            return await self._destination.begin(task, verified=False), {}
        listed = await self._destination.parts(task)
        ours = task.upload.startswith(UNVERIFIED)
        if listed is None and ours and await self._destination.is_complete(task):
            return None, {}
        if (
            listed is not None
            and ours
            and all(1 <= n <= layout.count and part.size == layout.span(n)[1] for n, part in listed.items())
        ):
            return task.upload.removeprefix(UNVERIFIED), listed
        await self._destination.distrust(task)
        return await self._destination.begin(task, verified=False), {}

    async def read_back(self, task: CopyTask) -> PieceProofs | None:
        """Read what stands under the task's key, within the limits of copies; return what is to be kept, None if it is wrong.

        Raises WriteFailed when it cannot be read.
        """
        check = self._macs.check(task.blob, learn=True)
        try:
            if check is None:
                return await self._read_serially(task)
            right = await self._is_right(task, check)
        except EngineError as error:
            raise WriteFailed(f"reading back: {type(error).__name__}: {error}") from error
        return PieceProofs(task.blob.pieces, check.learnt()) if right else None

    async def _is_right(self, task: CopyTask, check: PieceCheck) -> bool:
        layout = part_layout(task.blob.size, self._part_size())
        wrong: list[int] = []

        async def look(number: int) -> None:
            start, length = layout.span(number)
            async with self._pool.hold(length):
                data = await self._read(task, start, length)
                index = await self._offload(length, lambda: check.wrong(start, data))
            if index is not None:
                wrong.append(index)
                raise _WrongPiece

        numbers = range(1, layout.count + 1)
        try:
            await each(numbers, min(self._parallel(), layout.count), look, (EngineError, WriteFailed, _WrongPiece))
        except (EngineError, WriteFailed, _WrongPiece):
            if not wrong:
                raise
            self.last_error = f"piece {wrong[0]} of what the store copied is wrong"
            return False
        return True

    async def _read_serially(self, task: CopyTask) -> PieceProofs | None:
        digest = Digest.parse(task.blob.digest)
        layout, found = part_layout(task.blob.size, self._part_size()), hashlib.new(digest.algorithm)
        maker = ProofMaker(self._macs.current)
        async with self._pool.hold(layout.part):
            for number in range(1, layout.count + 1):
                start, length = layout.span(number)
                data = await self._read(task, start, length)
                await self._offload(length, lambda: found.update(data))  # noqa: B023 - awaited here
                await self._offload(length, lambda: maker.add(data))  # noqa: B023 - awaited here
        if found.hexdigest() != digest.hex:
            self.last_error = "what the store copied has another digest"
            return None
        return maker.proofs()

    async def _read(self, task: CopyTask, start: int, length: int) -> bytes:
        if task.destination in self._bandwidth:
            await self._bandwidth[task.destination].take(length)
        with self._destination.limit("give its bytes back"):
            return await self._engines[task.destination].read(task.key, start, length)
        raise WriteFailed("it gave nothing back")
