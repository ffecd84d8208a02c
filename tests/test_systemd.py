"""The node under a service manager: readiness, the watchdog, and a listening socket that outlives the process."""

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from configparser import ConfigParser
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import httpx
import pytest
import trio

from node.config.settings import Settings
from node.supervisor import LAST_RESORT
from node.systemd import Manager, inherited_sockets
from node.web.listener import BACKLOG
from scripts.services.processes import free_ports
from tests.balancers import haproxy, needs_haproxy, needs_nginx, nginx
from tests.cluster import START_SECONDS, STOP_SECONDS, Node, StartCluster, program
from tests.services import repository_root

needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd (Debian package)")
_NO_KEEP_ALIVE = httpx.Limits(max_keepalive_connections=0)


def test_sockets_are_taken_only_by_the_process_they_are_meant_for() -> None:
    """LISTEN_PID names the process that inherits; the variables are gone afterwards, so that no child takes them."""
    environ = {"LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid() + 1), "LISTEN_FDNAMES": "x"}
    assert inherited_sockets(environ) == ()
    assert environ == {}


def test_without_a_manager_nothing_happens() -> None:
    """A node that was started by hand tells nobody."""
    Manager({}).tell("READY=1")


def test_a_manager_that_is_gone_harms_nobody(tmp_path: Path) -> None:
    """An address without a listener is a log line, not an error."""
    Manager({"NOTIFY_SOCKET": str(tmp_path / "gone")}).tell("READY=1")


async def test_the_watchdog_is_told_as_long_as_the_node_lives(tmp_path: Path, autojump_clock: object) -> None:
    """Three times per period, and not when the node says that it does not live."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.setblocking(False)
        alive = True
        told = Manager({"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "3000000"})
        async with trio.open_nursery() as nursery:
            await nursery.start(told.run_watchdog, lambda: alive)
            await trio.sleep(2.5)
            alive = False
            await trio.sleep(10)
            nursery.cancel_scope.cancel()
        assert [manager.recv(100) for _ in range(3)] == [b"WATCHDOG=1"] * 3
        try:
            extra: bytes | None = manager.recv(100)
        except BlockingIOError:
            extra = None
        assert extra is None


@contextmanager
def _activated(
    node: Node, configuration: Path, listening: socket.socket, notify: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a node as systemd would: its socket as file descriptor 3, its own id in LISTEN_PID. At the end it has ended."""
    script = f'exec 3<&{listening.fileno()}; export LISTEN_PID=$$ LISTEN_FDS=1; exec "$@"'
    process = subprocess.Popen(
        ["/bin/bash", "-c", script, "bash", *program(), "serve", "--config", str(configuration)],
        pass_fds=(listening.fileno(),),
        env={
            **os.environ,
            "QUAY_DISTRIBUTED_STORAGE_PREFERENCE": node.preference,
            "NOTIFY_SOCKET": str(notify),
        },
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait(STOP_SECONDS)


async def _heard(manager: trio.socket.SocketType, wanted: bytes) -> None:
    with trio.fail_after(START_SECONDS):
        while wanted not in (await manager.recv(4096)).splitlines():
            pass


@needs_haproxy
@needs_nginx
async def test_a_hand_over_of_the_socket_refuses_nobody(start_cluster: StartCluster, tmp_path: Path) -> None:
    """While one process ends and the next begins every request waits and is answered, directly and through both balancers.

    The health check stays at 200: no balancer need know.
    """
    nodes = await start_cluster("us eu", launch=False, DRAIN_DELAY=1)
    node = nodes["us"]
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen(1024)
    port = listening.getsockname()[1]
    by_haproxy, by_nginx = free_ports(2)
    folders = [tmp_path / name for name in ("haproxy", "nginx")]
    for folder in folders:
        folder.mkdir()
    manager = trio.socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    await manager.bind(str(tmp_path / "notify"))
    answers: dict[int, list[tuple[str, int]]] = {at: [] for at in (port, by_haproxy, by_nginx)}
    servers = {"us": port, "eu": port}
    with ExitStack() as stack:
        stack.enter_context(listening)
        stack.enter_context(manager)
        activated = partial(_activated, node, nodes.configuration_file, listening, tmp_path / "notify")
        first = stack.enter_context(activated())
        await _heard(manager, b"READY=1")
        # A request waits for as long as the next process takes to begin.
        patient = partial(haproxy, silence=int(START_SECONDS)), partial(nginx, silence=int(START_SECONDS))
        with (
            patient[0](folders[0], {"it": (by_haproxy, servers)}),
            patient[1](folders[1], {"it": (by_nginx, servers)}),
        ):

            async def ask(at: int) -> None:
                url = f"http://127.0.0.1:{at}"
                async with httpx.AsyncClient(timeout=START_SECONDS, limits=_NO_KEEP_ALIVE, trust_env=False) as client:
                    while not done:
                        answer = await client.get(f"{url}/health/endtoend")
                        answers[at].append(("GET", answer.status_code))
                        answer = await client.post(f"{url}/v2/hand/over/blobs/uploads/")
                        answers[at].append(("POST", answer.status_code))

            async def everybody_heard(more: int) -> None:
                before = {at: len(seen) for at, seen in answers.items()}
                with trio.fail_after(START_SECONDS):
                    while any(len(seen) < before[at] + more for at, seen in answers.items()):
                        await trio.lowlevel.checkpoint()

            done = False
            async with trio.open_nursery() as nursery:
                for at in answers:
                    for _ in range(3):
                        nursery.start_soon(ask, at)
                await everybody_heard(6)
                first.terminate()
                await trio.to_thread.run_sync(first.wait, STOP_SECONDS)
                second = stack.enter_context(activated())
                await _heard(manager, b"READY=1")
                await everybody_heard(20)
                done = True
        second.terminate()
        assert await trio.to_thread.run_sync(second.wait, STOP_SECONDS) == 0
    assert first.returncode == 0
    for seen in answers.values():
        assert set(seen) == {("GET", 200), ("POST", 202)}


def _unit(name: str) -> dict[str, dict[str, str]]:
    """Return a unit of deploy/systemd; of a key that is repeated the last line."""
    parser = ConfigParser(interpolation=None, strict=False, delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # systemd's keys have capitals
    parser.read_string((repository_root() / "deploy" / "systemd" / name).read_text())
    return {section: dict(parser[section]) for section in parser.sections()}


def test_the_unit_gives_a_node_the_time_that_it_takes_to_stop() -> None:
    """Systemd waits longer than DRAIN_DELAY and DRAIN_DEADLINE by default and the last resort together, and then kills."""
    service = _unit("antipode@.service")["Service"]
    settings = Settings(
        server_hostname="it",
        database_uri="postgresql://it/it",
        locations={},
        preference=("us",),
        default_locations=("us",),
    )
    longest = settings.drain_delay + settings.drain_deadline + LAST_RESORT
    assert float(service["TimeoutStopSec"].removesuffix("s")) >= longest
    assert service["Type"] == "notify"
    assert service["WatchdogSec"]
    assert service["Restart"] == "on-failure"
    assert service["RestartPreventExitStatus"] == "2"


def test_the_unit_is_hardened() -> None:
    """The node runs as a user of its own without any privilege, and the file system is closed to it."""
    service = _unit("antipode@.service")["Service"]
    wanted = ("DynamicUser", "NoNewPrivileges", "PrivateTmp", "PrivateDevices", "ProtectHome", "ProtectKernelTunables")
    assert {name: service.get(name) for name in wanted} == dict.fromkeys(wanted, "yes")
    assert service["ProtectSystem"] == "strict"
    assert service["CapabilityBoundingSet"] == ""


def test_the_socket_of_systemd_queues_as_many_as_ours() -> None:
    """Whoever connects while one process ends and the next begins finds the same room."""
    assert _unit("antipode@.socket")["Socket"]["Backlog"] == str(BACKLOG)


@needs_systemd
def test_systemd_itself_finds_nothing_wrong(tmp_path: Path) -> None:
    """Systemd knows every key of both units, and rates what the service could do to the machine at 1.5 of 10 at most."""
    for kind in ("service", "socket"):
        text = (repository_root() / "deploy" / "systemd" / f"antipode@.{kind}").read_text()
        # A command that is there: what is not is an error, too.
        text = text.replace("ExecStart=/opt/antipode/bin/antipode", "ExecStart=/bin/true")
        (tmp_path / f"antipode@us.{kind}").write_text(text)
    units = [tmp_path / "antipode@us.service", tmp_path / "antipode@us.socket"]
    checked = subprocess.run(["systemd-analyze", "verify", *units], check=False, capture_output=True, text=True)
    assert (checked.returncode, checked.stderr) == (0, "")
    words = ["systemd-analyze", "security", "--offline=yes", "--threshold=15", str(units[0])]
    rated = subprocess.run(words, check=False, capture_output=True, text=True)
    assert rated.returncode == 0, rated.stdout
