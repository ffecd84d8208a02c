"""Where and how the node listens."""

import ssl
import subprocess
from pathlib import Path

import pytest
import trio

from node.web.listener import Address, CannotListen, parse_bind, serve
from tests.edge.conftest import SETTINGS, Node, hello
from tests.edge.wire import Closed, connect


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


async def test_tls(nursery: trio.Nursery, tmp_path: Path) -> None:
    """Over TLS a client that would like HTTP/2 gets HTTP/1.1, and the connection's end is clean."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subject = ("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost")
    kind = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")
    await trio.run_process(
        ["openssl", "req", "-x509", *kind, *subject, "-keyout", str(key), "-out", str(certificate)],
        stderr=subprocess.DEVNULL,
    )
    ours = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ours.load_cert_chain(certificate, key)
    theirs = ssl.create_default_context(cafile=str(certificate))
    theirs.set_alpn_protocols(["h2", "http/1.1"])
    node = await Node(nursery).start(hello, tls=ours)
    async with connect(node.address, tls=theirs) as client, connect(node.address) as plain:
        assert (await client.ask("/v2/")).body == b"GET /v2/"
        assert isinstance(client.stream, trio.SSLStream)
        assert client.stream.selected_alpn_protocol() == "http/1.1"
        assert (await client.ask("/v2/", headers="Connection: close\r\n")).status == 200
        assert await client.closed()
        await plain.send(b"GET /v2/ HTTP/1.1\r\nHost: node\r\n\r\n")
        with pytest.raises(Closed):
            await plain.reply()
