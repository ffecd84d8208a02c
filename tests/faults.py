"""A TCP proxy in front of a real service that breaks on command: faults placed where a test wants them.

S3 signatures cover the Host header, which passes unchanged, so a client that is given the proxy's port signs for it.
"""

import errno
import socket
from collections.abc import Awaitable, Callable
from typing import Literal, Self

import trio
from attrs import evolve

from scripts.services.processes import free_ports
from tests.services import Store

Fault = Literal["refuse", "reset", "hang", "silent"]
_CHUNK = 64 * 1024
_LONG = 4 * 1024
"""Longer than what is no object's bytes."""
_STARTING = 30.0
"""Seconds that a process may take on a busy machine from its fork to its own program."""
_LINGER_OFF = b"\x01\x00\x00\x00\x00\x00\x00\x00"  # struct linger {on, 0 seconds}: close() sends RST


class FaultProxy:
    """A proxy on 127.0.0.1 before a TCP service, for any protocol.

    Faults: `refuse` closes connections and accepts none; `reset` answers every connection with RST, also open ones;
    `hang` accepts new connections, and nothing flows on any; `silent` lets requests through and holds all answers back.
    `bytes_per_second` and `delay` (seconds before each chunk of an answer) make it slow.
    """

    def __init__(self, hostname: str, port: int, listen_on: int = 0) -> None:
        """Describe the proxy; `serve` runs it. `listen_on` 0 takes any port, and keeps it while connections are refused."""
        self.hostname, self.upstream_port = hostname, port
        self.bytes_per_second: float | None = None
        self.delay = 0.0
        self.fault: Fault | None = None
        self.connections = 0
        self.answered = 0
        """Bytes that the service sent through the proxy."""
        self.asked: bytearray | None = None
        """What clients send through the proxy, for a test that sets it to an empty one."""
        self.watch: Callable[[bytes], None] | None = None
        """Is told of each piece that clients send before it goes on, so that a fault can be placed there."""
        self.flips = False
        """Whether a bit of every long piece that clients send is another one when it arrives."""
        self._changed = trio.Event()
        # Not one of the kernel's choice: those it gives away again as soon as nobody listens.
        self._port = listen_on or free_ports(1)[0]

    @property
    def port(self) -> int:
        """Where it listens."""
        return self._port

    def break_(self, fault: Fault) -> None:
        """Break from now on, open connections included."""
        self.fault = fault
        self._notify()

    def mend(self) -> None:
        """Work again; connections that only hung go on."""
        self.fault = None
        self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def serve(self, task_status: trio.TaskStatus[Self]) -> None:
        """Run until cancelled."""
        listener = await self._listen()
        task_status.started(self)
        while True:
            await self._serve_until_fault_changes(listener)
            while self.fault == "refuse":
                await self._changed.wait()
            listener = await self._listen()

    async def _listen(self) -> trio.SocketListener:
        with trio.fail_after(_STARTING):
            while True:
                try:
                    (listener,) = await trio.open_tcp_listeners(self._port, host="127.0.0.1")
                except OSError as error:
                    # A process that is being forked has a copy of the listener before this one until it begins its own program.
                    if error.errno != errno.EADDRINUSE:
                        raise
                    await trio.sleep(0.01)
                else:
                    return listener

    async def _serve_until_fault_changes(self, listener: trio.SocketListener) -> None:
        """Serve until connections are to be refused, then close the listener and every connection."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._accept, listener)
            while self.fault != "refuse":
                await self._changed.wait()
            nursery.cancel_scope.cancel()
        await listener.aclose()

    async def _accept(self, listener: trio.SocketListener) -> None:
        """Accept for ever: all that wait at once, or a crowd would wait here for a round of a busy event loop each."""
        async with listener, trio.open_nursery() as nursery:
            while True:
                nursery.start_soon(self._serve_one, await listener.accept())
                with socket.socket(fileno=socket.dup(listener.socket.fileno())) as waiting:
                    while True:
                        try:
                            accepted, _ = waiting.accept()
                        except BlockingIOError:
                            break
                        nursery.start_soon(self._serve_one, trio.SocketStream(trio.socket.from_stdlib_socket(accepted)))

    async def _serve_one(self, client: trio.SocketStream) -> None:
        try:
            await self._connection(client)
        finally:
            await trio.aclose_forcefully(client)

    async def _connection(self, client: trio.SocketStream) -> None:
        self.connections += 1
        if self.fault == "reset":
            self._arm_reset(client)
            return
        try:
            server = await trio.open_tcp_stream(self.hostname, self.upstream_port)
        except OSError:
            self._arm_reset(client)
            return
        async with server, trio.open_nursery() as watch:
            watch.start_soon(self._reset_when_told, client, watch.cancel_scope)
            async with trio.open_nursery() as copies:
                copies.start_soon(self._copy, client, server, ("hang",), copies.cancel_scope)
                copies.start_soon(self._copy, server, client, ("hang", "silent"), copies.cancel_scope)
            watch.cancel_scope.cancel()

    async def _reset_when_told(self, client: trio.SocketStream, scope: trio.CancelScope) -> None:
        while self.fault != "reset":
            await self._changed.wait()
        self._arm_reset(client)
        scope.cancel()

    def _arm_reset(self, client: trio.SocketStream) -> None:
        client.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, _LINGER_OFF)

    async def _copy(
        self, source: trio.SocketStream, sink: trio.SocketStream, holding: tuple[Fault, ...], scope: trio.CancelScope
    ) -> None:
        try:
            async for chunk in source:
                if self.watch is not None and "silent" not in holding:
                    self.watch(bytes(chunk))
                while self.fault in holding:
                    await self._changed.wait()
                if self.delay and "silent" in holding:
                    await trio.sleep(self.delay)
                if self.asked is not None and "silent" not in holding:
                    self.asked += chunk
                if self.flips and "silent" not in holding and len(chunk) > _LONG:
                    chunk = chunk[:-1] + bytes([chunk[-1] ^ 1])
                await sink.send_all(chunk)
                self.answered += len(chunk) if "silent" in holding else 0
                if self.bytes_per_second is not None:
                    await trio.sleep(len(chunk) / self.bytes_per_second)
            await sink.send_eof()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            # One side has gone: so goes the other.
            scope.cancel()


class FaultyStore(FaultProxy):
    """The proxy in front of a store: `store` is what a client is to be given, `upstream` the store itself."""

    def __init__(self, store: Store) -> None:
        """Describe the proxy; `serve` runs it."""
        super().__init__(store.hostname, store.port)
        self.upstream = store

    @property
    def store(self) -> Store:
        """The store by way of the proxy."""
        scheme = "https" if self.upstream.is_secure else "http"
        return evolve(self.upstream, endpoint=f"{scheme}://127.0.0.1:{self.port}")


MakeFaulty = Callable[[str], Awaitable[FaultyStore]]
