"""A manifest that its client sends once, through the balancers of deploy/, to a node that is killed, frozen or cut off with it."""

import os
from pathlib import Path

import pytest

from tests.cluster import StartCluster
from tests.dockers import MOST_LAYERS, needs_dockerd, run_docker
from tests.layouts import PUSHERS, Pusher, write_layout
from tests.lost_node import FAULTS, NAME, before_and_after, either, lose_the_node, put, scene
from tests.registry.world import digest_of
from tests.security.clients import CLIENTS, bench

LAYERS = 250
"""Twice what docker takes: a manifest of 39 kB."""


@either
@before_and_after
@pytest.mark.parametrize(
    "fault", ["killed", *(pytest.param(fault, marks=pytest.mark.long) for fault in ("frozen", "cut off"))]
)
async def test_a_node_that_is_lost_with_a_manifest(
    start_cluster: StartCluster, tmp_path: Path, balancer: object, fault: str, committed: bool
) -> None:
    """The client that sends once is answered 201, had it been done or not; a tag that moved on meanwhile never goes back."""
    async with scene(start_cluster, balancer, tmp_path) as here:
        (body,) = await here.prepare("body")

        async def push() -> str:
            answer = await put(here.client, body)
            assert answer.status_code == 201
            return str(answer.headers["docker-content-digest"])

        assert await lose_the_node(here, fault, committed, push) == digest_of(body)


@pytest.mark.long
@needs_dockerd
@either
@before_and_after
@pytest.mark.parametrize(("fault", "layers"), [*((fault, 3) for fault in FAULTS), ("killed", MOST_LAYERS)])
async def test_docker_pushes_though_the_node_is_lost(
    start_cluster: StartCluster, tmp_path: Path, balancer: object, fault: str, layers: int, committed: bool
) -> None:
    """`docker push` succeeds, and what it has pushed can be pulled; a tag that moved on meanwhile never goes back."""
    async with scene(start_cluster, balancer, tmp_path) as here, run_docker() as docker:
        image = await docker.load(tmp_path, layers)

        async def push() -> str:
            return await docker.push(image, f"{here.host}/{NAME}:v1")

        digest = await lose_the_node(here, fault, committed, push)
        await docker.pull(f"{here.host}/{NAME}@{digest}")


@pytest.mark.long
@pytest.mark.parametrize("pusher", PUSHERS, ids=lambda pusher: str(pusher.client))
@either
async def test_others_push_more_than_docker_can(
    start_cluster: StartCluster, tmp_path: Path, balancer: object, pusher: Pusher
) -> None:
    """Clients that make larger manifests push them though the node dies with one; a tag that moved on meanwhile never goes back."""
    (client,) = (client for client in CLIENTS if client.name == pusher.client)
    if not client.here:
        pytest.skip(f"no {client.program}")
    manifest = write_layout(tmp_path / "layout", LAYERS)
    async with scene(start_cluster, balancer, tmp_path) as here:
        words = {"layout": str(tmp_path / "layout"), "ref": f"{here.host}/{NAME}:v1", "manifest": digest_of(manifest)}
        async with bench(client, {**words, "us": "", "eu": ""}, {**os.environ, "SSL_CERT_FILE": os.devnull}) as made:

            async def run(line: str) -> None:
                code, said = await made.run(line)
                assert code == 0, said

            async def push() -> str:
                await run(pusher.push)
                return digest_of(manifest)

            await run(pusher.prepare)
            await lose_the_node(here, "killed", committed=False, push=push)
