"""A plain socket as worker threads write to it, beside the task that owns it."""

import os
import select
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_MOMENT_MS = 50
"""Milliseconds that a thread waits for a client. One that takes longer is the task's to wait for."""


class SocketSink:
    """Where verified bytes go straight from the thread that received them (`replication/flow.py`)."""

    __slots__ = ("_number", "_poll", "_sent")

    def __init__(self, number: int, sent: Callable[[int], None]) -> None:
        self._number = number
        self._sent = sent
        self._poll = select.poll()
        self._poll.register(number, select.POLLOUT)

    def send(self, data: memoryview) -> int:
        """Send what the socket takes at once. What is wrong with it the task finds out, which sends the rest."""
        try:
            return os.write(self._number, data)
        except OSError:
            return 0

    def ready(self) -> bool:
        """Wait for a moment until the socket takes more."""
        return self._poll.poll(_MOMENT_MS) == [(self._number, select.POLLOUT)]

    def sent(self, count: int) -> None:
        """Pass on how many bytes have gone."""
        self._sent(count)


@contextmanager
def open_sink(owner: socket.socket, sent: Callable[[int], None]) -> Iterator[SocketSink]:
    """Open a way of its own to a socket, which tells `sent` what has gone.

    A number of its own, because a connection may be closed under a thread, and the next one would have the old number.
    """
    number = os.dup(owner.fileno())
    try:
        yield SocketSink(number, sent)
    finally:
        os.close(number)
