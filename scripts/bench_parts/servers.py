"""The servers of a comparison, started on one store and stopped at the end: Antipode's node, and the peers that could be built."""

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from attrs import evolve, field, frozen

from scripts.services.processes import accepts_connections, die_with_parent, free_ports, tail
from tests.cluster import Cluster, configuration
from tests.services import Store, all_stores, fresh_database, required

from .clients import Target
from .machine import listener, store_pids
from .peers import DISTRIBUTION, ZOT, distribution_words, say, zot_words

ANTIPODE, SERIES = "Antipode", ("Antipode", "distribution 3.1.1", "zot 2.1.20")
_START_SECONDS = 60.0


@frozen
class Server:
    """A running server: where it is and which process it is."""

    target: Target
    pid: int

    @property
    def name(self) -> str:
        """The server's name, as tables show it."""
        return self.target.name


@frozen
class Ground:
    """What the servers of one question stand on: one bucket, a folder of our own in it, a database, and which peers take part."""

    store: Store
    path: str
    database: str
    redis: str | None
    folder: Path
    peers: bool = True
    behind: Store | None = None
    """The store as the servers reach it, where something is between."""
    settings: Mapping[str, Any] = field(factory=dict)
    """More keys of Antipode's configuration."""

    @property
    def store_pids(self) -> tuple[int, ...]:
        """The processes of the store."""
        return store_pids(self.store.port)


@contextmanager
def open_ground(*, peers: bool) -> Iterator[Ground]:
    """Open a database and a folder in the store `us` of our own, both gone afterwards."""
    store, path = all_stores()["us"], f"/bench-{os.getpid()}-{time.time_ns() % 10**6}"
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="antipode-bench-")))
        stack.callback(store.empty, path)
        uri = stack.enter_context(fresh_database(required("ANTIPODE_TEST_POSTGRES")))
        yield Ground(store, path, uri, os.environ.get("ANTIPODE_TEST_REDIS"), folder, peers)


@contextmanager
def open_servers(ground: Ground, *, redirect: bool = True) -> Iterator[list[Server]]:
    """Start a node of Antipode and every peer that can be had. With `redirect=False` all of them stream blobs themselves.

    Servers that are opened twice on one ground hold the same images.
    """
    with ExitStack() as stack:
        servers = [stack.enter_context(_antipode(ground, redirect=redirect))]
        store = ground.behind or ground.store
        for program, words, label in ((DISTRIBUTION, distribution_words, SERIES[1]), (ZOT, zot_words, SERIES[2])):
            built = program.built() if ground.peers else None
            if built is not None:
                folder = ground.folder / f"{program.name}-{len(list(ground.folder.iterdir()))}"
                folder.mkdir()
                (port,) = free_ports(1)
                line = words(built, folder, port, store, ground.path, redirect=redirect)
                servers.append(stack.enter_context(_peer(label, line, folder, port)))
        yield servers


@contextmanager
def _antipode(ground: Ground, *, redirect: bool) -> Iterator[Server]:
    folder = ground.folder / f"antipode-{len(list(ground.folder.iterdir()))}"
    folder.mkdir()
    # A fixed place inside the store, so that the next node on this ground finds it again.
    store = ground.behind or ground.store
    keys = configuration(ground.database, ground.redis, {"us": store}, ground.path, FEATURE_STORAGE_REPLICATION=False)
    keys["DISTRIBUTED_STORAGE_CONFIG"] = {"us": store.configuration(f"{ground.path}/antipode")}
    keys |= {"FEATURE_PROXY_STORAGE": not redirect, **ground.settings}
    cluster = Cluster(folder, keys, ["us"])
    try:
        cluster.start_now()
        node = cluster["us"]
        yield Server(Target(ANTIPODE, "127.0.0.1", node.port), node.pid)
    finally:
        cluster.end(show_logs=False)


@contextmanager
def _peer(name: str, words: list[str], folder: Path, port: int) -> Iterator[Server]:
    log = folder / "log"
    # Without the first the server would try to send its traces somewhere.
    environment = {**os.environ, "OTEL_TRACES_EXPORTER": "none", "OTEL_SDK_DISABLED": "true"}
    with log.open("wb") as output:
        process = subprocess.Popen(
            words,
            env=environment,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            preexec_fn=lambda: die_with_parent(9),
        )
    try:
        deadline = time.monotonic() + _START_SECONDS
        while not accepts_connections(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{name} did not start:\n{tail(log)}")
            time.sleep(0.05)
        yield Server(Target(name, "127.0.0.1", port), listener(port) or process.pid)
    finally:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            say(f"{name} did not stop: killed")
            process.kill()
            process.wait()


def behind(ground: Ground, port: int) -> Ground:
    """Return the ground with its store reached by way of a port of this machine."""
    return evolve(ground, behind=evolve(ground.store, endpoint=f"http://127.0.0.1:{port}"))
