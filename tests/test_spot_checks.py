"""Wrong bytes in a store that answers well: nobody is sent there for long, although no node is in the way of those bytes."""

import secrets
from functools import partial

import httpx
import trio

from tests.busy import measured
from tests.cluster import StartCluster
from tests.registry.world import digest_of, until
from tests.services import Store, fetch_rows

BOUND = 5.0
"""Seconds on an idle machine: one probe interval and one probe deadline, as they are by default, and a little besides."""


async def test_a_store_that_spoils_what_it_holds_gets_no_clients(
    start_cluster: StartCluster, s3_stores: dict[str, Store], database_uri: str, repository: str
) -> None:
    """The node looks into what it sent clients to; from then on it streams from a good copy, and so does every other node."""
    nodes = await start_cluster("us eu", "us eu", HEALTH_PROBE_INTERVAL="2s")
    blobs = [secrets.token_bytes(100_000 + number) for number in range(4)]
    async with httpx.AsyncClient(timeout=60, trust_env=False) as client:

        async def pull(node: str, data: bytes) -> httpx.Response:
            return await client.get(f"{nodes[node].url}/v2/{repository}/blobs/{digest_of(data)}")

        for data in blobs:
            url = f"{nodes['us'].url}/v2/{repository}/blobs/uploads/?digest={digest_of(data)}"
            assert (await client.post(url, content=data)).status_code == 201

        async def copied() -> bool:
            rows = await trio.to_thread.run_sync(fetch_rows, database_uri, "SELECT count(*) FROM placement")
            return rows == [(2 * len(blobs),)]

        await until(copied, 60)
        for node in ("us", "us-2"):
            assert (await pull(node, blobs[0])).status_code == 307
        sql = "SELECT p.key FROM placement p JOIN location l ON l.id = p.location_id WHERE l.name = 'us'"
        store, keys = s3_stores["us"], await trio.to_thread.run_sync(fetch_rows, database_uri, sql)
        bucket = store.client()
        for (key,) in keys:
            await trio.to_thread.run_sync(partial(bucket.put_object, Bucket=store.bucket, Key=key, Body=b"x" * 100_000))
        spoilt = trio.current_time()

        def sent_there(answer: httpx.Response) -> bool:
            return answer.status_code == 307 and answer.headers["antipode-location"] == "us"

        async def kept_away() -> bool:
            return not sent_there(await pull("us", blobs[1]))

        with measured() as slow:
            await until(kept_away, 60)
            took = trio.current_time() - spoilt
        print(f"no client was sent there any more {took:.1f} s after the first bytes were wrong")
        assert took < 2 * BOUND * max(slow)

        async def other_node_told() -> bool:
            return not sent_there(await pull("us-2", blobs[2]))

        await until(other_node_told, BOUND * max(slow))
        for data in blobs:
            for node in ("us", "us-2"):
                answer = await pull(node, data)
                assert not sent_there(answer)
                assert answer.status_code == 307 or answer.content == data
