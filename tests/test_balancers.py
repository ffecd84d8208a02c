"""The load balancers of deploy/ before real nodes: bytes flow through, bodies have any size, and a node that is gone is left."""

import hashlib
import random
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager
from functools import partial
from pathlib import Path

import httpx
import pytest
import trio

from scripts.services.processes import free_ports
from tests.balancers import Doors, haproxy, needs_haproxy, needs_nginx, nginx
from tests.cluster import Cluster
from tests.faults import FaultProxy
from tests.nemesis.ground import until

MIB = 1 << 20
_PATIENCE = 30.0

Balancer = Callable[[Path, Doors], AbstractContextManager[None]]
either = pytest.mark.parametrize(
    "balancer",
    [pytest.param(haproxy, marks=needs_haproxy, id="haproxy"), pytest.param(nginx, marks=needs_nginx, id="nginx")],
)


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

    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(data), 256 * 1024):
            yield data[start : start + 256 * 1024]

    answer = await client.post(f"/v2/{repository}/blobs/uploads/")
    assert answer.status_code == 202, answer.text
    assert answer.headers["location"].startswith("/v2/")
    answer = await client.patch(answer.headers["location"], content=chunks())
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
