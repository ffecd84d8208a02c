"""The tees of a node: one fetch per blob that the preferred store lacks, which copies it there and serves all its pulls."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager

import trio
from attrs import frozen

from replication.flow import Sink
from replication.model import PIECE, Blob, Placement
from replication.offload import Offload, in_thread
from replication.reader import BlobStream, NoGoodSource, Reader
from replication.spool import Spool
from replication.stream import Chunk, Pace, Turns, streamed
from replication.tee import Memory, Tee, TeeSettings


@frozen
class TeeStatistics:
    """Counts since the start: tees begun, pulls that read from one, pulls that had to go on without, fetches that broke off."""

    running: int
    begun: int
    joined: int
    left: int
    broken: int
    last_break: str = ""


class Tees:
    """Opens blobs for pulls; begins a tee where that is worth it, and joins the one that runs. `run` is its service.

    `worth` decides, from a blob and its sources, best first, whether the preferred store lacks it and would take it. `copy` claims
    and pays the preferred store's copy of a blob (`Scheduler.pay_at_once`) and returns when that is over; its bytes come through
    `running`. `pace` caps what is read from elsewhere. `memory` is what all tees, copies and uploads share.
    """

    def __init__(
        self,
        reader: Reader,
        spool: Spool,
        worth: Callable[[Blob, tuple[Placement, ...]], bool],
        copy: Callable[[Blob], Awaitable[object]],
        pace: Pace,
        memory: Memory,
        settings: TeeSettings | None = None,
        offload: Offload = in_thread,
    ) -> None:
        self._reader = reader
        self._spool = spool
        self._worth = worth
        self._copy = copy
        self._pace = pace
        self._memory = memory
        self._settings = settings or TeeSettings()
        self._offload = offload
        self._tees: dict[str, Tee] = {}
        self._all: set[Tee] = set()
        self._spoilt: dict[str, float] = {}
        self._nursery: trio.Nursery | None = None
        self._begun = self._joined = self._left = self._broken = 0
        self._last_break = ""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Own the fetches until cancelled. Pulls that read from one then go on from the sources."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                self._nursery = None

    def statistics(self) -> TeeStatistics:
        """Return the counts so far."""
        return TeeStatistics(len(self._all), self._begun, self._joined, self._left, self._broken, self._last_break)

    def running(self, digest: str) -> Tee | None:
        """Return the tee of a blob, for the copy that may read its parts from it."""
        return self._tees.get(digest)

    @asynccontextmanager
    async def open_blob(
        self, blob: Blob, sources: Iterable[Placement], start: int = 0, end: int | None = None
    ) -> AsyncIterator[BlobStream]:
        """Open [start, end) of a blob for a pull, as `Reader.open_blob` does; through a tee where that is worth it."""
        stop = blob.size if end is None else end
        if not 0 <= start <= stop <= blob.size:
            raise ValueError(f"range {start}-{stop} of a blob of {blob.size} bytes")
        chosen = tuple(sources)
        tee = self._tee(blob, chosen) if start < stop else None
        if tee is None:
            async with self._reader.open_blob(blob, chosen, start, stop, self._pace) as stream:
                yield stream
            return
        self._joined += 1
        feed = _Feed(tee, self._reader, chosen, start, stop, self._pace)
        tee.join(feed, start // PIECE)
        try:
            async with streamed(feed) as stream:
                yield stream
        finally:
            tee.leave(feed)
            self._left += feed.left

    def _tee(self, blob: Blob, sources: tuple[Placement, ...]) -> Tee | None:
        """Return the blob's tee, a new one if need be; None where there is none."""
        if self._nursery is None or blob.pieces is None or not self._worth(blob, sources):
            return None
        tee = self._tees.get(blob.digest)
        if tee is not None:
            return tee
        now = trio.current_time()
        self._spoilt = {digest: until for digest, until in self._spoilt.items() if until > now}
        if blob.digest in self._spoilt or len(self._all) >= self._settings.most:
            return None
        tee = Tee(
            blob,
            sources,
            self._reader,
            self._spool.file(),
            self._make_room,
            self._settings,
            self._pace,
            self._memory,
            self._offload,
        )
        self._begun += 1
        self._tees[blob.digest] = tee
        self._all.add(tee)
        self._nursery.start_soon(self._run, tee)
        return tee

    async def _run(self, tee: Tee) -> None:
        """Fetch and copy one blob; over when the copy is and no client reads any more."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._run_copy, tee)
                nursery.start_soon(self._run_fetch, tee)
                await tee.unused(copied=True)
                if not tee.broken and not nursery.child_tasks:
                    # It is complete: pulls that do not know yet that the local store has it are served from here.
                    await trio.sleep(self._settings.linger)
                self._retire(tee)
                await tee.unused(copied=False)
                nursery.cancel_scope.cancel()
        finally:
            self._retire(tee)
            self._all.discard(tee)
            # Not for long: closing a nameless file frees its blocks.
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 5):
                await tee.close()

    async def _run_copy(self, tee: Tee) -> None:
        try:
            await self._copy(tee.blob)
        finally:
            tee.copy_ended()

    async def _run_fetch(self, tee: Tee) -> None:
        await tee.run()
        if tee.broken:
            self._broken += 1
            self._last_break = tee.broken
            self._spoilt[tee.blob.digest] = trio.current_time() + self._settings.spoilt
            self._retire(tee)

    def _retire(self, tee: Tee) -> None:
        """Let nobody join any more."""
        if self._tees.get(tee.blob.digest) is tee:
            del self._tees[tee.blob.digest]

    def _make_room(self) -> bool:
        """Free one piece: one that everybody has passed, else one that only slow clients have not."""
        return any(tee.give_way(all_passed=True) for tee in self._all) or any(
            tee.give_way(all_passed=False) for tee in self._all
        )


class _Feed:
    """Feeds one pull from a tee, and from the sources themselves as soon as the tee has not what it needs."""

    def __init__(
        self, tee: Tee, reader: Reader, sources: tuple[Placement, ...], start: int, stop: int, pace: Pace
    ) -> None:
        self._tee = tee
        self._reader = reader
        self._sources = sources
        self._offset, self._stop = start, stop
        self._pace = pace
        self.location: str | None = None
        self.error: NoGoodSource | None = None
        self.sink: Sink | None = None
        self.turns = Turns()
        self.left = False
        """Whether it went on without the tee."""

    async def run(self, send: trio.MemorySendChannel[Chunk]) -> None:
        async with send:
            while self._offset < self._stop:
                index = self._offset // PIECE
                data = await self._tee.piece(self, index)
                if data is None:
                    break
                self.location = self._tee.location
                begin = index * PIECE
                chunk = data[self._offset - begin : self._stop - begin]
                self._offset += len(chunk)
                await send.send(chunk)
            if self._offset < self._stop:
                self.left = True
                self._tee.leave(self)
                await self._read_on(send)

    async def _read_on(self, send: trio.MemorySendChannel[Chunk]) -> None:
        try:
            async with self._reader.open_blob(
                self._tee.blob, self._sources, self._offset, self._stop, self._pace
            ) as stream:
                async for chunk in stream:
                    self.location = stream.location
                    await send.send(chunk)
        except NoGoodSource as error:
            self.error = error
