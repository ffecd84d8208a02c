"""Pulls of a blob that a region lacks, on real nodes and stores: it crosses the ocean about once, and stays."""

import hashlib
import os

import httpx
import trio

from tests.cluster import Node, StartCluster
from tests.faults import MakeFaulty

MIB = 1 << 20
SIZE = 64 * MIB
OCEAN = 3 * MIB  # bytes per second and connection


async def push(node: Node, repository: str, data: bytes) -> str:
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    async with httpx.AsyncClient(base_url=node.url, timeout=60) as client:
        begun = await client.post(f"/v2/{repository}/blobs/uploads/")
        answer = await client.put(begun.headers["location"], params={"digest": digest}, content=data)
    assert answer.status_code == 201, answer.text
    return digest


async def pull(node: Node, repository: str, digest: str, pause: float = 0.0) -> None:
    """Pull as a client does and check the digest; `pause` seconds after each MiB make it a slow one."""
    found = hashlib.sha256()
    async with (
        httpx.AsyncClient(base_url=node.url, timeout=60) as client,
        client.stream("GET", f"/v2/{repository}/blobs/{digest}") as answer,
    ):
        assert answer.status_code == 200
        async for chunk in answer.aiter_bytes(MIB):
            found.update(chunk)
            await trio.sleep(pause)
    assert f"sha256:{found.hexdigest()}" == digest


async def pull_range(node: Node, repository: str, digest: str, data: bytes, start: int, end: int) -> None:
    async with httpx.AsyncClient(base_url=node.url, timeout=60) as client:
        answer = await client.get(f"/v2/{repository}/blobs/{digest}", headers={"range": f"bytes={start}-{end - 1}"})
    assert answer.status_code == 206
    assert answer.content == data[start:end]


async def until_local(node: Node, repository: str, digest: str, location: str) -> None:
    """Wait until the node serves the blob from `location`."""
    with trio.fail_after(60):
        async with httpx.AsyncClient(base_url=node.url, timeout=60) as client:
            while True:
                async with client.stream("GET", f"/v2/{repository}/blobs/{digest}") as answer:
                    if answer.headers["antipode-location"] == location:
                        return
                await trio.sleep(0.1)


async def test_eight_pulls_cross_once(start_cluster: StartCluster, faulty_store: MakeFaulty, repository: str) -> None:
    """Eight pulls at once of a blob that the region lacks read it about once from far away, and the next ones not at all."""
    data = os.urandom(SIZE)
    us = await faulty_store("us")
    nodes = await start_cluster(
        "us eu", "eu us", stores={"us": us.store}, FEATURE_PROXY_STORAGE=True, REPLICATION_LEASE_SECONDS="2s"
    )
    us.bytes_per_second = OCEAN
    digest = await push(nodes["us"], repository, data)
    before = us.answered
    async with trio.open_nursery() as clients:
        for number in range(8):
            clients.start_soon(pull, nodes["eu"], repository, digest, 0.02 * number)
        clients.start_soon(pull_range, nodes["eu"], repository, digest, data, 50 * MIB + 7, 51 * MIB)
    crossed = us.answered - before
    assert crossed < 1.5 * SIZE, f"{crossed / SIZE:.2f} times the blob"
    await until_local(nodes["eu"], repository, digest, "eu")
    after = us.answered
    await pull(nodes["eu"], repository, digest)
    assert us.answered - after < MIB
