"""Trio-native calls on one bucket, with errors in our own words.

Objects' bytes go by threads (`s3_bytes.py`). All else, and what a store wants sent to another endpoint or region, goes by the
asyncio library (`s3_library.py`), one crossing each.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import TypeVar, TypeVarTuple
from urllib.parse import quote

import trio
from attrs import define, field

from .contract import (
    MIB,
    CannotStream,
    ChunkMaker,
    EngineRefused,
    EngineUnavailable,
    KeyPage,
    ObjectFacts,
    OpenParts,
    Part,
    Seen,
)
from .crossing import cross
from .presign import STREAMED, UNSIGNED, Credentials
from .s3_arguments import S3Arguments, StaticKeys
from .s3_bytes import ByteLane, Elsewhere, Incoming, open_lane
from .s3_errors import translate
from .s3_inflow import ByteInflow
from .s3_library import FAILURES, Library, bare, open_library
from .s3_stream import Streamed
from .trace import waiting

Result = TypeVar("Result")
Arguments = TypeVarTuple("Arguments")

_ON_PARTS = frozenset({"PUT part", "GET parts", "POST upload", "DELETE upload"})

SLOWEST = 64 * 1024
"""Bytes per second. A store that sends a body more slowly than this on the whole counts as silent."""

_AGAIN = 600.0
"""Seconds until a store that refused a body signed in chunks, or with an MD5, is sent another."""

SLOWEST_COPY = 16 * MIB
"""Likewise for a store that copies its own bytes."""


@define(eq=False)
class S3Client:
    """Calls on one bucket. Made by `open_client`; safe for concurrent use.

    Every call raises EngineUnavailable, EngineRefused, or what its docstring names, within the limits of the arguments.
    """

    _arguments: S3Arguments
    _library: Library
    _lane: ByteLane
    _no_chunks_until: float = field(default=float("-inf"), init=False)
    _no_md5_until: float = field(default=float("-inf"), init=False)

    def credentials(self) -> Credentials | None:
        """Return what the last request was signed with; None before the first where that is not in the configuration."""
        return self._library.keys.current

    async def head(self, key: str) -> ObjectFacts:
        """Return an object's facts. Raises ObjectMissing."""
        return await self._call("HEAD", key, self._limits_read, self._library.head, key)

    async def read(self, key: str, start: int, length: int) -> bytes:
        """Return up to `length` bytes from `start`, fewer only where the object ends. Raises ObjectMissing."""
        deadline = self._limits_read + length / SLOWEST
        if length == 0:
            await self.head(key)
            return b""
        keys = await self._fresh_keys()
        with self._translated("GET", key):
            try:
                return await self._lane.read(keys, key, start, length, deadline)
            except Elsewhere:
                pass
        return await self._call("GET", key, deadline, self._library.read, key, start, length)

    async def open(self, key: str, start: int, length: int | None) -> "S3Body":
        """Open bytes of an object; the caller closes the body. Raises ObjectMissing."""
        if length == 0:
            await self.head(key)
            return S3Body(0, _nothing, _close_nothing)
        keys = await self._fresh_keys()
        with self._translated("GET", key):
            try:
                incoming = await self._lane.get(keys, key, start, length, self._limits_read)
            except Elsewhere:
                pass
            else:
                return S3Body(
                    incoming.size,
                    partial(self._receive_more, key, incoming),
                    incoming.close,
                    partial(self._receive_into, key, incoming),
                )
        stream, size = await self._call("GET", key, self._limits_read, self._library.open, key, start, length)

        async def receive(wanted: int) -> bytes:
            deadline = self._arguments.limits.read + wanted / SLOWEST
            return await self._call("GET", key, deadline, self._library.receive, stream, wanted)

        return S3Body(size, receive, _close_nothing if stream is None else stream.close)

    async def _receive_more(self, key: str, incoming: Incoming, wanted: int) -> bytes:
        with self._translated("GET", key):
            return await incoming.receive(wanted, self._arguments.limits.read + wanted / SLOWEST)

    async def _receive_into(self, key: str, incoming: Incoming, buffer: memoryview, seen: Seen) -> int:
        with self._translated("GET", key):
            return await incoming.receive_into(buffer, seen, self._arguments.limits.read + len(buffer) / SLOWEST)

    async def put(self, key: str, data: bytes, sha256: str | None = None) -> ObjectFacts:
        """Write a whole object."""
        headers = {"x-amz-server-side-encryption": "AES256"} if self._arguments.encrypt else {}
        answer = await self._send("PUT", key, "", headers, data, sha256)
        if answer is not None:
            return ObjectFacts(len(data), bare(answer.get("etag")))
        return await self._call("PUT", key, self._limits_write, self._library.put, key, data)

    async def _send(
        self, verb: str, key: str, query: str, headers: Mapping[str, str], data: bytes, sha256: str | None = None
    ) -> Mapping[str, str] | None:
        """Send a body by the byte lane; return the headers of the answer, None where the library has to."""
        keys = await self._fresh_keys()
        with self._translated(verb, key):
            try:
                return await self._lane.put(keys, key, query, headers, data, sha256, self._limits_write)
            except Elsewhere:
                return None

    async def inflow(self, key: str, start: int, length: int, silence: float, *, whole: bool) -> "S3Inflow":
        """Return bytes of an object for a worker thread of the caller."""
        keys = await self._fresh_keys()
        where = f"GET {self._arguments.bucket}/{key}"
        return S3Inflow(where, ByteInflow(self._lane, keys, key, start, length, silence, whole))

    async def put_stream(
        self, key: str, size: int, chunks: ChunkMaker, patience: float, sha256: str | None
    ) -> ObjectFacts:
        """Write a whole object while it is made."""
        headers = {"x-amz-server-side-encryption": "AES256"} if self._arguments.encrypt else {}
        payload = (sha256 or STREAMED) if self._plain else UNSIGNED
        body = Streamed(size, chunks, payload, by_md5=trio.current_time() >= self._no_md5_until)
        answer = await self._stream("PUT", key, "", headers, body, patience)
        return ObjectFacts(size, bare(answer.get("etag")))

    async def put_part_stream(
        self, key: str, upload: str, number: int, size: int, chunks: ChunkMaker, patience: float
    ) -> Part:
        """Write one part while it is made. Raises PartsMissing."""
        query = f"partNumber={number}&uploadId={quote(upload, safe='~')}"
        body = Streamed(size, chunks, STREAMED if self._plain else UNSIGNED)
        answer = await self._stream("PUT part", key, query, {}, body, patience)
        return Part(number, size, bare(answer.get("etag")) or "")

    async def _stream(
        self, verb: str, key: str, query: str, headers: Mapping[str, str], body: Streamed, patience: float
    ) -> Mapping[str, str]:
        if body.payload == STREAMED and trio.current_time() < self._no_chunks_until:
            raise CannotStream(f"{verb} {self._arguments.bucket}/{key}: the store refused a body signed in chunks")
        keys = await self._fresh_keys()
        try:
            with self._translated(verb, key):
                return await self._lane.stream(keys, key, query, headers, body, self._limits_write + patience)
        except Elsewhere as error:
            raise CannotStream(f"{verb} {self._arguments.bucket}/{key}: the store names another endpoint") from error
        except EngineRefused as error:
            # If the store meant something else than the way in which the body is to be compared, it will say so again.
            if body.md5 is not None:
                # What stands for a tag in the source is not always the MD5, whatever it looks like.
                self._no_md5_until = trio.current_time() + _AGAIN
            elif body.payload == STREAMED:
                # Not every store knows this way to sign.
                self._no_chunks_until = trio.current_time() + _AGAIN
            else:
                raise
            raise CannotStream(str(error)) from error

    @property
    def _plain(self) -> bool:
        return self._arguments.endpoint.startswith("http://")

    async def begin(self, key: str) -> str:
        """Begin a multi-part write and return its id."""
        return await self._call("POST uploads", key, self._limits_write, self._library.begin, key)

    async def put_part(self, key: str, upload: str, number: int, data: bytes) -> Part:
        """Write one part. Raises PartsMissing."""
        query = f"partNumber={number}&uploadId={quote(upload, safe='~')}"
        answer = await self._send("PUT part", key, query, {}, data)
        if answer is not None:
            return Part(number, len(data), bare(answer.get("etag")) or "")
        return await self._call("PUT part", key, self._limits_write, self._library.put_part, key, upload, number, data)

    async def copy(self, bucket: str, source: str, key: str, size: int) -> ObjectFacts:
        """Copy an object of another bucket of this service. Raises ObjectMissing."""
        deadline = self._limits_write + size / SLOWEST_COPY
        return await self._call("PUT copy", key, deadline, self._library.copy, bucket, source, key)

    async def copy_part(
        self, bucket: str, source: str, key: str, upload: str, number: int, start: int, length: int
    ) -> Part:
        """Copy a range of such an object as a part. Raises PartsMissing."""
        deadline = self._limits_write + length / SLOWEST_COPY
        return await self._call(
            "PUT part", key, deadline, self._library.copy_part, bucket, source, key, upload, number, start, length
        )

    async def list_parts(self, key: str, upload: str) -> tuple[Part, ...]:
        """Return all parts by number. Raises PartsMissing."""
        return await self._call("GET parts", key, 3 * self._limits_read, self._library.list_parts, key, upload)

    async def finish(self, key: str, upload: str, parts: Sequence[Part]) -> str | None:
        """Complete a multi-part write and return the object's entity tag. Raises PartsMissing."""
        # A store assembles thousands of parts while we wait; Amazon documents minutes.
        deadline = self._limits_write + 0.05 * len(parts)
        return await self._call("POST upload", key, deadline, self._library.finish, key, upload, parts)

    async def abandon(self, key: str, upload: str) -> None:
        """Abort a multi-part write. Raises PartsMissing if there is none."""
        await self._call("DELETE upload", key, self._limits_read, self._library.abandon, key, upload)

    async def list_open(self, prefix: str) -> tuple[OpenParts, ...]:
        """Return all open multi-part writes under a prefix."""
        return await self._call("GET uploads", prefix, 6 * self._limits_read, self._library.list_open, prefix)

    async def delete(self, key: str) -> None:
        """Delete an object; there need not be one."""
        await self._call("DELETE", key, self._limits_read, self._library.delete, key)

    async def list_keys(self, prefix: str, after: str | None, most: int) -> KeyPage:
        """Return one page of keys."""
        return await self._call("GET list", prefix, self._limits_read, self._library.list_keys, prefix, after, most)

    @property
    def _limits_read(self) -> float:
        return self._arguments.limits.connect + self._arguments.limits.read

    @property
    def _limits_write(self) -> float:
        return self._arguments.limits.connect + self._arguments.limits.write

    async def _call(
        self,
        verb: str,
        key: str,
        deadline: float,
        fn: Callable[[*Arguments], Awaitable[Result]],
        *args: *Arguments,
    ) -> Result:
        """Cross once and translate what comes back."""
        with self._translated(verb, key):
            result = await cross(fn, *args, deadline=deadline, unavailable=EngineUnavailable)
        return result  # noqa: RET504 - here, because a context manager may swallow errors as far as mypy knows

    async def _fresh_keys(self) -> Credentials:
        """Return what to sign a request with, fetched or renewed where that is needed."""
        if isinstance(self._arguments.keys, StaticKeys) and (current := self._library.keys.current) is not None:
            return current
        await self._call("credentials", "", self._limits_read, self._library.keys.get_frozen_credentials)
        current = self._library.keys.current
        if current is None:
            raise EngineUnavailable(f"{self._arguments.bucket}: the credentials have expired")
        return current

    @contextmanager
    def _translated(self, verb: str, key: str) -> Iterator[None]:
        """Say in the contract's words what goes wrong, and where."""
        where = f"{verb} {self._arguments.bucket}/{key}"
        try:
            with waiting("store"):
                yield
        except EngineUnavailable as error:
            raise EngineUnavailable(f"{where}: {error}") from error
        except FAILURES as error:
            raise translate(where, error, of_parts=verb in _ON_PARTS) from error


@define(eq=False)
class S3Body:
    """An open body of an object: `size` bytes are left to receive."""

    size: int
    _receive: Callable[[int], Awaitable[bytes]]
    close: Callable[[], None]
    """Give the connection back to the pool after the last byte; before that, close it. Never waits."""
    _receive_into: Callable[[memoryview, Seen], Awaitable[int]] | None = field(default=None)
    """None where the library reads."""

    async def receive(self, most: int) -> bytes:
        """Return exactly `most` bytes, fewer at the end; one crossing, however short the library's own reads are."""
        wanted = min(most, self.size)
        if wanted <= 0:
            return b""
        data = await self._receive(wanted)
        self.size -= wanted
        return data

    async def receive_into(self, buffer: memoryview, seen: Seen) -> int:
        """Fill the buffer, as the contract has it; one crossing."""
        if self._receive_into is not None and self.size > 0:
            got = await self._receive_into(buffer, seen)
            self.size -= got
            return got
        got, more = 0, True
        while more and self.size > 0:
            part = buffer[: self.size]
            part[:] = await self.receive(len(part))
            got += len(part)
            more = await trio.to_thread.run_sync(seen, part) is True
        return got


@define(eq=False)
class S3Inflow:
    """Bytes of an object on their way into a worker thread, with the contract's errors."""

    _where: str
    _inflow: ByteInflow

    @property
    def md5(self) -> str | None:
        """Return the MD5 of a whole object."""
        return self._inflow.md5

    def receive_into(self, buffer: memoryview) -> None:
        """Fill a buffer with the next bytes. Raises ObjectMissing and CannotStream."""
        try:
            self._inflow.receive_into(buffer)
        except Elsewhere as error:
            raise CannotStream(f"{self._where}: the store names another endpoint") from error
        except FAILURES as error:
            raise translate(self._where, error) from error

    def close(self) -> None:
        """Be done with it."""
        self._inflow.close()

    def stop(self) -> None:
        """End what the thread waits for."""
        self._inflow.stop()


async def _nothing(_: int) -> bytes:
    return b""


def _close_nothing() -> None:
    """Do nothing: there is no stream."""


@asynccontextmanager
async def open_client(arguments: S3Arguments) -> AsyncIterator[S3Client]:
    """Open the client of one bucket without any network I/O, and close its connections at the end.

    Must be entered below `open_bridge`.
    """
    async with open_library(arguments) as library:
        with open_lane(arguments) as lane:
            yield S3Client(arguments, library, lane)
