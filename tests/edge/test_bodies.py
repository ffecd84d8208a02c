"""Request bodies flow with back-pressure, have a stall deadline, and end when the client leaves (stack pitfalls P3, P5, P9)."""

import hashlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from node.answers import Answer, ClientGone, Request, Stream
from tests.edge.conftest import SETTINGS, Logged, Node
from tests.edge.wire import PATIENCE, no_more_tasks_than, tasks

MIB = 1 << 20
CHUNK = os.urandom(256 * 1024)


async def digest(request: Request) -> Answer:
    """Answer with the SHA-256 of the body."""
    sha = hashlib.sha256()
    while data := await request.body.receive():
        sha.update(data)
    return Answer(200, (), sha.hexdigest().encode())


def resident() -> int:
    """Return this process's resident memory in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("size", [0, 1, 70_000, 5 * MIB])
async def test_body_with_a_length(node: Node, size: int) -> None:
    """A body arrives as it was sent, whatever its size, and the connection goes on."""
    await node.start(digest)
    body = os.urandom(size)
    async with node.client() as client:
        for _ in range(2):
            assert (await client.ask("/v2/", "PUT", body=body)).body.decode() == hashlib.sha256(body).hexdigest()


async def test_chunked_body(node: Node) -> None:
    """A chunked body arrives as it was sent, and what follows on the connection is the next request."""
    await node.start(digest)
    parts = [os.urandom(size) for size in (1, 1000, 65536, 3 * MIB)]
    async with node.client() as client:
        await client.send(b"PATCH /v2/ HTTP/1.1\r\nHost: node\r\nTransfer-Encoding: chunked\r\n\r\n")
        for part in parts:
            await client.send(b"%x\r\n" % len(part) + part + b"\r\n")
        await client.send(b"0\r\n\r\n")
        assert (await client.reply()).body.decode() == hashlib.sha256(b"".join(parts)).hexdigest()
        assert (await client.ask("/v2/")).body.decode() == hashlib.sha256().hexdigest()


async def test_expect_continue(node: Node) -> None:
    """A client that waits for `100 Continue` gets it."""
    await node.start(digest)
    async with node.client() as client:
        await client.send(b"PUT /v2/ HTTP/1.1\r\nHost: node\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
        assert (await client.head()).status == 100
        await client.send(b"ok")
        assert (await client.reply()).status == 200


async def test_back_pressure(node: Node) -> None:
    """A handler that does not receive holds the sender back, and memory stays flat."""
    total = 128 * MIB
    take = trio.Event()

    async def slow(request: Request) -> Answer:
        await take.wait()
        return await digest(request)

    await node.start(slow)
    sha = hashlib.sha256()
    async with node.client() as client:
        await client.send(f"PATCH /v2/ HTTP/1.1\r\nHost: node\r\nContent-Length: {total}\r\n\r\n".encode())
        before = resident()
        taken = await _send(client.stream, 0, total, trio.current_time() + 1.0)
        assert taken < 32 * MIB, "the kernel's own buffers hold some megabytes, never all of it"
        assert resident() - before < 16 * MIB
        take.set()
        await _send(client.stream, taken, total, trio.current_time() + PATIENCE)
        assert resident() - before < 16 * MIB
        for _ in range(total // len(CHUNK)):
            sha.update(CHUNK)
        assert (await client.reply()).body.decode() == sha.hexdigest()


async def _send(stream: trio.abc.Stream, sent: int, total: int, until: float) -> int:
    """Go on at byte `sent` of a body of repeated chunks until all is out or the time has come; return how far it got."""
    assert isinstance(stream, trio.SocketStream)
    with trio.move_on_at(until):
        while sent < total:
            # By hand, not send_all: a cancelled send_all cannot say how far it came.
            sent += await stream.socket.send(CHUNK[sent % len(CHUNK) :])
    return sent


async def test_stalled_body(node: Node, logged: Logged) -> None:
    """A client that stops sending in a body is told so after the stall deadline, and its connection is closed."""
    await node.start(digest, stall_deadline=0.3, linger=0.1)
    before = tasks()
    async with node.client() as client:
        await client.send(b"PUT /v2/ HTTP/1.1\r\nHost: node\r\nContent-Length: 10\r\n\r\nhalf")
        began = trio.current_time()
        reply = await client.reply()
        assert (reply.status, reply.headers["connection"]) == (408, "close")
        assert trio.current_time() - began < SETTINGS.stall_deadline / 2
        assert await client.closed()
    await no_more_tasks_than(before)
    assert (await logged.request())["status"] == 408


async def test_slow_body_is_not_stalled(node: Node) -> None:
    """The stall deadline counts from the latest byte, and not while the handler is busy."""

    async def busy(request: Request) -> Answer:
        await trio.sleep(3.5)  # the passing of time is the subject
        return await digest(request)

    # All four bytes take longer than it, and a pause of the whole machine is not one of the client.
    await node.start(busy, stall_deadline=3.0)
    async with node.client() as client:
        await client.send(b"PUT /v2/ HTTP/1.1\r\nHost: node\r\nContent-Length: 4\r\n\r\n")
        for byte in (b"s", b"l", b"o", b"w"):
            await trio.sleep(0.8)  # likewise
            await client.send(byte)
        assert (await client.reply()).body.decode() == hashlib.sha256(b"slow").hexdigest()


async def test_client_leaves_in_its_body(node: Node, logged: Logged) -> None:
    """A handler that receives learns that the client has gone, can put things in order, and nobody calls it an error."""
    gone = trio.Event()
    received = trio.Event()

    async def handler(request: Request) -> Answer:
        try:
            while await request.body.receive():
                received.set()
        except ClientGone:
            with pytest.raises(ClientGone):
                await request.body.receive()
            gone.set()
            raise
        raise AssertionError("the body never ends")

    await node.start(handler)
    before = tasks()
    async with node.client() as client:
        await client.send(b"PUT /v2/ HTTP/1.1\r\nHost: node\r\nContent-Length: 10\r\n\r\nhalf")
        with trio.fail_after(PATIENCE):
            await received.wait()
    with trio.fail_after(PATIENCE):
        await gone.wait()
    assert (await logged.request())["outcome"] == "aborted"
    await no_more_tasks_than(before)


@pytest.mark.parametrize("body", [b"", b"whole"])
async def test_client_leaves_while_the_handler_works(node: Node, logged: Logged, body: bytes) -> None:
    """A handler that has its whole request is cancelled when the client leaves, except for what it shields."""
    working, cancelled, committed = trio.Event(), trio.Event(), trio.Event()

    async def handler(request: Request) -> Answer:
        while await request.body.receive():
            pass
        working.set()
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()
            with trio.move_on_after(5, shield=True):
                await trio.lowlevel.checkpoint()
                committed.set()
        raise AssertionError

    await node.start(handler)
    before = tasks()
    async with node.client() as client:
        await client.send(b"PUT /v2/ HTTP/1.1\r\nHost: node\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        with trio.fail_after(PATIENCE):
            await working.wait()
    with trio.fail_after(PATIENCE):
        await cancelled.wait()
        await committed.wait()
    line = await logged.request()
    assert (line["outcome"], line["status"]) == ("aborted", 0)
    await no_more_tasks_than(before)


@pytest.mark.parametrize("unread", [b"", b"Content-Length: 7\r\n\r\nunread!"])
async def test_client_leaves_a_download(node: Node, logged: Logged, unread: bytes) -> None:
    """Nothing is produced any more for a client that left in the middle of an answer, also where its body was not received."""
    produced = 0
    closed = trio.Event()

    @asynccontextmanager
    async def endless() -> AsyncIterator[AsyncIterator[bytes]]:
        async def chunks() -> AsyncIterator[bytes]:
            nonlocal produced
            while True:
                produced += len(CHUNK)
                yield CHUNK

        iterator = chunks()
        try:
            yield iterator
        finally:
            with trio.move_on_after(1, shield=True):
                await iterator.aclose()  # type: ignore[attr-defined]  # it is a generator
            closed.set()

    async def handler(request: Request) -> Answer:
        return Answer(200, (), Stream(1 << 40, endless))

    await node.start(handler)
    before = tasks()
    async with node.client() as client:
        await client.send(b"GET /v2/ HTTP/1.1\r\nHost: node\r\n" + (unread or b"\r\n"))
        await client.read(1 * MIB)
    with trio.fail_after(PATIENCE):
        await closed.wait()
    assert produced < 64 * MIB
    line = await logged.request()
    assert (line["outcome"], line["status"]) == ("aborted", 200)
    await no_more_tasks_than(before)


async def test_slow_reader_holds_the_producer(node: Node) -> None:
    """A client that does not read holds the producer back."""
    produced = 0

    @asynccontextmanager
    async def body() -> AsyncIterator[AsyncIterator[bytes]]:
        async def chunks() -> AsyncIterator[bytes]:
            nonlocal produced
            for _ in range(256):
                produced += len(CHUNK)
                yield CHUNK

        yield chunks()

    async def handler(request: Request) -> Answer:
        return Answer(200, (), Stream(256 * len(CHUNK), body))

    await node.start(handler)
    async with node.client() as client:
        await client.send(b"GET /v2/ HTTP/1.1\r\nHost: node\r\n\r\n")
        await client.head()
        held = -1
        while held != produced:
            held = produced
            await trio.sleep(0.2)  # until it stands still; that it does is the subject
        assert held < 24 * MIB
        assert await client.read(256 * len(CHUNK)) == CHUNK * 256
