"""A proxy that makes loopback as slow as an ocean: every byte arrives half a round trip later, and round trips are counted.

It runs in a thread, so that the load generator, which never waits for Trio, can use it; or, where its work must not be taken for
somebody else's, in a process: `python -m scripts.bench_parts.delay PORT SECONDS WINDOW` writes the port where it listens.
"""

import re
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from math import inf

import trio
from attrs import define, field

_READ = 256 * 1024
_START_SECONDS = 10.0
_HEADS = re.compile(rb"(?m)^(GET|HEAD|PUT|POST|DELETE) \S+ HTTP/1\.1\r\n")
_COPIES = re.compile(rb"(?i)\r\nx-amz-copy-source:")


@define
class Traffic:
    """What went through since the proxy began."""

    trips: int = 0
    """Times that a client spoke after the server had, and opened connections."""
    sent: int = 0
    """Bytes to the server."""
    calls: int = 0
    """HTTP requests, where it is HTTP."""
    copies: int = 0
    """Requests that let a store copy an object by itself."""


@define(eq=False)
class _Window:
    """What one direction of a connection has sent and nobody has acknowledged yet."""

    size: float
    seconds: float
    under_way: float = 0
    _sent: deque[tuple[float, int]] = field(factory=deque)

    async def pass_(self, size: int) -> None:
        """Count what was sent, and wait until there is room for more."""
        self.under_way += size
        self._sent.append((trio.current_time() + self.seconds, size))
        while self.under_way >= self.size or (self._sent and self._sent[0][0] <= trio.current_time()):
            acknowledged, size = self._sent.popleft()
            await trio.sleep_until(acknowledged)
            self.under_way -= size


@define(eq=False)
class DelayProxy:
    """A TCP proxy on loopback. `seconds` is the round trip it adds."""

    target: int
    seconds: float
    window: float = inf
    """Bytes that each direction of a connection has under way at most, as buffers of the kernel's would let it."""
    port: int = 0
    traffic: Traffic = field(factory=Traffic)
    _ready: threading.Event = field(factory=threading.Event)
    _token: trio.lowlevel.TrioToken | None = None
    _scope: trio.CancelScope = field(factory=trio.CancelScope)

    def start(self) -> threading.Thread:
        """Listen, in a thread of its own."""
        thread = threading.Thread(target=trio.run, args=(self._run,), name="delay proxy", daemon=True)
        thread.start()
        if not self._ready.wait(_START_SECONDS):
            raise RuntimeError("the delay proxy did not start")
        return thread

    def stop(self) -> None:
        """Close everything."""
        assert self._token is not None
        self._token.run_sync_soon(self._scope.cancel)

    async def _run(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        with self._scope:
            async with trio.open_nursery() as nursery:
                listeners = await nursery.start(partial(trio.serve_tcp, self._serve, 0, host="127.0.0.1"))
                self.port = listeners[0].socket.getsockname()[1]
                self._ready.set()

    async def _serve(self, client: trio.SocketStream) -> None:
        await trio.sleep(self.seconds)
        self.traffic.trips += 1
        try:
            server = await trio.open_tcp_stream("127.0.0.1", self.target)
        except OSError:
            await client.aclose()
            return
        spoke = ["server"]
        async with client, server, trio.open_nursery() as nursery:
            for source, sink, who in ((client, server, "client"), (server, client, "server")):
                nursery.start_soon(self._way, source, sink, who, spoke, nursery.cancel_scope)

    async def _way(
        self, source: trio.SocketStream, sink: trio.SocketStream, who: str, spoke: list[str], scope: trio.CancelScope
    ) -> None:
        send, receive = trio.open_memory_channel[tuple[float, bytes]](inf)

        async def deliver() -> None:
            async with receive:
                async for due, data in receive:
                    await trio.sleep_until(due)
                    await sink.send_all(data)

        window = _Window(self.window, self.seconds)
        try:
            async with trio.open_nursery() as nursery, send:
                nursery.start_soon(deliver)
                while data := await source.receive_some(_READ):
                    self._count(who, spoke, bytes(data))
                    await send.send((trio.current_time() + self.seconds / 2, bytes(data)))
                    await window.pass_(len(data))
                await send.aclose()
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # one side has gone: so goes the other
        scope.cancel()

    def _count(self, who: str, spoke: list[str], data: bytes) -> None:
        if who == "client":
            self.traffic.trips += spoke[0] == "server"
            self.traffic.sent += len(data)
            self.traffic.calls += len(_HEADS.findall(data))
            self.traffic.copies += len(_COPIES.findall(data))
        spoke[0] = who


@contextmanager
def delayed(target: int, seconds: float) -> Iterator[DelayProxy]:
    """Run a proxy before a port of this machine."""
    proxy = DelayProxy(target, seconds)
    thread = proxy.start()
    try:
        yield proxy
    finally:
        proxy.stop()
        thread.join(_START_SECONDS)


@contextmanager
def delayed_apart(target: int, seconds: float, window: int) -> Iterator[int]:
    """Run a proxy before a port of this machine in a process of its own; yield the port where it listens."""
    command = [sys.executable, "-m", "scripts.bench_parts.delay", str(target), str(seconds), str(window)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.stdin.close()
            process.wait(_START_SECONDS)


def _main(port: str, seconds: str, window: str) -> None:
    proxy = DelayProxy(int(port), float(seconds), float(window))
    thread = proxy.start()
    print(proxy.port, flush=True)
    sys.stdin.read()
    proxy.stop()
    thread.join(_START_SECONDS)


if __name__ == "__main__":
    _main(*sys.argv[1:])
