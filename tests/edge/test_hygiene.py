"""An answer that comes before the request's body has been read reaches the client and leaves nothing behind (stack pitfall P2)."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from node.answers import Answer, Request, Stream
from node.errors import DENIED, UNAUTHORIZED, RegistryError
from node.web import hygiene
from tests.edge.conftest import SETTINGS, Logged, Node, hello
from tests.edge.wire import PATIENCE, Closed, no_more_tasks_than, tasks

HUGE = 1 << 30
CHUNK = bytes(256 * 1024)
HEAD = f"PATCH /v2/a/blobs/uploads/1 HTTP/1.1\r\nHost: node\r\nContent-Length: {HUGE}\r\n\r\n".encode()


class Refusing:
    """A handler that refuses when the test says so, without a look at the body."""

    def __init__(self) -> None:
        self.now = trio.Event()

    async def __call__(self, _request: Request) -> Answer:
        await self.now.wait()
        raise RegistryError(UNAUTHORIZED)


async def test_client_leaves_after_an_early_answer(node: Node, logged: Logged) -> None:
    """A client that leaves after an early answer to its unread body leaves no task behind."""
    for round_ in range(3):
        refusing = Refusing()
        here = Node(node.nursery)
        await here.start(refusing)
        before = tasks()
        async with here.client() as client:
            await client.send(HEAD)
            assert await client.fill(CHUNK, HUGE) < HUGE  # every queue and buffer is full now
            refusing.now.set()
            assert (await client.reply()).status == 401
        await no_more_tasks_than(before)
        assert (await logged.request(round_ + 1))["status"] == 401


async def test_client_that_goes_on_sending_reads_its_answer(node: Node) -> None:
    """A client that first sends all of its body still reads the early answer, not a reset."""
    refusing = Refusing()
    # However long all of it takes on a busy machine.
    await node.start(refusing, linger=60)
    refusing.now.set()
    body = bytes(32 << 20)
    async with node.client() as client:
        assert (await client.ask("/v2/x", "PUT", body=body)).status == 401
        assert (await client.ask("/v2/x", "HEAD")).status == 401  # the body was read to its end: the connection is kept


async def test_lingering_ends(node: Node) -> None:
    """A client that never ends its body is cut off after the linger time."""
    refusing = Refusing()
    await node.start(refusing, linger=0.3)
    before = tasks()
    refusing.now.set()
    async with node.client() as client:
        began = trio.current_time()
        await client.send(HEAD + b"some")
        assert (await client.reply()).status == 401
        assert await client.closed()
        assert 0.3 <= trio.current_time() - began < SETTINGS.stall_deadline / 2
        await no_more_tasks_than(before)


async def test_small_unread_body_keeps_the_connection(node: Node) -> None:
    """An unread body that is already here does not cost the client its connection."""
    await node.start(hello)
    async with node.client() as client:
        assert (await client.ask("/v2/a", "PUT", body=b"x" * 1000)).status == 200
        assert (await client.ask("/v2/b")).body == b"GET /v2/b"


async def test_broken_answer_to_an_unread_body(node: Node, logged: Logged) -> None:
    """An answer that breaks off while the request's body fills every queue still ends the connection."""
    go = trio.Event()

    @asynccontextmanager
    async def failing() -> AsyncIterator[AsyncIterator[bytes]]:
        async def chunks() -> AsyncIterator[bytes]:
            yield b"first"
            raise RegistryError(DENIED)

        yield chunks()

    async def handler(request: Request) -> Answer:
        await go.wait()
        return Answer(200, (), Stream(100, failing))

    await node.start(handler)
    before = tasks()
    async with node.client() as client:
        await client.send(HEAD)
        await client.fill(CHUNK, HUGE)
        go.set()
        with pytest.raises(Closed):
            await client.reply()
    await no_more_tasks_than(before)
    assert (await logged.request())["outcome"] == "truncated"


async def test_crashing_application_with_an_unread_body(node: Node) -> None:
    """An ASGI application that raises before it has read the body does not leak its connection either."""

    async def application(scope: object, receive: object, send: object) -> None:
        await crash.wait()
        raise RuntimeError("a bug")

    crash = trio.Event()
    wrapped = hygiene.Hygiene(application)
    queue_send, queue = trio.open_memory_channel[dict[str, object]](1)
    sent: list[object] = []
    ended = trio.Event()

    async def send(message: object) -> None:
        """As Hypercorn: the application's end is announced through the queue, which may be full."""
        sent.append(message)
        if message is None:
            await queue_send.send({"type": "http.disconnect"})
            ended.set()

    queue_send.send_nowait({"type": "http.request", "body": b"x", "more_body": True})
    async with trio.open_nursery() as nursery:

        async def run() -> None:
            with pytest.raises(RuntimeError, match="a bug"):
                await wrapped({"type": "http"}, queue.receive, send)

        nursery.start_soon(run)
        crash.set()
        with trio.fail_after(PATIENCE):
            await ended.wait()
    assert sent == [None]
