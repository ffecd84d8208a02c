"""The shortest way to and from a plain socket, for heads and for answers that fit into its buffer.

Trio's stream looks first whether something is there, which between two requests it never is, and passes through the scheduler
after every call. Waiting first, and writing without passing through it, takes a warm pull from 0.24 to 0.20 ms.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Protocol

import trio

from node.web.sink import SocketSink, open_sink
from node.web.waits import HEAD_SECONDS, Socket, Waits, has_bytes

AT_ONCE = 64 * 1024
"""Bytes that a stream takes without waiting, as a rule."""
SLICE = 256 * 1024
"""Bytes that a slow client is waited for at a time."""
_READ = 64 * 1024


class Bytes(Protocol):
    """What the lane needs of a stream."""

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """Return some bytes, b"" at the end."""
        ...

    async def send_all(self, data: bytes | memoryview) -> None:
        """Send everything."""
        ...


class Line(Protocol):
    """A connection as the lane uses it. Its methods raise trio.BrokenResourceError and trio.ClosedResourceError."""

    async def receive(self, until: float, *, idle: float | None) -> bytes | bytearray | None:
        """Return some bytes, b"" at the end; None when none came `until` then, or soon enough when it is `idle` and the node stops.

        What an idle client has sent by then is never left unread: it may be a request that nobody sends again.
        """
        ...

    async def send_soon(self, data: bytes | memoryview) -> int:
        """Send what takes no more than a moment; return how many bytes are left, from the end."""
        ...

    async def send_more(self, data: memoryview) -> int:
        """Wait until some of it can be sent, and send that; return how many bytes are left."""
        ...


class Direct:
    """A plain socket's, whose owner is somebody else.

    A write that fits does not pass through the scheduler; every read but the first does, so that nobody can keep the others
    waiting.
    """

    __slots__ = ("_new", "_socket", "_waits")

    def __init__(self, socket: Socket, waits: Waits) -> None:
        self._socket = socket
        self._waits = waits
        self._new = True

    async def receive(self, until: float, *, idle: float | None) -> bytes | bytearray | None:
        """Wait for the socket, and read it."""
        if self._new:
            # Who has just connected has sent their first request by now, as a rule.
            self._new = False
            try:
                return self._socket.recv(_READ)
            except BlockingIOError:
                pass
            except OSError as error:
                raise trio.BrokenResourceError from error
        while (ready := await self._waits.readable(self._socket, until, idle=idle)) or idle is not None:
            try:
                return self._socket.recv(_READ)
            except BlockingIOError:
                if not ready:
                    return None
                continue  # the kernel may say that there is something, and find it damaged
            except OSError as error:
                raise trio.BrokenResourceError from error
        return None

    async def send_soon(self, data: bytes | memoryview) -> int:
        """Send what the socket's buffer takes, which may be all of a large piece."""
        try:
            return len(data) - self._socket.send(data)
        except BlockingIOError:
            return len(data)
        except OSError as error:
            raise trio.BrokenResourceError from error

    async def send_more(self, data: memoryview) -> int:
        """Send what the socket takes, as soon as a good part of its buffer is empty."""
        try:
            await trio.lowlevel.wait_writable(self._socket)
        except OSError as error:
            raise trio.BrokenResourceError from error
        return await self.send_soon(data)

    def sink(self, sent: Callable[[int], None]) -> AbstractContextManager[SocketSink]:
        """Open a way for worker threads."""
        return open_sink(self._socket, sent)


class Scoped:
    """Any other stream's: TLS, or one in memory."""

    __slots__ = ("_stream", "_waits")

    def __init__(self, stream: Bytes, waits: Waits) -> None:
        self._stream = stream
        self._waits = waits

    async def receive(self, until: float, *, idle: float | None) -> bytes | bytearray | None:
        """Receive in a cancel scope."""
        receive, stream = partial(self._stream.receive_some, _READ), self._stream
        data = await self._waits.within(receive, until, idle=idle)
        if (
            data is None
            and idle is not None
            and isinstance(stream, trio.SSLStream)
            and has_bytes(stream.transport_stream.socket)
        ):
            data = await self._waits.within(receive, trio.current_time() + HEAD_SECONDS, idle=None)
        return data

    async def send_soon(self, data: bytes | memoryview) -> int:
        """Send what is small."""
        if len(data) > AT_ONCE:
            return len(data)
        # Not even looking at the clock keeps a warm pull cheap.
        await self._stream.send_all(data)
        return 0

    async def send_more(self, data: memoryview) -> int:
        """Send a slice, which is what a slow client is measured by."""
        await self._stream.send_all(data[:SLICE])
        return max(0, len(data) - SLICE)
