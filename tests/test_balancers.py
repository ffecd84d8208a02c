"""The load balancers of deploy/ before real nodes: bytes flow through, bodies have any size, and a node that is gone is left."""

import hashlib
import json
import random
import re
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import httpx
import pytest
import trio
from attrs import frozen

from node.web.waits import LAST_REQUEST
from scripts.services.processes import free_ports
from tests.balancers import Doors, haproxy, needs_haproxy, needs_nginx, nginx
from tests.cluster import Cluster
from tests.faults import FaultProxy
from tests.nemesis.ground import until
from tests.sending import send_pieces
from tests.services import repository_root

MIB = 1 << 20
_PATIENCE = 30.0

Balancer = Callable[[Path, Doors], AbstractContextManager[None]]
either = pytest.mark.parametrize(
    "balancer",
    [pytest.param(haproxy, marks=needs_haproxy, id="haproxy"), pytest.param(nginx, marks=needs_nginx, id="nginx")],
)


def test_nginx_gives_idle_connections_up_before_a_node_that_stops() -> None:
    """A POST on a connection that a node closes in that very moment is lost: nginx has none left by then."""
    text = (repository_root() / "deploy" / "nginx" / "nginx.conf").read_text()
    upstream = re.search(r"upstream nodes \{.*?keepalive_timeout (\d+)s;.*?\}", text, re.DOTALL)
    assert upstream is not None
    # A second for what either of them, and the way between, may be late.
    assert float(upstream[1]) + 1 <= LAST_REQUEST


@pytest.fixture
async def fronts(cluster: Cluster) -> AsyncIterator[dict[str, FaultProxy]]:
    """A proxy that breaks on command before each node of the session's cluster."""
    found = {node.name: FaultProxy("127.0.0.1", node.port) for node in cluster}
    async with trio.open_nursery() as nursery:
        for proxy in found.values():
            await nursery.start(proxy.serve)
        yield found
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def client_of(balancer: Balancer, folder: Path, servers: dict[str, int]) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a balancer before these servers, which has found them."""
    (port,) = free_ports(1)
    with balancer(folder, {"door": (port, servers)}):
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=_PATIENCE, trust_env=False) as client:
            yield client


async def push(client: httpx.AsyncClient, repository: str, data: bytes) -> str:
    """Push a blob as docker does, chunked, by the Locations as they come; return its digest."""
    answer = await client.post(f"/v2/{repository}/blobs/uploads/")
    assert answer.status_code == 202, answer.text
    assert answer.headers["location"].startswith("/v2/")
    pieces = (data[start : start + 256 * 1024] for start in range(0, len(data), 256 * 1024))
    answer = await send_pieces(client, "PATCH", answer.headers["location"], pieces)
    assert answer.status_code == 202, answer.text
    assert answer.headers["location"].startswith("/v2/")
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    answer = await client.put(answer.headers["location"], params={"digest": digest})
    assert answer.status_code == 201, answer.text
    assert answer.headers["location"] == f"/v2/{repository}/blobs/{digest}"
    return digest


@either
async def test_a_layer_of_any_size_goes_both_ways(
    cluster: Cluster, balancer: Balancer, repository: str, tmp_path: Path
) -> None:
    """Twenty megabytes without a length are pushed by relative Locations, and come back whole."""
    data = random.Random(repository).randbytes(20 * MIB + 1)
    async with client_of(balancer, tmp_path, {node.name: node.port for node in cluster}) as client:
        digest = await push(client, repository, data)
        answer = await client.get(f"/v2/{repository}/blobs/{digest}", follow_redirects=True)
    assert answer.status_code == 200
    assert answer.content == data


@either
async def test_nothing_is_collected_on_the_way(balancer: Balancer, tmp_path: Path) -> None:
    """The node has the first megabytes of a body before the client sends the rest, and the client those of the answer."""
    got, go_on = trio.Event(), trio.Event()
    first, rest = b"1" * (2 * MIB), b"2" * MIB

    async def node(stream: trio.SocketStream) -> None:
        received = b""
        while b"\r\n\r\n" not in received:
            part = await stream.receive_some(65536)
            if not part:
                return
            received += part
        if not received.startswith(b"PUT"):
            await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            return
        count = len(received.partition(b"\r\n\r\n")[2])
        while count < len(first) + len(rest):
            count += len(await stream.receive_some(65536))
            if count >= len(first):
                got.set()
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(first) + len(rest)}\r\nConnection: close\r\n\r\n".encode()
        await stream.send_all(head + first)
        await go_on.wait()
        await stream.send_all(rest)

    async def body() -> AsyncIterator[bytes]:
        yield first
        with trio.fail_after(_PATIENCE):
            await got.wait()
        yield rest

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, node, 0, host="127.0.0.1"))
        port = listeners[0].socket.getsockname()[1]
        async with client_of(balancer, tmp_path, {"us": port, "eu": port}) as client:
            length = {"content-length": str(len(first) + len(rest))}
            received = 0
            async with client.stream("PUT", "/v2/", content=body(), headers=length) as answer:
                async for part in answer.aiter_raw():
                    received += len(part)
                    if received >= len(first):
                        go_on.set()
        assert received == len(first) + len(rest)
        nursery.cancel_scope.cancel()


@either
async def test_connections_to_the_nodes_are_kept(
    cluster: Cluster, fronts: dict[str, FaultProxy], balancer: Balancer, tmp_path: Path
) -> None:
    """Requests of one client that follow each other go to a node over one connection, and not each over its own."""
    async with client_of(balancer, tmp_path, {name: proxy.port for name, proxy in fronts.items()}) as client:
        await client.get("/v2/")
        before, began = sum(proxy.connections for proxy in fronts.values()), trio.current_time()
        for _ in range(100):
            assert (await client.get("/v2/")).status_code == 200
        probes = 2 * (trio.current_time() - began + 1)
        assert sum(proxy.connections for proxy in fronts.values()) - before < probes + 10


@either
async def test_a_node_that_is_gone_is_left(
    cluster: Cluster, fronts: dict[str, FaultProxy], balancer: Balancer, repository: str, tmp_path: Path
) -> None:
    """From the moment at which a node refuses connections no pull and no push fails, and clients come back when it is back."""

    async def leads_to(name: str) -> bool:
        answer = await client.get("/api/v1/health/locations")
        return answer.status_code == 200 and bool(answer.json()["locations"][0]["location"] == name)

    async with client_of(balancer, tmp_path, {name: proxy.port for name, proxy in fronts.items()}) as client:
        await until(partial(leads_to, "us"), _PATIENCE)
        fronts["us"].break_("refuse")
        # A read that finds its kept connection closed is repeated by the balancer.
        assert await leads_to("eu")
        for number in range(10):
            digest = await push(client, repository, b"%d" % number)
            assert (await client.get(f"/v2/{repository}/blobs/{digest}", follow_redirects=True)).status_code == 200
        fronts["us"].mend()
        await until(partial(leads_to, "us"), _PATIENCE)


@frozen
class Took:
    """A request that a server took."""

    server: str
    line: str
    key: str | None
    size: int


async def take(
    server: str, answers: bool, took: list[Took], stream: trio.SocketStream, go_on: trio.Event | None = None
) -> None:
    """Be a node that takes requests whole, and answers them, when it may go on; or, but for probes, closes their connections."""
    received = b""
    while part := await stream.receive_some(65536):
        received += part
        head, end, body = received.partition(b"\r\n\r\n")
        fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
        if not end or len(body) < int(fields.get(b"content-length", 0)):
            continue
        line, key = head.split(b"\r\n")[0].decode().removesuffix(" HTTP/1.1"), fields.get(b"idempotency-key")
        probe = line == "GET /health/endtoend"
        if not probe:
            took.append(Took(server, line, None if key is None else key.decode(), len(body)))
        if go_on is not None and not probe:
            await go_on.wait()
        if probe or answers:
            # Who waits no longer has gone.
            with suppress(trio.BrokenResourceError):
                await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        return


def docker_manifest(layers: int) -> bytes:
    """Return a manifest as docker writes it."""

    def described(kind: str) -> dict[str, object]:
        return {"mediaType": f"application/vnd.docker.{kind}", "size": 314170000, "digest": f"sha256:{'a' * 64}"}

    document = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
        "config": described("container.image.v1+json"),
        "layers": [described("image.rootfs.diff.tar.gzip")] * layers,
    }
    return json.dumps(document, indent=3).encode()


_MANIFEST = "/v2/team/manifests/app/manifests/v1"
BOTH, ONE = ["us", "eu"], ["us"]
_MADE = re.compile(r'"once-[0-9a-f-]{32,36}"')


@either
async def test_what_is_sent_again(balancer: Balancer, tmp_path: Path, nursery: trio.Nursery) -> None:
    """What a node took without an answer the other gets if it is a read, or concerns a manifest, with one key; nothing else."""
    tries = [
        ("GET /v2/", b"", "", BOTH),
        (f"PUT {_MANIFEST}", b"{}", "", BOTH),
        (f"PUT {_MANIFEST}", docker_manifest(127), "", BOTH),
        (f"PUT {_MANIFEST}", b"{%s}" % (b" " * 120_000), "", BOTH),
        (f"PUT {_MANIFEST}", b"{}", '"theirs"', BOTH),
        (f"PUT {_MANIFEST}?tag=a", b"{}", "", BOTH),
        (f"DELETE {_MANIFEST}", b"", "", BOTH),
        (f"DELETE {_MANIFEST}", b"", '"theirs"', BOTH),
        (f"DELETE /v2/team/app/blobs/sha256:{'a' * 64}", b"", "", ONE),
        ("PUT /api/v1/repository/team/app/visibility", b"{}", "", ONE),
        ("DELETE /api/v1/repository/team/app", b"", "", ONE),
        ("POST /v2/team/app/blobs/uploads/", b"", "", ONE),
        ("PATCH /v2/team/app/blobs/uploads/1", b"data", "", ONE),
    ]
    took: list[Took] = []
    servers = {}
    for server in BOTH:
        serve = partial(take, server, server == "eu", took)
        listeners = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        servers[server] = listeners[0].socket.getsockname()[1]
    # A door each: nginx leaves a server alone for a while after a failure.
    ports = free_ports(len(tries))
    with balancer(tmp_path, {f"door{port}": (port, servers) for port in ports}):
        for port, (line, body, key, expected) in zip(ports, tries, strict=True):
            took.clear()
            head = (
                f"{line} HTTP/1.1\r\nHost: h\r\nContent-Length: {len(body)}\r\nAuthorization: Bearer {'t' * 1500}\r\n"
            )
            stream = await trio.open_tcp_stream("127.0.0.1", port)
            async with stream:
                # At once, as much of it as fits: what a balancer has whole before it begins may be treated otherwise.
                await stream.send_all(
                    f"{head}{f'Idempotency-Key: {key}' + chr(13) + chr(10) if key else ''}\r\n".encode() + body
                )
                with trio.fail_after(_PATIENCE):
                    status = (await stream.receive_some(65536)).split()[1]
            assert (line, [request.server for request in took]) == (line, expected)
            assert status == (b"200" if expected == BOTH else b"502")
            assert {(request.line, request.size) for request in took} == {(line, len(body))}
            if "/manifests/" in line and expected == BOTH:
                assert len({request.key for request in took}) == 1
                assert took[0].key == key if key else _MADE.fullmatch(took[0].key or "")


@either
@pytest.mark.parametrize(
    "line",
    [
        f"GET {_MANIFEST}",
        f"DELETE {_MANIFEST}",
        f"DELETE /v2/team/app/blobs/sha256:{'a' * 64}",
        "DELETE /api/v1/repository/team/app?x=%2Fa%20b",
        "PUT /api/v1/repository/team/app/visibility",
        "POST /v2/team/app/blobs/uploads/",
    ],
)
async def test_what_reached_no_node_is_sent_to_the_other(
    balancer: Balancer, tmp_path: Path, nursery: trio.Nursery, line: str
) -> None:
    """A request whose connection is refused, the first that a node refuses, is done by the other as it came, whatever it is."""
    took: list[Took] = []
    listeners = await nursery.start(partial(trio.serve_tcp, partial(take, "eu", True, took), 0, host="127.0.0.1"))
    (gone,) = free_ports(1)
    method, _, path = line.partition(" ")
    # Longer than what a balancer reads at first.
    body = b"{%s}" % (b" " * 60_000) if method in ("PUT", "POST") else b""
    servers = {"us": gone, "eu": listeners[0].socket.getsockname()[1]}
    async with client_of(balancer, tmp_path, servers) as client:
        answer = await client.request(method, path, content=body)
    assert answer.status_code == 200
    assert [(request.server, request.line, request.size) for request in took] == [("eu", line, len(body))]


@needs_nginx
@pytest.mark.parametrize("announced", [True, False])
async def test_what_must_not_fill_a_disk(tmp_path: Path, nursery: trio.Nursery, announced: bool) -> None:
    """What nginx keeps so that it may send it again is bounded, also where no node has said yet who may send it."""
    took: list[Took] = []
    listeners = await nursery.start(partial(trio.serve_tcp, partial(take, "eu", True, took), 0, host="127.0.0.1"))
    port = listeners[0].socket.getsockname()[1]

    async def pieces() -> AsyncIterator[bytes]:
        yield b"x" * (2 * MIB)

    async with client_of(nginx, tmp_path, {"us": port, "eu": port}) as client:
        for line in ("PUT /api/v1/x", f"DELETE /v2/team/app/blobs/sha256:{'a' * 64}"):
            method, path = line.split()
            answer = await client.request(method, path, content=b"x" * (2 * MIB) if announced else pieces())
            assert answer.status_code == 413
    assert took == []


@needs_nginx
async def test_a_frozen_node_does_not_hold_reads_up_for_long(tmp_path: Path, nursery: trio.Nursery) -> None:
    """Of a frozen node's requests nginx gives those that are answered at once to the other one sooner than what takes its time."""
    took: list[Took] = []
    servers = {}
    for server, go_on in (("us", trio.Event()), ("eu", None)):
        serve = partial(take, server, True, took, go_on=go_on)
        listeners = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        servers[server] = listeners[0].socket.getsockname()[1]
    blob = f"/v2/team/app/blobs/sha256:{'a' * 64}"
    lines = [("GET", _MANIFEST, 200), ("HEAD", blob, 200), ("GET", blob, 504), ("GET", "/api/v1/x", 504)]
    ports = free_ports(len(lines))
    with nginx(tmp_path, {f"door{port}": (port, servers) for port in ports}, silence=11, quick=1):
        async with httpx.AsyncClient(timeout=_PATIENCE, trust_env=False) as client:
            found = []

            async def ask(port: int, method: str, path: str) -> None:
                found.append(
                    (method, path, (await client.request(method, f"http://127.0.0.1:{port}{path}")).status_code)
                )

            async with trio.open_nursery() as asking:
                for port, (method, path, _) in zip(ports, lines, strict=True):
                    asking.start_soon(ask, port, method, path)
    assert sorted(found) == sorted(lines)
    nursery.cancel_scope.cancel()


@needs_nginx
async def test_the_largest_manifest_is_sent_again(tmp_path: Path, nursery: trio.Nursery) -> None:
    """A manifest of four megabytes, the most that a node takes, comes whole to the other node when the first has not answered."""
    took: list[Took] = []
    servers = {}
    for server in BOTH:
        serve = partial(take, server, server == "eu", took)
        listeners = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        servers[server] = listeners[0].socket.getsockname()[1]
    async with client_of(nginx, tmp_path, servers) as client:
        assert (await client.put(_MANIFEST, content=b"{" + b" " * (4 * MIB - 2) + b"}")).status_code == 200
    assert [(request.server, request.size) for request in took] == [("us", 4 * MIB), ("eu", 4 * MIB)]
    assert took[0].key == took[1].key


@needs_haproxy
async def test_a_manifest_may_wait(tmp_path: Path, nursery: trio.Nursery) -> None:
    """A push that waits for copies at a node that is well is neither cut, though other requests would be by now, nor sent again."""
    took: list[Took] = []
    go_on = trio.Event()
    serve = partial(take, "us", True, took, go_on=go_on)
    listeners = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
    port = listeners[0].socket.getsockname()[1]
    found = {}
    async with client_of(partial(haproxy, silence=1), tmp_path, {"us": port, "eu": port}) as client:

        async def push() -> None:
            found["PUT"] = (await client.put(_MANIFEST, content=b"{}")).status_code

        async def is_there() -> bool:
            return bool(took)

        async with trio.open_nursery() as pushing:
            pushing.start_soon(push)
            await until(is_there, _PATIENCE)
            found["POST"] = (await client.post("/v2/team/app/blobs/uploads/")).status_code
            go_on.set()
    assert found == {"POST": 504, "PUT": 200}
    assert sorted(request.line.split()[0] for request in took) == ["POST", "PUT"]
