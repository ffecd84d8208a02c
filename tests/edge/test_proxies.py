"""Who a request comes from when proxies stand in front: only listed ones are believed, in headers and in PROXY headers."""

from ipaddress import ip_network

import pytest
import trio

from node.answers import Answer, Request
from node.config.settings import EdgeSettings
from node.web.proxy_protocol import SIGNATURE
from tests.edge.conftest import Logged, Node
from tests.edge.wire import Closed

LISTED = EdgeSettings(trusted_proxies=(ip_network("127.0.0.0/8"), ip_network("10.0.0.0/8")))
FOREIGN = EdgeSettings(trusted_proxies=(ip_network("10.0.0.0/8"),))


async def who(request: Request) -> Answer:
    """Answer with what the request says of itself."""
    said = [request.client, request.headers["host"], *(name for name in request.headers if name.startswith("x-"))]
    return Answer(200, (), " ".join(said).encode())


@pytest.mark.parametrize(
    ("headers", "seen"),
    [
        ("", "127.0.0.1 node"),
        ("X-Forwarded-For: 192.0.2.7\r\n", "192.0.2.7 node"),
        ("X-Forwarded-For: 6.6.6.6, 192.0.2.7, 10.1.1.1\r\n", "192.0.2.7 node"),
        ("X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-For: 192.0.2.7\r\n", "192.0.2.7 node"),
        ("X-Forwarded-For: 10.2.2.2, 10.1.1.1\r\n", "10.2.2.2 node"),
        ("X-Forwarded-For: [2001:db8::7]:4711\r\n", "2001:db8::7 node"),
        ("X-Forwarded-For: 192.0.2.7, nonsense\r\n", "127.0.0.1 node"),
        ("X-Forwarded-For: 192.0.2.7:80\r\nX-Forwarded-Host: registry.test\r\n", "192.0.2.7 registry.test"),
        ("X-Forwarded-Host: evil/\r\nX-Forwarded-Proto: https\r\n", "127.0.0.1 node"),
    ],
)
async def test_a_listed_proxy_is_believed(node: Node, logged: Logged, headers: str, seen: str) -> None:
    """Its client is the rightmost address that is no listed proxy's; its word for the host counts; nothing else is passed on."""
    await node.start(who, edge=LISTED)
    async with node.client() as client:
        for method in ("GET", "DELETE"):
            assert (await client.ask("/v2/", method, headers=headers)).body.decode() == seen
    assert (await logged.request(2))["client"] == seen.split()[0]


@pytest.mark.parametrize("edge", [FOREIGN, EdgeSettings()])
async def test_nobody_else_is_believed(node: Node, edge: EdgeSettings) -> None:
    """Who is not listed is its own client, whatever it writes, and what it wrote is gone."""
    await node.start(who, edge=edge)
    headers = "X-Forwarded-For: 192.0.2.7\r\nX-Forwarded-Host: evil.test\r\nX-Forwarded-Proto: https\r\n"
    async with node.client() as client:
        for method in ("GET", "DELETE"):
            assert (await client.ask("/v2/", method, headers=headers)).body == b"127.0.0.1 node"


def version_2(address: bytes, command: int = 1) -> bytes:
    family = {4: 0x11, 16: 0x21}[len(address)]
    body = address + bytes(len(address)) + bytes(4) + b"\x04\x00\x01x"
    return SIGNATURE + bytes((0x20 | command, family)) + len(body).to_bytes(2) + body


@pytest.mark.parametrize(
    ("header", "seen"),
    [
        (b"PROXY TCP4 192.0.2.7 203.0.113.1 4711 443\r\n", "192.0.2.7 node"),
        (b"PROXY TCP6 2001:db8::7 2001:db8::1 4711 443\r\n", "2001:db8::7 node"),
        (b"PROXY TCP6 ::ffff:192.0.2.7 ::ffff:203.0.113.1 4711 443\r\n", "192.0.2.7 node"),
        (b"PROXY UNKNOWN\r\n", "127.0.0.1 node"),
        (version_2(bytes((192, 0, 2, 7))), "192.0.2.7 node"),
        (version_2(bytes.fromhex("00000000000000000000ffffc0000207")), "192.0.2.7 node"),
        (version_2(bytes.fromhex("20010db8000000000000000000000007")), "2001:db8::7 node"),
        (version_2(bytes((192, 0, 2, 7)), command=0), "127.0.0.1 node"),
    ],
)
async def test_a_proxy_header_names_the_client(node: Node, header: bytes, seen: str) -> None:
    """A listed proxy's connection begins with a PROXY header, in one piece or byte by byte; what follows is the client's."""
    await node.start(who, edge=EdgeSettings(None, LISTED.trusted_proxies, proxy_protocol=True))
    for step in (len(header), 1):
        async with node.client() as client:
            for start in range(0, len(header), step):
                await client.send(header[start : start + step])
            # Whether its client may say more depends on who that is: here it is no proxy, and not believed.
            headers = "" if seen.startswith("127") else "X-Forwarded-For: 6.6.6.6\r\n"
            assert (await client.ask("/v2/", headers=headers)).body.decode() == seen
            assert (await client.ask("/v2/", "DELETE")).body.decode() == seen


@pytest.mark.parametrize(
    "header",
    [
        b"GET /v2/ HTTP/1.1\r\nHost: node\r\n\r\n",
        b"PROXY TCP4 x y 1 2\r\n",
        b"PROXY " + b"A" * 200,
        SIGNATURE + b"\x31\x11\x00\x00",
    ],
)
async def test_a_listed_proxy_without_a_header_is_refused(node: Node, logged: Logged, header: bytes) -> None:
    """Nothing is guessed: a connection that must begin with a PROXY header and does not is closed without an answer."""
    await node.start(who, edge=EdgeSettings(None, LISTED.trusted_proxies, proxy_protocol=True))
    async with node.client() as client:
        await client.send(header)
        with pytest.raises(Closed) as closed:
            await client.reply()
        assert closed.value.received == b""
    (refused,) = [entry for entry in logged.entries if "was refused" in entry["event"]]
    assert refused["proxy"] == "127.0.0.1"


async def test_a_proxy_header_of_anybody_else_is_no_request(node: Node) -> None:
    """Who is not listed speaks HTTP: its PROXY header is a request that is refused."""
    await node.start(who, edge=EdgeSettings(None, FOREIGN.trusted_proxies, proxy_protocol=True))
    async with node.client() as client:
        assert (await client.ask("/v2/")).body == b"127.0.0.1 node"
    async with node.client() as client:
        await client.send(b"PROXY TCP4 192.0.2.7 203.0.113.1 4711 443\r\nGET /v2/ HTTP/1.1\r\nHost: node\r\n\r\n")
        assert (await client.head()).status == 400


async def test_a_proxy_header_that_never_comes_does_not_hold_up_a_stop(nursery: trio.Nursery) -> None:
    """A connection that has not asked for anything yet is closed when the node stops."""
    node = await Node(nursery).start(who, edge=EdgeSettings(None, LISTED.trusted_proxies, proxy_protocol=True))
    async with node.client() as silent:
        await silent.send(b"PROXY ")
        assert await node.stop() < 5.0
