"""Connections are kept, closed and timed as HTTP/1.1 says, whoever answers: plain ASGI or Quart (stack pitfall P1)."""

from contextlib import suppress

import pytest
import trio

from tests.edge.conftest import Node, hello
from tests.edge.wire import no_more_tasks_than, tasks

either = pytest.mark.parametrize("target", ["/v2/", "/health/endtoend"])
SOON = 5.0
"""Seconds: what a busy machine takes, and far less than the timers that would close a connection otherwise."""


@either
async def test_connection_close(node: Node, target: str) -> None:
    """`Connection: close` closes right after the answer."""
    await node.start(hello)
    async with node.client() as client:
        assert (await client.ask(target, headers="Connection: close\r\n")).status == 200
        began = trio.current_time()
        assert await client.closed()
        assert trio.current_time() - began < SOON


@either
@pytest.mark.parametrize("method", ["GET", "PUT"])
@pytest.mark.parametrize("more", [b"\r\n", b"GET /v2/second HTTP/1.1\r\nHost: node\r\n\r\n", b"x" * 300_000])
async def test_what_comes_behind_a_last_request(node: Node, target: str, method: str, more: bytes) -> None:
    """Whatever a client sends behind a request with `Connection: close`, that request is answered, whole and alone."""
    await node.start(hello)
    async with node.client() as client:
        body = b"Content-Length: 2\r\n\r\nab" if method == "PUT" else b"\r\n"
        head = f"{method} {target} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n".encode()
        await client.send(head + body + more[:1000])
        with suppress(trio.BrokenResourceError):
            await client.send(more[1000:])
        assert (await client.reply()).status == (405 if (method, target) == ("PUT", "/health/endtoend") else 200)
        assert await client.closed()


@either
async def test_http_1_0(node: Node, target: str) -> None:
    """An HTTP/1.0 client sees the end of its answer by the close of the connection."""
    await node.start(hello)
    async with node.client() as client:
        began = trio.current_time()
        await client.send(f"GET {target} HTTP/1.0\r\nHost: node\r\n\r\n".encode())
        assert (await client.reply()).status == 200
        assert await client.closed()
        assert trio.current_time() - began < SOON


@either
async def test_idle_timer_after_an_answer(node: Node, target: str) -> None:
    """A kept connection is closed when it has idled for the keep-alive time, and not before."""
    # Long enough for a busy machine to bring the request: the timer runs before it as well.
    await node.start(hello, keep_alive=2.0)
    async with node.client() as client:
        # Before the request: the timer starts when the node has answered, and this task may hear of it late.
        began = trio.current_time()
        await client.ask(target)
        assert await client.closed()
        assert 2.0 <= trio.current_time() - began < 2.0 + SOON


@pytest.mark.parametrize("start", [b"", b"GET /v2/ HTTP/1.1\r\nHo"])
async def test_idle_timer_before_a_request(node: Node, start: bytes) -> None:
    """A connection that never completes a request's head is closed by the same timer."""
    await node.start(hello, keep_alive=0.3)
    async with node.client() as client:
        await client.send(start)
        assert await client.closed()


@either
async def test_keep_alive(node: Node, target: str) -> None:
    """One connection serves many requests."""
    await node.start(hello)
    async with node.client() as client:
        assert [(await client.ask(target)).status for _ in range(5)] == [200] * 5


@either
async def test_stop_with_idle_connections(node: Node, target: str) -> None:
    """Idle connections delay a stop by no more than the moment in which they may bring another request."""
    await node.start(hello)
    async with node.client() as first, node.client() as second, node.client():
        await first.ask(target)
        await second.ask(target)
        assert await node.stop() < SOON
        assert await first.closed()


async def test_pipelining(node: Node) -> None:
    """Pipelined requests are answered in order, also across the two kinds of application."""
    await node.start(hello)
    async with node.client() as client:
        targets = ["/v2/a", "/_internal_ping", "/v2/b", "/v2/c"]
        await client.send(b"".join(f"GET {target} HTTP/1.1\r\nHost: node\r\n\r\n".encode() for target in targets))
        bodies = [(await client.reply()).body.strip() for _ in targets]
        assert bodies == [b"GET /v2/a", b"true", b"GET /v2/b", b"GET /v2/c"]


async def test_client_closes_an_idle_connection(node: Node) -> None:
    """A connection that its client closed is gone at once, not when its idle timer fires."""
    await node.start(hello)
    before = tasks()
    async with node.client() as client:
        await client.ask("/v2/")
        await trio.testing.wait_all_tasks_blocked(0.05)  # the node has done with the request and idles
    await no_more_tasks_than(before)


async def test_no_upgrade_to_http_2(node: Node) -> None:
    """An offer of `h2c` is ignored and the request answered in HTTP/1.1."""
    await node.start(hello)
    async with node.client() as client:
        upgrade = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"
        assert (await client.ask("/v2/", headers=upgrade)).body == b"GET /v2/"
        assert (await client.ask("/v2/again")).status == 200


async def test_no_http_2_preface(node: Node) -> None:
    """A client that assumes HTTP/2 is refused."""
    await node.start(hello)
    async with node.client() as client:
        await client.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        assert (await client.rest()).startswith(b"HTTP/1.1 400 ")


@either
@pytest.mark.parametrize(
    "lines",
    [
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nContent-Length: 2\r\n\r\nab",
        b"Sec-WebSocket-Version: 1\r\n\r\n",
        b"\r\n",
    ],
)
async def test_no_websockets(node: Node, target: str, lines: bytes) -> None:
    """A WebSocket handshake, whatever is wrong with it, is a request like any other, and its connection closes when it idles."""
    await node.start(hello, keep_alive=0.5)
    async with node.client() as client:
        start = f"GET {target} HTTP/1.1\r\nHost: node\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        await client.send(start.encode() + lines)
        assert (await client.reply()).status == 200
        assert (await client.ask(target)).status == 200
        assert await client.closed()


@pytest.mark.parametrize("method", ["head", "Head", "get"])
@either
async def test_methods_are_what_they_are(node: Node, method: str, target: str) -> None:
    """A method in small letters is another one, which nobody has: its answer has all the bytes that it promises."""
    await node.start(hello)
    async with node.client() as client:
        await client.send(f"{method} {target} HTTP/1.1\r\nHost: node\r\n\r\n".encode())
        assert (await client.reply()).status == 501
        assert (await client.ask(target)).status == 200


async def test_no_server_header(node: Node) -> None:
    """Answers do not say which software made them, but carry a date and a request id."""
    await node.start(hello)
    async with node.client() as client:
        for target in ("/v2/", "/health"):
            headers = (await client.ask(target)).headers
            assert "server" not in headers
            assert {"date", "x-request-id", "content-length"} <= set(headers)
