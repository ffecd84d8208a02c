"""How a node goes away: SIGTERM in order, with what it was working on."""

import hashlib
import os
from collections.abc import AsyncIterator

import httpx
import trio

from tests.cluster import Node, StartCluster
from tests.faults import MakeFaulty
from tests.nemesis.ground import until
from tests.services import fetch_rows
from tests.test_overload import client_of

MIB = 1 << 20
_PATIENCE = 60.0


async def _status(node: Node, path: str) -> int:
    """Ask over a new connection; 0 when it is refused."""
    async with client_of(node) as client:
        try:
            return (await client.get(path)).status_code
        except httpx.ConnectError:
            return 0


async def test_a_node_that_is_told_to_stop_ends_its_work_first(
    start_cluster: StartCluster, faulty_store: MakeFaulty, database_uri: str, repository: str
) -> None:
    """Health says 503 while everything is still served, then the listener closes, then what is in flight ends, and the exit is 0.

    A copy that was under way is handed back: it is due at once and did not fail.
    """
    eu = await faulty_store("eu")
    eu.bytes_per_second = 300_000
    node = (await start_cluster("eu us", stores={"eu": eu.store}, DRAIN_DELAY=2, HEALTH_PROBE_DEADLINE=20))["eu"]
    leased = "SELECT lease IS NOT NULL, attempts FROM task"

    async def copies() -> bool:
        return await trio.to_thread.run_sync(fetch_rows, database_uri, leased) == [(True, 0)]

    # Nobody else is there who would pay this debt, or take it when it is handed back.
    await _push(node, repository, os.urandom(16 * MIB))
    await until(copies, _PATIENCE)
    go_on = trio.Event()
    results: list[int] = []

    async def body() -> AsyncIterator[bytes]:
        yield bytes(MIB)
        await go_on.wait()
        yield bytes(MIB)

    async with client_of(node) as client, trio.open_nursery() as nursery:
        upload = (await client.post(f"/v2/{repository}/blobs/uploads/")).headers["location"]

        async def patch() -> None:
            results.append((await client.patch(upload, content=body())).status_code)

        nursery.start_soon(patch)

        async def refused() -> bool:
            return await _status(node, "/v2/") == 0

        async def stopping() -> bool:
            return await _status(node, "/health/endtoend") == 503

        node.signal("SIGTERM")
        await until(stopping, _PATIENCE)
        assert await _status(node, "/v2/") == 200
        await until(refused, _PATIENCE)
        assert not results
        go_on.set()
    assert results == [202]
    assert await node.wait_ended() == 0
    assert await trio.to_thread.run_sync(fetch_rows, database_uri, leased) == [(False, 0)]


async def _push(node: Node, repository: str, data: bytes) -> None:
    async with client_of(node) as client:
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        answer = await client.post(f"/v2/{repository}/blobs/uploads/", params={"digest": digest}, content=data)
        assert answer.status_code == 201, answer.text
