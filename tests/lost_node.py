"""A node that is killed, frozen or cut off with a manifest, before it has done it or after, behind the balancers of deploy/."""

import json
import re
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import httpx
import pytest
import trio
from attrs import field, frozen

from node.push.reading import DOCKER_MANIFEST, OCI_MANIFEST
from scripts.services.processes import free_ports
from tests.balancers import haproxy, needs_haproxy, needs_nginx, nginx
from tests.cluster import Cluster, StartCluster
from tests.faults import FaultProxy
from tests.nemesis.ground import until
from tests.registry.world import digest_of, image
from tests.services import fetch_rows

PATIENCE = 60.0
NAME = "team/app"
FAULTS = ("killed", "frozen", "cut off")

# nginx sends no probes: a frozen node is noticed by its silence alone.
either = pytest.mark.parametrize(
    "balancer",
    [
        pytest.param(haproxy, marks=needs_haproxy, id="haproxy"),
        pytest.param(partial(nginx, silence=15), marks=needs_nginx, id="nginx"),
    ],
)
before_and_after = pytest.mark.parametrize("committed", [False, True], ids=["before", "after"])

_PUT = re.compile(rb"PUT /v2/\S+/manifests/")


@frozen
class Scene:
    """Two nodes, each with a proxy before it and one between it and the database, and a client of the balancer before both."""

    cluster: Cluster
    fronts: dict[str, FaultProxy]
    edges: dict[str, FaultProxy]
    host: str
    """Of the balancer, as in the name of an image."""
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
        kinds = f"{OCI_MANIFEST}, {DOCKER_MANIFEST}"
        answer = await self.witness.head(f"/v2/{NAME}/manifests/v1", headers={"accept": kinds})
        return str(answer.headers["docker-content-digest"]) if answer.status_code == 200 else None

    async def names_another(self, than: bytes) -> bool:
        return await self.tagged() != digest_of(than)

    async def has_ended(self, since: int) -> bool:
        """Say whether us's node has ended the request since its log was so long, whatever became of it."""
        lines = self.cluster["us"].log[since:].splitlines()
        return any('"PUT"' in line and "/manifests/v1" in line and '"event": "request"' in line for line in lines)

    async def pushes(self, digest: str) -> int:
        """Return how many pushes of a manifest the audit log has."""
        sql = "SELECT FROM audit WHERE action = 'push' AND detail->>'digest' = $1"
        uri = self.cluster.configuration["DB_URI"]
        return len(await trio.to_thread.run_sync(fetch_rows, uri, sql, digest))


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
                yield Scene(cluster, fronts, edges, f"127.0.0.1:{port}", client, witness)
        nursery.cancel_scope.cancel()


@frozen
class _Trap:
    """Lets us's node come no further with a manifest than it shall."""

    here: Scene
    fault: str
    committed: bool
    since: int
    """How long the node's log was."""
    arrived: trio.Event = field(factory=trio.Event)
    """The manifest has come to the proxy before the node."""
    begun: trio.Event = field(factory=trio.Event)
    """The node has asked the database to do it, which never hears that."""

    def set_up(self) -> None:
        self.here.fronts["us"].watch = self._prepare

    def _prepare(self, chunk: bytes) -> None:
        if self.arrived.is_set() or _PUT.search(chunk) is None:
            return
        self.arrived.set()
        if self.committed:
            # The node does what it is asked, and no answer comes back.
            self.here.fronts["us"].break_("silent")
        elif self.fault == "frozen":
            # The request waits in its socket, until the node goes on.
            self.here.cluster["us"].pause()
        else:
            self.here.edges["us"].watch = self._begin
            self.here.edges["us"].break_("hang")

    def _begin(self, chunk: bytes) -> None:
        if b"idempotency_key" in chunk or NAME.encode() in chunk:
            self.begun.set()

    async def lose(self) -> None:
        """Lose the node as soon as it is as far as it shall come."""
        us = self.here.cluster["us"]
        if not self.committed and self.fault != "frozen":
            with trio.fail_after(PATIENCE):
                await self.begun.wait()
        if self.fault == "killed":
            us.kill()
        elif self.fault == "frozen" and self.committed:
            us.pause()
        if self.fault != "frozen":
            self.here.fronts["us"].break_("refuse")

    async def release(self) -> None:
        """Let the node be back, and end what it still has to do."""
        us = self.here.cluster["us"]
        self.here.edges["us"].mend()
        self.here.fronts["us"].mend()
        if self.fault == "killed":
            await us.start()
            return
        if self.fault == "frozen":
            us.resume()
        await until(partial(self.here.has_ended, self.since), PATIENCE)


async def lose_the_node(here: Scene, fault: str, committed: bool, push: Callable[[], Awaitable[str]]) -> str:
    """Lose us's node with the manifest that `push` sends; return what that returned, the digest of what it has pushed.

    Meanwhile the tag moves on, before the node is lost, or before it comes back.
    """
    first, other = await here.prepare("first", "other")
    assert (await put(here.witness, first)).status_code == 201
    pushed: list[str] = []

    async def work() -> None:
        pushed.append(await push())

    trap = _Trap(here, fault, committed, len(here.cluster["us"].log))
    trap.set_up()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(work)
        await trap.arrived.wait()
        if committed:
            await until(partial(here.names_another, first), PATIENCE)
            assert (await put(here.witness, other)).status_code == 201
        await trap.lose()
    (digest,) = pushed
    if not committed:
        assert await here.tagged() == digest
        assert (await put(here.witness, other)).status_code == 201
    await trap.release()
    assert await here.tagged() == digest_of(other)
    assert await here.pushes(digest) == 1
    return digest
