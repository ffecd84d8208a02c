"""What a worker thread does on one connection, and the way to end it from outside: a thread cannot be cancelled, its socket can."""

import socket
import threading
from contextlib import suppress

from attrs import define, field


@define(eq=False)
class Call:
    """What one thread at a time does on one connection, and the way to end it from outside."""

    _socket: socket.socket | None = field(default=None, init=False)
    _over: bool = field(default=False, init=False)
    _lock: threading.Lock = field(factory=threading.Lock, init=False)

    def works_on(self, given: socket.socket | None) -> None:
        """Note the socket. Raises OSError when nobody waits for the answer any more."""
        with self._lock:
            self._socket = given
            if self._over:
                raise OSError("nobody waits for the answer")

    def leaves(self) -> None:
        """Let the socket go, to whoever has the connection next."""
        with self._lock:
            self._socket = None

    def abort(self) -> None:
        """End what the thread does, if it does anything."""
        with self._lock:
            self._over = True
            if self._socket is not None:
                with suppress(OSError):
                    # Not the one of SSLSocket, which takes its session away from under the thread.
                    socket.socket.shutdown(self._socket, socket.SHUT_RDWR)
