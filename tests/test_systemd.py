"""The node under a service manager: readiness, the watchdog, and a listening socket that outlives the process."""

import os
import socket
import subprocess
from pathlib import Path

import httpx
import trio

from node.systemd import Manager, inherited_sockets
from tests.cluster import Node, StartCluster, program


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


def _activate(node: Node, configuration: Path, listening: socket.socket, notify: Path) -> subprocess.Popen[bytes]:
    """Start a node as systemd would: its socket as file descriptor 3, its own id in LISTEN_PID."""
    script = f'exec 3<&{listening.fileno()}; export LISTEN_PID=$$ LISTEN_FDS=1; exec "$@"'
    return subprocess.Popen(
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


async def _heard(manager: trio.socket.SocketType, wanted: bytes) -> None:
    with trio.fail_after(30):
        while wanted not in (await manager.recv(4096)).splitlines():
            pass


async def test_a_hand_over_of_the_socket_refuses_nobody(start_cluster: StartCluster, tmp_path: Path) -> None:
    """While one process ends and the next begins every connection waits and is answered, and the health check stays at 200."""
    nodes = await start_cluster("us eu")
    node = nodes["us"]
    await node.stop()
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen(1024)
    url = f"http://127.0.0.1:{listening.getsockname()[1]}/health/endtoend"
    manager = trio.socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    await manager.bind(str(tmp_path / "notify"))
    answers: list[int] = []
    with listening, manager:
        first = _activate(node, nodes.configuration_file, listening, tmp_path / "notify")
        await _heard(manager, b"READY=1")
        async with httpx.AsyncClient(timeout=30, limits=httpx.Limits(max_keepalive_connections=0)) as client:

            async def ask() -> None:
                while not done:
                    answers.append((await client.get(url)).status_code)

            done = False
            async with trio.open_nursery() as nursery:
                for _ in range(8):
                    nursery.start_soon(ask)
                first.terminate()
                await trio.to_thread.run_sync(first.wait, 30)
                second = _activate(node, nodes.configuration_file, listening, tmp_path / "notify")
                await _heard(manager, b"READY=1")
                before = len(answers)
                with trio.fail_after(30):
                    while len(answers) < before + 20:
                        await trio.lowlevel.checkpoint()
                done = True
        second.terminate()
        assert await trio.to_thread.run_sync(second.wait, 30) == 0
    assert first.returncode == 0
    assert set(answers) == {200}
