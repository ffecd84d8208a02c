"""An upload's bytes on this node's disk until its commit, so that they can be written once more when their store dies.

A help, not a promise: when the room is used up, or the disk fails, an upload goes on without; so does one that another node takes
over. Bytes go to the disk in batches, straight from the chunks that the writer holds, too: nothing is copied in memory.
"""

import os
from collections.abc import Sequence
from typing import BinaryIO

import structlog
import trio

from replication.model import PIECE
from replication.spool import Spool

_log = structlog.get_logger("antipode.uploads")

_BATCH = 1 << 20
_MOST_CHUNKS = 512
"""In one batch; the kernel takes 1024 (IOV_MAX)."""

_FORSAKEN_SECONDS = 60.0
"""Without a request, after which an upload's room goes to others that have none."""

_CLOSE_SECONDS = 5.0


class NotKept(Exception):
    """An upload's bytes are not on this node's disk, or cannot be read from there."""


class UploadSpool:
    """The uploads that are kept on this node's disk, in the room of one spool."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._kept: set[KeptUpload] = set()

    @property
    def used(self) -> int:
        """Bytes of room that uploads take."""
        return self._spool.used

    def keep(self) -> "KeptUpload | None":
        """Return where a new upload's bytes go, None where there is no room for any. Nothing is on disk before its first byte."""
        if self._spool.most < PIECE:
            return None
        kept = KeptUpload(self, self._spool)
        self._kept.add(kept)
        return kept

    def forget(self, kept: "KeptUpload") -> None:
        """Forget an upload that is not kept any more. For `KeptUpload.close`."""
        self._kept.discard(kept)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Own the files for as long as the node runs, and close them at its end. Ends by cancellation."""
        task_status.started()
        try:
            await trio.sleep_forever()
        finally:
            for kept in list(self._kept):
                await kept.close()

    async def make_room(self) -> bool:
        """Take the room of the upload that has been without a request for longest; False if none has been for long."""
        idle = [kept for kept in self._kept if kept.room and not kept.busy]
        oldest = min(idle, key=lambda kept: kept.used_at, default=None)
        if oldest is None or trio.current_time() - oldest.used_at < _FORSAKEN_SECONDS:
            return False
        await oldest.close()
        return True


class KeptUpload:
    """The bytes of one upload from its first on, as far as they have come. `close` it.

    `whole` is false once some could not be kept: then all are gone, and the upload goes on without.
    """

    def __init__(self, uploads: UploadSpool, spool: Spool) -> None:
        self._uploads = uploads
        self._spool = spool
        self._file: BinaryIO | None = None
        self._pending: list[bytes] = []
        self._pending_size = 0
        self._written = 0
        self.room = 0
        self.whole = True
        self.busy = False
        """Whether a request writes it now."""
        self.used_at = trio.current_time()

    @property
    def size(self) -> int:
        """Bytes that are kept."""
        return self._written + self._pending_size

    async def append(self, data: bytes) -> None:
        """Keep the next bytes, if that can be. They are when this is cancelled, too."""
        if not self.whole:
            return
        self._pending.append(data)
        self._pending_size += len(data)
        if self._pending_size >= _BATCH or len(self._pending) >= _MOST_CHUNKS:
            await self.flush()

    async def flush(self) -> None:
        """Write what is still in memory, so that it is not held there."""
        if not self.whole or not self._pending:
            return
        while self.room < self.size:
            if self._spool.take(PIECE):
                self.room += PIECE
            elif not await self._uploads.make_room():
                await self._give_up("the spool is full")
                return
        try:
            await self._spool.on_disk(lambda: self._write(self._pending, self._written))
        except OSError as error:
            await self._give_up(str(error))
            return
        self._written = self.size
        self._pending, self._pending_size = [], 0

    async def read(self, start: int, most: int) -> bytes:
        """Return up to `most` bytes from `start`, as the disk has them. Raises NotKept."""
        await self.flush()
        file = self._file
        if not self.whole or file is None:
            raise NotKept("the spool gave it up")
        length = min(most, self._written - start)
        try:
            data = await self._spool.on_disk(lambda: os.pread(file.fileno(), length, start))
        except OSError as error:
            raise NotKept(str(error)) from error
        if len(data) != length:
            raise NotKept(f"the disk has {len(data)} of {length} bytes")
        return data

    async def close(self) -> None:
        """Forget everything and give the disk back."""
        self.whole = False
        self._uploads.forget(self)
        self._pending, self._pending_size, self._written = [], 0, 0
        self._spool.give(self.room)
        self.room = 0
        file, self._file = self._file, None
        if file is not None:
            # The kernel frees the blocks of a large file in the call that closes it.
            with trio.CancelScope(shield=True, deadline=trio.current_time() + _CLOSE_SECONDS):
                await self._spool.on_disk(file.close)

    async def _give_up(self, reason: str) -> None:
        _log.warning("upload not kept on disk: it would not survive its store", reason=reason, size=self.size)
        await self.close()

    def _write(self, chunks: Sequence[bytes], at: int) -> None:
        if self._file is None:
            self._file = self._spool.make()
        expected = sum(len(chunk) for chunk in chunks)
        written = os.pwritev(self._file.fileno(), chunks, at)
        if written != expected:
            raise OSError(f"the disk took {written} of {expected} bytes")
