"""Copies that a store makes by itself, between two of its buckets, and the reading back that proves them."""

import hashlib
from collections.abc import Callable, Iterable, Mapping

import trio
from attrs import frozen

from engines.contract import CopyingEngine, Engine, EngineError, EngineRefused, Part
from replication.bandwidth import Bandwidth
from replication.destination import UNVERIFIED, Destination, WriteFailed
from replication.digests import Digest, PartLayout, part_layout, pieces_of, wrong_piece
from replication.model import CopyTask, Placement
from replication.offload import Offload
from replication.parts import PartPool

MIB = 1 << 20
GIB = 1 << 30
SLOWEST = 16 * MIB
"""Bytes per second. A store that copies its own bytes more slowly on the whole counts as silent."""


@frozen
class WithinLimits:
    """What is copied in one call, and in which parts what is larger. Bytes."""

    whole: int = 5 * GIB
    """S3 copies no larger object in one call (CopyObject)."""
    part: int = GIB
    least: int = 5 * MIB
    """Smaller blobs are read and written: reading back costs as much."""


class Within:
    """Server-side copies. Where one cannot be made, or is wrong, the caller copies as usual, beginning anew.

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
    ) -> None:
        self._engines = engines
        self._destination = destination
        self._pool = pool
        self._bandwidth = bandwidth
        self._offload = offload
        self._parallel = parallel
        self._part_size = part_size
        self._limits = limits or WithinLimits()
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

    async def copy(self, task: CopyTask, source: Placement) -> bytes | None:
        """Let the store copy a blob, and return its pieces when what stands there was read back right.

        None: copy it as usual. Raises WriteFailed when the destination is in trouble anyway, and LeaseLost.
        """
        engine, other = self._engines[task.destination], self._engines[source.location]
        assert isinstance(engine, CopyingEngine)
        size = task.blob.size
        try:
            if size <= self._limits.whole:
                if task.upload is not None:
                    await self._destination.distrust(task)
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
        pieces = await self.read_back(task)
        if pieces is not None:
            self.copied += 1
        return pieces

    async def _copy_parts(self, task: CopyTask, source: Placement, engine: CopyingEngine, other: Engine) -> None:
        layout = part_layout(task.blob.size, self._limits.part)
        upload, done = await self._resume(task, layout)
        if upload is None:
            return
        missing = iter([n for n in range(1, layout.count + 1) if n not in done])
        failures: list[EngineError | WriteFailed] = []

        async def worker(scope: trio.CancelScope) -> None:
            for number in missing:
                start, length = layout.span(number)
                try:
                    with self._destination.limit(f"copy part {number}", 30 + length / SLOWEST):
                        done[number] = await engine.copy_part(
                            other, source.key, task.key, upload, number, start, length
                        )
                except (EngineError, WriteFailed) as error:
                    failures.append(error)
                    scope.cancel()
                    return

        async with trio.open_nursery() as nursery:
            for _ in range(min(self._parallel(), layout.count)):
                nursery.start_soon(worker, nursery.cancel_scope)
        if failures:
            # The usual copy begins anew, and nobody else would know of this one.
            await self._destination.abandon(task, upload)
            raise failures[0]
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

    async def read_back(self, task: CopyTask) -> bytes | None:
        """Read what stands under the task's key, within the limits of copies; return its pieces, None if it is wrong.

        Raises WriteFailed when it cannot be read.
        """
        pieces = task.blob.pieces
        try:
            if pieces is None:
                return await self._read_serially(task)
            right = await self._is_right(task, pieces)
        except EngineError as error:
            raise WriteFailed(f"reading back: {type(error).__name__}: {error}") from error
        return pieces if right else None

    async def _is_right(self, task: CopyTask, pieces: bytes) -> bool:
        layout = part_layout(task.blob.size, self._part_size())
        numbers = iter(range(1, layout.count + 1))
        failures: list[EngineError | WriteFailed] = []
        wrong: list[int] = []

        async def worker(scope: trio.CancelScope) -> None:
            for number in numbers:
                start, length = layout.span(number)
                try:
                    async with self._pool.hold(length):
                        data = await self._read(task, start, length)
                        index = await self._offload(length, lambda: wrong_piece(pieces, start, data))  # noqa: B023 - awaited here
                except (EngineError, WriteFailed) as error:
                    failures.append(error)
                    scope.cancel()
                    return
                if index is not None:
                    wrong.append(index)
                    scope.cancel()
                    return

        async with trio.open_nursery() as nursery:
            for _ in range(min(self._parallel(), layout.count)):
                nursery.start_soon(worker, nursery.cancel_scope)
        if wrong:
            self.last_error = f"piece {wrong[0]} of what the store copied is wrong"
            return False
        if failures:
            raise failures[0]
        return True

    async def _read_serially(self, task: CopyTask) -> bytes | None:
        digest = Digest.parse(task.blob.digest)
        layout, found, pieces = (
            part_layout(task.blob.size, self._part_size()),
            hashlib.new(digest.algorithm),
            bytearray(),
        )
        async with self._pool.hold(layout.part):
            for number in range(1, layout.count + 1):
                start, length = layout.span(number)
                data = await self._read(task, start, length)
                await self._offload(length, lambda: found.update(data))  # noqa: B023 - awaited here
                pieces += await self._offload(length, lambda: pieces_of(data))  # noqa: B023 - awaited here
        if found.hexdigest() != digest.hex:
            self.last_error = "what the store copied has another digest"
            return None
        return bytes(pieces)

    async def _read(self, task: CopyTask, start: int, length: int) -> bytes:
        if task.destination in self._bandwidth:
            await self._bandwidth[task.destination].take(length)
        with self._destination.limit("give its bytes back"):
            return await self._engines[task.destination].read(task.key, start, length)
        raise WriteFailed("it gave nothing back")
