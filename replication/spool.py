"""Bytes on disk, in a folder of bounded size: nameless files, so that a crash leaves nothing behind; and one of a blob's pieces."""

import os
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, TypeVar, cast

import trio

from replication.model import PIECE
from replication.offload import Offload

T = TypeVar("T")

_THREADS = 8


class Spool:
    """At most `most` bytes for all files together, in the folder `path` (None: the system's temporary one).

    The disk is touched in a few threads of its own, or where `offload` says.
    """

    def __init__(self, path: Path | None, most: int, offload: Offload | None = None) -> None:
        self.path = path
        self._threads = trio.CapacityLimiter(_THREADS)
        self._offload = offload
        self.most = most
        self.used = 0
        """Bytes that files take now, or soon will."""

    def take(self, nbytes: int) -> bool:
        """Take room, to be given back. False when there is not as much."""
        if self.used + nbytes > self.most:
            return False
        self.used += nbytes
        return True

    def give(self, nbytes: int) -> None:
        """Give room back."""
        self.used -= nbytes

    def make(self) -> BinaryIO:
        """Return a new file. Touches the disk: for `on_disk`. Raises OSError."""
        # Nameless from the start where the file system can do that, else unlinked at once.
        return cast("BinaryIO", tempfile.TemporaryFile(dir=self.path, buffering=0))

    def file(self) -> "SpoolFile":
        """Return an empty file. Nothing is on disk before its first piece."""
        return SpoolFile(self)

    async def on_disk(self, work: Callable[[], T], *, leave: bool = False) -> T:
        """Do something that may wait for the disk; with `leave` a cancelled caller does not wait for its end. Raises OSError."""
        if self._offload is not None:
            return await self._offload(PIECE, work)
        return await trio.to_thread.run_sync(work, limiter=self._threads, abandon_on_cancel=leave)


class SpoolFile:
    """The pieces of one blob. `close` it; until then its pieces count against the spool."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._file: BinaryIO | None = None
        self._making = threading.Lock()
        self._places: dict[int, int] = {}
        self._vacant: list[int] = []
        self._places_made = 0
        self._reserved = 0

    def __contains__(self, index: int) -> bool:
        """Whether piece `index` is here."""
        return index in self._places

    def reserve(self) -> bool:
        """Take room for one piece, for `put` or `release`. False when the spool is full."""
        if not self._spool.take(PIECE):
            return False
        self._reserved += 1
        return True

    def release(self, count: int) -> None:
        """Give room back that was reserved and not used."""
        self._reserved -= count
        self._spool.give(PIECE * count)

    async def put(self, index: int, data: bytes | memoryview) -> None:
        """Keep a piece in reserved room. Raises OSError when the disk does not take it; the room is still reserved then."""
        place = self._vacant.pop() if self._vacant else self._new_place()
        try:
            # Not to be abandoned: a late write would hit whatever has the place by then.
            await self._spool.on_disk(lambda: self._write(place, data))
        except BaseException:
            self._vacant.append(place)
            raise
        self._places[index] = place
        self._reserved -= 1

    async def get(self, index: int, length: int) -> bytes | None:
        """Return a piece of `length` bytes as the disk has it, None when it is not (or no longer) here. Raises OSError."""
        place, file = self._places.get(index), self._file
        if place is None or file is None:
            return None
        number = file.fileno()
        data = await self._spool.on_disk(lambda: os.pread(number, length, place * PIECE), leave=True)
        # Its place may have been given away meanwhile.
        return data if self._places.get(index) == place else None

    def drop(self, index: int) -> None:
        """Forget a piece; its room is free at once."""
        self._vacant.append(self._places.pop(index))
        self._spool.give(PIECE)

    async def close(self) -> None:
        """Forget everything and give the disk back."""
        self.release(self._reserved)
        self._spool.give(PIECE * len(self._places))
        self._places.clear()
        file, self._file = self._file, None
        if file is not None:
            # The kernel frees the blocks of a large file in the call that closes it.
            await self._spool.on_disk(file.close)

    def _new_place(self) -> int:
        self._places_made += 1
        return self._places_made - 1

    def _write(self, place: int, data: bytes | memoryview) -> None:
        with self._making:
            if self._file is None:
                self._file = self._spool.make()
        written = os.pwrite(self._file.fileno(), data, place * PIECE)
        if written != len(data):
            raise OSError(f"the disk took {written} of {len(data)} bytes")
