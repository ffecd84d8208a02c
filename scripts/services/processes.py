"""Child processes that cannot outlive us: start, wait for readiness, stop, each with a deadline."""

import contextlib
import ctypes
import os
import random
import signal
import socket
import stat
import subprocess
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

START_SECONDS = 180.0
STOP_SECONDS = 5.0
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
# Below Linux's range for outgoing connections, so that none of those takes a port between our look and its use.
_PORTS = range(20000, 32000)
_given: set[int] = set()
_CLAIMS = 256
_claims: deque[int] = deque()


class ServiceError(Exception):
    """A service did not start; the message carries the end of its log."""


def free_ports(count: int) -> list[int]:
    """Return `count` different TCP ports that nothing listens on at 127.0.0.1 just now, and that nobody was given yet.

    What is to listen there may take seconds to start, or stop and start again: until then nobody else may be given its port,
    neither in this process nor in another one that asks here.
    """
    found: list[int] = []
    if len(_given) > len(_PORTS) // 2:
        _given.clear()  # Who got the first of them has ended long ago, or listens.
    for port in random.sample(_PORTS, len(_PORTS)):
        if port in _given:
            continue
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            _claim(port)
            found.append(port)
        if len(found) == count:
            _given.update(found)
            return found
    raise ServiceError(f"fewer than {count} free ports among {len(_PORTS)} between {_PORTS.start} and {_PORTS.stop}")


def _claim(port: int) -> None:
    """Keep a port from other processes until this one ends, or was given many more. Raises OSError: one of them has it."""
    with socket.socket(socket.AF_UNIX) as claim:
        # A name of Linux's that is no file: it goes with the process, however that ends.
        claim.bind(f"\0antipode-port-{port}")
        _claims.append(claim.detach())
    if len(_claims) > _CLAIMS:
        os.close(_claims.popleft())


def accepts_connections(port: int) -> bool:
    """Say whether something accepts a TCP connection at 127.0.0.1:`port`."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def enterable(path: Path, uid: int) -> bool:
    """Say whether the user id `uid`, owner of nothing here, can reach `path` (execute bit for others all the way up)."""
    return all(
        bool(place.stat().st_mode & stat.S_IXOTH) or place.stat().st_uid == uid
        for place in [path, *path.resolve().parents]
    )


def tail(path: Path, lines: int = 15) -> str:
    """Return the last `lines` lines of a log, or a remark when there is none."""
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
    except FileNotFoundError:
        return "(no log)"


def plain_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment for a service: ours without what would change a Python tool or the C library's messages."""
    dropped = {"PYTHONPATH", "PYTHONHOME", "LANG", "LANGUAGE", "CEPH_CONF", "CEPH_ARGS", "PGDATA", "PGHOST", "PGPORT"}
    kept = {name: value for name, value in os.environ.items() if name not in dropped and not name.startswith("LC_")}
    return {**kept, "LC_ALL": "C", **(extra or {})}


def die_with_parent(stop_signal: int) -> None:
    """Ask the kernel to send this process `stop_signal` when the thread that started it ends (Linux; elsewhere nothing)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, stop_signal)


def adopt_orphans() -> None:
    """Become the parent of grandchildren whose parent ends, so that `end_orphans` finds them (Linux; elsewhere nothing)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)


def end_orphans(known: set[int], seconds: float = STOP_SECONDS) -> None:
    """Stop every child process of ours that is not in `known`: in order within `seconds`, after that by force."""
    deadline = time.monotonic() + seconds
    while orphans := children() - known:
        number = signal.SIGTERM if time.monotonic() < deadline else signal.SIGKILL
        for pid in orphans:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                if os.waitpid(pid, os.WNOHANG) == (0, 0):
                    os.kill(pid, number)
        time.sleep(0.1)


def children() -> set[int]:
    """Return the process ids of our children."""
    with contextlib.suppress(FileNotFoundError):
        return {int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()}
    return set()


def call(argv: Sequence[str | Path], *, timeout: float = START_SECONDS, uid: int | None = None, cwd: Path) -> str:
    """Run a tool to its end as `uid` and return its output.

    Raises:
        ServiceError: it failed or took more than `timeout` seconds; the message has its output.

    """
    try:
        done = subprocess.run(
            [str(word) for word in argv],
            cwd=cwd,
            env=plain_environment(),
            user=uid,
            group=uid,
            extra_groups=None if uid is None else [],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout,
            check=False,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ServiceError(f"{argv[0]}: {error}") from error
    if done.returncode != 0:
        raise ServiceError(f"{' '.join(map(str, argv))}: exit code {done.returncode}\n{done.stdout[-4000:]}")
    return done.stdout


class Daemon:
    """One service process in its own session, so that a Ctrl-C of the terminal does not reach it before we say so."""

    def __init__(
        self,
        name: str,
        argv: Sequence[str | Path],
        folder: Path,
        *,
        uid: int | None = None,
        stop_signal: int = signal.SIGTERM,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Start `argv` in `folder` (its log goes to `folder`/`name`.log), as `uid` when we are root.

        `environment` is added to ours.

        `stop_signal` ends it in order; the kernel sends the same if we die without a chance to.
        """
        self.name = name
        self.stop_signal = stop_signal
        self.log = folder / f"{name}.log"

        def last_words() -> None:
            # After the change of user, which would clear it again.
            if uid is not None:
                os.setgroups([])
                os.setgid(uid)
                os.setuid(uid)
            die_with_parent(stop_signal)

        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [str(word) for word in argv],
                cwd=folder,
                env=plain_environment(environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=last_words,
            )

    def wait_ready(self, ready: Callable[[], bool], seconds: float = START_SECONDS) -> None:
        """Wait until `ready()` is true.

        Raises:
            ServiceError: the process ended, or `seconds` went by; the message has the end of its log.

        """
        deadline = time.monotonic() + seconds
        while not ready():
            if self.process.poll() is not None:
                raise ServiceError(f"{self.name} ended with {self.process.returncode}:\n{tail(self.log)}")
            if time.monotonic() > deadline:
                raise ServiceError(f"{self.name} was not ready after {seconds:.0f} s:\n{tail(self.log)}")
            time.sleep(0.05)

    def ask_to_stop(self) -> None:
        """Send the stop signal and return at once."""
        if self.process.poll() is None:
            self.process.send_signal(self.stop_signal)

    def stop(self, seconds: float = STOP_SECONDS) -> None:
        """Stop the process: in order within `seconds`, after that by force. Does nothing when it has ended."""
        self.ask_to_stop()
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                # Its session is its own, so this also reaches what it forked.
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(STOP_SECONDS)
