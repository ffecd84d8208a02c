"""Pieces on disk, in a folder of bounded size: one nameless file per blob, so that a crash leaves nothing behind."""

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
    """At most `most` bytes for the pieces of all blobs together, in the folder `path` (None: the system's temporary one).

    The disk is touched in a few threads of its own, or where `offload` says.
    """

    def __init__(self, path: Path | None, most: int, offload: Offload | None = None) -> None:
        self.path = path
        self._threads = trio.CapacityLimiter(_THREADS)
        self._offload = offload
        self.most = most
        self.used = 0
        """Bytes that pieces take now, or soon will; each counts as a whole one."""

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
        if self._spool.used + PIECE > self._spool.most:
            return False
        self._spool.used += PIECE
        self._reserved += 1
        return True

    def release(self, count: int) -> None:
        """Give room back that was reserved and not used."""
        self._reserved -= count
        self._spool.used -= PIECE * count

    async def put(self, index: int, data: bytes) -> None:
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
        self._spool.used -= PIECE

    async def close(self) -> None:
        """Forget everything and give the disk back."""
        self.release(self._reserved)
        self._spool.used -= PIECE * len(self._places)
        self._places.clear()
        file, self._file = self._file, None
        if file is not None:
            # The kernel frees the blocks of a large file in the call that closes it.
            await self._spool.on_disk(file.close)

    def _new_place(self) -> int:
        self._places_made += 1
        return self._places_made - 1

    def _write(self, place: int, data: bytes) -> None:
        with self._making:
            if self._file is None:
                # Nameless from the start where the file system can do that, else unlinked at once.
                self._file = cast("BinaryIO", tempfile.TemporaryFile(dir=self._spool.path, buffering=0))  # noqa: SIM115 - closed by close()
        written = os.pwrite(self._file.fileno(), data, place * PIECE)
        if written != len(data):
            raise OSError(f"the disk took {written} of {len(data)} bytes")
