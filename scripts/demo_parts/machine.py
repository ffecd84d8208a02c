"""The machine room: PostgreSQL, Redis and two nodes with a local store each, all in one temporary folder."""

import contextlib
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import httpx
import yaml
from attrs import define, frozen

from scripts.services.postgres import Postgres
from scripts.services.processes import Daemon, ServiceError, accepts_connections
from scripts.services.redis_server import RedisServer

from .signals import Signals

REGIONS = ("us", "eu")
COPY_MIB_PER_SECOND = 4
"""Copies between the regions are slowed to this, so that they can be watched."""
_READY_SECONDS = 30.0
# A node lets requests end when it is stopped; none takes this long here.
_NODE_STOP_SECONDS = 10.0

Say = Callable[[str], None]


@frozen
class Places:
    """The folders and addresses of one run."""

    folder: Path
    ports: dict[str, int]
    """The nodes' ports on 127.0.0.1, by region."""

    @property
    def logs(self) -> Path:
        """The folder of the nodes' logs; after a failure, of all logs."""
        return self.folder / "logs"

    @property
    def configuration(self) -> Path:
        """The configuration file of both nodes."""
        return self.folder / "config.yaml"

    def store(self, region: str) -> Path:
        """Return the folder of a region's store."""
        return self.folder / "stores" / region

    def url(self, region: str) -> str:
        """Return where a region's node listens."""
        return f"http://127.0.0.1:{self.ports[region]}"


@define(eq=False)
class Machine:
    """What runs. Made by `running`."""

    places: Places
    postgres: Postgres
    redis: RedisServer
    nodes: dict[str, Daemon]

    def take_away(self, region: str) -> None:
        """Move the folder of a region's store elsewhere, as a store that is gone."""
        place = self.places.store(region)
        place.rename(_away(place))

    def put_back(self, region: str) -> None:
        """Undo `take_away`."""
        place = self.places.store(region)
        _away(place).rename(place)

    def ended(self) -> str | None:
        """Return the name of a process that ended by itself, with its exit code, or None."""
        daemons = {"PostgreSQL": self.postgres.daemon, "Redis": self.redis.daemon}
        daemons |= {f"the {region} node": node for region, node in self.nodes.items()}
        for name, daemon in daemons.items():
            if (code := daemon.process.poll()) is not None:
                return f"{name} ended with exit code {code}"
        return None


def check_ports(ports: dict[str, int]) -> None:
    """See to it that the nodes' ports are free, before anything is started.

    Raises:
        ServiceError: one is not; the message names it and says how to choose others.

    """
    for region, port in ports.items():
        with socket.socket() as probe:
            # As the node does: a port whose last connections are still closing is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
                probe.listen()
            except OSError as error:
                raise ServiceError(
                    f"port {port} of 127.0.0.1, for the {region} node, cannot be had ({error.strerror}): is another "
                    f"demo running? Choose other ports with --us-port and --eu-port"
                ) from error


@contextlib.contextmanager
def running(places: Places, signals: Signals, say: Say) -> Iterator[Machine]:
    """Start everything below the new folder `places.folder`, yield it, and stop and remove everything.

    After a failure the logs and the configuration stay. From the first stop on signals are ignored; each stop has a deadline.

    Raises:
        ServiceError: something did not start.

    """
    folder = places.folder
    # PostgreSQL may run as another user, who has to pass through; the folders inside are closed to others.
    folder.chmod(0o711)
    for place in (places.logs, *(places.store(region) for region in REGIONS)):
        place.mkdir(mode=0o700, parents=True)
    logs: list[Path] = []
    with contextlib.ExitStack() as stack:
        # The stack unwinds in reverse: processes first, then what they wrote.
        stack.push(lambda kind, *_: _tidy(places, failed=kind is not None and issubclass(kind, Exception)))

        def keep(daemon: Daemon, stop: Callable[[], None]) -> None:
            logs.append(daemon.log)
            stack.callback(stop)

        try:
            # Held while a process is started and not yet known to the stack: it would be left behind.
            with signals.held():
                postgres = Postgres(folder)
                keep(postgres.daemon, postgres.stop)
            say(f"PostgreSQL on 127.0.0.1:{postgres.port} ({_program(postgres.daemon)})")
            with signals.held():
                redis = RedisServer(folder, prefer_wheel=True)
                keep(redis.daemon, redis.stop)
            say(f"Redis on 127.0.0.1:{redis.port} ({_program(redis.daemon)})")
            places.configuration.write_text(yaml.safe_dump(_configuration(places, postgres, redis), sort_keys=False))
            nodes: dict[str, Daemon] = {}
            for region in REGIONS:
                with signals.held():
                    nodes[region] = _launch(places, region)
                    keep(nodes[region], partial(nodes[region].stop, _NODE_STOP_SECONDS))
            for region, node in nodes.items():
                node.wait_ready(partial(_healthy, places, region), _READY_SECONDS)
                say(f"node {region} on {places.url(region)}, its store in {places.store(region)}")
            # Both at once; the stack waits for them.
            for node in nodes.values():
                stack.callback(node.ask_to_stop)
            yield Machine(places, postgres, redis, nodes)
        finally:
            signals.ignore()
            # PostgreSQL's may lie in a folder that goes with it.
            _collect(logs, places.logs)


def _configuration(places: Places, postgres: Postgres, redis: RedisServer) -> dict[str, object]:
    return {
        "SERVER_HOSTNAME": f"127.0.0.1:{places.ports['us']}",
        "PREFERRED_URL_SCHEME": "http",
        "DB_URI": postgres.uri,
        "USER_EVENTS_REDIS": {"host": "127.0.0.1", "port": redis.port},
        "DISTRIBUTED_STORAGE_CONFIG": {
            region: ["LocalStorage", {"storage_path": str(places.store(region))}] for region in REGIONS
        },
        "DISTRIBUTED_STORAGE_PREFERENCE": list(REGIONS),
        "DISTRIBUTED_STORAGE_DEFAULT_LOCATIONS": list(REGIONS),
        "FEATURE_STORAGE_REPLICATION": True,
        "FEATURE_OPEN_REGISTRY": True,
        "ALLOW_LOCAL_REPLICATION": True,
        "REPLICATION_BYTES_PER_SECOND": COPY_MIB_PER_SECOND << 20,
        # So that small blobs, too, come from a store and say from which.
        "REDIRECT_MINIMUM_SIZE": 0,
        # Shorter than by default: nobody wants to watch a store recover for ten seconds.
        "HEALTH_PROBE_INTERVAL": "1s",
        "HEALTH_PROBE_DEADLINE": "1s",
        "HEALTH_RECOVERY_QUIET": "3s",
    }


def _launch(places: Places, region: str) -> Daemon:
    own_first = sorted(REGIONS, key=lambda other: other != region)
    return Daemon(
        f"node-{region}",
        [
            Path(sys.executable).with_name("antipode"),
            "serve",
            *("--config", places.configuration),
            *("--bind", f"127.0.0.1:{places.ports[region]}"),
        ],
        places.logs,
        environment={"QUAY_DISTRIBUTED_STORAGE_PREFERENCE": " ".join(own_first)},
    )


def _healthy(places: Places, region: str) -> bool:
    if not accepts_connections(places.ports[region]):
        return False
    try:
        answer = httpx.get(f"{places.url(region)}/health/endtoend", trust_env=False, timeout=2)
    except httpx.HTTPError:
        return False
    return answer.status_code == 200


def _program(daemon: Daemon) -> str:
    return str(daemon.process.args[0]) if isinstance(daemon.process.args, list) else str(daemon.process.args)


def _away(place: Path) -> Path:
    return place.with_name(f"{place.name}.taken-away")


def _collect(logs: list[Path], folder: Path) -> None:
    for log in logs:
        if log.parent != folder and log.exists():
            shutil.copyfile(log, folder / log.name)


def _tidy(places: Places, *, failed: bool) -> None:
    """Remove the folder; after a failure all but the logs and the configuration."""
    if not failed:
        shutil.rmtree(places.folder)
        return
    for place in places.folder.iterdir():
        if place.is_dir() and place != places.logs:
            shutil.rmtree(place)
