"""Stopping a node finishes what can be finished, within the drain time, whatever the clients do (stack pitfalls P7, P8)."""

import os
import resource
import socket
from collections.abc import AsyncGenerator

import pytest
import trio
import trio.testing

from node.answers import Answer, Request, Stream
from tests.edge.conftest import SETTINGS, Logged, Node, hello
from tests.edge.test_answers import source
from tests.edge.wire import PATIENCE, Closed, connect

MIB = bytes(1 << 20)


class Working:
    """A handler that answers when it is let."""

    def __init__(self) -> None:
        self.begun = trio.Event()
        self.finish = trio.Event()
        self.cancelled = False

    async def __call__(self, _request: Request) -> Answer:
        self.begun.set()
        try:
            await self.finish.wait()
        except trio.Cancelled:
            self.cancelled = True
            raise
        return Answer(200, (), b"finished")


async def test_requests_in_flight_are_finished(node: Node, nursery: trio.Nursery) -> None:
    """A request that was begun before the stop is answered; no new connection is accepted meanwhile."""
    working = Working()
    await node.start(working)
    async with node.client() as client:
        await client.send(b"GET /v2/ HTTP/1.1\r\nHost: node\r\n\r\n")
        await working.begun.wait()
        nursery.start_soon(node.stop)
        await trio.testing.wait_all_tasks_blocked(0.1)
        with pytest.raises(OSError, match="all attempts to connect"):
            async with connect(node.address):
                pass
        assert not node.stopped.is_set()
        working.finish.set()
        assert (await client.reply()).body == b"finished"
        assert await client.closed()
    with trio.fail_after(PATIENCE):
        await node.stopped.wait()
    assert not working.cancelled


async def test_upload_in_flight_is_finished(node: Node, nursery: trio.Nursery) -> None:
    """An upload that goes on after the stop is received to its end."""

    async def count(request: Request) -> Answer:
        total = 0
        while data := await request.body.receive():
            total += len(data)
        return Answer(200, (), str(total).encode())

    await node.start(count)
    async with node.client() as client:
        await client.send(b"PUT /v2/ HTTP/1.1\r\nHost: node\r\nContent-Length: %d\r\n\r\n" % (3 * len(MIB)))
        await client.send(MIB)
        nursery.start_soon(node.stop)
        await trio.testing.wait_all_tasks_blocked(0.1)
        await client.send(MIB + MIB)
        assert (await client.reply()).body == str(3 * len(MIB)).encode()


async def test_drain_deadline(node: Node, logged: Logged) -> None:
    """A request that outlasts the drain time is cancelled, and the stop takes no longer than it may."""
    working = Working()
    await node.start(working, drain_deadline=0.4)
    async with node.client() as client:
        await client.send(b"GET /v2/ HTTP/1.1\r\nHost: node\r\n\r\n")
        await working.begun.wait()
        assert 0.4 <= await node.stop() < SETTINGS.drain_deadline / 2
        assert working.cancelled
        with pytest.raises(Closed):
            await client.reply()
    assert (await logged.request())["outcome"] == "truncated"


async def test_stalled_reader(node: Node) -> None:
    """A client that does not read its answer cannot hold the stop up: the socket is closed under the send."""

    async def big(request: Request) -> Answer:
        return Answer(200, (), Stream(1 << 30, source(*[MIB] * 1024)))

    await node.start(big, drain_deadline=0.3)
    async with node.client() as client:
        await client.send(b"GET /v2/ HTTP/1.1\r\nHost: node\r\n\r\n")
        await client.head()
        await trio.testing.wait_all_tasks_blocked(0.2)
        assert await node.stop() < SETTINGS.drain_deadline / 2


async def test_stalled_reader_ends_while_serving(node: Node, logged: Logged) -> None:
    """A client that takes no byte for the stall deadline is given up by the kernel, not kept for ever."""

    async def big(request: Request) -> Answer:
        return Answer(200, (), Stream(1 << 30, source(*[MIB] * 1024)))

    await node.start(big, stall_deadline=1.0)
    async with node.client() as client:
        await client.send(b"GET /v2/ HTTP/1.1\r\nHost: node\r\n\r\n")
        await client.head()
        assert (await logged.request())["outcome"] == "aborted"


async def test_cancelled_server(logged: Logged) -> None:
    """A server that is cancelled instead of asked ends too, with a stalled reader and a request in flight."""

    async def big(request: Request) -> Answer:
        return Answer(200, (), Stream(1 << 30, source(*[MIB] * 1024)))

    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            node = await Node(nursery).start(big)
            async with node.client() as client:
                await client.send(b"GET /v2/ HTTP/1.1\r\nHost: node\r\n\r\n")
                await client.head()
                await trio.testing.wait_all_tasks_blocked(0.2)
                nursery.cancel_scope.cancel()


async def test_waiting_connections_are_taken_in(node: Node) -> None:
    """A connection that the kernel accepted just before the stop is still served, not reset."""
    await node.start(hello)
    with socket.create_connection((node.address.host, node.address.port)) as raw:
        # No checkpoint since: the accept loop has not seen it when the stop comes.
        raw.sendall(b"GET /v2/ HTTP/1.1\r\nHost: node\r\n\r\n")
        node.shutdown.set()
        with trio.fail_after(PATIENCE):
            await node.stopped.wait()
        raw.settimeout(PATIENCE)
        assert b"GET /v2/" in raw.recv(65536)


ASKED = [("GET", "/v2/"), ("POST", "/v2/"), ("GET", "/health")]


@pytest.mark.parametrize("before", [None, *ASKED])
@pytest.mark.parametrize("last", ASKED)
async def test_a_request_on_its_way_when_the_node_stops(
    node: Node, nursery: trio.Nursery, before: tuple[str, str] | None, last: tuple[str, str]
) -> None:
    """A connection that is new, or that answered a moment ago without a word about its end, brings one more request.

    Nobody sends a POST again: a balancer that used the connection before it could see it close would have to give up.
    """
    await node.start(hello)
    async with node.client() as client:
        if before:
            assert "connection" not in (await client.ask(before[1], before[0])).headers
        await _stopping(node, nursery)
        answer = await client.ask(last[1], last[0])
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert await client.closed()
    with trio.fail_after(PATIENCE):
        await node.stopped.wait()


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_head_that_has_begun_when_the_node_stops(node: Node, nursery: trio.Nursery, method: str) -> None:
    """The rest of it may come, and is answered."""
    await node.start(hello)
    async with node.client() as client:
        await client.send(f"{method} /v2/ HTTP/1.1\r\nHo".encode())
        await _stopping(node, nursery)
        await client.send(b"st: node\r\n\r\n")
        assert (await client.reply()).headers["connection"] == "close"
        assert await client.closed()


async def test_an_answer_that_has_begun_when_the_node_stops(node: Node, nursery: trio.Nursery) -> None:
    """Its head said nothing about the connection's end, so that another request may be on its way behind it."""
    go_on = trio.Event()

    @trio.as_safe_channel
    async def pieces() -> AsyncGenerator[bytes, None]:
        yield b"a"
        await go_on.wait()
        yield b"b"

    async def handler(request: Request) -> Answer:
        return Answer(200, (), Stream(2, pieces)) if request.method == "GET" else await hello(request)

    await node.start(handler)
    async with node.client() as client:
        await client.send(b"GET /v2/ HTTP/1.1\r\nHost: node\r\n\r\n")
        assert "connection" not in (await client.head()).headers
        await _stopping(node, nursery)
        go_on.set()
        assert await client.read(2) == b"ab"
        assert (await client.ask("/v2/", "POST")).headers["connection"] == "close"
        assert await client.closed()


async def test_an_answer_that_begins_while_the_node_stops(node: Node, nursery: trio.Nursery) -> None:
    """It says that the connection ends, also where its request came before."""
    working = Working()
    await node.start(working)
    async with node.client() as client:
        await client.send(b"GET /v2/ HTTP/1.1\r\nHost: node\r\n\r\n")
        await working.begun.wait()
        await _stopping(node, nursery)
        working.finish.set()
        assert (await client.reply()).headers["connection"] == "close"
        assert await client.closed()


async def _stopping(node: Node, nursery: trio.Nursery) -> None:
    """Let it begin to stop, and do all that it does at once."""
    nursery.start_soon(node.stop)
    await trio.testing.wait_all_tasks_blocked(0.2)


@pytest.mark.parametrize("target", ["/v2/", "/health"])
async def test_draining_sends_clients_away(node: Node, target: str) -> None:
    """While the node drains, every answer closes its connection, so that kept connections go elsewhere in time."""
    await node.start(hello)
    async with node.client() as client:
        assert "connection" not in (await client.ask(target)).headers
        node.draining = True
        assert (await client.ask(target)).headers["connection"] == "close"
        assert await client.closed()


async def test_a_stop_while_no_more_files_may_be_open(node: Node, nursery: trio.Nursery) -> None:
    """Whoever waits in the kernel's queue cannot be taken in; whoever is being answered is none the worse for it."""
    working = Working()
    await node.start(working)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with node.client() as client:
        await client.send(b"GET /v2/ HTTP/1.1\r\nHost: node\r\n\r\n")
        await working.begun.wait()
        with socket.socket() as late:
            late.setblocking(False)
            free = os.dup(late.fileno())
            os.close(free)
            resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
            try:
                late.connect_ex((node.address.host, node.address.port))
                nursery.start_soon(node.stop)
                await trio.testing.wait_all_tasks_blocked(0.01)
                working.finish.set()
                assert (await client.reply()).body == b"finished"
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_who_reads_nothing_is_sent_little(node: Node) -> None:
    """What the kernel holds for a client is the node's memory, too: it is not let grow to the megabytes that a buffer may have."""
    taken = 0

    @trio.as_safe_channel
    async def counted() -> AsyncGenerator[bytes, None]:
        nonlocal taken
        for _ in range(1024):
            yield bytes(1 << 14)
            taken += 1 << 14

    async def endless(_: Request) -> Answer:
        return Answer(200, (), Stream(1 << 24, counted))

    await node.start(endless)
    async with node.client() as client:
        await client.send(b"GET /v2/ HTTP/1.1\r\nHost: node\r\n\r\n")
        await client.head()
        await trio.testing.wait_all_tasks_blocked(0.2)
        assert 0 < taken < 1 << 20
