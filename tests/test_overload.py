"""A node under more than it can take: every kind of work has its own bound, and nothing that clients do makes it grow."""

import hashlib
import json
import os
import socket
import ssl
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from node.config.settings import CONNECTIONS_OVER_TLS
from node.descriptors import raise_limit
from node.web.listener import Address
from tests.certificates import Authority
from tests.cluster import Node, StartCluster
from tests.edge.conftest import SETTINGS
from tests.edge.wire import Client as Wire
from tests.edge.wire import connect
from tests.nemesis.ground import NO_TLS, until
from tests.test_memory import full_caches
from tests.test_metrics import samples, value

MIB = 1 << 20
_PATIENCE = 60.0
_STREAMS = 3
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"

_GROWTH = 12 * MIB
"""Bytes that a node's memory may differ after thousands of requests: what caches of small answers and the allocator keep."""
_AT_ONCE = 128
"""Clients that connect at once. Over TLS a quarter of all may shake hands at the same time."""
_SPARE = 20
"""Connections that are left for others when a node is full."""
_CROWD, _EACH = 1000, 40 * 1024
"""Pulls that wait at once, and bytes that one of them may cost."""
_WARM, _ROUNDS = 150, 500
"""Of four requests each, and every tenth with as many clients that misbehave."""


async def push(client: httpx.AsyncClient, repository: str, tag: str, layer: bytes) -> str:
    """Push an image of one layer; return the layer's digest."""
    described = []
    for data in (json.dumps({"tag": tag}).encode(), layer):
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        answer = await client.post(f"/v2/{repository}/blobs/uploads/")
        assert answer.status_code == 202, answer.text
        answer = await client.put(answer.headers["location"], params={"digest": digest}, content=data)
        assert answer.status_code == 201, answer.text
        described.append({"mediaType": "application/octet-stream", "digest": digest, "size": len(data)})
    manifest = {"schemaVersion": 2, "mediaType": _MANIFEST, "config": described[0], "layers": described[1:]}
    answer = await client.put(f"/v2/{repository}/manifests/{tag}", json=manifest, headers={"content-type": _MANIFEST})
    assert answer.status_code == 201, answer.text
    return str(described[1]["digest"])


def client_of(node: Node) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=node.url, timeout=_PATIENCE, trust_env=False)


async def stalled(node: Node, path: str) -> socket.socket:
    """Ask for a blob with next to no room for it, and read nothing."""
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    raw.setblocking(False)
    with trio.fail_after(_PATIENCE):
        stream = trio.socket.from_stdlib_socket(raw)
        await stream.connect(("127.0.0.1", node.port))
        await stream.send(f"GET {path} HTTP/1.1\r\nHost: it\r\n\r\n".encode())
    return raw


async def test_readers_that_stall_starve_nobody(start_cluster: StartCluster, repository: str) -> None:
    """With every stream held by clients that read nothing, further ones get 429 and when to come back; the rest works on.

    Pushes, manifests and health checks are answered meanwhile, and when the readers are cut the streams are free again.
    """
    nodes = await start_cluster(
        "us eu", FEATURE_PROXY_STORAGE=True, MAXIMUM_STREAMS=_STREAMS, QUEUE_PATIENCE=1, STALL_DEADLINE=4
    )
    node = nodes["us"]
    async with client_of(node) as client:
        # More than the socket's buffers on both sides take.
        digest = await push(client, repository, "big", os.urandom(24 * MIB))
        path = f"/v2/{repository}/blobs/{digest}"
        readers = [await stalled(node, path) for _ in range(_STREAMS)]
        try:
            answers: list[httpx.Response] = []

            async def refused() -> bool:
                async with client.stream("GET", path) as answer:
                    answers.append(answer)
                return answers[-1].status_code == 429

            with trio.fail_after(_PATIENCE):
                # Until the three have come as far as their streams.
                while not await refused():
                    await trio.lowlevel.checkpoint()
            assert int(answers[-1].headers["retry-after"]) >= 1
            assert (await client.get("/health/endtoend")).status_code == 200
            assert (await client.get(f"/v2/{repository}/manifests/big")).status_code == 200
            await push(client, repository, "small", b"while all streams are held")
            with trio.fail_after(_PATIENCE):
                # No longer than the stall deadline and what the kernel adds to it.
                while (await client.get(path)).status_code != 200:
                    await trio.lowlevel.checkpoint()
        finally:
            for reader in readers:
                reader.close()


@pytest.mark.long
async def test_a_crowd_waits_for_its_turn(start_cluster: StartCluster, repository: str) -> None:
    """A thousand pulls that wait for a stream cost a connection and some kilobytes each, and all of them get what they wait for.

    Pushes, manifests and health checks are answered meanwhile.
    """
    nodes = await start_cluster(
        "us eu", FEATURE_PROXY_STORAGE=True, MAXIMUM_STREAMS=_STREAMS, QUEUE_PATIENCE=600, STALL_DEADLINE=300
    )
    node = nodes["us"]
    async with client_of(node) as client, trio.open_nursery() as nursery:
        big = await push(client, repository, "big", os.urandom(24 * MIB))
        small = await push(client, repository, "small", os.urandom(20 * 1024))
        readers = [await stalled(node, f"/v2/{repository}/blobs/{big}") for _ in range(_STREAMS)]
        files, memory = open_files(node), node.resident_bytes
        served: list[bytes] = []

        async def one() -> None:
            async with connect(Address("127.0.0.1", node.port)) as wire:
                await wire.send(f"GET /v2/{repository}/blobs/{small} HTTP/1.1\r\nHost: it\r\n\r\n".encode())
                with trio.fail_after(10 * _PATIENCE):
                    served.append(bytes(await wire.stream.receive_some(12)))

        for _ in range(_CROWD):
            nursery.start_soon(one)

        async def all_there() -> bool:
            return open_files(node) >= files + _CROWD

        await until(all_there, 3 * _PATIENCE)
        # A request that comes after theirs finds all of them waiting.
        assert (await client.get("/health/endtoend")).status_code == 200
        assert (await client.get(f"/v2/{repository}/manifests/big")).status_code == 200
        await push(client, repository, "meanwhile", b"while a thousand wait")
        each = (node.resident_bytes - memory) / _CROWD
        print(f"{_CROWD} waiting: {node.resident_bytes / MIB:.0f} MiB, {each / 1024:.1f} KiB each")
        assert each < _EACH
        # One file each: the node's limit of open files counts with that.
        assert open_files(node) < files + _CROWD + _CROWD // 2
        for reader in readers:
            reader.close()
    assert served == [b"HTTP/1.1 200"] * _CROWD


@pytest.mark.long
@pytest.mark.parametrize("secure", [False, True])
async def test_a_full_house_fits(start_cluster: StartCluster, repository: str, tmp_path: Path, *, secure: bool) -> None:
    """As many waiting clients as may connect by default, by TLS too, and full caches leave a node below 200 MiB."""
    authority = Authority.make(tmp_path / "authority")
    trust = ssl.create_default_context(cafile=str(authority.own.certificate)) if secure else None
    # All of them come from one address, which would have its share.
    many: dict[str, Any] = {"TRUSTED_PROXY_CIDR": ["127.0.0.1/32"]}
    settings: dict[str, Any] = {"MAXIMUM_STREAMS": 1, "QUEUE_PATIENCE": 600, "STALL_DEADLINE": 300, **many}
    if secure:
        pair = authority.sign("node")
        files = {"SSL_CERTIFICATE": str(pair.certificate), "SSL_CERTIFICATE_KEY": str(pair.key)}
        settings |= {"PREFERRED_URL_SCHEME": "https", **files}
    nodes = await start_cluster("us eu", FEATURE_PROXY_STORAGE=True, **settings)
    node, most = nodes["us"], CONNECTIONS_OVER_TLS if secure else SETTINGS.maximum_connections
    raise_limit(2 * most)
    turn = trio.CapacityLimiter(_AT_ONCE)
    async with (
        AsyncExitStack() as stack,
        httpx.AsyncClient(base_url=node.url, timeout=_PATIENCE, trust_env=False, verify=trust or NO_TLS) as client,
    ):
        big = await push(client, repository, "big", os.urandom(24 * MIB))
        small = await push(client, repository, "small", os.urandom(20 * 1024))

        wires: list[Wire] = []

        async def one() -> None:
            async with turn:
                with trio.fail_after(10 * _PATIENCE):
                    wire = await stack.enter_async_context(connect(Address("127.0.0.1", node.port), tls=trust))
                    # Who waits gets no answer, and would begin a handshake before the last one has ended.
                    assert (await wire.ask("/v2/")).status == 200
                    wires.append(wire)

        async def ask(wire: Wire, digest: str) -> None:
            with trio.fail_after(_PATIENCE):
                await wire.send(f"GET /v2/{repository}/blobs/{digest} HTTP/1.1\r\nHost: it\r\n\r\n".encode())

        # It has the only stream, and nobody reads what more it gets.
        await one()
        holder = wires.pop()
        await ask(holder, big)
        assert await holder.stream.receive_some(1)
        before = node.resident_bytes
        async with trio.open_nursery() as nursery:
            for _ in range(most - _SPARE):
                nursery.start_soon(one)
        # All at once: while the room stands still, who comes seconds later than the first who waits is sent away.
        for wire in wires:
            await ask(wire, small)
        assert open_files(node) >= most - _SPARE
        # A request that comes after theirs finds all of them waiting.
        assert (await client.get("/health/endtoend")).status_code == 200
        each = (node.resident_bytes - before) / most
        peak, caches = node.peak_resident_bytes, await full_caches()
        scraped = samples((await client.get("/metrics")).text)
        waiting = most - _SPARE - int(value(scraped, "antipode_places_refused_total", kind="streams"))
        print(
            f"{most} connected, {waiting} of them waiting: {peak / MIB:.0f} MiB, {each / 1024:.1f} KiB each; "
            f"full caches {caches / MIB:.0f} MiB"
        )
        assert peak + caches < 200 * MIB


async def _one_of_each(wire: Wire, repository: str, digest: str, number: int) -> None:
    """A round of requests over one connection: what works, and what does not exist."""
    assert (await wire.ask(f"/v2/{repository}/manifests/small", headers=f"Accept: {_MANIFEST}\r\n")).status == 200
    assert (await wire.ask(f"/v2/{repository}/blobs/{digest}", "HEAD")).status == 200
    assert (await wire.ask(f"/v2/{repository}/blobs/sha256:{number:064x}")).status == 404
    assert (await wire.ask(f"/v2/{repository}/manifests/v{number}")).status == 404


async def _rude(node: Node, repository: str, digest: str, number: int) -> None:
    """Clients that leave in the middle: of a head, of a body, of an answer."""
    address = Address("127.0.0.1", node.port)
    async with connect(address) as wire:
        await wire.send(b"GET /v2/ HTTP/1.1\r\nHo")
    async with connect(address) as wire:
        reply = await wire.ask(f"/v2/{repository}/blobs/uploads/", "POST", headers="Content-Length: 0\r\n")
        assert reply.status == 202
        path = reply.headers["location"]
        await wire.send(f"PATCH {path} HTTP/1.1\r\nHost: it\r\nContent-Length: 1000000\r\n\r\nhalf".encode())
    async with connect(address) as wire:
        assert (await wire.ask(path.partition("?")[0], "DELETE")).status in (204, 404)
    (await stalled(node, f"/v2/{repository}/blobs/{digest}")).close()


def open_files(node: Node) -> int:
    return len(list(Path(f"/proc/{node.pid}/fd").iterdir()))


async def test_thousands_of_requests_leave_nothing_behind(start_cluster: StartCluster, repository: str) -> None:
    """File descriptors and memory are where they were after thousands of requests, good and bad, and of clients that leave."""
    node = (await start_cluster("us eu", FEATURE_PROXY_STORAGE=True))["us"]
    async with client_of(node) as client:
        digest = await push(client, repository, "small", os.urandom(MIB))

    async def rounds(first: int, count: int) -> None:
        async with connect(Address("127.0.0.1", node.port)) as wire:
            for number in range(first, first + count):
                await _one_of_each(wire, repository, digest, number)
                if number % 10 == 0:
                    await _rude(node, repository, digest, number)

    await rounds(0, _WARM)
    files, memory = open_files(node), node.resident_bytes
    await rounds(_WARM, _ROUNDS)

    async def closed() -> bool:
        return open_files(node) <= files + 8

    await until(closed, _PATIENCE)
    print(f"memory grew by {(node.resident_bytes - memory) / MIB:+.1f} MiB, files by {open_files(node) - files:+d}")
    assert node.resident_bytes - memory < _GROWTH
