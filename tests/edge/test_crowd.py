"""No address has all of a node's connections; whose they are is known as soon as it can be."""

import ssl
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from ipaddress import ip_network
from pathlib import Path

import pytest
import trio

from node.config.settings import EdgeSettings, TlsSettings
from node.tls import Certificates
from node.web.arrival import LEAST
from node.web.arrival import SHARE as SHARE_ARRIVING
from node.web.crowd import RESERVE
from tests.certificates import Authority
from tests.edge.conftest import Node, hello
from tests.edge.wire import PATIENCE, Client, connect

MOST = 16
SHARE = 12
PROXIED = EdgeSettings(trusted_proxies=(ip_network("127.0.0.0/8"),), proxy_protocol=True)


def connect_from(
    source: str, node: Node, *, first: bytes = b"", trust: ssl.SSLContext | None = None
) -> AbstractAsyncContextManager[Client]:
    """Connect from an address of this machine's, and say something first."""
    return connect(node.address, tls=trust, source=source, first=first)


async def test_one_address_has_its_share(node: Node) -> None:
    """Who has three quarters of all connections gets no more of them, is told so, and has its health checks answered."""
    await node.start(hello, maximum_connections=MOST)
    async with AsyncExitStack() as stack:
        for number in range(MOST):
            client = await stack.enter_async_context(connect_from("127.0.0.1", node))
            reply = await client.ask("/v2/")
            assert reply.status == (200 if number < SHARE else 503)
        for address in ("127.0.0.2", "127.0.0.3"):
            client = await stack.enter_async_context(connect_from(address, node))
            assert (await client.ask("/v2/")).status == 200
        async with connect_from("127.0.0.1", node) as probe:
            assert (await probe.ask("/health/endtoend")).status == 200


async def test_silent_ones_make_way(node: Node) -> None:
    """Connections beyond a share that say nothing take nobody's place: the oldest of them go."""
    await node.start(hello, maximum_connections=MOST)
    async with AsyncExitStack() as stack:
        for _ in range(SHARE):
            client = await stack.enter_async_context(connect_from("127.0.0.1", node))
            assert (await client.ask("/v2/")).status == 200
        oldest = await stack.enter_async_context(connect_from("127.0.0.1", node))
        for _ in range(RESERVE + MOST):
            await stack.enter_async_context(connect_from("127.0.0.1", node))
        assert await oldest.closed()
        async with connect_from("127.0.0.2", node) as other:
            assert (await other.ask("/v2/")).status == 200
        async with connect_from("127.0.0.1", node) as probe:
            assert (await probe.ask("/health/endtoend")).status == 200
        assert (await client.ask("/v2/")).status == 200


@pytest.mark.parametrize("first", [b"", b"PROXY UNKNOWN\r\n"])
async def test_a_listed_proxy_has_no_share(node: Node, first: bytes) -> None:
    """The connections of a balancer are everybody's, whether it says whose or not."""
    edge = EdgeSettings(trusted_proxies=PROXIED.trusted_proxies, proxy_protocol=bool(first))
    await node.start(hello, maximum_connections=MOST, edge=edge)
    async with AsyncExitStack() as stack:
        for number in range(MOST + 1):
            client = await stack.enter_async_context(connect_from("127.0.0.1", node, first=first))
            assert (await client.ask("/v2/")).status == (200 if number < MOST else 503)


async def test_a_proxy_says_whose_a_connection_is(node: Node) -> None:
    """Behind a balancer that names its clients in a PROXY header each of these has its share."""
    await node.start(hello, maximum_connections=MOST, edge=PROXIED)
    async with AsyncExitStack() as stack:
        for number in range(MOST):
            first = b"PROXY TCP4 192.0.2.7 203.0.113.1 4711 443\r\n"
            client = await stack.enter_async_context(connect_from("127.0.0.1", node, first=first))
            assert (await client.ask("/v2/")).status == (200 if number < SHARE else 503)
        other = b"PROXY TCP4 192.0.2.8 203.0.113.1 4711 443\r\n"
        client = await stack.enter_async_context(connect_from("127.0.0.1", node, first=other))
        assert (await client.ask("/v2/")).status == 200


async def test_a_proxy_of_both_kinds_says_whose_a_connection_is(node: Node) -> None:
    """Two IPv4 clients of a balancer that writes their addresses as IPv6 has them are two."""
    await node.start(hello, maximum_connections=MOST, edge=PROXIED)
    async with AsyncExitStack() as stack:
        for number in range(SHARE + 1):
            first = b"PROXY TCP6 ::ffff:192.0.2.%d ::ffff:203.0.113.1 4711 443\r\n" % (7 + number // SHARE)
            client = await stack.enter_async_context(connect_from("127.0.0.1", node, first=first))
            assert (await client.ask("/v2/")).status == 200


async def test_probes_find_room_in_the_reserve(node: Node) -> None:
    """Where all places are taken, one address alone pushes none of another's out of the reserve."""
    await node.start(hello, maximum_connections=MOST)
    async with AsyncExitStack() as stack:
        for address, held in (("127.0.0.1", SHARE), ("127.0.0.2", 3), ("127.0.0.3", 1)):
            for _ in range(held):
                client = await stack.enter_async_context(connect_from(address, node))
                assert (await client.ask("/v2/")).status == 200
        probe = await stack.enter_async_context(connect_from("127.0.0.4", node))
        assert (await probe.ask("/v2/")).status == 503
        probe = await stack.enter_async_context(connect_from("127.0.0.4", node))
        first = await stack.enter_async_context(connect_from("127.0.0.1", node))
        for _ in range(2 * RESERVE):
            await stack.enter_async_context(connect_from("127.0.0.1", node))
        assert await first.closed()
        assert (await probe.ask("/health/endtoend")).status == 200


def secure(nursery: trio.Nursery, folder: Path) -> tuple[Node, ssl.SSLContext]:
    """Return a node that speaks TLS, not started yet, and what its clients trust."""
    authority = Authority.make(folder)
    pair = authority.sign("node")
    trust = ssl.create_default_context(cafile=str(authority.own.certificate))
    return Node(nursery, tls=Certificates(TlsSettings(pair.certificate, pair.key)).current, trust=trust), trust


@pytest.mark.parametrize("proxied", [False, True])
async def test_nobody_crowds_out_handshakes(nursery: trio.Nursery, tmp_path: Path, *, proxied: bool) -> None:
    """However many handshakes one client begins and leaves, that of another one, which takes a while, is ended."""
    node, trust = secure(nursery, tmp_path)
    await node.start(hello, maximum_connections=SHARE_ARRIVING * LEAST, edge=PROXIED if proxied else EdgeSettings())

    def client(last: int) -> AbstractAsyncContextManager[Client]:
        first = b"PROXY TCP4 192.0.2.%d 203.0.113.1 4711 443\r\n" % last if proxied else b""
        return connect_from("127.0.0.1" if proxied else f"127.0.0.{last}", node, first=first)

    async with AsyncExitStack() as stack:
        slow = await stack.enter_async_context(client(2))
        eager = await stack.enter_async_context(client(1))
        for _ in range(3 * LEAST):
            await stack.enter_async_context(client(1))
        assert await eager.closed()
        with trio.fail_after(PATIENCE):
            ended = trio.SSLStream(slow.stream, trust, server_hostname="localhost", https_compatible=True)
            await ended.do_handshake()
        assert (await Client(ended).ask("/v2/")).status == 200


async def test_handshakes_count(nursery: trio.Nursery, tmp_path: Path) -> None:
    """Who has its share of connections takes no more by beginning handshakes that it never ends."""
    node, trust = secure(nursery, tmp_path)
    await node.start(hello, maximum_connections=MOST)
    async with AsyncExitStack() as stack:
        for _ in range(SHARE):
            client = await stack.enter_async_context(connect_from("127.0.0.1", node, trust=trust))
            assert (await client.ask("/v2/")).status == 200
        for _ in range(MOST):
            await stack.enter_async_context(connect_from("127.0.0.1", node))
        async with connect_from("127.0.0.2", node, trust=trust) as other:
            assert (await other.ask("/v2/")).status == 200


async def test_who_leaves_makes_room(node: Node) -> None:
    """A connection that ends gives its place back, however it ends."""
    await node.start(hello, maximum_connections=4)
    for number in range(3 * MOST):
        async with connect_from("127.0.0.1", node) as client:
            if number % 3 == 0:
                await client.send(b"nonsense\r\n\r\n")
                await client.rest()
            elif number % 3 == 1:
                assert (await client.ask("/v2/", headers="Connection: close\r\n")).status == 200
                await client.rest()
    async with AsyncExitStack() as stack:
        # The node may still be about to notice that the last ones have left.
        with trio.fail_after(PATIENCE):
            while True:
                async with connect_from("127.0.0.1", node) as client:
                    if (await client.ask("/v2/")).status == 200:
                        break
        for _ in range(2):
            client = await stack.enter_async_context(connect_from("127.0.0.1", node))
            assert (await client.ask("/v2/")).status == 200
