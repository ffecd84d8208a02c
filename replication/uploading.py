"""The upload writer: a client's bytes become parts of one object while they arrive, and any node can go on from what it left.

Rules, because parts of an open multi-part write can be neither read, left out nor replaced by other bytes:

1. What fits in one part is one plain object; it becomes the blob as it is when the client finishes without more bytes.
2. Beyond that the writer keeps one part's size back, so that whatever is left when a request ends is a valid part.
3. Only a request that leaves less than a part stores the rest as a small object of its own, the tail; the next request reads
   it back and puts it in front. Its key was reserved (committed) before.
4. `UploadState` is all that another node needs. It only ever counts bytes that the store has acknowledged, and none of the last
   request before its end: whoever repeats that sends all of it.
5. A writer never uses more than `record_every` part numbers beyond the last recorded state, and whoever takes an upload over
   skips that many: two writers that do not know of each other never write the same part. What the one leaves there without a
   record is no part of the other's blob, also where the store does not leave it out (`strays.py`).
6. Where the write has ended, because its last writer died with that unrecorded, bytes that are in its object are as good as put.
"""

import hashlib
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, nullcontext
from functools import partial

import trio
from attrs import evolve, field, frozen

from engines.contract import Engine, EngineError, EngineUnavailable, Part, PartsMissing
from replication.hashing import BlobHasher
from replication.macs import PieceProofs
from replication.offload import Offload, in_thread
from replication.part_numbers import memory_claim, part_size_at
from replication.parts import PartPool, Share
from replication.strays import Mixed, Waiting, Written, is_there, sift
from replication.upload_state import Tail, UploadState

_TAIL_READS = 3
"""A store may send wrong bytes and have the right ones."""


class DigestMismatch(Exception):
    """The bytes of a finished upload have another digest than the client said. `found` is theirs; nothing was published."""

    def __init__(self, found: str) -> None:
        super().__init__(f"the content's digest is {found}")
        self.found = found


@frozen
class StoredObject:
    """A finished upload: where its bytes are, how many, and what they hash to (None: must be read once to know)."""

    key: str
    size: int
    digest: str | None
    proofs: PieceProofs = field(factory=PieceProofs)


class UploadWriter:
    """Writes one request's bytes. Made by `open_writer`."""

    def __init__(
        self,
        engine: Engine,
        state: UploadState,
        hasher: BlobHasher | None,
        share: Share,
        nursery: trio.Nursery,
        *,
        part_size: int,
        in_flight: int,
        record_every: int,
        last: bool,
        record: Callable[[UploadState], Awaitable[None]],
        note: Callable[[Mixed], Awaitable[None]],
        waiting: Waiting,
        offload: Offload,
    ) -> None:
        self._engine = engine
        self._state = state
        self._hasher = hasher
        self._share = share
        self._nursery = nursery
        self._part_size = part_size
        self._in_flight = in_flight
        self._slots = trio.Semaphore(in_flight)
        self._acknowledged = trio.Event()
        self._record = record
        self._note = note
        self._waiting = waiting
        self._offload = offload
        self._record_every = record_every
        self._last = last
        self._taken = 0
        self._buffer: deque[bytes] = deque()
        self._buffered = 0
        self._hashed_ahead = 0
        self._tail = state.tail
        self._in_parts = state.offset - (state.tail.size if state.tail else 0)
        self._parts = {part.number: part for part in state.parts}
        self._upload = state.parts_upload
        self._number = state.next_part
        self._recorded_number = state.next_part

    @property
    def offset(self) -> int:
        """Bytes of the blob taken in so far, the ones still on their way to the store included."""
        return self._state.offset + self._taken

    @property
    def hasher(self) -> BlobHasher | None:
        """The hasher, to be kept beside the state by whoever goes on in this process."""
        return self._hasher

    async def write(self, data: bytes) -> None:
        """Take the next bytes in; waits while the store is slower than the client. Raises EngineError."""
        await self._fetch_tail()
        start = 0
        while start < len(data):
            size = self._size()
            chunk = data[start : start + 2 * size - self._buffered]
            await self._grow(len(chunk))
            self._buffer.append(chunk)
            self._buffered += len(chunk)
            self._taken += len(chunk)
            start += len(chunk)
            if self._buffered >= 2 * size:
                await self._send_part(size)

    async def rest(self) -> UploadState:
        """End a request that is not the last: everything taken in is in the store when this returns the new state."""
        if self._buffered >= self._size():
            await self._send_part(self._buffered)
        await self._settle()
        if self._buffered:
            data = await self._take(self._buffered)
            sha256 = self._known(len(data)) or await self._sha256(data)
            with self._waiting():
                await self._engine.put(self._state.reserved_key, data, sha256)
            self._share.shrink(len(data))
            self._tail = Tail(self._state.reserved_key, len(data), sha256)
        return self._resting()

    async def finish(self, expected: str) -> StoredObject:
        """End the upload: return the one object that holds all its bytes.

        Raises DigestMismatch before the object exists if the hasher knows that its digest is not `expected`. Where the store says
        that the upload had been ended before, that may have been with the bytes of another request: its digest is not known then.
        """
        key = self._state.key
        if self._upload is None and self._tail is not None:
            # Not a byte came since the tail was stored: it is the whole blob already.
            self._check(expected)
            return self._stored(self._tail.key)
        await self._fetch_tail()
        if self._upload is None:
            data = await self._take(self._buffered)
            self._check(expected)
            algorithm, _, encoded = expected.partition(":")
            known = encoded if self._hasher is not None and self._hasher.algorithm == algorithm == "sha256" else None
            with self._waiting():
                await self._engine.put(key, data, known)
            self._share.shrink(len(data))
            return self._stored(key)
        if self._buffered:
            await self._send_part(self._buffered)
        await self._settle()
        self._check(expected)
        parts = self._ordered()
        try:
            with self._waiting():
                facts = await self._engine.finish_parts(key, self._upload, parts)
        except PartsMissing:
            return await self._finish_elsewhere(self._upload, expected)
        # Some stores say yes to whoever ends a write again.
        sure = not facts.found and all(part.etag for part in parts)
        return self._stored(key) if sure else StoredObject(key, self.offset, None)

    async def _finish_elsewhere(self, upload: str, expected: str) -> StoredObject:
        """Write the blob once more, from the store, which does not leave out what a dead writer put beside our parts.

        What comes back is hashed as it came from the client. It gets the reserved key.
        """
        again = UploadWriter(
            self._engine,
            UploadState(self._state.reserved_key, ""),
            BlobHasher(expected.partition(":")[0]),
            self._share,
            self._nursery,
            part_size=self._part_size,
            in_flight=self._in_flight,
            record_every=self._record_every,
            last=True,
            record=_nobody,
            note=_nobody,
            waiting=self._waiting,
            offload=self._offload,
        )
        written = Written(self._state.key, upload, self._ordered(), self._state.mixed)
        await sift(self._engine, written, self._share, note=self._note, into=again.write, waiting=self._waiting)
        checked = self._hasher is not None and expected.startswith(f"{self._hasher.algorithm}:")
        try:
            stored = await again.finish(expected)
        except DigestMismatch as error:
            if not checked:
                raise
            raise EngineUnavailable(f"{self._state.key} does not come back as it was stored") from error
        return self._stored(stored.key) if checked else stored

    def _known(self, size: int) -> str | None:
        """Return the SHA-256 of the `size` bytes that are about to be stored, where they are all that was hashed, else None.

        Most layers come in one PATCH, whose bytes would else be hashed three times and not twice: 0.8 ms per MiB.
        """
        hasher = self._hasher
        if hasher is None or hasher.algorithm != "sha256" or self._in_parts or hasher.offset != size:
            return None
        return hasher.digest().partition(":")[2]

    def _check(self, expected: str) -> None:
        if (
            self._hasher is not None
            and expected.startswith(f"{self._hasher.algorithm}:")
            and self._hasher.digest() != expected
        ):
            raise DigestMismatch(self._hasher.digest())

    def _resting(self) -> UploadState:
        return evolve(
            self._state,
            offset=self._in_parts + (self._tail.size if self._tail else 0),
            parts_upload=self._upload,
            parts=self._ordered(),
            next_part=self._number,
            tail=self._tail,
            hash_state=self._hasher.save() if self._hasher else None,
        )

    def _stored(self, key: str) -> StoredObject:
        if self._hasher is None:
            return StoredObject(key, self.offset, None)
        return StoredObject(key, self.offset, self._hasher.digest(), self._hasher.proofs())

    def _ordered(self) -> tuple[Part, ...]:
        return tuple(self._parts[number] for number in sorted(self._parts))

    def _size(self) -> int:
        """Return the size in bytes of the next part: never so much that two of them would not fit into the share."""
        return min(part_size_at(self._number, self._part_size), self._share.claim // 2)

    async def _grow(self, nbytes: int) -> None:
        """Take memory; where the share is used up, when parts in flight have given theirs back."""
        while self._share.held + nbytes > self._share.claim and self._slots.value < self._in_flight:
            self._acknowledged = trio.Event()
            await self._acknowledged.wait()
        await self._share.grow(nbytes)

    async def _fetch_tail(self) -> None:
        """Put the bytes of the tail, which are hashed already, in front of the buffer."""
        if self._tail is None:
            return
        await self._grow(self._tail.size)
        self._buffer.append(await self._read_tail(self._tail))
        self._buffered = self._hashed_ahead = self._tail.size
        self._tail = None

    async def _read_tail(self, tail: Tail) -> bytes:
        for _ in range(_TAIL_READS):
            with self._waiting():
                data = await self._engine.read(tail.key, 0, tail.size)
            if tail.sha256 is None or await self._sha256(data) == tail.sha256:
                return data
        raise EngineUnavailable(f"{tail.key} does not come back as it was stored")

    async def _sha256(self, data: bytes) -> str:
        return await self._offload(len(data), lambda: hashlib.sha256(data).hexdigest())

    async def _take(self, size: int) -> bytes:
        """Cut the oldest `size` bytes off the buffer and hash what of them is new."""
        # Joined in a function of its own: while the part is hashed, the chunks that it was made of are gone.
        data = self._cut(size)
        known = min(self._hashed_ahead, size)
        self._hashed_ahead -= known
        if self._hasher is not None and known < size:
            # Nothing else touches the hasher while this task waits here.
            await self._offload(size - known, partial(self._hasher.update, data, known))
        return data

    def _cut(self, size: int) -> bytes:
        chunks, missing = [], size
        while missing:
            chunk = self._buffer.popleft()
            if len(chunk) > missing:
                self._buffer.appendleft(chunk[missing:])
                chunk = chunk[:missing]
            chunks.append(chunk)
            missing -= len(chunk)
        self._buffered -= size
        return b"".join(chunks)

    async def _send_part(self, size: int) -> None:
        if self._upload is None:
            with self._waiting():
                self._upload = await self._engine.begin_parts(self._state.key)
        if self._number - self._recorded_number >= self._record_every:
            await self._settle()
            await self._record_numbers() if self._last else await self._record(self._resting())
            self._recorded_number = self._number
        data = await self._take(size)
        await self._slots.acquire()
        self._nursery.start_soon(self._put_part, self._upload, self._number, data, self._in_parts)
        self._number += 1
        self._in_parts += size

    async def _record_numbers(self) -> None:
        """Record that part numbers are used, and no bytes; not even that where nobody else goes on with the multi-part write."""
        if self._state.parts_upload is not None:
            await self._record(evolve(self._state, next_part=self._number))

    async def _put_part(self, upload: str, number: int, data: bytes, begin: int) -> None:
        key = self._state.key
        try:
            with self._waiting():
                part = await self._engine.put_part(key, upload, number, data)
        except PartsMissing:
            if not await is_there(self._engine, key, self._state.mixed, begin, data, self._waiting):
                raise
            # Without an entity tag: nobody has put it.
            part = Part(number, len(data), "")
        self._parts[number] = part
        self._share.shrink(len(data))
        self._slots.release()
        self._acknowledged.set()

    async def _settle(self) -> None:
        """Wait until every part that was sent is acknowledged. One that fails cancels this task instead."""
        for _ in range(self._in_flight):
            await self._slots.acquire()
        for _ in range(self._in_flight):
            self._slots.release()


async def _nobody(_: object) -> None:
    """Record nothing."""


@asynccontextmanager
async def open_writer(
    engine: Engine,
    state: UploadState,
    hasher: BlobHasher | None,
    pool: PartPool,
    *,
    part_size: int,
    record_every: int,
    last: bool,
    in_flight: int = 2,
    record: Callable[[UploadState], Awaitable[None]],
    note: Callable[[Mixed], Awaitable[None]],
    waiting: Waiting = nullcontext,
    offload: Offload = in_thread,
) -> AsyncIterator[UploadWriter]:
    """Open a writer for one request.

    `record` commits a state in the middle of a long one, at least every `record_every` parts; `note` adds to the latest what the
    multi-part write is about to be ended as. With `last`, for the request that ends the upload, no bytes are recorded on the way.
    Each call on the store is made inside a `waiting()` of its own, which may end it with an EngineError.
    A part that fails cancels the request; its EngineError comes out of the context as itself, not in a group.
    """
    part_size = max(part_size, engine.part_minimum)
    async with pool.open(memory_claim(state.next_part, part_size, in_flight)) as share:
        try:
            async with trio.open_nursery() as nursery:
                yield UploadWriter(
                    engine,
                    state,
                    hasher,
                    share,
                    nursery,
                    part_size=part_size,
                    in_flight=in_flight,
                    record_every=record_every,
                    last=last,
                    record=record,
                    note=note,
                    waiting=waiting,
                    offload=offload,
                )
        except BaseExceptionGroup as group:
            raise _the_reason(group) from None


def _the_reason(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return what one error says of a request that failed in several places at once: that the store forgot it, else the first."""
    if len(group.exceptions) == 1:
        return group.exceptions[0]
    lost, rest = group.split(PartsMissing)
    if rest is None or rest.split(EngineError)[1] is None:
        return (lost or group).exceptions[0]
    return group
