"""Hedged reads on real nodes and stores: a store that is slow to begin costs a pull little. The decisions: property_tests."""

import re
import secrets

import httpx
import trio

from tests.cluster import StartCluster
from tests.faults import MakeFaulty
from tests.registry.world import MIB, digest_of, until

SLOW = 25.0
"""Seconds that the store takes for anything, far beyond what a busy machine takes for all of the test's pull."""


async def test_a_slow_store_is_hedged(start_cluster: StartCluster, faulty_store: MakeFaulty, repository: str) -> None:
    """A region whose own store takes long for its first byte reads from the next one, long before the slow one would answer."""
    eu = await faulty_store("eu")
    nodes = await start_cluster(
        "us eu",
        "eu us",
        stores={"eu": eu.store},
        FEATURE_PROXY_STORAGE=True,
        HEDGED_READS_PERCENT=100,
        SOURCE_STALL_DEADLINE=60,
        # Nobody is to find out that the store is slow but who reads.
        HEALTH_PROBE_INTERVAL=300,
    )
    data = secrets.token_bytes(2 * MIB)
    url = f"/v2/{repository}/blobs"
    async with httpx.AsyncClient(timeout=60, trust_env=False) as client:

        async def metric(pattern: str, *names: str) -> bool:
            texts = [(await client.get(f"{nodes[name].url}/metrics")).text for name in names or ("eu",)]
            return any(re.search(pattern, text) for text in texts)

        async def copied() -> bool:
            # By whichever node took the task.
            return await metric(r'antipode_copies_total\{.*end="placed".*\} 1.0', "us", "eu")

        pushed = await client.post(f"{nodes['us'].url}{url}/uploads/?digest={digest_of(data)}", content=data)
        assert pushed.status_code == 201
        await until(copied, 60)
        eu.delay = SLOW
        began = trio.current_time()
        pulled = await client.get(f"{nodes['eu'].url}{url}/{digest_of(data)}")
        assert pulled.content == data
        assert trio.current_time() - began < SLOW
        assert await metric(r"antipode_hedged_reads_total 1.0")
        assert await metric(r"antipode_hedged_reads_won_total 1.0")
        eu.delay = 0.0
