"""A manifest that its client sends once, through the balancers of deploy/, to a node that is killed, frozen or cut off with it."""

import json
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import httpx
import pytest
import trio
from attrs import frozen

from node.push.reading import OCI_MANIFEST
from scripts.services.processes import free_ports
from tests.balancers import haproxy, needs_haproxy, needs_nginx, nginx
from tests.cluster import Cluster, StartCluster
from tests.faults import FaultProxy
from tests.nemesis.ground import until
from tests.registry.world import digest_of, image
from tests.services import fetch_rows

PATIENCE = 60.0
NAME = "team/app"

# nginx sends no probes: a frozen node is noticed by its silence alone.
either = pytest.mark.parametrize(
    "balancer",
    [
        pytest.param(haproxy, marks=needs_haproxy, id="haproxy"),
        pytest.param(partial(nginx, silence=15), marks=needs_nginx, id="nginx"),
    ],
)


@frozen
class Scene:
    """Two nodes, each with a proxy before it and one between it and the database, and a client of the balancer before both."""

    cluster: Cluster
    fronts: dict[str, FaultProxy]
    edges: dict[str, FaultProxy]
    client: httpx.AsyncClient
    witness: httpx.AsyncClient
    """Asks eu's node itself."""

    async def prepare(self, *marks: str) -> list[bytes]:
        """Push the blobs of one image per mark, past the balancer; return the manifests."""
        bodies = []
        for mark in marks:
            blobs = [json.dumps({"mark": mark}).encode(), secrets.token_bytes(100)]
            for blob in blobs:
                url = f"/v2/{NAME}/blobs/uploads/?digest={digest_of(blob)}"
                assert (await self.witness.post(url, content=blob)).status_code == 201
            bodies.append(json.dumps(image(*blobs)).encode())
        return bodies

    async def tagged(self) -> str | None:
        """Return what eu's node says that the tag names."""
        answer = await self.witness.head(f"/v2/{NAME}/manifests/v1", headers={"accept": OCI_MANIFEST})
        return str(answer.headers["docker-content-digest"]) if answer.status_code == 200 else None

    async def names(self, body: bytes) -> bool:
        return await self.tagged() == digest_of(body)

    async def has_request(self) -> bool:
        """Say whether the request has come to us's node, or to its socket."""
        asked = self.fronts["us"].asked
        return asked is not None and b"PUT /v2/" in asked

    async def has_ended(self, since: int) -> bool:
        """Say whether us's node has ended the request since its log was so long, whatever became of it."""
        lines = self.cluster["us"].log[since:].splitlines()
        return any('"PUT"' in line and "/manifests/v1" in line and '"event": "request"' in line for line in lines)

    async def pushes(self, body: bytes) -> int:
        """Return how many pushes of a manifest the audit log has."""
        sql = "SELECT FROM audit WHERE action = 'push' AND detail->>'digest' = $1"
        uri = self.cluster.configuration["DB_URI"]
        return len(await trio.to_thread.run_sync(fetch_rows, uri, sql, digest_of(body)))


async def put(client: httpx.AsyncClient, body: bytes) -> httpx.Response:
    return await client.put(f"/v2/{NAME}/manifests/v1", content=body, headers={"content-type": OCI_MANIFEST})


@asynccontextmanager
async def scene(start_cluster: StartCluster, balancer: object, folder: Path) -> AsyncIterator[Scene]:
    """Start nodes, proxies and the balancer, and wait until that leads to us's node."""
    cluster = await start_cluster("us eu", "eu us", launch=False)
    parts = urlsplit(cluster.configuration["DB_URI"])
    fronts = {node.name: FaultProxy("127.0.0.1", node.port) for node in cluster}
    edges = {node.name: FaultProxy(parts.hostname or "", parts.port or 5432) for node in cluster}
    user = f"{parts.username}@" if parts.username else ""
    async with trio.open_nursery() as nursery:
        for proxy in (*fronts.values(), *edges.values()):
            await nursery.start(proxy.serve)
        for node in cluster:
            uri = urlunsplit(parts._replace(netloc=f"{user}127.0.0.1:{edges[node.name].port}"))
            node.environment["QUAY_OVERRIDE_CONFIG"] = json.dumps({"DB_URI": uri})
        await trio.to_thread.run_sync(cluster.start_now)
        (port,) = free_ports(1)
        assert callable(balancer)
        with balancer(folder, {"door": (port, {name: proxy.port for name, proxy in fronts.items()})}):
            async with (
                httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE, trust_env=False) as client,
                httpx.AsyncClient(base_url=cluster["eu"].url, timeout=PATIENCE, trust_env=False) as witness,
            ):

                async def leads_to_us() -> bool:
                    answer = await client.get("/api/v1/health/locations")
                    return answer.status_code == 200 and bool(answer.json()["locations"][0]["location"] == "us")

                await until(leads_to_us, PATIENCE)
                yield Scene(cluster, fronts, edges, client, witness)
        nursery.cancel_scope.cancel()


@either
@pytest.mark.parametrize("committed", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("fault", ["killed", pytest.param("frozen", marks=pytest.mark.long), "cut off"])
async def test_a_node_that_is_lost_with_a_manifest(
    start_cluster: StartCluster, tmp_path: Path, balancer: object, fault: str, committed: bool
) -> None:
    """The client that sends once is answered 201, had it been done or not; a tag that moved on meanwhile never goes back."""
    async with scene(start_cluster, balancer, tmp_path) as here:
        us, front, edge = here.cluster["us"], here.fronts["us"], here.edges["us"]
        first, body, other = await here.prepare("first", "body", "other")
        assert (await put(here.witness, first)).status_code == 201
        answers: list[httpx.Response] = []

        async def push() -> None:
            answers.append(await put(here.client, body))

        since = len(us.log)
        front.asked = bytearray()
        if committed:
            # The node does what it is asked, and no answer comes back.
            front.break_("silent")
        elif fault == "frozen":
            # The request waits in its socket, until the node goes on.
            us.pause()
        else:
            edge.break_("hang")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(push)
            await until(here.has_request, PATIENCE)
            if committed:
                await until(partial(here.names, body), PATIENCE)
                assert (await put(here.witness, other)).status_code == 201
            if fault == "killed":
                us.kill()
            elif fault == "frozen" and committed:
                us.pause()
            if fault != "frozen":
                front.break_("refuse")
        assert [answer.status_code for answer in answers] == [201]
        assert answers[0].headers["docker-content-digest"] == digest_of(body)
        if not committed:
            assert await here.tagged() == digest_of(body)
            assert (await put(here.witness, other)).status_code == 201
        edge.mend()
        front.mend()
        if fault == "killed":
            await us.start()
        else:
            if fault == "frozen":
                us.resume()
            await until(partial(here.has_ended, since), PATIENCE)
        assert await here.tagged() == digest_of(other)
        assert await here.pushes(body) == 1
