"""The units of deploy/systemd under systemd itself: started, watched, restarted and stopped as an operator would."""

import hashlib
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import httpx
import pytest
import trio
import yaml

from scripts.services.processes import free_ports
from tests.cluster import configuration
from tests.services import Store
from tests.systemd_machine import Machine, needs_systemd_as_root, systemd_machine

pytestmark = needs_systemd_as_root
_UNIT = "antipode@us.service"
_SECRET = "only root can read this, and the node by a credential"


@pytest.fixture
def port() -> int:
    return free_ports(1)[0]


@pytest.fixture
def machine(
    tmp_path: Path, port: int, database_uri: str, redis_uri: str, s3_stores: dict[str, Store], storage_path: str
) -> Iterator[Machine]:
    """Systemd with both units, a configuration, and a secret that it hands to the node."""
    stores = {name: s3_stores[name] for name in ("us", "eu")}
    settings = configuration(
        database_uri,
        redis_uri,
        stores,
        storage_path,
        DATABASE_SECRET_KEY={"credential": "database-secret"},
        DRAIN_DELAY=0,
    )
    with systemd_machine(tmp_path) as machine:
        (machine.folder / "config.yaml").write_text(yaml.safe_dump(settings))
        (machine.folder / "us.env").write_text(
            f'QUAY_DISTRIBUTED_STORAGE_PREFERENCE="us eu"\nANTIPODE_BIND=127.0.0.1:{port}\n'
        )
        secret = machine.folder / "secret"
        secret.write_text(_SECRET)
        secret.chmod(0o600)
        machine.drop_in(
            _UNIT,
            "[Service]\nLoadCredential=database-secret:/etc/antipode/secret\nStandardOutput=append:/run/us.log\nStandardError=inherit",
        )
        yield machine
        print(machine.run("systemctl", "status", _UNIT).stdout, machine.run("cat", "/run/us.log").stdout)


def health(port: int) -> int:
    return httpx.get(f"http://127.0.0.1:{port}/health/instance", trust_env=False, timeout=10).status_code


def main_pid(machine: Machine) -> str:
    return machine.show(_UNIT, "MainPID")


def until(seconds: float, machine: Machine, name: str, wanted: str) -> None:
    """Wait until systemd says so of the unit."""
    deadline = time.monotonic() + seconds
    while (seen := machine.show(_UNIT, name)) != wanted:
        assert time.monotonic() < deadline, f"{name} is {seen} and not {wanted}"


def test_a_life(machine: Machine, port: int) -> None:
    """Started means that it serves; it runs as a user of its own, takes SIGHUP, comes back from SIGKILL, and ends with 0."""
    machine.systemctl("start", _UNIT)
    assert health(port) == 200
    first = main_pid(machine)
    user = machine.run("stat", "--format=%u", f"/proc/{first}").stdout.strip()
    assert 61184 <= int(user) <= 65519  # what systemd gives to DynamicUser=
    status = machine.run("cat", f"/proc/{first}/status").stdout
    assert "CapEff:\t0000000000000000" in status
    assert "NoNewPrivs:\t1" in status
    assert "Seccomp:\t2" in status

    with httpx.Client(
        base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=30, follow_redirects=True
    ) as client:
        digest = f"sha256:{hashlib.sha256(_SECRET.encode()).hexdigest()}"
        pushed = client.post(f"/v2/under/systemd/blobs/uploads/?digest={digest}", content=_SECRET.encode())
        assert pushed.status_code == 201
        assert client.get(f"/v2/under/systemd/blobs/{digest}").text == _SECRET
        services = client.get("/health/endtoend").json()["data"]["services"]
        assert services == dict.fromkeys(services, True)

    machine.systemctl("reload", _UNIT)
    until(30, machine, "ActiveState", "active")
    assert main_pid(machine) == first

    machine.run("kill", "-KILL", first)
    until(60, machine, "NRestarts", "1")
    until(60, machine, "ActiveState", "active")
    assert health(port) == 200
    assert main_pid(machine) != first

    machine.systemctl("stop", _UNIT)
    assert machine.show(_UNIT, "Result") == "success"
    assert machine.show(_UNIT, "ExecMainStatus") == "0"
    log = machine.run("cat", "/run/us.log").stdout
    assert "Traceback" not in log
    assert "reloaded" in log


def test_a_node_that_stands_still_is_started_again(machine: Machine, port: int) -> None:
    """The watchdog: a node whose loop no longer turns is ended by systemd, and another takes its place."""
    machine.drop_in(_UNIT, "[Service]\nWatchdogSec=3s")
    machine.systemctl("start", _UNIT)
    first = main_pid(machine)
    machine.run("kill", "-STOP", first)
    until(60, machine, "NRestarts", "1")
    until(60, machine, "ActiveState", "active")
    assert main_pid(machine) != first
    assert health(port) == 200


def test_a_wrong_configuration_is_not_tried_again(machine: Machine, port: int) -> None:
    """Exit code 2 ends it: the log names what is wrong, and systemd leaves it at that."""
    text = (machine.folder / "config.yaml").read_text()
    (machine.folder / "config.yaml").write_text(text.replace("DRAIN_DELAY: 0", "DRAIN_DELAY: soon"))
    assert machine.run("systemctl", "start", _UNIT).returncode != 0
    until(10, machine, "ActiveState", "failed")
    assert machine.show(_UNIT, "ExecMainStatus") == "2"
    assert machine.show(_UNIT, "NRestarts") == "0"
    assert "DRAIN_DELAY" in machine.run("cat", "/run/us.log").stdout


async def test_a_restart_behind_the_socket_refuses_nobody(machine: Machine, port: int) -> None:
    """Systemd holds the socket: whoever comes while one process ends and the next begins waits, and is answered."""
    machine.drop_in("antipode@us.socket", f"[Socket]\nListenStream=\nListenStream=127.0.0.1:{port}")
    machine.systemctl("start", "antipode@us.socket")
    # The first who asks starts the node.
    assert await trio.to_thread.run_sync(health, port) == 200
    first = main_pid(machine)
    answers: list[int] = []

    async def ask() -> None:
        limits = httpx.Limits(max_keepalive_connections=0)
        async with httpx.AsyncClient(timeout=60, limits=limits, trust_env=False) as client:
            while not done:
                answers.append((await client.get(f"http://127.0.0.1:{port}/health/endtoend")).status_code)
                answers.append((await client.post(f"http://127.0.0.1:{port}/v2/hand/over/blobs/uploads/")).status_code)

    async def more(count: int) -> None:
        wanted = len(answers) + count
        with trio.fail_after(60):
            while len(answers) < wanted:
                await trio.lowlevel.checkpoint()

    done = False
    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(ask)
        await more(20)
        await trio.to_thread.run_sync(partial(machine.systemctl, "restart", _UNIT))
        await more(20)
        done = True
    assert set(answers) == {200, 202}
    assert main_pid(machine) != first
    machine.systemctl("stop", "antipode@us.socket", _UNIT)
    assert machine.show(_UNIT, "Result") == "success"
