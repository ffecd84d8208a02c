"""One connection: Hypercorn's own, held to HTTP/1.1.

Hypercorn would follow a plain-text client to HTTP/2 (`Upgrade: h2c`, or the HTTP/2 preface); there one stalled upload stalls
every other request of the connection, and neither the hygiene wrapper nor the drain has been tried.
"""

from dataclasses import replace
from math import inf
from typing import Any

import h11
import trio
from hypercorn.events import Closed, RawData, Updated
from hypercorn.protocol.events import Request, Response
from hypercorn.protocol.h11 import STREAM_ID, H11Protocol
from hypercorn.protocol.http_stream import HTTPStream
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.tcp_server import MAX_RECV, TCPServer
from hypercorn.typing import ConnectionState
from hypercorn.utils import parse_socket_addr

from node.web.pace import PATIENCE, Pace, send_paced
from node.web.waits import HEAD_SECONDS, Socket, Waits, has_bytes

TlsStream = trio.SSLStream[trio.SocketStream]
Stream = trio.SocketStream | TlsStream


def stream_of(accepted: Socket) -> trio.SocketStream:
    """Return a plain socket as a stream of Trio's. Closing that closes the socket."""
    return trio.SocketStream(trio.socket.from_stdlib_socket(accepted))


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

    def __init__(self, waits: Waits, *parts: Any) -> None:
        super().__init__(*parts)
        self._waits = waits
        self.connection = _H11(h11.SERVER, max_incomplete_event_size=self.config.h11_max_incomplete_size)

    async def handle(self, event: Any) -> None:
        """Take in what came. Nobody keeps what comes behind a last request."""
        if not (isinstance(event, RawData) and event.data and self.connection.their_state is h11.MUST_CLOSE):
            await super().handle(event)

    async def stream_send(self, event: Any) -> None:
        """Send a part of an answer. One that begins while the node stops is its connection's last, and says so."""
        if isinstance(event, Response) and event.status_code >= 200 and self._waits.stopping:
            headers = [(name, value) for name, value in event.headers if name.lower() != b"connection"]
            event = replace(event, headers=[*headers, (b"connection", b"close")])
        await super().stream_send(event)

    def head_begun(self) -> bool:
        """Tell whether some of a request's head has come, and not all."""
        return bool(self.connection.trailing_data[0])

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
    """Serves one accepted stream until it closes. Timeouts and limits come from `config`, the drain signal from `waits`.

    Hypercorn closes an idle connection from a task of its own, whatever has come meanwhile, and at its drain signal at once, also
    after an answer that did not say so. Here who reads gives up, so that nothing that was read is lost.
    """

    def __init__(self, waits: Waits, *parts: Any) -> None:
        super().__init__(*parts)
        self._waits = waits
        self._idle = True
        self._reading: trio.CancelScope | None = None

    async def serve(self, socket: Socket, *, peer: str, secure: bool) -> None:
        """Serve requests of `peer` until either side closes; a TLS stream has shaken hands. The stream is closed at the end."""
        try:
            client = (peer, socket.getpeername()[1])
            server = parse_socket_addr(socket.family, socket.getsockname())
            async with TaskGroup() as self._task_group:
                http = Http1(
                    self._waits,
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
                self.protocol = http  # type: ignore[assignment]  # declared as the wrapper that may change to HTTP/2
                await self._read(socket, http)
        finally:
            await self._close()

    async def protocol_send(self, event: Any) -> None:
        """Do what the protocol asks for. The connection is idle between an answer and the next request."""
        if not isinstance(event, Updated):
            await super().protocol_send(event)
            return
        self._idle = event.idle
        if (scope := self._reading) is not None:
            scope.deadline = inf
            if self._idle:
                self._be_idle(scope)
            else:
                self._waits.end(scope)

    async def _read(self, socket: Socket, http: Http1) -> None:
        """Read until the other side closes, or nothing comes in time."""
        begun: float | None = None
        while True:
            with trio.CancelScope() as scope:
                if begun is not None:
                    scope.deadline = begun + min(HEAD_SECONDS, self.config.keep_alive_timeout)
                elif self._idle:
                    self._be_idle(scope)
                data = await self._receive(scope)
            if scope.cancelled_caught and begun is None and has_bytes(socket):
                begun = trio.current_time()
                continue
            if scope.cancelled_caught or data is None:
                break
            await http.handle(RawData(data))
            if not data:
                break
            if not (self._idle and http.head_begun()):
                begun = None
            elif begun is None:
                begun = trio.current_time()
        await http.handle(Closed())

    def _be_idle(self, scope: trio.CancelScope) -> None:
        scope.deadline = trio.current_time() + self.config.keep_alive_timeout
        self._waits.begin(scope)

    async def _receive(self, scope: trio.CancelScope) -> bytes | None:
        """Return some bytes, b"" at the end, None where somebody broke it off."""
        self._reading = scope
        try:
            return bytes(await self.stream.receive_some(MAX_RECV))
        except (trio.ClosedResourceError, trio.BrokenResourceError):
            return None
        finally:
            self._reading = None
            self._waits.end(scope)
