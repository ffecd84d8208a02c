"""The database is cut off for minutes: what was seen is served, the rest is refused at once, and all goes on when it is back."""

import json
import secrets
from urllib.parse import urlsplit

import httpx
import pytest
import trio

from node.push.reading import OCI_MANIFEST
from tests.cluster import StartCluster
from tests.faults import Fault, FaultProxy
from tests.registry.world import digest_of, image, until

FIRST = 13.0
"""Seconds that the very first answers may take: until a statement, and the connection for it, have run out of time."""
LATER = 6.0
"""Seconds for everything after that, on a busy machine."""


@pytest.mark.parametrize(
    ("fault", "seconds"), [("hang", 30.0), ("refuse", 30.0), ("hang", 300.0)], ids=["hung", "refused", "hung for long"]
)
async def test_a_database_that_is_away(
    start_cluster: StartCluster, database_uri: str, repository: str, fault: Fault, seconds: float
) -> None:
    """Digests and blobs are answered from memory, everything else 503 with Retry-After in time, and nothing is half applied."""
    port = urlsplit(database_uri).port or 5432
    async with trio.open_nursery() as nursery:
        proxy: FaultProxy = await nursery.start(FaultProxy("127.0.0.1", port).serve)
        nodes = await start_cluster("us eu", DB_URI=database_uri.replace(f":{port}/", f":{proxy.port}/"))
        async with httpx.AsyncClient(base_url=nodes["us"].url, timeout=60, trust_env=False) as client:
            config, layer = b'{"architecture": "amd64", "os": "linux"}', secrets.token_bytes(200_000)
            for blob in (config, layer):
                url = f"/v2/{repository}/blobs/uploads/?digest={digest_of(blob)}"
                assert (await client.post(url, content=blob)).status_code == 201
            manifest = json.dumps(image(config, layer)).encode()
            typed = {"content-type": OCI_MANIFEST}
            assert (
                await client.put(f"/v2/{repository}/manifests/there", content=manifest, headers=typed)
            ).status_code == 201
            warm = {
                f"/v2/{repository}/manifests/{digest_of(manifest)}": 200,
                f"/v2/{repository}/blobs/{digest_of(config)}": 200,
                f"/v2/{repository}/blobs/{digest_of(layer)}": 307,
            }
            for path, status in warm.items():
                assert (await client.get(path)).status_code == status
            proxy.break_(fault)
            broke, slowest, refused = trio.current_time(), 0.0, 0
            while trio.current_time() < broke + seconds:
                for path, status in warm.items():
                    answer = await client.get(path)
                    assert answer.status_code == status, (trio.current_time() - broke, path, answer.text)
                for method, path, body in (
                    ("GET", f"/v2/{repository}/manifests/there", b""),
                    ("GET", f"/v2/{repository}/blobs/{digest_of(secrets.token_bytes(8))}", b""),
                    ("POST", f"/v2/{repository}/blobs/uploads/", b""),
                    ("PUT", f"/v2/{repository}/manifests/refused-{refused}", manifest),
                ):
                    began = trio.current_time()
                    answer = await client.request(method, path, content=body, headers=typed)
                    took = trio.current_time() - began
                    assert answer.status_code == 503, (method, path, answer.text)
                    assert answer.json()["errors"][0]["code"] == "UNAVAILABLE"
                    assert int(answer.headers["retry-after"]) >= 1
                    assert took < FIRST
                    slowest = max(slowest, took) if refused > 1 else 0.0
                refused += 1
                shown = await client.get("/health/endtoend")
                assert (shown.status_code, shown.json()["data"]["services"]["database"]) == (200, False)
                await trio.sleep(0.2)
            assert slowest < LATER
            proxy.mend()
            mended = trio.current_time()

            async def pushes_again() -> bool:
                answer = await client.put(f"/v2/{repository}/manifests/back", content=manifest, headers=typed)
                return answer.status_code == 201

            await until(pushes_again, 30)
            took = trio.current_time() - mended
            print(f"{refused} rounds, slowest refusal {slowest:.2f} s, back after {took:.2f} s")
            assert (await client.get(f"/v2/{repository}/tags/list")).json()["tags"] == ["back", "there"]
        nursery.cancel_scope.cancel()
