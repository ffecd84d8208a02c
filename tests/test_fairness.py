"""What one account or address asks of a node leaves room for the others, on nodes as they run."""

import hashlib
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import httpx
import trio

from tests.auth.people import basic
from tests.auth.test_nodes import PASSWORD, auth, registry, run
from tests.cluster import Cluster, Node, StartCluster
from tests.edge.wire import Client as Wire
from tests.nemesis.ground import until
from tests.test_metrics import samples, value
from tests.test_overload import client_of, push

MIB = 1 << 20
_PATIENCE = 60.0
_PLACES = 8
_SHARE = 6
"""Of these, what one can have."""


@asynccontextmanager
async def connected(node: Node, source: str = "127.0.0.1") -> AsyncIterator[Wire]:
    """Connect from an address of this machine's, with little room for what the node sends."""
    listening = trio.socket.socket()
    listening.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, 4096)
    with trio.fail_after(_PATIENCE):
        await listening.bind((source, 0))
        await listening.connect(("127.0.0.1", node.port))
    stream = trio.SocketStream(listening)
    try:
        yield Wire(stream)
    finally:
        await trio.aclose_forcefully(stream)


async def taken(client: httpx.AsyncClient, kind: str, least: int) -> None:
    """Wait until so many places of a kind are taken."""

    async def are_taken() -> bool:
        return value(await scraped(client), "antipode_places_taken", kind=kind) >= least

    await until(are_taken, _PATIENCE)


async def scraped(client: httpx.AsyncClient) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return samples((await client.get("/metrics")).text)


async def people(cluster: Cluster) -> None:
    """Make two users, each with a namespace of their own."""
    for name in ("alice", "bob"):
        await run(cluster, "user", "create", name, "--password-stdin", given=f"{PASSWORD}\n")


async def push_blob(client: httpx.AsyncClient, name: str, data: bytes) -> httpx.Response:
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    return await client.post(f"/v2/{name}/app/blobs/uploads/?digest={digest}", content=data, headers=auth(name))


async def test_pushes_that_trickle(start_cluster: StartCluster) -> None:
    """However many pushes of one account trickle, another one's succeeds at once; the account itself is told why it must wait."""
    cluster = await registry(start_cluster, "us eu", MAXIMUM_PUSHES=_PLACES, QUEUE_PATIENCE=4)
    await people(cluster)
    node = cluster["us"]
    async with client_of(node) as client, AsyncExitStack() as stack:
        assert (await push_blob(client, "alice", b"first")).status_code == 201
        for _ in range(2 * _PLACES):
            wire = await stack.enter_async_context(connected(node))
            head = f"Authorization: {basic('alice', PASSWORD)}\r\nContent-Length: 1000000\r\n"
            path = "/v2/alice/app/blobs/uploads/?digest=sha256:" + "0" * 64
            await wire.send(f"POST {path} HTTP/1.1\r\nHost: node\r\n{head}\r\nslowly".encode())
        await taken(client, "pushes", _SHARE)
        began = trio.current_time()
        pushed = await push_blob(client, "bob", b"quick")
        assert pushed.status_code == 201, pushed.text
        # Sooner than anybody is sent away who waits before a gate that nobody leaves.
        print(f"bob's push took {trio.current_time() - began:.2f} s")
        refused = await push_blob(client, "alice", b"second")
        assert refused.status_code == 429
        assert f"{_SHARE} pushes of yours" in refused.text
        found = await scraped(client)
        assert value(found, "antipode_places_refused_total", kind="pushes", why="share") >= 1
        assert value(found, "antipode_places_refused_total", kind="pushes", why="full") == 0
    assert "one holds their share" in node.log
    assert "alice" in node.log
    assert "TRUSTED_PROXY_CIDR" not in node.log, "an account is no balancer"


async def test_readers_that_are_slow(start_cluster: StartCluster) -> None:
    """However many streams one account reads slowly, another one's pull is streamed at once."""
    cluster = await registry(start_cluster, "us eu", MAXIMUM_STREAMS=_PLACES, QUEUE_PATIENCE=4, STALL_DEADLINE=120)
    await people(cluster)
    node = cluster["us"]
    async with client_of(node) as client, AsyncExitStack() as stack:
        large = os.urandom(12 * MIB)
        assert (await push_blob(client, "alice", large)).status_code == 201
        small = os.urandom(64 * 1024)
        assert (await push_blob(client, "bob", small)).status_code == 201
        for _ in range(2 * _PLACES):
            wire = await stack.enter_async_context(connected(node))
            path = f"/v2/alice/app/blobs/sha256:{hashlib.sha256(large).hexdigest()}"
            head = f"Host: node\r\nAuthorization: {basic('alice', PASSWORD)}\r\n"
            await wire.send(f"GET {path} HTTP/1.1\r\n{head}\r\n".encode())
        await taken(client, "streams", _SHARE)
        pulled = await client.get(f"/v2/bob/app/blobs/sha256:{hashlib.sha256(small).hexdigest()}", headers=auth("bob"))
        assert (pulled.status_code, pulled.content == small) == (200, True), pulled.text


async def test_nobody_waits_for_all(start_cluster: StartCluster, repository: str) -> None:
    """However many requests from one address wait for an image, those from another may wait, too."""
    node = (await start_cluster("us eu", REPLICATION_WAITERS=_PLACES))["us"]
    async with client_of(node) as client, AsyncExitStack() as stack:
        # Nobody copies into it any more, so what is pushed stays away.
        paused = await client.put("/api/v1/location/eu/state", json={"state": "paused"})
        assert paused.status_code == 200, paused.text
        await push(client, repository, "v1", b"a layer")
        target = f"/api/v1/repository/{repository}/manifest/v1/replication?location=eu&wait=60s"
        wires = [await stack.enter_async_context(connected(node)) for _ in range(_PLACES)]
        for wire in wires:
            await wire.send(f"GET {target} HTTP/1.1\r\nHost: node\r\n\r\n".encode())
        await taken(client, "waits", _SHARE)
        refused = await client.get(target)
        assert refused.status_code == 503
        assert f"{_SHARE} of yours wait already" in refused.text
        async with connected(node, "127.0.0.2") as wire:
            await wire.send(f"GET {target} HTTP/1.1\r\nHost: node\r\n\r\n".encode())
            await taken(client, "waits", _SHARE + 1)


async def test_one_address_does_not_have_all_connections(start_cluster: StartCluster) -> None:
    """However many connections one address opens and leaves silent, others connect, and health checks are answered to all."""
    most = 16
    node = (await start_cluster("us eu", MAXIMUM_CONNECTIONS=most))["us"]
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(connected(node))
        assert (await first.ask("/v2/")).status == 200
        for _ in range(10 * most):
            await stack.enter_async_context(connected(node))
        async with connected(node, "127.0.0.2") as another:
            assert (await another.ask("/v2/")).status == 200
            found = samples((await another.ask("/metrics")).body.decode())
        assert value(found, "antipode_places_refused_total", kind="connections", why="share") > 0
        assert value(found, "antipode_places_taken", kind="connections") == 12 + 1
        async with connected(node) as probe:
            assert (await probe.ask("/health/instance")).status == 200
        async with connected(node) as refused:
            assert (await refused.ask("/v2/")).status == 503
        # Who had a place has it still.
        assert (await first.ask("/v2/")).status == 200
    assert "one holds their share" in node.log
    assert "127.0.0.1" in node.log
    assert "list it in TRUSTED_PROXY_CIDR" in node.log
