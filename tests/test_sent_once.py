"""A manifest that its client sends once, through the balancers of deploy/, to a node that is killed, frozen or cut off with it."""

from pathlib import Path

import pytest

from tests.cluster import StartCluster
from tests.dockers import MOST_LAYERS, needs_dockerd, run_docker
from tests.lost_node import FAULTS, NAME, before_and_after, either, lose_the_node, put, scene
from tests.registry.world import digest_of


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
