"""A node under more than it can take: every kind of work has its own bound, and nothing that clients do makes it grow."""

import hashlib
import json
import os
import socket
from pathlib import Path

import httpx
import trio

from node.web.listener import Address
from tests.cluster import Node, StartCluster
from tests.edge.wire import Client as Wire
from tests.edge.wire import connect
from tests.nemesis.ground import until

MIB = 1 << 20
_PATIENCE = 60.0
_STREAMS = 3
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"

_GROWTH = 12 * MIB
"""Bytes that a node's memory may differ after thousands of requests: what caches of small answers and the allocator keep."""
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
