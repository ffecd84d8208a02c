"""One connection: Hypercorn's own, held to HTTP/1.1.

Hypercorn would follow a plain-text client to HTTP/2 (`Upgrade: h2c`, or the HTTP/2 preface); there one stalled upload stalls
every other request of the connection, and neither the hygiene wrapper nor the drain has been tried.
"""

from typing import Any

import h11
import trio
from hypercorn.events import Closed, RawData
from hypercorn.protocol.events import Request
from hypercorn.protocol.h11 import STREAM_ID, H11Protocol
from hypercorn.protocol.http_stream import HTTPStream
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


def is_ambiguous(request: h11.Request) -> bool:
    """Tell whether others may see the body end elsewhere than h11 does, and take what follows for requests (RFC 9112, 6.1)."""
    names = {name for name, _ in request.headers}
    return b"transfer-encoding" in names and (b"content-length" in names or request.http_version != b"1.1")


class _H11(h11.Connection):
    """h11's, which takes what comes behind a last request (Connection: close) for an error, and for that of the request before."""

    def next_event(self) -> Any:
        """Return the next event; what comes behind a last request is none."""
        if self.their_state is h11.MUST_CLOSE and self.trailing_data[0]:
            return h11.NEED_DATA
        return super().next_event()


class Http1(H11Protocol):
    """HTTP/1.1 and 1.0, nothing else: a client that would upgrade to another protocol is answered in this one (RFC 9110, 7.8)."""

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self.connection = _H11(h11.SERVER, max_incomplete_event_size=self.config.h11_max_incomplete_size)

    async def handle(self, event: Any) -> None:
        """Take in what came. Nobody keeps what comes behind a last request."""
        if not (isinstance(event, RawData) and event.data and self.connection.their_state is h11.MUST_CLOSE):
            await super().handle(event)

    async def _check_protocol(self, event: h11.Request) -> None:
        """Stay with HTTP/1.1."""

    async def _create_stream(self, request: h11.Request) -> None:
        """Begin to answer a request: as Hypercorn, but for what it makes of some.

        It would begin a WebSocket, and leave the connection open for ever where it refuses the handshake; and take `head` for HEAD,
        which h11 does not (RFC 9110, 9.1: they differ), so that the answer has a length and no body.
        """
        if is_ambiguous(request):
            await self._send_error_response(400)
            await self.send(Closed())
            return
        self.stream = stream = HTTPStream(
            self.app,
            self.config,
            self.context,
            self.task_group,
            self.ssl,
            self.client,
            self.server,
            self.stream_send,
            STREAM_ID,
        )
        await stream.handle(
            Request(
                stream_id=STREAM_ID,
                headers=list(request.headers),
                http_version=request.http_version.decode(),
                method=request.method.decode("ascii"),
                raw_path=request.target,
                state=self.connection_state,
            )
        )
        self.keep_alive_requests += 1
        await self.context.mark_request()


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
