"""The load generator: clients are plain generators that yield requests and are sent answers; one epoll loop drives them all.

It costs about 30 us of the processor per request, and every result says its share, so that nobody takes it for the server's.
"""

import re
import select
import socket
import time
from collections import deque
from collections.abc import Generator, Sequence
from contextlib import suppress

from attrs import define, field, frozen

_LENGTH = re.compile(rb"(?i)\r\ncontent-length:[ \t]*(\d+)")
_CHUNKED = re.compile(rb"(?i)\r\ntransfer-encoding:[ \t]*chunked")
_CLOSES = re.compile(rb"(?i)\r\nconnection:[ \t]*close")
_READ = 256 * 1024
_SILENCE = 60.0
"""Seconds after which a run gives up on a server that says nothing at all."""


class LoadFailed(Exception):
    """A server broke off, was silent, or did not speak HTTP."""


@frozen
class Ask:
    """One request: where to, its bytes, and whether the answer's body matters or is only counted."""

    host: str
    port: int
    data: bytes | Sequence[bytes]
    method: str = "GET"
    keep: bool = False


@frozen
class Hang:
    """Close all connections of this client: the next request opens new ones."""


@frozen
class Got:
    """An answer: its status, its head as it came, its body where that was to be kept, and the body's size."""

    status: int
    head: bytes
    body: bytes
    size: int

    def header(self, name: str) -> str:
        """Return a header's value, "" without one."""
        found = re.search(rb"(?i)\r\n" + re.escape(name.encode()) + rb":[ \t]*([^\r]*)", self.head)
        return found.group(1).decode() if found else ""


Client = Generator[Ask | Hang, Got, None]


@define(eq=False)
class _Line:
    """A connection with what has been read of the current answer."""

    socket: socket.socket
    ask: Ask | None = None
    buffer: bytearray = field(factory=bytearray)
    head: bytes = b""
    left: int = 0
    size: int = 0
    chunked: bool = False
    pending: deque[memoryview] = field(factory=deque)

    def begin(self, ask: Ask) -> None:
        """Make ready for one answer."""
        self.ask, self.head, self.left, self.size, self.chunked = ask, b"", 0, 0, False
        parts = [ask.data] if isinstance(ask.data, bytes) else ask.data
        self.pending.extend(memoryview(part) for part in parts if part)

    def push(self) -> bool:
        """Send what the kernel takes; say whether something is left."""
        try:
            while self.pending:
                sent = self.socket.send(self.pending[0])
                if sent < len(self.pending[0]):
                    self.pending[0] = self.pending[0][sent:]
                else:
                    self.pending.popleft()
        except BlockingIOError:
            return True
        return False

    def feed(self, data: bytes) -> Got | None:
        """Take bytes in; return the answer when it is whole."""
        if self.head and not self.chunked and self.ask is not None and not self.ask.keep:
            self.left -= len(data)
        else:
            self.buffer += data
        if not self.head and not self._read_head():
            return None
        if self.chunked:
            return self._read_chunks()
        assert self.ask is not None
        if self.ask.keep:
            if len(self.buffer) < self.size:
                return None
            body = bytes(self.buffer)
        else:
            self.left -= len(self.buffer)
            self.buffer.clear()
            if self.left > 0:
                return None
            body = b""
        self.buffer.clear()
        return Got(int(self.head[9:12]), self.head, body, self.size)

    def _read_head(self) -> bool:
        end = self.buffer.find(b"\r\n\r\n")
        if end < 0:
            return False
        assert self.ask is not None
        self.head = bytes(self.buffer[:end])
        del self.buffer[: end + 4]
        status = int(self.head[9:12])
        if 100 <= status < 200:
            self.head = b""
            return bool(self.buffer) and self._read_head()
        if self.ask.method == "HEAD" or status in (204, 304):
            return True
        self.chunked = _CHUNKED.search(self.head) is not None
        length = _LENGTH.search(self.head)
        if length is None and not self.chunked:
            raise LoadFailed(f"an answer of unknown length: {self.head[:300]!r}")
        self.size = self.left = 0 if length is None else int(length.group(1))
        return True

    def _read_chunks(self) -> Got | None:
        body, rest = bytearray(), memoryview(bytes(self.buffer))
        while True:
            line = bytes(rest[:32]).partition(b"\r\n")
            if not line[1]:
                return None
            size = int(line[0].partition(b";")[0], 16)
            start = len(line[0]) + 2
            if len(rest) < start + size + 2:
                return None
            if size == 0:
                self.buffer.clear()
                return Got(int(self.head[9:12]), self.head, bytes(body), len(body))
            body += rest[start : start + size]
            rest = rest[start + size + 2 :]


@define(eq=False)
class _Slot:
    """One client and its connections, by address."""

    client: Client
    lines: dict[tuple[str, int], _Line] = field(factory=dict)


def drive(clients: Sequence[Client], until: float | None = None) -> None:
    """Run clients to their ends, or until `until` on the monotonic clock; what is under way then is dropped.

    Raises LoadFailed, and what a client raises.
    """
    loop = _Loop()
    try:
        loop.run([_Slot(client) for client in clients], until)
    finally:
        loop.close()


class _Loop:
    def __init__(self) -> None:
        self._poll = select.epoll()
        self._lines: dict[int, tuple[_Slot, _Line]] = {}
        self._running = 0

    def close(self) -> None:
        for _, line in self._lines.values():
            line.socket.close()
        self._poll.close()

    def run(self, slots: Sequence[_Slot], until: float | None) -> None:
        self._running = len(slots)
        for slot in slots:
            self._step(slot, None)
        heard = time.monotonic()
        while self._running:
            now = time.monotonic()
            if until is not None and now >= until:
                return
            events = self._poll.poll(1.0 if until is None else min(1.0, until - now))
            if events:
                heard = now
            elif now - heard > _SILENCE:
                raise LoadFailed(f"no server said anything for {_SILENCE:g} s")
            for number, event in events:
                if number in self._lines:
                    self._handle(*self._lines[number], event)

    def _handle(self, slot: _Slot, line: _Line, event: int) -> None:
        if event & select.EPOLLOUT and line.pending and not line.push():
            self._poll.modify(line.socket.fileno(), select.EPOLLIN)
        if not event & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR):
            return
        try:
            data = line.socket.recv(_READ)
        except BlockingIOError:
            return
        except OSError as error:
            raise LoadFailed(f"the server broke off: {error}") from error
        if not data:
            if line.ask is not None:
                raise LoadFailed(
                    f"the server closed in the middle of {line.ask.method} {line.ask.host}:{line.ask.port}"
                )
            self._drop(slot, line)
            return
        got = line.feed(data)
        if got is None:
            return
        line.ask = None
        if _CLOSES.search(got.head):
            self._drop(slot, line)
        self._step(slot, got)

    def _step(self, slot: _Slot, got: Got | None) -> None:
        """Give the client its answer and do what it wants next."""
        while True:
            try:
                wish = next(slot.client) if got is None else slot.client.send(got)
            except StopIteration:
                self._running -= 1
                wish = Hang()
                self._hang(slot)
                return
            if isinstance(wish, Ask):
                break
            self._hang(slot)
            got = None
        line = slot.lines.get((wish.host, wish.port)) or self._connect(slot, wish)
        line.begin(wish)
        if line.push():
            self._poll.modify(line.socket.fileno(), select.EPOLLIN | select.EPOLLOUT)

    def _connect(self, slot: _Slot, ask: Ask) -> _Line:
        made = socket.create_connection((ask.host, ask.port), timeout=_SILENCE)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        made.setblocking(False)
        line = slot.lines[ask.host, ask.port] = _Line(made)
        self._lines[made.fileno()] = slot, line
        self._poll.register(made.fileno(), select.EPOLLIN)
        return line

    def _drop(self, slot: _Slot, line: _Line) -> None:
        self._lines.pop(line.socket.fileno())
        with suppress(FileNotFoundError):
            self._poll.unregister(line.socket.fileno())
        line.socket.close()
        for address, held in list(slot.lines.items()):
            if held is line:
                del slot.lines[address]

    def _hang(self, slot: _Slot) -> None:
        for line in list(slot.lines.values()):
            self._drop(slot, line)
