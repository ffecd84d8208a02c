"""A balancer at its worst: GET and HEAD go to one node and everything else to another, request by request.

So a client writes in one region and reads in the other, each time without a pause in between. It speaks TLS where the nodes do.
"""

import ssl
from functools import partial
from pathlib import Path

import h11
import trio
from attrs import frozen

from tests.certificates import Pair

_CHUNK = 64 * 1024
_HOP_BY_HOP = {b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"upgrade"}
_READS = {b"GET", b"HEAD"}


class _Peer:
    """One side of a proxied request: an h11 connection and the stream that carries it."""

    def __init__(self, role: type[h11.CLIENT] | type[h11.SERVER], stream: trio.abc.Stream) -> None:
        self.connection = h11.Connection(role)
        self.stream = stream

    async def receive(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        """Return the next event, reading as much as it takes."""
        while True:
            event = self.connection.next_event()
            if event is not h11.NEED_DATA:
                return event
            try:
                self.connection.receive_data(bytes(await self.stream.receive_some(_CHUNK)))
            except trio.BrokenResourceError:
                self.connection.receive_data(b"")

    async def send(self, event: h11.Event) -> None:
        await self.stream.send_all(self.connection.send(event) or b"")


@frozen
class Terminating:
    """TLS on both sides: the proxy shows `own`, and believes nodes whose certificates `authority` vouches for."""

    own: Pair
    authority: Path

    def towards_clients(self) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self.own.certificate, self.own.key)
        return context

    def towards_nodes(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self.authority)


class SplitProxy:
    """Serves on 127.0.0.1; `reads` and `writes` are the ports of the two nodes there. Counts what went where."""

    def __init__(self, reads: int, writes: int, tls: Terminating | None = None) -> None:
        """Describe the proxy; `serve` runs it. It speaks TLS with clients and nodes, or plain HTTP with both."""
        self.ports = {True: reads, False: writes}
        self.counts = {reads: 0, writes: 0}
        self._clients = None if tls is None else tls.towards_clients()
        self._nodes = None if tls is None else tls.towards_nodes()

    async def serve(self, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED) -> None:
        """Run until cancelled; reports the port once it listens."""
        async with trio.open_nursery() as nursery:
            (listener,) = await nursery.start(partial(trio.serve_tcp, self._accept, 0, host="127.0.0.1"))
            task_status.started(listener.socket.getsockname()[1])

    async def _accept(self, stream: trio.SocketStream) -> None:
        if self._clients is None:
            await self._client(stream)
        else:
            # HTTP clients close without saying goodbye.
            await self._client(trio.SSLStream(stream, self._clients, server_side=True, https_compatible=True))

    async def _node(self, port: int) -> trio.abc.Stream:
        if self._nodes is None:
            return await trio.open_tcp_stream("127.0.0.1", port)
        return await trio.open_ssl_over_tcp_stream("127.0.0.1", port, https_compatible=True, ssl_context=self._nodes)

    async def _client(self, stream: trio.abc.Stream) -> None:
        client = _Peer(h11.SERVER, stream)
        try:
            while isinstance(request := await client.receive(), h11.Request):
                await self._forward(client, request)
                if set(client.connection.states.values()) != {h11.DONE}:
                    break
                client.connection.start_next_cycle()
        except* (trio.BrokenResourceError, h11.RemoteProtocolError):
            # A side that vanished or spoke nonsense: all there is to do is to close, and the client sees that.
            await trio.lowlevel.checkpoint()

    async def _forward(self, client: _Peer, request: h11.Request) -> None:
        port = self.ports[request.method in _READS]
        self.counts[port] += 1
        async with await self._node(port) as stream:
            node = _Peer(h11.CLIENT, stream)
            headers = [(name, value) for name, value in request.headers if name not in _HOP_BY_HOP]
            await node.send(
                h11.Request(method=request.method, target=request.target, headers=[*headers, (b"connection", b"close")])
            )
            async with trio.open_nursery() as nursery:
                # Side by side: a node may answer, or say 100, before it has the whole body.
                nursery.start_soon(self._send_body, client, node)
                await self._send_answer(client, node)
                nursery.cancel_scope.cancel()

    async def _send_body(self, client: _Peer, node: _Peer) -> None:
        while isinstance(event := await client.receive(), h11.Data):
            await node.send(h11.Data(data=event.data))
        if isinstance(event, h11.EndOfMessage):
            await node.send(h11.EndOfMessage())

    async def _send_answer(self, client: _Peer, node: _Peer) -> None:
        while not isinstance(event := await node.receive(), h11.ConnectionClosed):
            if isinstance(event, h11.Response | h11.InformationalResponse):
                headers = [(name, value) for name, value in event.headers if name not in _HOP_BY_HOP]
                kind = type(event)
                await client.send(kind(status_code=event.status_code, headers=headers, reason=event.reason))
            elif isinstance(event, h11.Data):
                await client.send(h11.Data(data=event.data))
            elif isinstance(event, h11.EndOfMessage):
                await client.send(h11.EndOfMessage())
                return
