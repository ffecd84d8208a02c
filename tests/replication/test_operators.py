"""Operators change policies and locations of running nodes over Ceph, by the API and the command line, while blobs come in."""

import hashlib
import json
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import trio

from tests.cluster import Cluster, StartCluster, program
from tests.faults import MakeFaulty

_SECONDS = 60.0


async def _push(url: str, repository: str, data: bytes) -> str:
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    async with httpx.AsyncClient(timeout=30) as client:
        answer = await client.post(f"{url}/v2/{repository}/blobs/uploads/?digest={digest}", content=data)
    assert answer.status_code == 201, answer.text
    return digest


async def _pull(url: str, repository: str, digest: str) -> httpx.Response:
    async with httpx.AsyncClient(timeout=30, follow_redirects=True) as client:
        return await client.get(f"{url}/v2/{repository}/blobs/{digest}")


async def _ask(url: str, path: str, method: str = "GET", body: object = None) -> Any:
    async with httpx.AsyncClient(timeout=30) as client:
        answer = await client.request(method, f"{url}/api/v1{path}", json=body)
    return answer.json()


async def _until(look: Callable[[], Awaitable[bool]]) -> None:
    with trio.fail_after(_SECONDS):
        while not await look():  # noqa: ASYNC110 - another process's doing has no event here
            await trio.sleep(0.1)


async def _holds(url: str, **blobs: int) -> bool:
    lines = {line["name"]: line for line in (await _ask(url, "/location"))["locations"]}
    return all(lines[name]["blobs"] == count for name, count in blobs.items())


async def _run(cluster: Cluster, *words: str, code: int = 0) -> str:
    command = [*program(), *words, "--config", str(cluster.configuration_file)]
    done = await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False)
    assert done.returncode == code, (words, done.returncode, done.stdout, done.stderr)
    return bytes(done.stdout or done.stderr).decode()


async def test_policies_and_locations_of_running_nodes(start_cluster: StartCluster, repository: str) -> None:
    """A policy trims and brings back copies, a pause and a drain are obeyed, a removal leaves the bucket."""
    nodes = await start_cluster("us eu", "eu us")
    url = nodes["us"].url
    namespace = repository.partition("/")[0]
    digest = await _push(url, repository, b"x" * 100_000)
    await _until(lambda: _holds(url, us=1, eu=1))

    made = await _ask(url, f"/namespace/{namespace}/policy", "PUT", {"required": ["us"], "never": ["eu"]})
    assert made["trims"] == {"eu": {"blobs": 1, "bytes": 100_000}}
    await _until(lambda: _holds(url, us=1, eu=0))
    # Never binds uploads, too: the eu node writes to us.
    other = await _push(nodes["eu"].url, repository, b"y" * 50_000)
    assert await _holds(url, us=2, eu=0)
    assert (await _pull(nodes["eu"].url, repository, other)).status_code == 200
    assert json.loads(await _run(nodes, "replication", "risk", "--output", "json"))["risk"][1]["blobs"] == 2

    assert "0 errors" not in await _run(nodes, "policy", "remove", namespace)
    await _until(lambda: _holds(url, us=2, eu=2))

    await _run(nodes, "location", "pause", "us")
    await _until(lambda: _refuses_us(nodes, repository, digest))
    await _push(url, repository, b"z" * 10_000)
    assert await _holds(url, us=2, eu=3)
    await _run(nodes, "location", "resume", "us")
    await _until(lambda: _holds(url, us=3, eu=3))

    assert "not drained" in await _run(nodes, "location", "remove", "us", code=1)
    await _run(nodes, "location", "drain", "us", "--wait")
    await _push(url, repository, b"w" * 10_000)
    assert await _holds(url, us=3, eu=4)
    refused = await _ask(url, "/location/eu/state", "PUT", {"state": "draining"})
    assert refused["status"] == 409
    await _run(nodes, "location", "remove", "us")
    assert (await _pull(url, repository, digest)).content == b"x" * 100_000
    assert await _holds(url, us=0, eu=4)
    await _run(nodes, "location", "add", "us", "--wait")
    assert await _holds(url, us=4, eu=4)
    assert "all copies: 4 of 4" in await _run(nodes, "verify", "--location", "us")
    orphans = json.loads(await _run(nodes, "orphans", "--location", "us", "--output", "json"))["orphans"]
    blobs = [orphan for orphan in orphans if not any(part in orphan["key"] for part in ("/journal/", "/manifests/"))]
    assert len(blobs) == 3, "a removal leaves the bucket as it is, and the database forgets it"


async def _refuses_us(nodes: Cluster, repository: str, digest: str) -> bool:
    """Whether both nodes read the blob, but not from us."""
    answers = [await _pull(node.url, repository, digest) for node in nodes]
    assert all(answer.status_code == 200 for answer in answers)
    sources = [answer.history[0] if answer.history else answer for answer in answers]
    return all(source.headers["antipode-location"] == "eu" for source in sources)


async def test_a_location_fails_back_by_itself(
    start_cluster: StartCluster, faulty_store: MakeFaulty, repository: str
) -> None:
    """Pushes that went elsewhere while a store was down come home when it is back, and spare copies are trimmed."""
    eu = await faulty_store("eu")
    nodes = await start_cluster("eu us", stores={"eu": eu.store}, HEALTH_RECOVERY_QUIET=1)
    url = nodes["eu"].url
    namespace = repository.partition("/")[0]
    await _ask(url, f"/namespace/{namespace}/policy", "PUT", {"required": ["eu"]})
    eu.break_("refuse")
    await _until(lambda: _verdict(url, "eu", "down"))
    digests = [await _push(url, repository, bytes([n]) * 20_000) for n in range(3)]
    assert await _holds(url, us=3, eu=0)
    assert (await _ask(url, "/replication/status"))["locations"][0]["debt_blobs"] == 3
    eu.mend()
    await _until(lambda: _holds(url, eu=3))
    # Trimming is gentle; an operator who asks for a round gets it at once.
    await _run(nodes, "policy", "apply")
    await _until(lambda: _holds(url, us=0, eu=3))
    for n, digest in enumerate(digests):
        assert (await _pull(url, repository, digest)).content == bytes([n]) * 20_000


async def _verdict(url: str, location: str, verdict: str) -> bool:
    lines = (await _ask(url, "/health/locations"))["locations"]
    return any(line["location"] == location and line["verdict"] == verdict for line in lines)
