"""Requests are understood strictly: what is malformed is refused before any handler sees it."""

import json
from ipaddress import IPv4Network, ip_network

import pytest

from node.answers import Answer, Request
from node.config.settings import EdgeSettings
from tests.edge.conftest import Logged, Node
from tests.edge.wire import Client


async def facts(request: Request) -> Answer:
    """Answer with what the handler was told."""
    told = {
        "path": request.path,
        "query": dict(request.query),
        "headers": dict(request.headers),
        "client": request.client,
    }
    return Answer(200, (), json.dumps({**told, "id": request.id, "method": request.method}).encode())


async def ask(client: Client, target: str, headers: str = "") -> dict[str, object]:
    reply = await client.ask(target, headers=headers)
    assert reply.status == 200, reply.body
    answer: dict[str, object] = json.loads(reply.body)
    return answer


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("/v2/a/manifests/sha256%3Aabc", "/v2/a/manifests/sha256:abc"),
        ("/v2/a%2Fb/tags/list", "/v2/a/b/tags/list"),
        ("/v2/caf%C3%A9", "/v2/café"),
        ("/v2/a+b%2Bc%25", "/v2/a+b+c%"),
        ("/v2", "/v2"),
        ("http://elsewhere:80/v2/x", "/v2/x"),
        ("HTTP://elsewhere/v2/x?n=1", "/v2/x"),
    ],
)
async def test_path(node: Node, target: str, path: str) -> None:
    """A path is percent-decoded once, as UTF-8; an absolute target is as good as a path."""
    await node.start(facts)
    async with node.client() as client:
        assert (await ask(client, target))["path"] == path


@pytest.mark.parametrize(
    "target",
    [
        "/v2/%",
        "/v2/%4",
        "/v2/%zz",
        "/v2/%+1",
        "/v2/%00",
        "/v2/a%0d%0ab",
        "/v2/%7f",
        "/v2/%C2%85",
        "/v2/%ff",
        "/v2/%C0%AF",
        "/v2/?n=%",
        "/v2/?last=%00",
        "/v2/?%0a=1",
        "/v2/?last=%ff",
        "/v2/?" + "a=1&" * 101,
        "*",
        "v2/",
        "ftp://elsewhere/v2/",
    ],
)
async def test_bad_target(node: Node, target: str) -> None:
    """Bad escapes, other encodings than UTF-8 and control characters are 400, and the connection lives on."""
    await node.start(facts)
    async with node.client() as client:
        reply = await client.ask(target)
        assert reply.status == 400
        assert json.loads(reply.body)["errors"][0]["code"] == "UNSUPPORTED"
        assert (await client.ask("/v2/")).status == 200


async def test_query(node: Node) -> None:
    """Every value of every parameter is there, decoded, in order; a plus is a plus, as media types have it."""
    await node.start(facts)
    async with node.client() as client:
        told = await ask(
            client, "/v2/?digest=sha256%3A1&digest=sha256:2&mount&n=&&artifactType=application/vnd.a+json&x=a%3Db=c"
        )
        assert told["query"] == {
            "digest": ["sha256:1", "sha256:2"],
            "mount": [""],
            "n": [""],
            "artifactType": ["application/vnd.a+json"],
            "x": ["a=b=c"],
        }


async def test_headers(node: Node) -> None:
    """Header names are lower case, repeated headers are joined, values are latin-1."""
    await node.start(facts)
    async with node.client() as client:
        await client.send(b"GET /v2/ HTTP/1.1\r\nHost: node\r\nAccept: a/b\r\nACCEPT: c/d, e/f\r\nX-Odd: \xe9\r\n\r\n")
        headers = json.loads((await client.reply()).body)["headers"]
        assert headers == {"host": "node", "accept": "a/b, c/d, e/f", "x-odd": "é"}


async def test_request_id(node: Node) -> None:
    """A listed proxy's sane X-Request-ID is taken over and returned; anything else is replaced, by a new one each time."""
    await node.start(facts, edge=EdgeSettings(trusted_proxies=(ip_network("127.0.0.0/8"),)))
    async with node.client() as client:
        reply = await client.ask("/v2/", headers="X-Request-ID: trace-1234:5/6\r\n")
        assert json.loads(reply.body)["id"] == reply.headers["x-request-id"] == "trace-1234:5/6"
        seen = set()
        for bad in ("", "a b", "x" * 129, '"quoted"', "{json}", "caf\u00e9"):
            await client.send(f"GET /v2/ HTTP/1.1\r\nHost: node\r\nX-Request-ID: {bad}\r\n\r\n".encode())
            reply = await client.reply()
            assert reply.headers["x-request-id"] != bad
            seen.add(reply.headers["x-request-id"])
        assert len(seen) == 6


@pytest.mark.parametrize("trusted", [(), (ip_network("10.0.0.0/8"),)])
async def test_a_request_id_of_anybody(node: Node, logged: Logged, trusted: tuple[IPv4Network, ...]) -> None:
    """Nobody else chooses the id of a request, on either edge; the log has what they call it, where that is harmless."""
    await node.start(facts, edge=EdgeSettings(trusted_proxies=trusted))
    async with node.client() as client:
        for count, method in enumerate(("GET", "DELETE"), 1):
            reply = await client.ask("/v2/", method, headers="X-Request-ID: mine\r\n")
            line = await logged.request(count)
            assert line["client_request_id"] == "mine"
            assert json.loads(reply.body)["id"] == reply.headers["x-request-id"] == line["request_id"] != "mine"
        await client.ask("/v2/", headers='X-Request-ID: "odd"\r\n')
    assert "client_request_id" not in await logged.request(3)


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"rubbish\r\n\r\n", 400),
        (b"GET /v2/ HTTP/1.1\r\n\r\n", 400),
        (b"GET /v2/ HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"GET /v2/\x00 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET /v2/ HTTP/1.1\r\nHost: a\r\nX: \x00\r\n\r\n", 400),
        (b"PUT /v2/ HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", 400),
        (b"PUT /v2/ HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n", 400),
        (b"PUT /v2/ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
        (b"GET /v2/ HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 100_000, 431),
    ],
)
async def test_malformed_head(node: Node, raw: bytes, status: int) -> None:
    """A head that is not HTTP is refused, and the connection closed."""
    await node.start(facts)
    async with node.client() as client:
        await client.send(raw)
        assert (await client.rest()).startswith(b"HTTP/1.1 %d " % status)


@pytest.mark.parametrize(
    "head",
    [
        b"PUT /v2/ HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"PUT /v2/ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n",
        b"GET /v2/ HTTP/1.1\r\nHost: a\r\ntransfer-encoding: Chunked\r\ncontent-length: 0\r\n\r\n",
        b"PUT /v2/ HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n",
    ],
)
async def test_length_and_chunks_at_once(node: Node, logged: Logged, head: bytes) -> None:
    """A body that ends in two places is refused with all that follows: a proxy may have believed the other (RFC 9112, 6.1)."""
    await node.start(facts)
    async with node.client() as client:
        await client.send(head + b"0\r\n\r\nGET /v2/second HTTP/1.1\r\nHost: a\r\n\r\n")
        refused = await client.reply()
        assert (refused.status, refused.headers["connection"]) == (400, "close")
        assert await client.closed()
    assert logged.requests() == []


async def test_broken_chunk(node: Node) -> None:
    """A body whose chunks are malformed never reaches its end: the handler sees its client leave."""

    async def handler(request: Request) -> Answer:
        while await request.body.receive():
            pass
        return Answer(200, (), b"whole")

    await node.start(handler)
    async with node.client() as client:
        await client.send(b"PUT /v2/ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nrubbish\r\n")
        assert b"whole" not in await client.rest()
