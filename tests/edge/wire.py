"""A client that speaks bytes, so that a test can be as impolite as it likes; every wait has a deadline."""

import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import trio
from attrs import Factory, define, frozen

from node.web.listener import Address

PATIENCE = 30.0
"""Seconds after which a wait is a failure."""

QUIET = 0.3
"""Seconds without progress that count as standing still."""


@frozen
class Reply:
    """One answer as it was on the wire."""

    status: int
    headers: Mapping[str, str]
    body: bytes = b""


class Closed(Exception):
    """The node closed the connection where more was due; carries what came."""

    def __init__(self, received: bytes) -> None:
        super().__init__(f"closed after {received[-200:]!r}")
        self.received = received


@define
class Client:
    """One connection."""

    stream: trio.abc.Stream
    pending: bytearray = Factory(bytearray)

    async def send(self, data: bytes) -> None:
        with trio.fail_after(PATIENCE):
            await self.stream.send_all(data)

    async def ask(self, target: str, method: str = "GET", headers: str = "", body: bytes = b"") -> Reply:
        """Send one request and read its answer."""
        if body:
            headers += f"Content-Length: {len(body)}\r\n"
        await self.send(f"{method} {target} HTTP/1.1\r\nHost: node\r\n{headers}\r\n".encode() + body)
        return await self.reply(method)

    async def reply(self, method: str = "GET") -> Reply:
        """Read one answer whose body has a length. Raises Closed when the node breaks it off."""
        head = await self.head()
        if method == "HEAD" or head.status in (204, 304):
            return head
        return Reply(head.status, head.headers, await self.read(int(head.headers["content-length"])))

    async def head(self) -> Reply:
        while b"\r\n\r\n" not in self.pending:
            await self._more()
        raw, _, rest = bytes(self.pending).partition(b"\r\n\r\n")
        self.pending = bytearray(rest)
        first, *lines = raw.decode("latin-1").split("\r\n")
        headers: dict[str, str] = {}
        for line in lines:
            name, _, value = line.partition(": ")
            assert name.lower() not in headers, f"{name} came twice"
            headers[name.lower()] = value
        return Reply(int(first.split()[1]), headers)

    async def read(self, length: int) -> bytes:
        while len(self.pending) < length:
            await self._more()
        body = bytes(self.pending[:length])
        del self.pending[:length]
        return body

    async def rest(self) -> bytes:
        """Return what comes until the node closes."""
        try:
            while True:
                await self._more()
        except Closed as closed:
            return closed.received

    async def closed(self) -> bool:
        """Wait until the node closes; return whether it did so without another byte."""
        return await self.rest() == b""

    async def fill(self, chunk: bytes, most: int) -> int:
        """Send chunks until nobody takes them any more or `most` bytes are out; return the bytes taken in whole chunks."""
        taken = 0
        while taken < most:
            with trio.move_on_after(QUIET) as scope:
                await self.stream.send_all(chunk)
            if scope.cancelled_caught:
                break
            taken += len(chunk)
        return taken

    async def leave(self) -> None:
        await self.stream.aclose()

    async def _more(self) -> None:
        with trio.fail_after(PATIENCE):
            try:
                data = await self.stream.receive_some(65536)
            except trio.BrokenResourceError:
                data = b""
        if not data:
            raise Closed(bytes(self.pending))
        self.pending += data


@asynccontextmanager
async def connect(
    address: Address, *, tls: ssl.SSLContext | None = None, source: str | None = None, first: bytes = b""
) -> AsyncIterator[Client]:
    """Open a connection to a node, from an address of this machine's, and say something first; it is closed at the end."""
    with trio.fail_after(PATIENCE):
        plain = await trio.open_tcp_stream(address.host, address.port, local_address=source)
        await plain.send_all(first)
    stream: trio.abc.Stream = plain
    if tls is not None:
        stream = trio.SSLStream(plain, tls, server_hostname="localhost", https_compatible=True)
    try:
        yield Client(stream)
    finally:
        await trio.aclose_forcefully(stream)


def tasks() -> int:
    """Return how many tasks live in this run."""

    def below(task: trio.lowlevel.Task) -> int:
        return 1 + sum(below(child) for nursery in task.child_nurseries for child in nursery.child_tasks)

    root = trio.lowlevel.current_root_task()
    assert root is not None
    return below(root)


async def no_more_tasks_than(count: int) -> None:
    """Wait until at most `count` tasks are left. Nothing announces a task's end from outside, so this looks again and again."""
    with trio.fail_after(PATIENCE):
        while tasks() > count:  # noqa: ASYNC110  # as the docstring says
            await trio.sleep(0.01)
