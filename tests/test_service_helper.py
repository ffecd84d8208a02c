"""The helper that starts services for the tests: whatever ends it, what it started ends, too, and its folder goes."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from scripts.services.processes import free_ports
from tests.services import repository_root

DEADLINE = 180.0
"""Seconds, also for PostgreSQL to make its files on a busy machine."""
SHOW = 'echo "$ANTIPODE_TEST_POSTGRES"; echo "$ANTIPODE_TEST_REDIS"; '


def start(folder: Path, script: str, **given: str) -> subprocess.Popen[str]:
    """Run `script` under the helper with PostgreSQL and Redis, its temporary files below `folder`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ANTIPODE_")}
    return subprocess.Popen(
        [sys.executable, "-m", "scripts.services", "--only", "postgres,redis", "run", "--", "sh", "-c", script],
        cwd=repository_root(),
        env={**kept, **given, "TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # What a shell that ignores Ctrl-C in the background hands down would defeat the test.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def ports(helper: subprocess.Popen[str]) -> list[int]:
    """Read what SHOW printed."""
    assert helper.stdout is not None
    return [urlsplit(helper.stdout.readline()).port or 0 for _ in range(2)]


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_until_silent(found: list[int]) -> None:
    deadline = time.monotonic() + DEADLINE
    while any(listens(port) for port in found):
        assert time.monotonic() < deadline, f"still listening on one of {found}"
        time.sleep(0.05)


_ASKED_ELSEWHERE = """
import sys
from scripts.services import processes
processes._PORTS = range(int(sys.argv[1]), int(sys.argv[1]) + 1)
processes.free_ports(1)
"""


def test_nobody_is_given_a_port_twice() -> None:
    """What is to listen somewhere may stop and start again: nobody else, also in another process, is given its port meanwhile."""
    first = free_ports(100)
    assert len(set(first) | set(free_ports(100))) == 200
    words = [sys.executable, "-c", _ASKED_ELSEWHERE, str(first[0])]
    asked = subprocess.run(words, cwd=repository_root(), capture_output=True, timeout=DEADLINE, text=True)
    assert "fewer than 1 free ports" in asked.stderr


def test_services_live_as_long_as_the_command(tmp_path: Path) -> None:
    """The command's exit code is handed on; afterwards nothing listens and the folder is gone."""
    with start(tmp_path, SHOW + "read unused; exit 3") as helper:
        found = ports(helper)
        assert helper.wait(DEADLINE) == 3
        wait_until_silent(found)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_everything(tmp_path: Path, number: signal.Signals) -> None:
    """Ctrl-C and SIGTERM stop the command, what it started in the background, and the services."""
    with start(tmp_path, SHOW + f"setsid {sys.executable} -m http.server --bind 127.0.0.1 0 & sleep 60") as helper:
        found = ports(helper)
        assert all(listens(port) for port in found)
        os.killpg(helper.pid, number)
        assert helper.wait(DEADLINE) == 128 + number
        # Its output closes when the last process that holds it has ended: the background one, too.
        helper.communicate(timeout=DEADLINE)
        wait_until_silent(found)
    assert list(tmp_path.iterdir()) == []


_EARLY = """
import signal, subprocess
from scripts.services import __main__ as helper
begin = subprocess.Popen
def interrupted(*words, **more):
    begin(*words, **more)
    raise helper.Interrupted(signal.SIGINT)
subprocess.Popen = interrupted
helper._run([], ["sh", "-c", "sleep 1000 & sleep 1000"])
"""


def test_a_signal_while_the_command_begins_stops_it() -> None:
    """A signal that comes before the helper has heard that the command runs leaves neither that nor its children behind."""
    words = [sys.executable, "-c", _EARLY]
    with subprocess.Popen(words, cwd=repository_root(), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as helper:
        # Both pipes close when the last process that holds them has ended.
        _, said = helper.communicate(timeout=DEADLINE)
    assert b"Interrupted" in said


def test_services_end_with_a_helper_that_is_killed(tmp_path: Path) -> None:
    """SIGKILL leaves no time for anything, and still no service stays; the next start removes the folder."""
    with start(tmp_path, SHOW + "sleep 60") as helper:
        found = ports(helper)
        helper.kill()
        helper.wait(DEADLINE)
        wait_until_silent(found)
    assert len(list(tmp_path.iterdir())) == 1
    with start(tmp_path, "true") as helper:
        assert helper.wait(DEADLINE) == 0
    assert list(tmp_path.iterdir()) == []


def test_given_services_are_used(tmp_path: Path) -> None:
    """A service that a variable names is not started a second time."""
    given = {"ANTIPODE_TEST_POSTGRES": "postgresql://a@127.0.0.1:1/b", "ANTIPODE_TEST_REDIS": "redis://127.0.0.1:2/0"}
    with start(tmp_path, SHOW, **given) as helper:
        assert ports(helper) == [1, 2]
        assert helper.wait(DEADLINE) == 0


_CIRCLE = """
import asyncio, os, sys
import asyncpg

async def main():
    uri = os.environ["ANTIPODE_TEST_POSTGRES"]
    one = await asyncpg.connect(uri)
    await one.execute("CREATE TABLE thing AS SELECT generate_series(1, 2) AS id")
    if "on purpose" in sys.argv:
        await one.execute("ALTER DATABASE postgres SET log_min_messages = fatal")
    one, two = await asyncpg.connect(uri), await asyncpg.connect(uri)
    for mine, connection in ((1, one), (2, two)):
        await connection.execute(f"BEGIN; SELECT FROM thing WHERE id = {mine} FOR UPDATE")
    ends = await asyncio.gather(
        one.execute("DELETE FROM thing WHERE id = 2"), two.execute("DELETE FROM thing WHERE id = 1"), return_exceptions=True)
    assert any(isinstance(end, asyncpg.DeadlockDetectedError) for end in ends), ends

asyncio.run(main())
"""


@pytest.mark.parametrize(("words", "code"), [("", 1), ("'on purpose'", 0)])
def test_a_circle_of_transactions_fails_and_names_both(tmp_path: Path, words: str, code: int) -> None:
    """Transactions that waited for each other fail a run, with their statements, unless a test had its database keep quiet."""
    script = tmp_path / "circle.py"
    script.write_text(_CIRCLE)
    folder = tmp_path / "services"
    folder.mkdir()
    with start(
        folder, f"{sys.executable} {script} {words} || exit 9; {sys.executable} -m scripts.services circles"
    ) as helper:
        said, _ = helper.communicate(timeout=DEADLINE)
    assert helper.returncode == code
    for half in ("DELETE FROM thing WHERE id = 1", "DELETE FROM thing WHERE id = 2", "1 times"):
        assert (half in said) == (code == 1)
