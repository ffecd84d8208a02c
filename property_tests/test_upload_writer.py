"""The upload writer against the plainest model: any sequence of requests, by any writers, becomes exactly its bytes."""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from itertools import pairwise
from random import Random

import pytest
import trio
from attrs import define, evolve, field
from hypothesis import given
from hypothesis import strategies as st

from engines.contract import EngineError, EngineUnavailable, ObjectFacts, Part
from property_tests.memory_engine import Faults, MemoryEngine, MemoryStore
from replication.hashing import BlobHasher
from replication.part_numbers import OFTEN_TAKEN_OVER, part_size_at, record_every
from replication.parts import PartPool
from replication.strays import Mixed
from replication.upload_state import UploadState
from replication.uploading import DigestMismatch, StoredObject, UploadWriter, open_writer
from tests.copies import pieces_of
from tests.faulty_engine import FaultyEngine, Refuse, Wrong
from tests.registry.world import digest_of

PART = 50
"""Scaled down 100 000 times: a part of 5 MiB is 50 bytes here, and a request of 12 MiB is 120."""


@define
class Uploader:
    """What an upload's owners do between two requests, as records do it: fresh keys, skipped part numbers."""

    engine: FaultyEngine
    pool: PartPool
    state: UploadState = field(factory=lambda: UploadState("r/object.1", "r/object.2"))
    hasher: BlobHasher | None = field(factory=BlobHasher)
    epoch: int = 1
    keys: int = 2
    data: bytes = b""
    dead: set[str] = field(factory=set)
    records: list[UploadState] = field(factory=list)

    def fresh_key(self) -> str:
        self.keys += 1
        return f"r/object.{self.keys}"

    def take_over(self, *, keep_hash: bool = True) -> None:
        """Become another process that knows the row only."""
        state = self.state
        self.dead.add(state.reserved_key)
        state = evolve(state, reserved_key=self.fresh_key(), hash_state=state.hash_state if keep_hash else None)
        if state.parts_upload is None:
            self.dead.add(state.key)
            state = evolve(state, key=self.fresh_key(), next_part=1)
        else:
            state = evolve(state, next_part=state.next_part + record_every(self.epoch))
        self.epoch += 1
        self.state = state
        self.hasher = None if state.hash_state is None else BlobHasher.restore(state.hash_state)
        if self.hasher is None and state.offset == 0:
            self.hasher = BlobHasher()

    async def note(self, state: UploadState) -> None:
        if self.state.tail is not None and state.tail != self.state.tail:
            self.dead.add(self.state.tail.key)
        if state.tail is not None and state.tail.key == state.reserved_key:
            state = evolve(state, reserved_key=self.fresh_key())
        self.records.append(state)
        self.state = state

    async def mix(self, mixed: Mixed) -> None:
        await self.note(evolve(self.state, mixed=mixed))

    async def write(self, chunks: list[bytes]) -> None:
        """Be one PATCH."""
        async with self.opened(last=False) as writer:
            for chunk in chunks:
                await writer.write(chunk)
            await self.note(await writer.rest())
        self.data += b"".join(chunks)

    async def finish(self, chunks: list[bytes], expected: str | None = None) -> StoredObject:
        """Be the final PUT."""
        self.data += b"".join(chunks)
        async with self.opened(last=True) as writer:
            for chunk in chunks:
                await writer.write(chunk)
            return await writer.finish(expected or digest_of(self.data))

    def opened(self, *, last: bool) -> AbstractAsyncContextManager[UploadWriter]:
        return open_writer(
            self.engine,
            self.state,
            self.hasher,
            self.pool,
            part_size=PART,
            record_every=record_every(self.epoch),
            last=last,
            record=self.note,
            note=self.mix,
        )


def uploader(memory: int = 10 * PART) -> Uploader:
    store = MemoryStore("us", Random(0), Faults(latency=0, bytes_per_second=float("inf")))
    return Uploader(FaultyEngine(MemoryEngine(store, part_minimum=PART)), PartPool(memory))


def store_of(upload: Uploader) -> MemoryStore:
    inner = upload.engine.inner
    assert isinstance(inner, MemoryEngine)
    return inner.store


def run(work: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        with trio.fail_after(60):
            await work()

    trio.run(main)


@st.composite
def requests(draw: st.DrawFn) -> list[tuple[list[bytes], str]]:
    """Draw requests: their bodies in chunks, and who writes: the same process, another one, or one that lost the hash."""
    sizes = st.lists(st.integers(0, 2 * PART + 20), max_size=4)
    who = st.sampled_from(["same", "other", "hash lost"])
    number, result = 0, []
    for chunk_sizes, writer in draw(st.lists(st.tuples(sizes, who), max_size=8)):
        chunks = []
        for size in chunk_sizes:
            number += 1
            chunks.append(Random(number).randbytes(size))
        result.append(([chunk for chunk in chunks if chunk], writer))
    return result


@given(requests(), st.sampled_from([2, 3, 5, 20]))
def test_any_requests_by_any_writers(sequence: list[tuple[list[bytes], str]], parts_of_memory: int) -> None:
    """The object has exactly the bytes, its digests are right, memory is all given back, and every other object is known."""

    async def work() -> None:
        upload = uploader(parts_of_memory * PART)
        final = sequence[-1] if sequence else ([], "same")
        for chunks, writer in sequence[:-1]:
            if writer != "same":
                upload.take_over(keep_hash=writer == "other")
            await upload.write(chunks)
            # What was said to be taken in is in the store: parts of the least size, and a tail.
            state = upload.state
            assert state.offset == len(upload.data)
            assert sum(part.size for part in state.parts) + (state.tail.size if state.tail else 0) == state.offset
            assert all(part.size >= PART for part in state.parts)
            assert upload.pool.statistics().held == 0
        if final[1] != "same":
            upload.take_over(keep_hash=final[1] == "other")
        stored = await upload.finish(final[0])
        store = store_of(upload)
        assert store.objects[stored.key] == upload.data
        assert stored.size == len(upload.data)
        if stored.digest is not None:
            assert (stored.digest, stored.proofs.pieces) == (digest_of(upload.data), pieces_of(upload.data))
        else:
            assert "hash lost" in [writer for _, writer in sequence]
        assert upload.pool.statistics().held == 0
        tail = upload.state.tail
        leftovers = {tail.key} if tail is not None else set()
        assert set(store.objects) - {stored.key} <= upload.dead | leftovers
        assert store.uploads == {}
        assert stored.key not in upload.dead
        written = [key for call, key in store.calls if call == "put"]
        assert len(written) == len(set(written)), "a key was used twice"

    run(work)


@given(
    st.integers(0, 6 * PART),
    st.integers(1, 3 * PART),
    st.sampled_from(["put_part", "begin_parts", "put", "finish_parts", "read"]),
    st.integers(0, 4),
    st.booleans(),
)
def test_a_request_that_fails_is_repeated(before: int, size: int, operation: str, call: int, all_or_none: bool) -> None:
    """After a failure at any store call the next owner goes on from the recorded state, and the object is right.

    In stores that leave out what nobody recorded, and in those that do not.
    """

    async def work() -> None:
        upload = uploader()
        store_of(upload).all_or_none = all_or_none
        await upload.write([Random(1).randbytes(before)] if before else [])
        chunks = [Random(n).randbytes(size) for n in range(3)]
        upload.engine.plan(operation, Refuse(EngineUnavailable("no")), call=call)
        known = upload.data
        try:
            stored = await upload.finish(chunks)
        except EngineError:
            upload.data = known
            upload.take_over()
            upload.engine.clear()
            stored = await upload.finish(chunks)
        assert store_of(upload).objects[stored.key] == upload.data
        assert stored.digest == digest_of(upload.data)
        assert {found.key for found in store_of(upload).uploads.values()} <= upload.dead
        assert upload.pool.statistics().held == 0

    run(work)


@given(st.integers(0, 5 * PART), st.integers(0, 5 * PART))
def test_a_wrong_digest_makes_no_object(before: int, after: int) -> None:
    """An upload whose digest is not the client's ends without an object under its own key."""

    async def work() -> None:
        upload = uploader()
        await upload.write([bytes(before)] if before else [])
        with pytest.raises(DigestMismatch) as caught:
            await upload.finish([bytes(after)] if after else [], expected=digest_of(b"something else"))
        assert caught.value.found == digest_of(bytes(before + after))
        assert upload.state.key not in store_of(upload).objects

    run(work)


@given(st.integers(1, 20 * PART), st.integers(1, 30))
def test_one_part_is_one_object(size: int, chunk: int) -> None:
    """What arrives in one request costs one call up to a part's size, and two more than its parts beyond it."""

    async def work() -> None:
        upload = uploader()
        data = Random(size).randbytes(size)
        await upload.finish([data[start : start + chunk] for start in range(0, size, chunk)])
        calls = [call for call, _ in store_of(upload).calls]
        if size < 2 * PART:
            assert calls == ["put"]
        else:
            assert len(calls) == calls.count("put_part") + 2
            assert calls.count("put_part") == size // PART  # the last one takes what is left

    run(work)


def test_a_long_request_is_recorded_on_its_way() -> None:
    """A long request records what is in the store at least every so many parts, often once the upload wanders."""

    async def work(epoch: int) -> None:
        upload = uploader()
        upload.epoch = epoch
        await upload.write([bytes(PART)] * 100)
        numbers = [0, *(state.next_part for state in upload.records)]
        assert len(upload.records) > 100 // (record_every(epoch) + 1)
        assert max(b - a for a, b in pairwise(numbers)) <= record_every(epoch) + 1
        for state in upload.records:
            offset = sum(part.size for part in state.parts) + (state.tail.size if state.tail else 0)
            assert state.offset == offset
            assert state.hash_state is not None
            assert BlobHasher.restore(state.hash_state).offset == offset

    run(partial(work, 1))
    run(partial(work, OFTEN_TAKEN_OVER))


def test_two_parts_fail_as_one() -> None:
    """When several parts fail at once, one EngineError comes out, not a group."""

    async def work() -> None:
        upload = uploader()
        upload.engine.plan("put_part", Refuse(EngineUnavailable("full")))
        with pytest.raises(EngineUnavailable):
            await upload.finish([bytes(10 * PART)])
        assert upload.pool.statistics().held == 0

    run(work)


class _Agreeable(MemoryEngine):
    """Says yes to whoever ends a write that has ended, as some stores do, whatever it was ended with."""

    async def finish_parts(self, key: str, upload: str, parts: Sequence[Part]) -> ObjectFacts:
        if key in self.store.objects:
            return ObjectFacts(sum(part.size for part in parts), "the object's")
        return await super().finish_parts(key, upload, parts)


@given(st.integers(PART, 4 * PART), st.integers(0, 3 * PART))
def test_nothing_is_known_of_what_was_ended_before(more: int, less: int) -> None:
    """Where bytes were found in an object, and not put, its digest is for who has read it: it may have others behind them."""

    async def work() -> None:
        upload = uploader()
        upload.engine = FaultyEngine(_Agreeable(store_of(upload), part_minimum=PART))
        await upload.write([Random(1).randbytes(3 * PART)])
        known, rest = upload.data, Random(2).randbytes(more)
        whole = await upload.finish([rest])
        assert whole.digest == digest_of(upload.data)
        upload.data = known
        upload.take_over()
        again = await upload.finish([rest[: max(1, more - less)]])
        assert (again.key, again.digest) == (whole.key, None)

    run(work)


def test_parts_grow_within_memory() -> None:
    """Parts grow with their number, but two of them always fit into what the pool has."""

    async def work() -> None:
        upload = uploader(memory=4 * PART)
        upload.state = evolve(upload.state, next_part=9000)
        assert part_size_at(9000, PART) == 16 * PART
        stored = await upload.finish([bytes(PART)] * 20)
        assert store_of(upload).objects[stored.key] == upload.data

    run(work)


@given(st.integers(1, PART - 1), st.integers(0, 4 * PART), st.booleans(), st.booleans())
def test_nobody_builds_upon_a_spoilt_tail(tail: int, more: int, again: bool, for_good: bool) -> None:
    """A tail that does not come back as it was stored fails the request, unless only the reading was wrong."""

    async def work() -> None:
        upload = uploader()
        await upload.write([Random(1).randbytes(tail)])
        if again:
            upload.take_over()
        upload.engine.plan("read", Wrong(0), call=None if for_good else 0)
        chunks = [Random(2).randbytes(more + 1)]
        if for_good:
            with pytest.raises(EngineUnavailable, match="does not come back"):
                await upload.finish(chunks)
        else:
            stored = await upload.finish(chunks)
            assert store_of(upload).objects[stored.key] == upload.data
        assert upload.pool.statistics().held == 0

    run(work)
