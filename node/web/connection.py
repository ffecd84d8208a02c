"""One connection: Hypercorn's own, held to HTTP/1.1.

Hypercorn would follow a plain-text client to HTTP/2 (`Upgrade: h2c`, or the HTTP/2 preface); there one stalled upload stalls
every other request of the connection, and neither the hygiene wrapper nor the drain has been tried.
"""

from typing import Any

import h11
import trio
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.typing import ConnectionState
from hypercorn.utils import parse_socket_addr

from node.web.pace import PATIENCE, Pace, send_paced

TlsStream = trio.SSLStream[trio.SocketStream]
Stream = trio.SocketStream | TlsStream


class Pushback:
    """A stream with bytes in front that somebody has read already, which gives a client up that takes its answers too slowly.

    Hypercorn waits for as long as the client likes, and shields that. Everything else goes straight to the stream.
    """

    def __init__(self, stream: Stream, data: bytes, patience: float = PATIENCE) -> None:
        self._stream = stream
        self._data = data
        self._pace = Pace(patience)

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Return the bytes in front first."""
        if not self._data:
            return bytes(await self._stream.receive_some(max_bytes))
        await trio.lowlevel.checkpoint()
        most = len(self._data) if max_bytes is None else max_bytes
        data, self._data = self._data[:most], self._data[most:]
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send everything. Raises BrokenResourceError, the stream closed, when the client takes it too slowly."""
        if not await send_paced(self._stream, data, self._pace):
            await trio.aclose_forcefully(self._stream)
            raise trio.BrokenResourceError("the client takes its answer too slowly")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class Http1(H11Protocol):
    """HTTP/1.1 and 1.0, nothing else."""

    async def _check_protocol(self, event: h11.Request) -> None:
        """Go on with HTTP/1.1 whatever the client would rather upgrade to (RFC 9110, 7.8: an upgrade may be ignored)."""


class Connection(TCPServer):
    """Serves one accepted stream until it closes. Timeouts, limits and the drain signal come from `config` and `context`."""

    async def serve(self, socket: trio.socket.SocketType, *, peer: str, secure: bool) -> None:
        """Serve requests of `peer` until either side closes; a TLS stream has shaken hands. The stream is closed at the end."""
        try:
            client = (peer, socket.getpeername()[1])
            server = parse_socket_addr(socket.family, socket.getsockname())
            async with TaskGroup() as self._task_group:
                self.protocol = Http1(  # type: ignore[assignment]  # declared as the wrapper that may change to HTTP/2
                    self.app,
                    self.config,
                    self.context,
                    self._task_group,
                    ConnectionState(self.state),
                    secure,
                    client,
                    server,
                    self.protocol_send,
                )
                await self.idle_task.restart(self._task_group, self._idle_timeout)
                await self._read_data()
                # Hypercorn leaves the timer running, and with it the connection of a client that closed while idle.
                await self.idle_task.stop()
        finally:
            await self._close()
