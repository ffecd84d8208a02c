"""A region that is dead, or worse: silent, when a node starts and while it serves."""

import secrets

import httpx
import pytest
import trio

from tests.cluster import StartCluster
from tests.faults import Fault, MakeFaulty
from tests.registry.world import MIB, digest_of

QUICKLY = 2.0
"""Seconds for an answer from memory, in the mean: a machine that is busy with other things may stand still for longer, once."""


@pytest.mark.parametrize("fault", ["refuse", "hang"])
async def test_a_dead_region_stops_no_node(
    start_cluster: StartCluster, faulty_store: MakeFaulty, repository: str, fault: Fault
) -> None:
    """A node starts while another region's store is dead, is well, pushes and pulls, and its health answers never wait."""
    eu = await faulty_store("eu")
    eu.break_(fault)
    nodes = await start_cluster("us eu", stores={"eu": eu.store}, HEALTH_PROBE_INTERVAL="1s")
    data = secrets.token_bytes(MIB)
    async with httpx.AsyncClient(base_url=nodes["us"].url, timeout=30, trust_env=False) as client:
        began = trio.current_time()
        for _ in range(20):
            answer = await client.get("/health/endtoend")
            assert answer.status_code == 200
            assert answer.json()["data"]["services"]["storage"]
            lines = (await client.get("/api/v1/health/locations")).json()["locations"]
        # A store that is waited for costs every answer a probe's deadline, which is longer.
        assert trio.current_time() - began < 2 * 20 * QUICKLY
        assert next(line["verdict"] for line in lines if line["location"] == "us") == "healthy"
        assert next(line["verdict"] for line in lines if line["location"] == "eu") != "healthy"
        pushed = await client.post(f"/v2/{repository}/blobs/uploads/?digest={digest_of(data)}", content=data)
        assert pushed.status_code == 201
        pulled = await client.get(f"/v2/{repository}/blobs/{digest_of(data)}", follow_redirects=True)
        assert pulled.content == data


async def test_a_node_whose_own_store_is_silent_starts_and_says_so(
    start_cluster: StartCluster, faulty_store: MakeFaulty, repository: str
) -> None:
    """It serves from the other regions and sends its balancer away; with HEALTH_ENDTOEND_POLICY: any it stays."""
    us = await faulty_store("us")
    us.break_("hang")
    stores = {"us": us.store}
    away = await start_cluster("us eu", stores=stores, HEALTH_PROBE_INTERVAL="1s")
    stays = await start_cluster("us eu", stores=stores, HEALTH_PROBE_INTERVAL="1s", HEALTH_ENDTOEND_POLICY="any")
    data = secrets.token_bytes(MIB)
    async with httpx.AsyncClient(timeout=60, trust_env=False) as client:
        for nodes, status in ((away, 503), (stays, 200)):
            assert (await client.get(f"{nodes['us'].url}/health/endtoend")).status_code == status
            url = f"{nodes['us'].url}/v2/{repository}/blobs"
            assert (await client.post(f"{url}/uploads/?digest={digest_of(data)}", content=data)).status_code == 201
