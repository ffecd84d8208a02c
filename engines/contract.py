"""The contract every kind of store keeps: the `Engine` protocol, its values and its errors.

An engine moves bytes between this process and one store. It knows nothing of locations, regions, digests or SQL. Rules:

1. Keys are opaque strings that the caller chose and never uses twice. `Engine.prefix` is where the caller must put them.
2. Every method either does what it says or raises an `EngineError` within its own deadlines: no call waits for ever.
3. A call that was cancelled or failed may or may not have happened. `delete` and `abandon_parts` are safe to repeat;
   a key that may have been written is deleted by its owner.
4. What `put`, `put_part` and `finish_parts` acknowledge is durable as far as the store promises durability.
5. Engines retry nothing that changes the store except where the store itself documents the repeat as safe (a part of the
   same number and bytes). Reads are retried once on a connection that was found dead. Choosing another store is not theirs.
"""

from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol, runtime_checkable

from attrs import field, frozen

MIB = 1 << 20


class EngineError(Exception):
    """A store did not do what was asked. `str(error)` names the operation and the store's own words, never a secret."""


class ObjectMissing(EngineError):
    """The store answered that it has no object under this key."""


class PartsMissing(EngineError):
    """The store does not know this multi-part write (any more), or refused the list of parts it was finished with."""


class EngineUnavailable(EngineError):
    """The store did not answer in time, could not be reached, or answered that it is overloaded or broken."""


class CannotStream(EngineError):
    """The store sends its callers elsewhere, where only the methods that take a whole body in memory can follow."""


class EngineRefused(EngineError):
    """The store answered and will refuse again: wrong credentials, no such bucket, not allowed."""


@frozen
class ObjectFacts:
    """What a store says about one object: its size in bytes and, where it has one, its entity tag without quotes."""

    size: int
    etag: str | None = None
    modified: float | None = None
    """When it was written, POSIX seconds by the store's clock; only `head` knows it."""
    found: bool = False
    """`finish_parts` found the write ended and an object of the right size: of these parts, unless another call ended it."""


@frozen
class Part:
    """One part of a multi-part write as the store acknowledged it. Numbers count from 1 and may have gaps."""

    number: int
    size: int
    etag: str


@frozen
class OpenParts:
    """A multi-part write that was begun and neither finished nor abandoned."""

    key: str
    upload: str


@frozen
class KeyPage:
    """One page of a listing, in the store's order. `after` is where the next page begins, None at the end."""

    keys: tuple[str, ...]
    after: str | None


@frozen
class Limits:
    """How long a store may take. Seconds; each is a real timeout, not only a Trio deadline."""

    connect: float = field(default=3.0)
    read: float = field(default=10.0)
    """Longest silence while an answer or a piece of a body is awaited."""
    write: float = field(default=30.0)
    """Longest time for one part or one small object to be taken in and acknowledged."""


Seen = Callable[[memoryview], bool | None]
"""Given bytes that have come, in order, each byte once; may be called in a worker thread. True: fill the buffer once more."""


class ObjectReader(Protocol):
    """An object being read from some offset on. Closed by the context manager that yielded it."""

    async def receive(self, most: int) -> bytes:
        """Return exactly `most` bytes, fewer only at the end of the range, b"" after it.

        Raises EngineUnavailable when the store breaks off early or is silent for longer than its read limit.
        """
        ...

    async def receive_into(self, buffer: memoryview, seen: Seen) -> int:
        """Fill a buffer; return how many bytes came, fewer than it holds only at the end of the range, 0 after it.

        `seen` is given them, and while it says so the buffer is filled again with what comes next: work on them there takes no way
        to another thread and back. After an error or a cancellation a thread may go on for a moment, and with it `seen` and what
        is written into the buffer. Raises what `receive` raises.
        """
        ...


@runtime_checkable
class Engine(Protocol):
    """One store. Safe for concurrent use by any number of tasks."""

    @property
    def kind(self) -> str:
        """The class name that the configuration used, for messages."""
        ...

    @property
    def prefix(self) -> str:
        """What every key written through this engine must start with: "" or "some/path/" (with the slash)."""
        ...

    @property
    def part_minimum(self) -> int:
        """The smallest size in bytes of every part but the last."""
        ...

    @property
    def presigns(self) -> bool:
        """Whether `presign` can be called."""
        ...

    def presign(self, key: str, *, now: float, expires: int, method: str = "GET") -> str:
        """Return a URL that lets anyone read this object for `expires` seconds from `now` (POSIX seconds).

        Pure: no I/O, no clock, the same arguments give the same URL. Raises NotImplementedError where `presigns` is false.
        """
        ...

    async def head(self, key: str) -> ObjectFacts:
        """Return the object's facts. Raises ObjectMissing."""
        ...

    def open(self, key: str, start: int = 0, length: int | None = None) -> AbstractAsyncContextManager[ObjectReader]:
        """Open the bytes [start, start + length), to the end where `length` is None. Raises ObjectMissing on entry."""
        ...

    async def read(self, key: str, start: int, length: int) -> bytes:
        """Return exactly these bytes in one go (one crossing). Raises ObjectMissing; EngineUnavailable if it got fewer."""
        ...

    async def put(self, key: str, data: bytes, sha256: str | None = None) -> ObjectFacts:
        """Write a whole small object and return when the store has acknowledged it.

        `sha256` is the data's own, in hex, where the caller knows it already: hashing a body once more to sign it takes as long
        as sending it. A store that compares refuses a body with another one.
        """
        ...

    async def begin_parts(self, key: str) -> str:
        """Begin a multi-part write and return the store's id for it."""
        ...

    async def put_part(self, key: str, upload: str, number: int, data: bytes) -> Part:
        """Write one part. The same number again replaces it. Raises PartsMissing if the write is not open."""
        ...

    async def list_parts(self, key: str, upload: str) -> Sequence[Part]:
        """Return all parts the store has, by number. Raises PartsMissing if the write is not open."""
        ...

    async def finish_parts(self, key: str, upload: str, parts: Sequence[Part]) -> ObjectFacts:
        """Make the parts, in this order, the object `key`. Repeating it after success succeeds, and says so (`found`).

        Raises PartsMissing when a part is unknown, too small or not what is there under its number, when the write has others that
        are not named (some stores leave those out), or it is gone and no object of the right size is there. What was refused stays
        open.
        """
        ...

    async def abandon_parts(self, key: str, upload: str | None = None) -> None:
        """Forget a multi-part write and its parts; with None every open one of this key. Succeeds if there is none."""
        ...

    async def list_open_parts(self, prefix: str) -> Sequence[OpenParts]:
        """Return the multi-part writes that are open under keys that start with `prefix`."""
        ...

    async def delete(self, key: str) -> None:
        """Delete the object. Succeeds if there is none."""
        ...

    async def list_keys(self, prefix: str, after: str | None = None, most: int = 1000) -> KeyPage:
        """Return one page of the keys that start with `prefix`."""
        ...


@frozen
class Chunk:
    """Some bytes of a body that is being made while it is sent, and their SHA-256. Good until the next chunk is asked for."""

    data: memoryview
    sha256: bytes
    md5: str | None = None
    """With the first chunk, where somebody has said it: the MD5 of the whole body, in hex."""


ChunkMaker = Callable[[], Generator[Chunk, None, None]]
"""Makes a body in the thread that sends it, in chunks of one MiB and one of what is left."""


class Inflow(Protocol):
    """Bytes of an object on their way into a worker thread. All but `stop` is for that thread alone."""

    @property
    def md5(self) -> str | None:
        """Return the MD5 of a whole object in hex, as its store says it with the first bytes; None where it does not."""
        ...

    def receive_into(self, buffer: memoryview) -> None:
        """Fill a buffer with the next bytes. Blocks. Raises EngineError.

        The first call asks the store.
        """
        ...

    def close(self) -> None:
        """Be done with it: give the connection back after the last byte, before that close it."""
        ...

    def stop(self) -> None:
        """End what the thread waits for, from any other thread. Never waits."""
        ...


@runtime_checkable
class StreamingEngine(Engine, Protocol):
    """A store whose bytes a worker thread can hand on as they come, so that no body need be in memory as a whole.

    `chunks` is called in the thread that sends, and makes the body; what it raises, other than OSError, leaves the call as it
    is, and the store has no object then. `patience` is how long making all chunks may take, in seconds: a write's deadline
    begins to count beyond it. Every method raises CannotStream, too.
    """

    async def inflow(self, key: str, start: int, length: int, silence: float, *, whole: bool = False) -> Inflow:
        """Return the bytes [start, start + length) of an object, not asked for yet; no silence may be longer than `silence`.

        `whole` says that these are all that the object should have.
        """
        ...

    async def put_stream(
        self, key: str, size: int, chunks: ChunkMaker, patience: float, sha256: str | None = None
    ) -> ObjectFacts:
        """Write a whole object of `size` bytes. `sha256` is that of all of it, in hex, where the caller knows it.

        Where the first chunk tells an MD5, it is this that the store compares.
        """
        ...

    async def put_part_stream(
        self, key: str, upload: str, number: int, size: int, chunks: ChunkMaker, patience: float
    ) -> Part:
        """Write one part of `size` bytes, as `put_part` does."""
        ...


@runtime_checkable
class CopyingEngine(Engine, Protocol):
    """A store that can copy between its own buckets, so that the bytes need not pass through this process."""

    def copies_from(self, other: Engine) -> bool:
        """Return whether the store can read `other`'s objects by itself: one service, the same credentials. No I/O."""
        ...

    async def copy_object(self, other: Engine, source: str, key: str, size: int) -> ObjectFacts:
        """Make the object `key` a copy of `other`'s object `source`, which has `size` bytes. Raises ObjectMissing.

        The store answers when it has all of it, so its deadline grows with `size`.
        """
        ...

    async def copy_part(
        self, other: Engine, source: str, key: str, upload: str, number: int, start: int, length: int
    ) -> Part:
        """Make the bytes [start, start + length) of `other`'s object `source` a part. Raises PartsMissing, also for the source."""
        ...
