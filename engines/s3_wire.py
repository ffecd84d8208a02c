"""One request of HTTP/1.1 and its answer, in a worker thread on a connection that urllib3 keeps and opens.

urllib3 and http.client take 0.3 ms of the processor for a request and its answer, most of it for what a store's answer never has;
this takes 0.08, with signing.
"""

import socket
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from io import BufferedReader, RawIOBase
from typing import Any

import urllib3
from attrs import define, field, frozen

from .contract import MIB, Seen
from .s3_calls import Call

_HEAD = 64 * 1024
"""The longest head of an answer, in bytes."""
_READ = 16 * 1024
_ROOM = MIB
_TOGETHER = 32 * 1024
"""Bodies up to this size go out with the request's head, in one piece."""
_BARE = frozenset({204, 304})
"""Answers without a body."""

Body = bytes | Iterable[bytes | memoryview]


@frozen
class Timeouts:
    """How long each step may take, in seconds: to connect, to send a piece of a request, to receive one of an answer."""

    connect: float
    send: float
    receive: float


class NoAnswer(OSError):
    """The connection ended before the first byte of an answer."""


class _Raw(RawIOBase):
    """What `some` gives, as a file."""

    def __init__(self, some: Callable[[memoryview], int]) -> None:
        self._some = some

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._some(memoryview(buffer))


@define(eq=False)
class Answer:
    """What a store answered: its status, its headers (lower-case names), and the body's size, of which nothing has been read.

    Every method blocks, as long as the socket's timeout, and raises OSError.
    """

    status: int
    headers: Mapping[str, str]
    _pool: Any = field(repr=False)
    _connection: Any = field(repr=False)
    _call: Call = field(repr=False)
    _rest: memoryview = field(repr=False)
    """What came with the head and has not been given out."""
    size: int = 0
    """The body's size as the head says it."""
    _left: int | None = None
    """Bytes of the body that have not been given out; None: as many as come before the connection ends."""
    _keep: bool = True

    @property
    def ended(self) -> bool:
        """Whether nothing of the body is left."""
        return self._left == 0

    def receive(self, size: int) -> bytes:
        """Return exactly `size` bytes of the body."""
        # One allocation that the kernel fills; with a buffer of one byte nothing is kept back.
        data = BufferedReader(_Raw(self._some), 1).read(size)
        if len(data) < size:
            raise OSError(f"the store broke off {size - len(data)} bytes before the end")
        return data

    def receive_into(self, buffer: memoryview, most: int, seen: Seen) -> int:
        """Fill the buffer with the next of the `most` bytes that are left, as often as `seen` says."""
        received, more = 0, True
        while more and received < most:
            part = buffer[: most - received]
            self.fill(part, most - received)
            received += len(part)
            more = seen(part) is True
        return received

    def fill(self, buffer: memoryview, most: int = 0) -> None:
        """Fill a buffer with the next bytes of the body, of which `most` are wanted in the end."""
        at, size = self._some(buffer) if self._rest else 0, len(buffer)
        # Over TLS a record of 16 KiB comes at a time, and 65 536 make a GiB: no more is done for each than must be.
        receive_into, end = self._connection.sock.recv_into, size if self._left is None else min(size, at + self._left)
        first = at
        while at < end and (got := receive_into(buffer[at:end])):
            at += got
        if self._left is not None:
            self._left -= at - first
        if at < size:
            raise OSError(f"the store broke off {max(most, size) - at} bytes before the end")

    def drain(self) -> None:
        """Read what is left of a body that nobody wants, and be done with the connection."""
        buffer = memoryview(bytearray(_READ))
        while self._left and self._some(buffer):
            pass
        self.release()

    def text(self, most: int) -> str:
        """Return the beginning of the body, decoded, and be done with the connection."""
        data, buffer, whole = bytearray(), memoryview(bytearray(_READ)), False
        said: bytes | bytearray = b""
        chunked = "transfer-encoding" in self.headers
        with suppress(OSError):
            while not whole and len(data) < most and (got := self._some(buffer)):
                data += buffer[:got]
                said, whole = _without_chunks(data) if chunked else (data, False)
        self.close()
        return said[:most].decode("utf-8", "replace")

    def _some(self, buffer: memoryview) -> int:
        if self._left is not None:
            buffer = buffer[: self._left]
        got = len(buffer[: len(self._rest)])
        if got:
            buffer[:got], self._rest = self._rest[:got], self._rest[got:]
        elif buffer:
            got = self._connection.sock.recv_into(buffer)
        if self._left is not None:
            self._left -= got
        return got

    def __del__(self) -> None:
        # Of a call that nobody waited for any more.
        if self._connection is not None:
            self._connection.close()

    def release(self) -> None:
        """Give the connection to whoever asks next, if the body was read to its end and the store keeps it open."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        self._call.leaves()
        if self._left != 0 or self._rest or not self._keep:
            connection.close()
        self._pool._put_conn(connection)  # noqa: SLF001 - where urllib3's own answers put them

    def close(self) -> None:
        """Close the connection, if it was not given back yet."""
        self._keep = False
        self.release()


def head(method: str, address: str, headers: Mapping[str, str]) -> bytes:
    """Return the head of a request. `address` is quoted, and the headers, which are ours, name the host and a body's length."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    if lines.count("\n") != len(headers) or lines.count("\r") != len(headers):
        raise ValueError("a header of more than one line")
    return f"{method} {address} HTTP/1.1\r\naccept-encoding: identity\r\n{lines}\r\n".encode("latin-1")


def ask(pool: Any, call: Call, head: bytes, body: Body, timeouts: Timeouts) -> Answer:
    """Send a request and return its answer; `call` ends it from outside.

    Raises OSError; NoAnswer where nothing came, which for a kept connection means that the store had closed it.
    """
    connection = pool._get_conn()  # noqa: SLF001 - it knows of connections that were dropped, of proxies and of certificates
    try:
        if connection.sock is None:
            connection.timeout = timeouts.connect
            if pool.proxy is not None and urllib3.util.proxy.connection_requires_http_tunnel(
                pool.proxy, pool.proxy_config, pool.scheme
            ):
                pool._prepare_proxy(connection)  # noqa: SLF001
            else:
                connection.connect()
            make_room(connection.sock)
        call.works_on(connection.sock)
        connection.sock.settimeout(timeouts.send)
        # A store that refuses what is being sent says why before it hangs up.
        with suppress(BrokenPipeError, ConnectionResetError):
            _send(connection.sock, head, body)
        connection.sock.settimeout(timeouts.receive)
        return _answer(pool, connection, call)
    except BaseException:
        connection.close()
        pool._put_conn(connection)  # noqa: SLF001
        raise


def make_room(sock: Any) -> None:
    """Let the kernel take a piece in before it is read: while our threads wait for their turn the store writes on.

    A store that has to wait in the middle of what it writes is woken for each record. Over TLS this spares us and the store 0.1 s
    of the processor each per GiB read. A low-water mark widens the buffer, which stays so; unlike SO_RCVBUF this leaves it free to
    grow. Before the connection is open it would bound the window for good.
    """
    for mark in (_ROOM, 1):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, mark)


def _send(sock: Any, head: bytes, body: Body) -> None:
    if isinstance(body, bytes):
        if len(body) <= _TOGETHER:
            sock.sendall(head + body)
            return
        body = (body,)
    pending = head
    for chunk in body:
        if pending and len(chunk) <= _TOGETHER:
            chunk, pending = b"".join((pending, chunk)), b""
        if pending:
            sock.sendall(pending)
            pending = b""
        sock.sendall(chunk)
    if pending:
        sock.sendall(pending)


def _answer(pool: Any, connection: Any, call: Call) -> Answer:
    data = b""
    while True:
        end = data.find(b"\r\n\r\n")
        if end < 0:
            if len(data) > _HEAD:
                raise OSError("the store's answer has no end of its head")
            more = _more(connection.sock)
            if not more:
                raise OSError("the store broke off in the head of its answer") if data else NoAnswer("no answer")
            data = data + more if data else more
            continue
        lines = data[:end].decode("latin-1").split("\r\n")
        version, _, rest = lines[0].partition(" ")
        if not version.startswith("HTTP/1.") or not rest[:3].isdigit():
            raise OSError(f"no answer of HTTP/1.1: {lines[0][:80]!r}")
        status, data = int(rest[:3]), data[end + 4 :]
        if status >= 200:
            break
    headers = {}
    for line in lines[1:]:
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    chunked = "transfer-encoding" in headers
    length = headers.get("content-length")
    if length is not None and not (length.isascii() and length.isdigit()):
        raise OSError(f"an answer of length {length[:20]!r}")
    left = 0 if status in _BARE else None if chunked or length is None else int(length)
    keep = version != "HTTP/1.0" and headers.get("connection", "").lower() != "close"
    return Answer(status, headers, pool, connection, call, memoryview(data), left or 0, left, keep)


def _more(sock: Any) -> bytes:
    try:
        return bytes(sock.recv(_READ))
    except (BrokenPipeError, ConnectionResetError):
        return b""


def _without_chunks(data: bytes | bytearray) -> tuple[bytes, bool]:
    """Return what a chunked body, of which this is the beginning, says, and whether that is all."""
    said, at = b"", 0
    while (end := data.find(b"\r\n", at)) > 0:
        try:
            size = int(data[at:end].partition(b";")[0], 16)
        except ValueError:
            return said, True
        if size <= 0:
            return said, True
        said += data[end + 2 : end + 2 + size]
        at = end + 2 + size + 2
    return said, False
