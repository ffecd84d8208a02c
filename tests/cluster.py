"""Real node processes: a configuration, one `antipode serve` per region, and an orderly end that the test depends on."""

import os
import secrets
import signal
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import trio
import yaml

from scripts.services.processes import free_ports, tail
from tests.services import Store

START_SECONDS = 300.0
STOP_SECONDS = 90.0
_COVERED = ("QUAY_", "ANTIPODE_")  # what a developer's shell may hold must not reach a node under test


def program() -> list[str]:
    """Return the words that start the installed command line with this very interpreter."""
    return [sys.executable, "-c", "from node.cli import main; main()"]


class Node:
    """One `antipode serve` process. Methods that wait are async; their `_now` twins block, for fixtures and threads."""

    def __init__(self, name: str, preference: str, configuration: Path, port: int, *, tls: bool = False) -> None:
        """Describe a node that is not started yet: `preference` as in QUAY_DISTRIBUTED_STORAGE_PREFERENCE; `tls`: it speaks it."""
        self.name = name
        self.preference = preference
        self.port = port
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{port}"
        self.environment: dict[str, str] = {}
        self.options: list[str] = []
        """Further words of the command line."""
        self._configuration = configuration
        self._log = configuration.with_name(f"{name}.log")
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> str:
        """Everything that the node wrote so far, over all its starts."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    @property
    def pid(self) -> int:
        """The process id; only while it runs."""
        assert self._process is not None, f"node {self.name} does not run"
        return self._process.pid

    @property
    def resident_bytes(self) -> int:
        """Memory that the process holds now."""
        return self._status_bytes("VmRSS")

    @property
    def peak_resident_bytes(self) -> int:
        """The most memory that the process ever held."""
        return self._status_bytes("VmHWM")

    def _status_bytes(self, name: str) -> int:
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":"))

    def launch(self) -> None:
        """Start the process and return at once."""
        assert self._process is None, f"node {self.name} runs already"
        kept = {name: value for name, value in os.environ.items() if not name.startswith(_COVERED)}
        environment = {**kept, "QUAY_DISTRIBUTED_STORAGE_PREFERENCE": self.preference, **self.environment}
        words = [
            *program(),
            "serve",
            "--config",
            str(self._configuration),
            "--bind",
            f"127.0.0.1:{self.port}",
            *self.options,
        ]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                words,
                cwd=self._configuration.parent,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def wait_ready_now(self, seconds: float = START_SECONDS) -> None:
        """Wait until /health/instance answers 200; fail with the end of the log when it does not."""
        deadline = time.monotonic() + seconds
        while not self._answers():
            assert self._process is not None
            code = self._process.poll()
            assert code is None, f"node {self.name} ended with {code}:\n{tail(self._log, 40)}"
            late = time.monotonic() > deadline
            assert not late, f"node {self.name}: no 200 from /health/instance in {seconds} s:\n{tail(self._log, 40)}"
            time.sleep(0.05)

    def _answers(self) -> bool:
        try:
            url = f"{self.url}/health/instance"
            # Whether its certificate is right is for tests to look at.
            blind = ssl._create_unverified_context()  # noqa: S323
            with urllib.request.urlopen(url, timeout=5, context=blind) as answer:  # noqa: S310 - our own URL
                return bool(answer.status == 200)
        except OSError:
            return False

    def start_now(self) -> None:
        """Start the process and wait until it serves."""
        self.launch()
        self.wait_ready_now()

    def stop_now(self, seconds: float = STOP_SECONDS) -> None:
        """Send SIGTERM and wait; fails unless the exit code is 0 and the log has no traceback. Nothing when it is down."""
        if self._process is None:
            return
        # A paused process would never see it.
        self._process.send_signal(signal.SIGCONT)
        self._process.send_signal(signal.SIGTERM)
        try:
            code: int | None = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
        self.kill()
        assert code == 0, f"node {self.name} stopped with {code} after SIGTERM:\n{tail(self._log, 60)}"
        assert "Traceback (most recent call last)" not in self.log, f"node {self.name} logged a traceback:\n{self.log}"

    def kill(self) -> None:
        """End the process as a crash would: SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(STOP_SECONDS)
            self._process = None

    def signal(self, name: str) -> None:
        """Send a signal (`"SIGUSR1"`) and leave what comes of it to the test."""
        os.kill(self.pid, signal.Signals[name])

    def pause(self) -> None:
        """Freeze the process (SIGSTOP), as a node that hangs."""
        self.signal("SIGSTOP")

    def resume(self) -> None:
        """Let a frozen process go on."""
        self.signal("SIGCONT")

    async def start(self) -> None:
        """Start the process and wait until it serves."""
        await trio.to_thread.run_sync(self.start_now)

    async def stop(self) -> None:
        """Send SIGTERM and wait for a clean end."""
        await trio.to_thread.run_sync(self.stop_now)

    async def wait_ended(self, seconds: float = START_SECONDS) -> int:
        """Wait for a process that is to end by itself and return its exit code."""
        assert self._process is not None
        code = await trio.to_thread.run_sync(self._process.wait, seconds)
        self._process = None
        return code


class Cluster:
    """Nodes that share one configuration file, by name: the first location of a node's preference, `us`, then `us-2`, ..."""

    def __init__(self, folder: Path, configuration: Mapping[str, Any], preferences: Sequence[str]) -> None:
        """Write `folder`/config.yaml and describe one node per preference; `launch` and `wait_ready_now` start them."""
        self.configuration = dict(configuration)
        self.configuration_file = folder / "config.yaml"
        self.configuration_file.write_text(yaml.safe_dump(self.configuration, sort_keys=False))
        self._nodes: dict[str, Node] = {}
        for preference, port in zip(preferences, free_ports(len(preferences)), strict=True):
            region = preference.replace(",", " ").split()[0]
            same = sum(1 for name in self._nodes if name.split("-")[0] == region)
            name = f"{region}-{same + 1}" if same else region
            tls = "SSL_CERTIFICATE" in self.configuration
            self._nodes[name] = Node(name, preference, self.configuration_file, port, tls=tls)

    def __getitem__(self, name: str) -> Node:
        return self._nodes[name]

    def __iter__(self) -> Iterator[Node]:
        return iter(self._nodes.values())

    def start_now(self) -> None:
        """Start all nodes at once and wait until each serves."""
        for node in self:
            node.launch()
        for node in self:
            node.wait_ready_now()

    def end(self, *, show_logs: bool = True) -> None:
        """Stop all nodes and report every one that did not stop cleanly; what is shown, pytest shows for a failed test."""
        failures: list[AssertionError] = []
        for node in self:
            try:
                node.stop_now()
            except AssertionError as failure:
                failures.append(failure)
        for node in self if show_logs else ():
            sys.stdout.write(f"--- log of node {node.name} ---\n{node.log}\n")
        if failures:
            raise AssertionError("\n".join(map(str, failures)))


class StartCluster(Protocol):
    """Start one node per preference (`"us eu"`) and wait until all serve.

    `stores` replaces stores by name, such as one behind a faulty proxy; `settings` are keys of the configuration file,
    None takes a key out. Nodes that still run at the end of the test are stopped, and must stop cleanly.
    `launch=False` only describes them.
    """

    async def __call__(
        self,
        *preferences: str,
        stores: Mapping[str, Store] | None = None,
        launch: bool = True,
        **settings: Any,
    ) -> Cluster: ...


def configuration(
    database_uri: str, redis_uri: str | None, stores: Mapping[str, Store], storage_path: str, **settings: Any
) -> dict[str, Any]:
    """Return the configuration of a registry over `stores`: what the README's example has, changed by `settings`."""
    redis = urlsplit(redis_uri or "")
    whole: dict[str, Any] = {
        "SERVER_HOSTNAME": "127.0.0.1:8100",
        "PREFERRED_URL_SCHEME": "http",
        "DB_URI": database_uri,
        "USER_EVENTS_REDIS": {"host": redis.hostname, "port": redis.port} if redis_uri else None,
        "DISTRIBUTED_STORAGE_CONFIG": {
            name: store.configuration(f"{storage_path}/{secrets.token_hex(3)}") for name, store in stores.items()
        },
        "DISTRIBUTED_STORAGE_PREFERENCE": list(stores),
        "DISTRIBUTED_STORAGE_DEFAULT_LOCATIONS": list(stores),
        "FEATURE_STORAGE_REPLICATION": True,
        "FEATURE_OPEN_REGISTRY": True,
        **settings,
    }
    return {key: value for key, value in whole.items() if value is not None}
