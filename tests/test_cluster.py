"""The helper that runs real nodes: two of them are one registry, and a node that ends badly fails its test."""

import hashlib

import httpx
import pytest

from tests.cluster import Cluster, StartCluster


async def push_blob(url: str, repository: str, data: bytes) -> str:
    """Push one blob in one request and return its digest."""
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=60) as client:
        answer = await client.post(f"/v2/{repository}/blobs/uploads/", params={"digest": digest}, content=data)
    assert answer.status_code == 201, answer.text
    return digest


async def pull_blob(url: str, repository: str, digest: str) -> bytes:
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=60, follow_redirects=True) as client:
        answer = await client.get(f"/v2/{repository}/blobs/{digest}")
    assert answer.status_code == 200, answer.text
    return answer.content


async def test_two_nodes_are_one_registry(cluster: Cluster, repository: str) -> None:
    """What was pushed in one region is pulled in the other at once."""
    digest = await push_blob(cluster["us"].url, repository, b"bytes of us")
    assert await pull_blob(cluster["eu"].url, repository, digest) == b"bytes of us"


async def test_a_node_comes_back_with_what_it_had(start_cluster: StartCluster, repository: str) -> None:
    """Stopped in order, killed, and started again each time: nothing that was answered 201 is lost."""
    nodes = await start_cluster("us eu")
    node = nodes["us"]
    digest = await push_blob(node.url, repository, b"bytes that stay")
    await node.stop()
    await node.start()
    assert await pull_blob(node.url, repository, digest) == b"bytes that stay"
    node.kill()
    await node.start()
    assert await pull_blob(node.url, repository, digest) == b"bytes that stay"
    assert node.peak_resident_bytes >= node.resident_bytes > 0


async def test_a_node_that_ends_by_itself_fails_its_start(start_cluster: StartCluster) -> None:
    """A configuration that a node refuses is told at once, with what the node said, and not after a deadline."""
    nodes = await start_cluster("us eu", launch=False, DISTRIBUTED_STORAGE_CONFIG={})
    with pytest.raises(AssertionError, match=r"(?s)node us ended with 2.*DISTRIBUTED_STORAGE_CONFIG"):
        await nodes["us"].start()
    assert await nodes["us"].wait_ended() == 2


async def test_a_node_that_ends_badly_fails_its_test(start_cluster: StartCluster) -> None:
    """A node that SIGTERM finds dead did not stop in order."""
    nodes = await start_cluster("us eu")
    node = nodes["us"]
    node.signal("SIGKILL")
    with pytest.raises(AssertionError, match="node us stopped with -9"):
        await node.stop()
