"""Bodies that are made while they are sent, and bytes that a worker thread takes from the socket: what copies are made of."""

import hashlib
import threading
import uuid
from collections.abc import AsyncIterator, Generator

import pytest
import trio

from engines import parse_engine
from engines.contract import MIB, CannotStream, Chunk, ChunkMaker, EngineRefused, EngineUnavailable, StreamingEngine
from engines.crossing import Bridge
from tests.engines.stores import spec_of
from tests.engines.test_contract import pattern
from tests.engines.test_s3 import arguments, scripted, server
from tests.services import Store


@pytest.fixture(params=["us", "us-tls"])
async def engine(
    request: pytest.FixtureRequest, s3_stores: dict[str, Store], storage_path: str, bridge: Bridge
) -> AsyncIterator[StreamingEngine]:
    """An engine that signs bodies, and one that leaves that to TLS."""
    async with spec_of(s3_stores[request.param], storage_path).open() as opened:
        assert isinstance(opened, StreamingEngine)
        yield opened


def chunks_of(data: bytes) -> ChunkMaker:
    """Make a body out of one buffer that is used again for every chunk."""

    def make() -> Generator[Chunk, None, None]:
        buffer = bytearray(MIB)
        for start in range(0, len(data), MIB):
            piece = data[start : start + MIB]
            buffer[: len(piece)] = piece
            yield Chunk(memoryview(buffer)[: len(piece)], hashlib.sha256(piece).digest())

    return make


@pytest.mark.parametrize("size", [1, MIB, 2 * MIB + 7])
async def test_whole_objects(engine: StreamingEngine, size: int) -> None:
    """An object that is made while it is sent is what was made, signed with its digest where that is known and without."""
    data = pattern(size)
    for known in (hashlib.sha256(data).hexdigest(), None):
        key = f"{engine.prefix}{uuid.uuid4()}"
        assert (await engine.put_stream(key, size, chunks_of(data), 5, known)).size == size
        assert await engine.read(key, 0, size) == data


@pytest.mark.parametrize("last", [5, MIB, MIB + 5])
async def test_parts(engine: StreamingEngine, last: int) -> None:
    """Parts that are made while they are sent become the object, beside one that was not, also when one is sent twice."""
    key, data = f"{engine.prefix}{uuid.uuid4()}", pattern(10 * MIB + last)
    upload = await engine.begin_parts(key)
    first, second, third = data[: 5 * MIB], data[5 * MIB : 10 * MIB], data[10 * MIB :]
    parts = [
        await engine.put_part_stream(key, upload, 1, len(second), chunks_of(second), 5),
        await engine.put_part(key, upload, 2, second),
        await engine.put_part_stream(key, upload, 3, len(third), chunks_of(third), 5),
    ]
    assert parts[0].etag == parts[1].etag
    parts[0] = await engine.put_part_stream(key, upload, 1, len(first), chunks_of(first), 5)
    await engine.finish_parts(key, upload, parts)
    assert await engine.read(key, 0, len(data)) == data


async def test_a_body_that_cannot_be_made_leaves_nothing(engine: StreamingEngine) -> None:
    """What making a body raises leaves the call as it is; the store has no object and no part then."""
    key, upload_key, data = f"{engine.prefix}{uuid.uuid4()}", f"{engine.prefix}{uuid.uuid4()}", pattern(3 * MIB)

    def broken() -> Generator[Chunk, None, None]:
        for number, chunk in enumerate(chunks_of(data)()):
            if number == 2:
                raise LookupError("no more of it")
            yield chunk

    with pytest.raises(LookupError, match="no more"):
        await engine.put_stream(key, len(data), broken, 5, hashlib.sha256(data).hexdigest())
    upload = await engine.begin_parts(upload_key)
    with pytest.raises(LookupError, match="no more"):
        await engine.put_part_stream(upload_key, upload, 1, len(data), broken, 5)
    assert (await engine.list_keys(key)).keys == ()
    assert list(await engine.list_parts(upload_key, upload)) == []


async def test_a_store_compares_what_it_takes(bridge: Bridge, s3_stores: dict[str, Store], storage_path: str) -> None:
    """Without TLS a body that is not the signed one is refused by Ceph: the whole, and every single chunk of one signed in chunks.

    A store that refuses chunks is not sent any for a while: it may not know this way to sign.
    """
    data = pattern(3 * MIB)

    def another() -> Generator[Chunk, None, None]:
        for number, chunk in enumerate(chunks_of(data)()):
            yield Chunk(chunk.data, b"x" * 32) if number == 1 else chunk

    async with spec_of(s3_stores["us"], storage_path).open() as engine:
        assert isinstance(engine, StreamingEngine)
        key = f"{engine.prefix}{uuid.uuid4()}"
        with pytest.raises(EngineRefused):
            await engine.put_stream(key, len(data), chunks_of(data), 5, hashlib.sha256(b"other").hexdigest())
        with pytest.raises(CannotStream):
            await engine.put_stream(key, len(data), another, 5)
        with pytest.raises(CannotStream, match="in chunks"):
            await engine.put_stream(key, len(data), chunks_of(data), 5)
        assert (await engine.list_keys(key)).keys == ()
        await engine.put_stream(key, len(data), chunks_of(data), 5, hashlib.sha256(data).hexdigest())
        assert await engine.read(key, 0, len(data)) == data


async def test_a_store_compares_by_the_md5_that_the_source_has_told(engine: StreamingEngine) -> None:
    """A whole object comes with its MD5 where its tag is one, and with TLS or without no byte may be another one then.

    A store that refused is compared with in another way for a while: what looks like an MD5 may be something else.
    """
    key, data = f"{engine.prefix}{uuid.uuid4()}", pattern(3 * MIB)
    await engine.put(key, data)

    async def chunks(spoilt: bytes = b"") -> ChunkMaker:
        inflow = await engine.inflow(key, 0, len(data), 5, whole=True)

        def make() -> Generator[Chunk, None, None]:
            buffer = memoryview(bytearray(MIB))
            try:
                for _ in range(3):
                    inflow.receive_into(buffer)
                    digest = hashlib.sha256(buffer).digest()
                    buffer[: len(spoilt)] = spoilt
                    yield Chunk(buffer, digest, inflow.md5)
            finally:
                inflow.close()

        return make

    to = f"{engine.prefix}{uuid.uuid4()}"
    await engine.put_stream(to, len(data), await chunks(), 5)
    assert await engine.read(to, 0, len(data)) == data
    bad = f"{engine.prefix}{uuid.uuid4()}"
    with pytest.raises(CannotStream, match="BadDigest"):
        await engine.put_stream(bad, len(data), await chunks(b"?"), 5)
    assert (await engine.list_keys(bad)).keys == ()
    await engine.put_stream(bad, len(data), await chunks(), 5, hashlib.sha256(data).hexdigest())
    assert await engine.read(bad, 0, len(data)) == data


@pytest.mark.parametrize(
    ("more", "md5"),
    [
        ("", "0" * 31 + "a"),
        ("x-amz-server-side-encryption: AES256", "0" * 31 + "a"),
        ("x-amz-server-side-encryption: aws:kms", None),
        ("x-amz-server-side-encryption-customer-algorithm: AES256", None),
    ],
)
async def test_a_whole_object_is_asked_for_without_a_range(bridge: Bridge, more: str, md5: str | None) -> None:
    """A store is not asked for a range of all that there is; its tag is an MD5 unless the object is encrypted under such a key."""
    asked = b""
    head = f'HTTP/1.1 200 OK\r\nContent-Length: 5\r\nETag: "{"0" * 31}a"\r\n' + f"{more}\r\n" * bool(more)

    async def handler(stream: trio.SocketStream) -> None:
        nonlocal asked
        asked = bytes(await stream.receive_some(65536))
        await stream.send_all(head.encode() + b"\r\nhello")

    async with scripted(handler) as engine:
        assert isinstance(engine, StreamingEngine)
        inflow = await engine.inflow("k", 0, 5, 20, whole=True)
        buffer = bytearray(5)
        await trio.to_thread.run_sync(inflow.receive_into, memoryview(buffer))
        inflow.close()
        assert (bytes(buffer), inflow.md5) == (b"hello", md5)
    assert b"range" not in asked.lower()


async def test_no_md5_of_what_is_not_an_objects(engine: StreamingEngine) -> None:
    """A range, an object that is longer than it should be, and one that came in parts tell no MD5; the right bytes come of all."""
    one, several, data = f"{engine.prefix}{uuid.uuid4()}", f"{engine.prefix}{uuid.uuid4()}", pattern(5 * MIB + 7)
    await engine.put(one, data)
    upload = await engine.begin_parts(several)
    parts = [
        await engine.put_part(several, upload, 1, data[: 5 * MIB]),
        await engine.put_part(several, upload, 2, data[5 * MIB :]),
    ]
    await engine.finish_parts(several, upload, parts)
    for key, length, whole in ((one, MIB, False), (one, MIB, True), (several, len(data), True)):
        inflow = await engine.inflow(key, 0, length, 5, whole=whole)
        buffer = bytearray(length)
        await trio.to_thread.run_sync(inflow.receive_into, memoryview(buffer))
        inflow.close()
        assert buffer == data[:length]
        assert inflow.md5 is None


async def test_an_inflow_fills_buffers(engine: StreamingEngine) -> None:
    """A thread takes a range piece by piece into its own memory; its connection serves the next call."""
    key, data = f"{engine.prefix}{uuid.uuid4()}", pattern(3 * MIB)
    await engine.put(key, data)
    for _ in range(3):
        inflow = await engine.inflow(key, 10, 2 * MIB, 5)
        got = bytearray(2 * MIB)
        await trio.to_thread.run_sync(inflow.receive_into, memoryview(got)[:MIB])
        await trio.to_thread.run_sync(inflow.receive_into, memoryview(got)[MIB:])
        inflow.close()
        assert got == data[10 : 10 + 2 * MIB]


async def test_stopping_a_finished_inflow_leaves_its_connection_alone(
    engine: StreamingEngine,
) -> None:
    """A connection that was given back may be another call's by now: stopping its last user must not end it."""
    key, data = f"{engine.prefix}{uuid.uuid4()}", pattern(MIB)
    await engine.put(key, data)
    first, second = await engine.inflow(key, 0, 100, 5), await engine.inflow(key, 0, MIB, 5)
    buffer, small = memoryview(bytearray(MIB)), memoryview(bytearray(100))
    await trio.to_thread.run_sync(first.receive_into, small)
    first.close()
    await trio.to_thread.run_sync(second.receive_into, buffer[: MIB // 2])
    first.stop()
    await trio.to_thread.run_sync(second.receive_into, buffer[MIB // 2 :])
    second.close()
    assert buffer == data


async def test_a_stopped_inflow_ends_its_thread(bridge: Bridge) -> None:
    """Whoever stops an inflow ends the thread that waits in it, long before its own limits."""
    asked, failed = trio.Event(), threading.Event()

    async def handler(stream: trio.SocketStream) -> None:
        await stream.receive_some(65536)
        asked.set()
        await stream.receive_some(1)

    async with (
        server(handler) as port,
        parse_engine("RadosGWStorage", arguments(port, read_timeout=60)).open() as engine,
    ):
        assert isinstance(engine, StreamingEngine)
        inflow = await engine.inflow("k", 0, 10, 60)

        def receive() -> None:
            try:
                inflow.receive_into(memoryview(bytearray(10)))
            except EngineUnavailable:
                failed.set()

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.to_thread.run_sync, receive)
                await asked.wait()
                inflow.stop()
        assert failed.is_set()


async def test_silence_ends_an_inflow(bridge: Bridge) -> None:
    """A store that says nothing for longer than the caller allows is EngineUnavailable, whatever its own read limit."""

    async def handler(stream: trio.SocketStream) -> None:
        await stream.receive_some(65536)
        await trio.sleep_forever()

    async with (
        server(handler) as port,
        parse_engine("RadosGWStorage", arguments(port, read_timeout=60)).open() as engine,
    ):
        assert isinstance(engine, StreamingEngine)
        inflow = await engine.inflow("k", 0, 10, 0.2)
        with trio.fail_after(60), pytest.raises(EngineUnavailable):
            await trio.to_thread.run_sync(inflow.receive_into, memoryview(bytearray(10)))
