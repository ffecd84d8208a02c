"""What systemd and a service say to each other: inherited sockets, readiness, the watchdog. Without systemd nothing happens.

Source: sd_listen_fds(3), sd_notify(3), sd_watchdog_enabled(3): a few environment variables and datagrams.
"""

import os
import socket
from collections.abc import Callable, MutableMapping, Sequence

import structlog
import trio

_log = structlog.get_logger("antipode.systemd")

_FIRST = 3
"""The first inherited file descriptor (SD_LISTEN_FDS_START)."""


def inherited_sockets(environ: MutableMapping[str, str]) -> Sequence[socket.socket]:
    """Return the listening sockets that the service manager opened for this process, and take the variables away.

    Such a socket outlives the process: whoever connects while one process ends and the next begins waits in its queue.
    """
    count, owner = environ.pop("LISTEN_FDS", ""), environ.pop("LISTEN_PID", "")
    environ.pop("LISTEN_FDNAMES", None)
    if not count.isdigit() or owner != str(os.getpid()):
        return ()
    found = [socket.socket(fileno=number) for number in range(_FIRST, _FIRST + int(count))]
    for listening in found:
        os.set_inheritable(listening.fileno(), False)
        listening.setblocking(False)
    return tuple(found)


class Manager:
    """The service manager, if there is one."""

    def __init__(self, environ: MutableMapping[str, str]) -> None:
        self._address = environ.pop("NOTIFY_SOCKET", "")
        usec = environ.pop("WATCHDOG_USEC", "")
        mine = environ.pop("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        self._watchdog = int(usec) / 1e6 if usec.isdigit() and mine else None

    def tell(self, *lines: str) -> None:
        """Send a state, such as READY=1. Never waits and never raises: an absent manager must not harm the node."""
        if not self._address:
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(
                socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
            ) as datagrams:
                datagrams.connect(address)
                datagrams.send("\n".join(lines).encode())
        except OSError as error:
            _log.warning("the service manager cannot be told", state=lines[0], reason=str(error))

    async def run_watchdog(
        self, alive: Callable[[], bool], task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Tell the manager three times per watchdog period that the node works, as long as `alive()` says so."""
        task_status.started()
        if self._watchdog is None:
            await trio.sleep_forever()
        while True:
            if alive():
                self.tell("WATCHDOG=1")
            await trio.sleep(self._watchdog / 3)
