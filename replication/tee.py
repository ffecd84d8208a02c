"""One blob on its way across the ocean: fetched once, verified, into a spool that clients and the local copy read from.

Nothing here waits for the slowest: pieces that have served their purpose make room for new ones, and whoever finds its piece gone
reads on from the sources themselves.
"""

from collections.abc import Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager
from io import BytesIO
from math import inf

import trio
from attrs import frozen

from replication.digests import piece_count
from replication.model import PIECE, Blob, Placement
from replication.offload import Offload, in_thread
from replication.reader import NoGoodSource, Reader
from replication.spool import SpoolFile
from replication.stream import Pace

MIB = 1 << 20

_READ = 3 * MIB
"""What one read of the sources holds in memory: a piece that arrives, one that is ready, and one on its way to the disk."""

Memory = Callable[[int], AbstractAsyncContextManager[object]]
"""Holds so many bytes for the block, and waits until there are as many."""


@frozen
class TeeSettings:
    """Sizes in bytes, durations in seconds."""

    streams: int = 4
    """Reads of the sources at once, per blob."""
    span: int = 8 * MIB
    """What one of them reads in a row, in order."""
    jump: float = 2.0
    """How long a client waits for a piece that nobody is reading yet before it reads from the sources itself."""
    idle: float = 15.0
    """How long anybody waits while no piece arrives at all."""
    room: float = 5.0
    """How long the fetch waits for room in the spool before it gives up."""
    linger: float = 5.0
    """How long a blob that is complete stays for pulls that have not heard yet that it is in the local store."""
    spoilt: float = 30.0
    """How long a blob whose fetch broke off is not tried again: its pulls read from the sources."""
    most: int = 16
    """Blobs at once."""


class Tee:
    """The fetch of one blob, which has pieces. `run` it in a nursery that is not a client's.

    `make_room` frees the room of one piece of any tee, and says whether it could.
    """

    def __init__(
        self,
        blob: Blob,
        sources: Iterable[Placement],
        reader: Reader,
        file: SpoolFile,
        make_room: Callable[[], bool],
        settings: TeeSettings,
        pace: Pace,
        memory: Memory,
        offload: Offload = in_thread,
    ) -> None:
        self.blob = blob
        self.broken = ""
        """Why the fetch ended early; what has arrived is still served."""
        self.copying = True
        """Whether the local copy may still want pieces."""
        self.location: str | None = None
        """Where the latest piece came from."""
        self._count = piece_count(blob.size)
        self._transfer = reader.begin(blob, sources)
        assert self._transfer.check is not None, "a blob without pieces cannot be verified piece by piece"
        self._check = self._transfer.check
        self._reader = reader
        self._file = file
        self._make_room = make_room
        self._settings = settings
        self._pace = pace
        self._memory = memory
        self._offload = offload
        self._coming: set[int] = set()
        self._gone: set[int] = set()
        self._wanted: dict[int, int] = {}
        self._arrivals: dict[int, trio.Event] = {}
        self._cursor = 0
        self._over = False
        self._progress_at = trio.current_time()
        self._paced = 0
        self._positions: dict[object, int] = {}
        self._asked: dict[object, int] = {}
        self._copied = 0
        self._moved = trio.Event()

    @property
    def clients(self) -> int:
        """How many clients read from it now."""
        return len(self._positions)

    async def run(self) -> None:
        """Fetch every piece that is not here; ends when all were, or with `broken`."""
        async with trio.open_nursery() as nursery:
            for _ in range(self._settings.streams):
                nursery.start_soon(self._fetch, nursery.cancel_scope)
        self._over = True
        self._wake()

    def break_off(self, reason: str) -> None:
        """Fetch no more. Whoever waits for a piece reads it from the sources."""
        self.broken = self.broken or reason
        self._wake()

    def _wake(self) -> None:
        for arrival in self._arrivals.values():
            arrival.set()
        self._arrivals.clear()

    async def close(self) -> None:
        """Give the spool its room back."""
        self.break_off("it is over")
        await self._file.close()

    # What a client does.

    def join(self, client: object, index: int) -> None:
        """Note that a client begins to read at piece `index`."""
        self._positions[client] = index

    def leave(self, client: object) -> None:
        """Note that a client reads no more here."""
        self._positions.pop(client, None)
        self._stir()

    async def piece(self, client: object, index: int) -> bytes | None:
        """Return a verified piece for a client that has joined. None: it must read on from the sources."""
        self._positions[client] = index
        self._stir()
        return await self._get(index, hurry=True)

    # What the local copy does.

    async def part(self, start: int, length: int, memory: Callable[[], Awaitable[object]]) -> bytes | None:
        """Return the verified bytes [start, start + length), made of whole pieces. None: the copy must read the sources.

        `memory` for them is waited for when all of them are on the disk: who waits for the fetch, which wants some too, has none.
        """
        ask, indices = object(), range(start // PIECE, piece_count(start + length))
        self._asked[ask] = indices.start
        try:
            for index in indices:
                if not await self._arrived(index, hurry=False):
                    return None
            await memory()
            # Filled in place, and given out without being copied.
            whole = BytesIO(bytes(length))
            for index in indices:
                data = await self._get(index, hurry=False)
                if data is None:
                    return None
                whole.write(data)
        finally:
            del self._asked[ask]
            self._stir()
        self._copied = max(self._copied, indices.stop)
        return whole.getvalue()

    def copy_ended(self) -> None:
        """Note that there is no local copy, or none any more."""
        self.copying = False
        self._stir()

    # Room.

    def give_way(self, *, all_passed: bool) -> bool:
        """Drop the first piece that the copy and all clients (or at least the foremost) have passed. False: there is none."""
        floor = self._copy_floor() if self.copying else self._count
        if self._positions:
            floor = min(floor, (min if all_passed else max)(self._positions.values()))
        for index in range(floor):
            if index in self._file:
                self._file.drop(index)
                self._gone.add(index)
                return True
        return False

    def _copy_floor(self) -> int:
        """Return the piece before which the copy needs nothing any more: it asks in order."""
        return min(self._asked.values(), default=self._copied)

    async def unused(self, *, copied: bool) -> None:
        """Wait until no client reads here, nor, with `copied`, the copy."""
        while self._positions or (copied and self.copying):
            await self._moved.wait()

    def _stir(self) -> None:
        self._moved.set()
        self._moved = trio.Event()

    # The fetch.

    def _next(self) -> int | None:
        """Return the piece to read next: what a client waits for before what comes in order. None: all are read."""
        while self._cursor < self._count and not self._absent(self._cursor):
            self._cursor += 1
        first = min((index for index in self._wanted if self._absent(index)), default=self._cursor)
        if not self._positions and self.copying:
            # Only the copy is left, and a resumed one needs nothing of what it has.
            first = max(first, self._copy_floor())
            while first < self._count and not self._absent(first):
                first += 1
        return first if first < self._count else None

    def _take(self, first: int) -> int:
        """Reserve the run of pieces to be read from `first` on; return where it ends, `first` when there is no room."""
        end = first
        most = min(self._count, first + self._settings.span // PIECE)
        while (
            end < most and self._absent(end) and (self._file.reserve() or (self._make_room() and self._file.reserve()))
        ):
            self._coming.add(end)
            end += 1
        return end

    def _absent(self, index: int) -> bool:
        return index not in self._coming and index not in self._gone and index not in self._file

    async def _fetch(self, scope: trio.CancelScope) -> None:
        while not self.broken and self._next() is not None:
            async with self._memory(min(_READ, self.blob.size)):
                read = await self._fetch_some()
            if not read:
                await self._wait_for_room()
        if self.broken:
            scope.cancel()

    async def _fetch_some(self) -> bool:
        """Read some pieces in a row, if there are any left; return False where the spool has no room for one."""
        index = None if self.broken else self._next()
        if index is None:
            return True
        end = self._take(index)
        if index == end:
            return False
        try:
            stop = min(end * PIECE, self.blob.size)
            async with self._reader.stream(self._transfer, index * PIECE, stop, self._waiting_pace) as stream:
                async for data in stream:
                    self.location = stream.location
                    await self._file.put(index, data)
                    self._arrive(index)
                    index += 1
        except NoGoodSource as error:
            self.break_off(str(error))
        except OSError as error:
            self.break_off(f"the spool: {error}")
        finally:
            self._file.release(end - index)
            self._coming.difference_update(range(index, end))
        return True

    async def _wait_for_room(self) -> None:
        """Wait until something has moved. While nobody waits for a piece it may take any time: then the readers are slow."""
        with trio.move_on_after(self._settings.room) as waiting:
            await self._moved.wait()
        if waiting.cancelled_caught and self._arrivals and not self._coming:
            self.break_off("the spool is full")

    def _arrive(self, index: int) -> None:
        self._coming.discard(index)
        self._progress_at = trio.current_time()
        arrival = self._arrivals.pop(index, None)
        if arrival is not None:
            arrival.set()
        self._stir()

    async def _waiting_pace(self, location: str, nbytes: int) -> None:
        self._paced += 1
        try:
            await self._pace(location, nbytes)
        finally:
            self._paced -= 1
            self._progress_at = trio.current_time()

    async def _get(self, index: int, *, hurry: bool) -> bytes | None:
        """Return a piece, waiting for it as long as it is worth it."""
        if not await self._arrived(index, hurry=hurry):
            return None
        begin = index * PIECE
        length = min(PIECE, self.blob.size - begin)
        try:
            data = await self._file.get(index, length)
        except OSError as error:
            self.break_off(f"the spool: {error}")
            return None
        if data is None:
            return None
        # The disk, too, is only trusted after a look.
        if len(data) == length and await self._offload(length, lambda: self._check.wrong(begin, data)) is None:
            return data
        if index in self._file:
            self._file.drop(index)
            self._gone.add(index)
        return None

    async def _arrived(self, index: int, *, hurry: bool) -> bool:
        if hurry:
            self._wanted[index] = self._wanted.get(index, 0) + 1
        began = trio.current_time()
        try:
            while index not in self._file:
                if index in self._gone or self.broken or self._over:
                    return False
                arrival = self._arrivals.setdefault(index, trio.Event())
                late = self._progress_at + self._settings.idle if not self._paced else inf
                if hurry and index not in self._coming:
                    late = began + self._settings.jump
                if trio.current_time() >= late:
                    return False
                # At most a second at a time: what is being read, and how fast, changes while one waits.
                with trio.move_on_at(min(late, trio.current_time() + 1.0)):
                    await arrival.wait()
        finally:
            if hurry:
                self._wanted[index] -= 1
                if not self._wanted[index]:
                    del self._wanted[index]
        return True
