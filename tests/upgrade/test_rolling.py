"""An upgrade node by node, and back: the last release's node serves beside this tree's, and clients do not notice."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import trio
from attrs import field, frozen

from scripts.services.processes import free_ports
from tests.balancers import haproxy, needs_haproxy
from tests.cluster import Cluster, Node, StartCluster
from tests.nemesis.checker import lost, violations
from tests.nemesis.client import PODMAN, Client
from tests.nemesis.ground import NO_TLS, REGIONS, until, wait_for_doors
from tests.nemesis.history import History, Operation
from tests.nemesis.trial import Pulled, pull_all
from tests.nemesis.workload import Workload, base_images
from tests.services import fetch_rows
from tests.upgrade.release import Release, other_pins, run_release, run_this_tree

_DRAIN_DELAY = 3
"""Seconds: longer than haproxy takes to see that a node stops."""
_ENOUGH_WRITES, _ENOUGH_READS = 2, 5
"""So many operations are answered through each door in every phase of the upgrade."""
_PHASE_SECONDS = 180.0
_END = 120.0


@frozen
class _Registry:
    """Two regions behind two doors: clients of `redirects` go to us while it is well, those of `streams` to eu."""

    cluster: Cluster
    storage_path: str
    database_uri: str
    doors: Mapping[str, str] = field(init=False)

    def __attrs_post_init__(self) -> None:
        urls = (f"http://127.0.0.1:{port}" for port in free_ports(len(REGIONS)))
        object.__setattr__(self, "doors", dict(zip(("redirects", "streams"), urls, strict=True)))

    @asynccontextmanager
    async def balanced(self, folder: Path) -> AsyncIterator[None]:
        """Run haproxy before the nodes; the second door has them in the other order."""
        us, eu = (self.cluster[region].port for region in REGIONS)
        servers = {"redirects": {"us": us, "eu": eu}, "streams": {"us": eu, "eu": us}}
        ports = {door: int(url.rpartition(":")[2]) for door, url in self.doors.items()}
        with haproxy(folder, {door: (ports[door], servers[door]) for door in self.doors}):
            await wait_for_doors(self.doors)
            yield

    async def replace(self, node: Node) -> None:
        """Stop a node in order, start it again as it is told to, and wait until its door leads to it."""
        await node.stop()
        await node.start()
        door = self.doors["redirects" if node.name == "us" else "streams"]
        async with httpx.AsyncClient(trust_env=False, verify=NO_TLS, timeout=60) as client:

            async def leads_to_it() -> bool:
                answer = await client.get(f"{door}/api/v1/health/locations")
                return answer.status_code == 200 and bool(answer.json()["locations"][0]["location"] == node.name)

            await until(leads_to_it, 120)

    async def versions(self) -> set[str]:
        """Return what the nodes that have been heard of say they run."""
        question = "SELECT DISTINCT version FROM node"
        return {version for (version,) in await trio.to_thread.run_sync(fetch_rows, self.database_uri, question)}


@needs_haproxy
async def test_an_upgrade_node_by_node_is_not_noticed(
    release: Release,
    start_cluster: StartCluster,
    storage_path: str,
    database_uri: str,
    tmp_path: Path,
) -> None:
    """One node after the other becomes this tree's and one goes back: no push is lost, no tag goes back, no request fails."""
    print(
        f"upgrading from {release.version} ({release.commit[:12]}); packages that it pins otherwise: {other_pins(release)}"
    )
    home = await trio.to_thread.run_sync(release.unpack, tmp_path)
    cluster = await start_cluster("us eu", "eu us", launch=False, DRAIN_DELAY=_DRAIN_DELAY)
    us, eu = (cluster[region] for region in REGIONS)
    for node in cluster:
        run_release(node, home)
    await trio.to_thread.run_sync(cluster.start_now)
    registry = _Registry(cluster, storage_path, database_uri)
    assert await registry.versions() == {release.installed_as}
    async with registry.balanced(tmp_path):
        await _push_base(registry)
        load = Workload(registry, "upgrade", 1, readers=(1, 1))
        async with trio.open_nursery() as nursery:
            ended = trio.Event()
            nursery.start_soon(_run, load, ended)
            await _some_work(load.history)
            run_this_tree(us)
            await registry.replace(us)
            assert len(await registry.versions()) == 2
            await _some_work(load.history)
            run_this_tree(eu)
            await registry.replace(eu)
            run_release(us, home)
            await registry.replace(us)
            await _some_work(load.history)
            load.stop()
            with trio.fail_after(_END):
                await ended.wait()
    wrong = violations(load.history.operations)
    wrong += [
        f"{operation.client}: {failure.reason}"
        for operation in load.history.operations
        for failure in operation.failures
    ]
    pushed = sorted({(push.repository, push.digest or "") for push in load.history.of("push") if push.ok})
    pulled = Pulled()
    for node in cluster:
        await pull_all(pulled, node, pushed)
    wrong += [*violations(pulled.operations), *lost(load.history.operations, pulled.operations)]
    assert not wrong, "\n".join(wrong)


async def _run(load: Workload, ended: trio.Event) -> None:
    await load.run()
    ended.set()


async def _push_base(registry: _Registry) -> None:
    """Push what the readers of digests ask for."""
    client, history = Client(PODMAN, registry.doors["redirects"]), History()
    for image in base_images(registry):
        with history.record(
            Operation("push", "base", "redirects", image.repository, "base", trio.current_time())
        ) as push:
            await client.push(push, image, "base")
    await client.close()
    assert all(operation.ok for operation in history.operations), history.operations


async def _some_work(history: History) -> None:
    """Wait until so many writes and reads that began after now have been answered, through both doors."""
    now = trio.current_time()

    def answered(door: str, *kinds: str) -> int:
        since = (operation for operation in history.operations if operation.ok and operation.began >= now)
        return sum(1 for operation in since if operation.door == door and operation.kind in kinds)

    def done() -> dict[str, tuple[int, int]]:
        doors = ("redirects", "streams")
        return {door: (answered(door, "push", "delete"), answered(door, "pull", "look")) for door in doors}

    async def enough() -> bool:
        return all(writes >= _ENOUGH_WRITES and reads >= _ENOUGH_READS for writes, reads in done().values())

    try:
        await until(enough, _PHASE_SECONDS)
    except AssertionError as error:
        failures = [failure.reason for operation in history.operations for failure in operation.failures]
        raise AssertionError(f"by door only {done()} (writes, reads); failed so far: {failures[-10:]}") from error
