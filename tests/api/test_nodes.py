"""The wait API and durability on real nodes and real stores, over HTTP, by the command line, and through the example that gates."""

import json
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from node.push.reading import OCI_MANIFEST
from tests.api.conftest import beside
from tests.busy import measured
from tests.cluster import START_SECONDS, Node, StartCluster, program
from tests.faults import FaultyStore, MakeFaulty
from tests.registry.world import digest_of, image, until
from tests.services import repository_root

LAYERS = (b"first" * 50_000, b"second" * 50_000)
CONFIG = b'{"architecture": "amd64", "os": "linux"}'
PATIENCE = 90.0
LONG = "80s"
"""How long to wait for what comes: whatever a busy machine takes for it, and less than the client's patience."""
QUICK: Any = {"HEALTH_PROBE_INTERVAL": "300ms", "HEALTH_PROBE_DEADLINE": "3s", "HEALTH_RECOVERY_QUIET": "300ms"}
"""A store that goes and comes back is noticed soon, and one that is only slow is not taken for ill."""


@asynccontextmanager
async def client(node: Node) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=node.url, trust_env=False, timeout=PATIENCE) as opened:
        yield opened


async def push(node: Node, name: str, tag: str, *layers: bytes, **headers: str) -> httpx.Response:
    """Push an image of these layers and return the answer to its manifest."""
    async with client(node) as http:
        for blob in (CONFIG, *layers):
            query = {"digest": digest_of(blob)}
            answer = await http.post(f"/v2/{name}/blobs/uploads/", params=query, content=blob)
            assert answer.status_code == 201, answer.text
        given = {"content-type": OCI_MANIFEST, **{key.replace("_", "-"): value for key, value in headers.items()}}
        body = json.dumps(image(CONFIG, *layers))
        return await http.put(f"/v2/{name}/manifests/{tag}", content=body, headers=given)


async def ask(node: Node, name: str, reference: str, **query: str) -> dict[str, Any]:
    async with client(node) as http:
        path = f"/api/v1/repository/{name}/manifest/{reference}/replication"
        answer = await http.get(path, params={"location": "eu", **query})
    assert answer.status_code == 200, answer.text
    assert answer.headers["cache-control"] == "no-store"
    document: dict[str, Any] = answer.json()
    return document


async def tagged(node: Node, name: str, tag: str) -> str | None:
    async with client(node) as http:
        answer = await http.head(f"/v2/{name}/manifests/{tag}")
    digest: str | None = answer.headers.get("docker-content-digest")
    return digest


async def run(*words: str, environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command without blocking the test."""

    def work() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            words, capture_output=True, text=True, timeout=2 * START_SECONDS, env=environment, check=False
        )

    return await trio.to_thread.run_sync(work)


async def wait(node: Node, name: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run `antipode wait` against a node."""
    image = f"{node.url.removeprefix('http://')}/{name}"
    return await run(*program(), "wait", image, "--output", "json", *options)


async def verdict(node: Node, location: str, wanted: str) -> None:
    """Wait until a node's watcher thinks so of a location."""

    async def seen() -> bool:
        async with client(node) as http:
            lines = (await http.get("/api/v1/health/locations")).json()
        return any(line["location"] == location and line["verdict"] == wanted for line in lines["locations"])

    await until(seen, PATIENCE)


async def connected(node: Node) -> None:
    """Wait until somebody is connected to a node."""

    async def seen() -> bool:
        table = await trio.Path("/proc/net/tcp").read_text()
        ends = [line.split()[1:4] for line in table.splitlines()[1:]]
        # The local end in hexadecimal, and the state ESTABLISHED.
        return any(local.endswith(f":{node.port:04X}") and state == "01" for local, _, state in ends)

    await until(seen, PATIENCE)


async def test_from_pending_to_present(
    start_cluster: StartCluster, faulty_store: MakeFaulty, repository: str, nursery: trio.Nursery
) -> None:
    """While a slow store takes its copies an image is pending with numbers; who waits is answered when the last byte is there."""
    eu = await faulty_store("eu")
    eu.bytes_per_second = 400_000
    nodes = await start_cluster("us eu", "eu us", stores={"eu": eu.store})
    name = f"{repository}/deep/er"
    with measured() as slow:
        answer = await push(nodes["us"], name, "v1", *LAYERS)
        assert answer.status_code == 201
        digest = answer.headers["docker-content-digest"]
        first = await ask(nodes["eu"], name, "v1")
        assert (first["status"], first["digest"]) == ("pending", digest)
        assert 0 < first["missing_bytes"] <= first["bytes"] == sum(map(len, (CONFIG, *LAYERS)))
        waiting = [beside(nursery, partial(ask, node, name, "v1", wait=LONG)) for node in nodes]
        for task in waiting:
            assert (await task.get())["status"] == "present"
    listed = await trio.to_thread.run_sync(sizes, eu)
    assert {len(CONFIG), *map(len, LAYERS)} <= set(listed)
    # What was measured on the way is known to both nodes.
    assert (await push(nodes["us"], name, "v2", b"third" * 50_000)).status_code == 201
    estimates = [(await ask(node, name, "v2"))["estimate_seconds"] for node in nodes]
    # By the pace at which the copies before were made, which is also that of the machine at the time.
    assert all(estimate is None or 0 < estimate < 60 * max(slow) for estimate in estimates), estimates


def sizes(store: FaultyStore) -> list[int]:
    """Return the sizes of all objects in a store, looked at behind its proxy."""
    found = store.upstream.client().get_paginator("list_objects_v2").paginate(Bucket=store.upstream.bucket)
    return [item["Size"] for page in found for item in page.get("Contents", [])]


async def test_stalled_and_the_command_line(
    start_cluster: StartCluster, faulty_store: MakeFaulty, repository: str, nursery: trio.Nursery
) -> None:
    """With its store down an image is stalled, `antipode wait` ends with 1; it outlives its node, and ends with 0 in the end."""
    eu = await faulty_store("eu")
    nodes = await start_cluster("us eu", "eu us", stores={"eu": eu.store}, **QUICK)
    us = nodes["us"]
    eu.break_("refuse")
    await verdict(us, "eu", "down")
    assert (await push(us, repository, "v1", *LAYERS)).status_code == 201

    async def stalled() -> bool:
        return bool((await ask(us, repository, "v1"))["status"] == "stalled")

    # When the eu node, which copies there, has said with its heartbeat that it sees it, too.
    await until(stalled, PATIENCE)
    answer = await ask(us, repository, "v1")
    assert (answer["status"], answer["reason"]) == ("stalled", "eu is down")
    assert answer["last_error"]
    assert answer["since"]
    ended = await wait(us, f"{repository}:v1", "--location", "eu", "--location", "us", "--timeout", "500ms")
    assert ended.returncode == 1, ended.stderr
    document = json.loads(ended.stdout)
    assert [at["status"] for at in document["locations"]] == ["stalled", "present"]
    following = beside(nursery, partial(wait, us, f"{repository}:v1", "--location", "eu", "--timeout", "9m"))
    await connected(us)
    us.kill()
    assert not following.done.is_set()
    await us.start()
    eu.mend()
    ended = await following.get()
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert json.loads(ended.stdout)["digest"] == document["digest"]


async def test_the_command_line_asks_once(cluster: Any, repository: str) -> None:
    """Without time it asks once; a location or an image that nobody knows is neither present nor on its way."""
    us = cluster["us"]
    assert (await push(us, repository, "v1", b"layer")).status_code == 201
    ended = await wait(us, f"{repository}:v1", "--location", "us", "--timeout", "0s", "--output", "table")
    assert ended.returncode == 0, ended.stderr
    assert "present" in ended.stdout
    for tag, location, reason in (("v1", "mars", "known locations are eu, us"), ("v9", "us", "no such manifest")):
        ended = await wait(us, f"{repository}:{tag}", "--location", location, "--timeout", "5s")
        (found,) = json.loads(ended.stdout)["locations"]
        assert (ended.returncode, found["status"]) == (2, "unknown")
        assert reason in found["reason"] or found["reason"].startswith("404")


async def test_the_only_source_is_down(start_cluster: StartCluster, faulty_store: MakeFaulty, repository: str) -> None:
    """When the only store that has an image goes down before its copies are made, it is stalled, and says so."""
    us, eu = await faulty_store("us"), await faulty_store("eu")
    nodes = await start_cluster("us eu", stores={"us": us.store, "eu": eu.store}, **QUICK)
    node = nodes["us"]
    eu.break_("refuse")
    await verdict(node, "eu", "down")
    assert (await push(node, repository, "v1", *LAYERS)).status_code == 201
    us.break_("refuse")
    await verdict(node, "us", "down")
    eu.mend()
    await verdict(node, "eu", "healthy")
    answer = await ask(node, repository, "v1", wait="200ms")
    assert answer["status"] == "stalled", answer
    assert "the only copies" in answer["reason"]
    us.mend()
    assert (await ask(node, repository, "v1", wait=LONG))["status"] == "present"


async def test_the_gate(start_cluster: StartCluster, repository: str, tmp_path: Path) -> None:
    """The example deploys by digest when the image has arrived, says when to try again, and never deploys what cannot come."""
    nodes = await start_cluster("us eu", "eu us")
    us = nodes["us"]
    pushed = await push(us, repository, "v1", *LAYERS)
    tools = tmp_path / "bin"
    tools.mkdir()
    antipode = tools / "antipode"
    antipode.write_text(f'#!/bin/sh\nexec {sys.executable} -c "from node.cli import main; main()" "$@"\n')
    antipode.chmod(0o755)
    environment = {"PATH": f"{tools}:/usr/bin:/bin", "PYTHONPATH": str(repository_root()), "GATE_TIMEOUT": LONG}
    gate = str(repository_root() / "deploy" / "examples" / "gate.sh")
    host = us.url.removeprefix("http://")
    deploy = ("sh", "-c", 'echo "deployed $IMAGE_DIGEST"; exit 7')
    ended = await run(gate, f"{host}/{repository}:v1", "eu", *deploy, environment=environment)
    assert ended.stdout == f"deployed {pushed.headers['docker-content-digest']}\n", ended.stderr
    assert ended.returncode == 7
    ended = await run(gate, f"{host}/{repository}:v1", "mars", *deploy, environment=environment)
    assert (ended.returncode, ended.stdout) == (2, "")


async def test_a_killed_node_leaves_the_old_tag(
    start_cluster: StartCluster, faulty_store: MakeFaulty, repository: str, nursery: trio.Nursery
) -> None:
    """A node that dies while a push waits for its copies leaves the old tag; a repeated push goes on and is acknowledged."""
    eu = await faulty_store("eu")
    nodes = await start_cluster("us eu", "eu us", stores={"eu": eu.store}, **QUICK)
    old = (await push(nodes["us"], repository, "v1", b"old", antipode_durability="all")).headers[
        "docker-content-digest"
    ]
    eu.break_("hang")
    manifest = digest_of(json.dumps(image(CONFIG, *LAYERS)).encode())

    async def push_durably() -> int:
        try:
            answer = await push(nodes["us"], repository, "v1", *LAYERS, antipode_durability="quorum:2")
        except httpx.HTTPError:
            return 0
        return answer.status_code

    task = beside(nursery, push_durably)

    async def stored() -> bool:
        return await tagged(nodes["eu"], repository, manifest) == manifest

    await until(stored, PATIENCE)
    assert not task.done.is_set()
    nodes["us"].kill()
    assert await task.get() == 0
    assert await tagged(nodes["eu"], repository, "v1") == old
    eu.mend()
    answer = await push(nodes["eu"], repository, "v1", *LAYERS, antipode_durability="quorum:2")
    assert answer.status_code == 201, answer.text
    assert await tagged(nodes["eu"], repository, "v1") == manifest
    assert (await ask(nodes["eu"], repository, "v1"))["status"] == "present"


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/api/v1/repository/a/b/manifest/v1/replication?location=eu", 404),
        ("/api/v1/repository/a/b/manifest/v1/replication?location=mars&wait=soon", 400),
        ("/api/v1/nothing", 404),
    ],
)
async def test_problems(cluster: Any, path: str, status: int) -> None:
    """What goes wrong is a problem document that names every parameter at once, with the request's id."""
    async with client(cluster["us"]) as http:
        answer = await http.get(path)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    document = answer.json()
    assert document["status"] == status
    assert document["title"]
    assert document["request_id"] == answer.headers["x-request-id"]
    assert {wrong["field"] for wrong in document.get("errors", ())} == (
        {"location", "wait"} if status == 400 else set()
    )


async def test_another_method(cluster: Any) -> None:
    """Another method than GET is 405 and says what is allowed."""
    async with client(cluster["us"]) as http:
        answer = await http.post("/api/v1/repository/a/b/manifest/v1/replication?location=eu")
    assert (answer.status_code, answer.headers["content-type"]) == (405, "application/problem+json")
    assert "GET" in answer.headers["allow"]
