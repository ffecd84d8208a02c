"""Where and how the node listens."""

import socket
import time

import pytest
import trio

from node.web.listener import Address, CannotListen, parse_bind, serve
from tests.edge.conftest import SETTINGS, Node, hello
from tests.edge.wire import connect

_CROWD = 200


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:8101", Address("127.0.0.1", 8101)),
        ("[::1]:0", Address("::1", 0)),
        ("localhost:65535", Address("localhost", 65535)),
    ],
)
def test_bind_forms(text: str, address: Address) -> None:
    """An address to listen on is host:port, with brackets around an IPv6 host, and prints as it is written."""
    assert parse_bind(text) == address
    assert str(address) == text


@pytest.mark.parametrize(
    "text", ["", "8101", ":8101", "127.0.0.1", "127.0.0.1:", "host:http", "host:65536", "::1:80", "host:-1"]
)
def test_bad_bind(text: str) -> None:
    """An address that is none is refused with what was found and what would be right."""
    with pytest.raises(CannotListen, match="cannot listen on"):
        parse_bind(text)


async def test_ipv6(node: Node) -> None:
    """A node listens on IPv6 and reports the port it got."""
    await node.start(hello, bind="[::1]:0")
    assert str(node.address).startswith("[::1]:")
    assert node.address.port > 0
    async with node.client() as client:
        assert (await client.ask("/v2/")).status == 200


async def test_taken_port(node: Node) -> None:
    """A port that is taken is an error that names it."""
    await node.start(hello)
    with pytest.raises(CannotListen, match=f"{node.address.port}.*in use"):
        await serve(hello, SETTINGS, bind=str(node.address), shutdown=trio.Event())  # type: ignore[arg-type]  # never called


async def test_connection_limit(node: Node) -> None:
    """A connection too many is told to come back, at once, and closed; when one is free again the next is served."""
    await node.start(hello, maximum_connections=1)
    async with connect(node.address) as first, connect(node.address) as second:
        assert (await first.ask("/v2/")).status == 200
        refused = await second.ask("/v2/")
        assert refused.status == 503
        assert refused.headers["retry-after"] == "5"
        assert await second.closed()
        await first.leave()
    async with connect(node.address) as third:
        assert (await third.ask("/v2/")).status == 200


async def test_a_crowd_is_let_in_at_once(node: Node) -> None:
    """However long a round of the event loop takes, a crowd of new connections does not wait for one round each."""
    await node.start(hello)
    rounds, done = 0, False

    async def keep_busy() -> None:
        nonlocal rounds
        while not done:
            time.sleep(0.005)  # noqa: ASYNC251  # as the work of many requests does
            rounds += 1
            await trio.lowlevel.checkpoint()

    crowd = [socket.create_connection((node.address.host, node.address.port)) for _ in range(_CROWD)]
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(keep_busy)
            with trio.fail_after(60):
                for client in crowd:
                    client.sendall(b"GET /v2/ HTTP/1.1\r\nHost: node\r\n\r\n")
                await trio.lowlevel.wait_readable(crowd[-1])
                done = True
                for client in crowd:
                    await trio.lowlevel.wait_readable(client)
                    assert client.recv(12) == b"HTTP/1.1 200"
    finally:
        for client in crowd:
            client.close()
    assert rounds < _CROWD / 2
