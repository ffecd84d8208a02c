"""The registry under test: own PostgreSQL and Redis, two stores, nodes of two kinds per region, haproxy; faults on every edge.

Every region has proxies of its own to each shared part, so that a region can be cut off while the others go on:

    client -> haproxy -> [proxy] -> node -> [proxy] -> PostgreSQL, Redis, us store, eu store
"""

import json
import re
import ssl
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

import httpx
import trio

from scripts.services.postgres import Postgres
from scripts.services.processes import free_ports
from scripts.services.redis_server import RedisServer
from tests.balancers import haproxy
from tests.cluster import Cluster, Node, configuration
from tests.faults import FaultProxy
from tests.services import Store, execute, fresh_storage_path

T = TypeVar("T")

REGIONS = ("us", "eu")
PARTS = ("postgres", "redis", "us-store", "eu-store")
PROBE_INTERVAL, PROBE_DEADLINE = 2.0, 3.0
REDIRECT_BOUND = PROBE_INTERVAL + PROBE_DEADLINE
"""After so many seconds no pull may be sent to a store that has failed."""

START_SECONDS = 300.0
"""Many processes start at once here."""

NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""Everything here is plain HTTP, and reading the authorities anew for each client would hold all others up."""

SETTINGS: dict[str, Any] = {
    "HEALTH_PROBE_INTERVAL": PROBE_INTERVAL,
    "HEALTH_PROBE_DEADLINE": PROBE_DEADLINE,
    "HEALTH_RECOVERY_QUIET": 3,
    "SOURCE_STALL_DEADLINE": 3,
    "REPLICATION_LEASE_SECONDS": 10,
    "DRAIN_DELAY": 3,
    "DRAIN_DEADLINE": 10,
}


class Ground:
    """A running registry. `redirects` and `streams` are the URLs of haproxy's two doors: nodes that redirect, and that stream."""

    def __init__(
        self,
        cluster: Cluster,
        edges: Mapping[tuple[str, str], FaultProxy],
        fronts: Mapping[str, FaultProxy],
        servers: "Servers",
        stores: Mapping[str, Store],
        doors: Mapping[str, str],
        storage_path: str,
    ) -> None:
        self.cluster = cluster
        self.edges = edges
        """By region and part: what its nodes reach the part through."""
        self.fronts = fronts
        """By node: what haproxy reaches it through."""
        self.servers = servers
        self.stores = stores
        """Not through a proxy."""
        self.doors = doors
        self.storage_path = storage_path
        self.database_uri = ""

    def to(self, part: str) -> list[FaultProxy]:
        """Return every region's edge to a part."""
        return [self.edges[region, part] for region in REGIONS]

    def of(self, region: str) -> list[FaultProxy]:
        """Return every edge of a region, those from the clients included."""
        inner = [self.edges[region, part] for part in PARTS]
        return [*inner, *(self.fronts[node.name] for node in self.cluster if node.name.startswith(region))]

    def node(self, name: str) -> Node:
        return self.cluster[name]


class Servers:
    """The PostgreSQL and the Redis of one ground, which can be stopped, started again and frozen."""

    def __init__(self, folder: Path) -> None:
        """Start both below `folder`."""
        folder.chmod(0o711)
        self.folder = folder
        # One thread that lives as long as we: the kernel ends a service with the thread that started it.
        self._starter = ThreadPoolExecutor(1)
        self.postgres = self._starter.submit(_postgres, folder).result()
        try:
            self.redis = self._starter.submit(RedisServer, folder).result()
        except BaseException:
            self.postgres.stop()
            raise

    def stop(self) -> None:
        """Stop both."""
        self.redis.stop()
        self.postgres.stop()
        self._starter.shutdown()

    async def _start(self, make: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(lambda: self._starter.submit(make).result())

    async def restart_postgres(self) -> None:
        """Stop it at once, as its own fast shutdown does, and start it on the same data and port."""
        port = self.postgres.port
        await trio.to_thread.run_sync(self.postgres.daemon.stop)
        self.postgres = await self._start(partial(_postgres, self.folder, port))

    async def freeze_postgres(self) -> None:
        """Let it and all its connections stand still until `thaw_postgres`."""
        await trio.to_thread.run_sync(self.postgres.freeze)

    def thaw_postgres(self) -> None:
        """Let it go on."""
        self.postgres.thaw()

    async def crash_postgres(self) -> None:
        """End it as a power cut would, and start it again: it recovers from its log."""
        port = self.postgres.port
        await trio.to_thread.run_sync(self.postgres.kill)
        self.postgres = await self._start(partial(_postgres, self.folder, port))

    def kill_redis(self) -> None:
        """End it; what it held is gone."""
        self.redis.daemon.process.kill()
        self.redis.daemon.process.wait()

    async def start_redis(self) -> None:
        """Start it again, empty, on the same port."""
        port = self.redis.port
        self.redis = await self._start(partial(RedisServer, self.folder, port=port))


@asynccontextmanager
async def open_ground(stores: Mapping[str, Store], **settings: Any) -> AsyncIterator[Ground]:
    """Start everything on fresh data in a temporary folder; stop it at the end, nodes in order, each of which must end cleanly."""
    # Not pytest's: PostgreSQL runs as another user there, who must be able to enter it.
    with tempfile.TemporaryDirectory(prefix="antipode-nemesis-") as name:
        folder = Path(name)
        servers = await trio.to_thread.run_sync(Servers, folder)
        try:
            uri = await trio.to_thread.run_sync(_make_database, servers.postgres.uri)
            own, path = {region: stores[region] for region in REGIONS}, fresh_storage_path()
            try:
                async with _running(folder, servers, own, uri, path, settings) as ground:
                    yield ground
            finally:
                for store in own.values():
                    store.empty(path)
        finally:
            servers.stop()


@asynccontextmanager
async def _running(
    folder: Path, servers: Servers, stores: Mapping[str, Store], uri: str, path: str, settings: Mapping[str, Any]
) -> AsyncIterator[Ground]:
    async with trio.open_nursery() as proxies:
        ground = await _assemble(proxies, folder, servers, stores, uri, path, {**SETTINGS, **settings})
        failures: list[BaseException] = []
        with haproxy(folder, _doors(ground)):
            try:
                await trio.to_thread.run_sync(_start_nodes, ground.cluster)
                await wait_for_doors(ground.doors)
                yield ground
            except BaseException as error:  # noqa: BLE001 - raised again below, not in the nursery's group
                failures.append(error)
            with trio.CancelScope(shield=True):
                try:
                    if failures:
                        _show(ground.cluster)
                    await trio.to_thread.run_sync(partial(ground.cluster.end, show_logs=False))
                except AssertionError as error:
                    failures.append(error)
        proxies.cancel_scope.cancel()
    if failures:
        raise failures[0]


async def _assemble(
    proxies: trio.Nursery,
    folder: Path,
    servers: Servers,
    stores: Mapping[str, Store],
    uri: str,
    path: str,
    settings: Mapping[str, Any],
) -> Ground:
    ports = {"postgres": servers.postgres.port, "redis": servers.redis.port}
    ports |= {f"{name}-store": store.port for name, store in stores.items()}
    free = iter(free_ports(len(REGIONS) * len(PARTS) + 8))
    edges = {(region, part): FaultProxy("127.0.0.1", ports[part], next(free)) for region in REGIONS for part in PARTS}
    whole = configuration(uri, servers.redis.uri, stores, path, **settings)
    cluster = Cluster(folder, whole, ["us eu", "us eu", "eu us", "eu us"])
    for node in cluster:
        node.environment["QUAY_OVERRIDE_CONFIG"] = json.dumps(_as_seen_from(node, whole, edges))
    fronts = {node.name: FaultProxy("127.0.0.1", node.port, next(free)) for node in cluster}
    for proxy in (*edges.values(), *fronts.values()):
        await proxies.start(proxy.serve)
    doors = {"redirects": next(free), "streams": next(free)}
    ground = Ground(
        cluster,
        edges,
        fronts,
        servers,
        stores,
        {name: f"http://127.0.0.1:{port}" for name, port in doors.items()},
        path,
    )
    ground.database_uri = uri
    return ground


def _as_seen_from(node: Node, whole: Mapping[str, Any], edges: Mapping[tuple[str, str], FaultProxy]) -> dict[str, Any]:
    """Return the keys of the configuration that differ for a node: its region's edges, and whether it streams."""
    region = node.name.partition("-")[0]
    database = re.sub(r":\d+/", f":{edges[region, 'postgres'].port}/", whole["DB_URI"])
    stores = {
        name: [engine, {**arguments, "port": edges[region, f"{name}-store"].port}]
        for name, (engine, arguments) in whole["DISTRIBUTED_STORAGE_CONFIG"].items()
    }
    return {
        "DB_URI": database,
        "USER_EVENTS_REDIS": {"host": "127.0.0.1", "port": edges[region, "redis"].port},
        "DISTRIBUTED_STORAGE_CONFIG": stores,
        "FEATURE_PROXY_STORAGE": node.name.endswith("-2"),
    }


def _doors(ground: Ground) -> dict[str, tuple[int, dict[str, int]]]:
    return {
        door: (
            int(ground.doors[door].rpartition(":")[2]),
            {region: ground.fronts[region + suffix].port for region in REGIONS},
        )
        for door, suffix in (("redirects", ""), ("streams", "-2"))
    }


async def wait_for_doors(doors: Mapping[str, str]) -> None:
    """Wait until haproxy has found a node behind each door."""
    async with httpx.AsyncClient(trust_env=False, verify=NO_TLS, timeout=60) as client:

        async def open_() -> bool:
            return all([(await client.get(f"{url}/v2/")).status_code == 200 for url in doors.values()])

        await until(open_, 120)


async def until(condition: Callable[[], Awaitable[bool]], seconds: float) -> None:
    """Wait until something that only asking can tell is so."""
    deadline = trio.current_time() + seconds
    while not await condition():
        assert trio.current_time() < deadline, f"not so within {seconds} s: {condition}"
        await trio.sleep(0.1)


def _show(cluster: Cluster) -> None:
    """Print what the nodes had to say, without the requests: pytest shows it for a failed test."""
    for node in cluster:
        lines = [line for line in node.log.splitlines() if '"event": "request"' not in line]
        print(f"--- node {node.name}", *lines[-200:], sep="\n")


def _postgres(folder: Path, port: int | None = None) -> Postgres:
    # What it acknowledged survives that it is killed: the operating system stays.
    return Postgres(folder, port=port, settings={"synchronous_commit": "on", "fsync": "off"})


def _start_nodes(cluster: Cluster) -> None:
    for node in cluster:
        node.launch()
    for node in cluster:
        node.wait_ready_now(START_SECONDS)


def _make_database(administrator: str) -> str:
    execute(administrator, "CREATE DATABASE nemesis")
    return urlunsplit(urlsplit(administrator)._replace(path="/nemesis"))
