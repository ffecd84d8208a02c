"""A folder on this machine as a store: durable, for one host, the demo and tests."""

import errno
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

import trio
from attrs import define, field, frozen

from .contract import (
    MIB,
    EngineError,
    EngineRefused,
    EngineUnavailable,
    KeyPage,
    Limits,
    ObjectFacts,
    ObjectReader,
    OpenParts,
    Part,
    PartsMissing,
    Seen,
)
from .local_files import Files, OpenFile
from .trace import waiting

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

_THREADS = 8
_REFUSALS = frozenset(
    {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EEXIST}
)


@frozen
class LocalArguments:
    """What the local engine needs to know."""

    kind: str
    storage_path: Path
    limits: Limits = field(factory=Limits)


@define(eq=False)
class LocalEngine:
    """A folder as an `Engine`. Made by `open_local`.

    A disk that hangs costs the caller its deadline and one of a few worker threads, which ends when the disk answers.
    """

    _arguments: LocalArguments
    _files: Files
    _threads: trio.CapacityLimiter = field(factory=partial(trio.CapacityLimiter, _THREADS))

    @property
    def kind(self) -> str:
        """The class name that the configuration used."""
        return self._arguments.kind

    @property
    def prefix(self) -> str:
        """Nothing: the storage path is the folder itself."""
        return ""

    @property
    def part_minimum(self) -> int:
        """One byte: parts of any size go together."""
        return 1

    @property
    def presigns(self) -> bool:
        """False: nobody but this process serves these files."""
        return False

    def presign(self, key: str, *, now: float, expires: int, method: str = "GET") -> str:
        """Raise NotImplementedError."""
        raise NotImplementedError("a local folder has no URLs: presigns is false")

    async def head(self, key: str) -> ObjectFacts:
        """Return the object's size. Raises ObjectMissing."""
        return await self._run(self._read_limit, self._files.head, key)

    @asynccontextmanager
    async def open(self, key: str, start: int = 0, length: int | None = None) -> AsyncIterator[ObjectReader]:
        """Open the bytes [start, start + length). Raises ObjectMissing on entry."""
        opened: list[OpenFile] = []
        try:
            # The list keeps the file for the clean-up where a cancellation comes between the thread and us.
            await self._run(self._read_limit, lambda: opened.append(self._files.open(key)))
            left = max(0, opened[0].size - start)
            yield _Reader(self, opened[0], start, left if length is None else min(length, left))
        finally:
            for file in opened:
                file.close()

    async def read(self, key: str, start: int, length: int) -> bytes:
        """Return exactly these bytes. Raises ObjectMissing; EngineUnavailable if there are fewer."""
        data = await self._run(self._read_limit, self._files.read, key, start, length)
        if len(data) != length:
            raise EngineUnavailable(f"{key}: {len(data)} bytes from {start} on, not {length}")
        return data

    async def put(self, key: str, data: bytes, sha256: str | None = None) -> ObjectFacts:  # noqa: ARG002 - nothing is signed
        """Write a whole object."""
        return await self._run(self._write_limit, self._files.put, key, data)

    async def begin_parts(self, key: str) -> str:
        """Begin a multi-part write and return its id."""
        return await self._run(self._write_limit, self._files.begin, key)

    async def put_part(self, key: str, upload: str, number: int, data: bytes) -> Part:
        """Write one part. Raises PartsMissing."""
        return await self._run(self._write_limit, self._files.put_part, key, upload, number, data)

    async def list_parts(self, key: str, upload: str) -> Sequence[Part]:
        """Return all parts by number. Raises PartsMissing."""
        return await self._run(self._read_limit, self._files.list_parts, key, upload)

    async def finish_parts(self, key: str, upload: str, parts: Sequence[Part]) -> ObjectFacts:
        """Make the parts the object. Raises PartsMissing."""
        if not parts:
            raise PartsMissing(f"{key}: a multi-part write cannot be finished without parts")
        # Parts out of order are copied: allow each the time of one.
        return await self._run(self._write_limit * len(parts), self._files.finish, key, upload, parts)

    async def abandon_parts(self, key: str, upload: str | None = None) -> None:
        """Forget a multi-part write, or every open one of this key."""
        await self._run(self._write_limit, self._files.abandon, key, upload)

    async def list_open_parts(self, prefix: str) -> Sequence[OpenParts]:
        """Return the open multi-part writes under a prefix."""
        return await self._run(self._read_limit, self._files.list_open, prefix)

    async def delete(self, key: str) -> None:
        """Delete the object."""
        await self._run(self._write_limit, self._files.delete, key)

    async def list_keys(self, prefix: str, after: str | None = None, most: int = 1000) -> KeyPage:
        """Return one page of keys."""
        return await self._run(self._write_limit, self._files.list_keys, prefix, after, most)

    async def prepare(self) -> None:
        """Make the folders. Raises EngineRefused, EngineUnavailable."""
        await self._run(self._write_limit, self._files.prepare)

    async def read_open(self, file: OpenFile, offset: int, most: int) -> bytes:
        """Read from an open file, for this engine's readers."""
        return await self._run(self._read_limit, file.read, offset, most)

    async def read_into(self, file: OpenFile, offset: int, most: int, buffer: memoryview, seen: Seen) -> int:
        """Fill a buffer from the next `most` bytes of an open file as often as `seen` says, for this engine's readers."""

        def work() -> int:
            received, more = 0, True
            while more and received < most:
                part = buffer[: most - received]
                if file.read_into(offset + received, part) < len(part):
                    raise EngineUnavailable("the file was cut short while it was read")
                received += len(part)
                more = seen(part) is True
            return received

        return await self._run(self._read_limit, work)

    @property
    def _read_limit(self) -> float:
        return self._arguments.limits.read

    @property
    def _write_limit(self) -> float:
        return self._arguments.limits.write

    async def _run(self, deadline: float, fn: Callable[..., Result], *args: object) -> Result:
        """Run one blocking function in a worker thread, leave it there after `deadline` seconds, translate its errors."""
        try:
            with waiting("store"), trio.fail_after(deadline):
                return await trio.to_thread.run_sync(fn, *args, abandon_on_cancel=True, limiter=self._threads)
        except trio.TooSlowError as error:
            raise EngineUnavailable(f"the disk did not answer within {deadline:g} s") from error
        except OSError as error:
            text = f"{error.filename or self._files.root}: {error.strerror or error}"
            raise (EngineRefused if error.errno in _REFUSALS else EngineUnavailable)(text) from error


@define(eq=False)
class _Reader:
    """Reads ahead to a MiB, because a thread hop costs more than the bytes."""

    _engine: LocalEngine
    _file: OpenFile
    _offset: int
    _left: int
    _ahead: bytes = b""

    async def receive(self, most: int) -> bytes:
        """Return exactly `most` bytes, fewer only at the end."""
        wanted = min(most, self._left)
        if wanted <= 0:
            return b""
        if len(self._ahead) < wanted:
            have = len(self._ahead)
            ask = min(max(wanted, MIB), self._left) - have
            fresh = await self._engine.read_open(self._file, self._offset + have, ask)
            if len(fresh) < ask:
                raise EngineUnavailable("the file was cut short while it was read")
            self._ahead = self._ahead + fresh if have else fresh
        else:
            await trio.lowlevel.checkpoint()
        data = self._ahead if len(self._ahead) == wanted else self._ahead[:wanted]
        self._ahead = self._ahead[wanted:]
        self._offset += wanted
        self._left -= wanted
        return data

    async def receive_into(self, buffer: memoryview, seen: Seen) -> int:
        """Fill the buffer, as the contract has it. Reads nothing ahead: a buffer is large, or the disk slow."""
        if self._left <= 0:
            return 0
        # What was read ahead is read once more: nobody mixes both ways on one reader.
        self._ahead = b""
        got = await self._engine.read_into(self._file, self._offset, self._left, buffer, seen)
        self._offset += got
        self._left -= got
        return got


@asynccontextmanager
async def open_local(arguments: LocalArguments) -> AsyncIterator[LocalEngine]:
    """Open an engine on a folder, which is made if it can be. If not, the node starts all the same and each call says so."""
    engine = LocalEngine(arguments, Files(arguments.storage_path))
    try:
        await engine.prepare()
    except EngineError as error:
        logger.warning("%s %s: %s", arguments.kind, arguments.storage_path, error)
    yield engine
