"""The pull lane: answers what pulling clients ask straight from the socket, and hands every other connection to Hypercorn.

Hypercorn and ASGI cost a request 1 ms and more of the processor whatever the handler does; this loop costs a tenth of that. It
reads one head at a time and is strict, because two servers that read one request differently are a way to smuggle:

1. Only `GET` and `HEAD` of `/v2/...` in origin form, HTTP/1.0 and 1.1, by httptools. Everything else, and whatever is odd (a body
   or the mention of one, Expect, Upgrade, a repeated Host, Authorization or Range, no Host, a head that is too large or that
   httptools refuses), goes to Hypercorn with every byte that was read: it knows all the answers. There is no way back.
2. A head ends at the first empty line. The parser is given exactly that head and is never fed what follows.
3. The handler is the same function that the ASGI edge calls, errors become answers in the same place, and one log line is written
   by the same hand. `tests/edge/test_lane.py` compares the two edges.
"""

from collections.abc import Callable
from email.utils import formatdate
from http import HTTPStatus
from time import time
from typing import Protocol

import httptools
import trio
from attrs import define, field

from engines.trace import tracing, waiting
from node.answers import ClientGone, EmptyBody, Request
from node.errors import RegistryError
from node.web.access import Exchange, Observe, address_text, log_exchange, request_ids, shown, unobserved
from node.web.adapter import Handler, respond
from node.web.asgi import BODY, START, Message
from node.web.direct import AT_ONCE
from node.web.incoming import headers_of, path_of, query_of
from node.web.pace import Pace
from node.web.proxies import NO_PROXIES, Origin, Proxies

HEAD_MOST = 16 * 1024
HEAD_SECONDS = 10.0
"""From a head's first byte to its last."""
READ = 64 * 1024
KEEP_ALIVE = 75.0
"""As the listener's: a balancer must not reuse a connection that was just closed."""

_SLICE = 256 * 1024
"""Bytes that are sent at once: what a slow client is measured by."""

PATIENCE = 300.0
"""See Pace. That a client takes nothing at all is for TCP_USER_TIMEOUT to find, which is much sooner."""

_ODD = frozenset(
    {
        b"content-length",
        b"transfer-encoding",
        b"expect",
        b"upgrade",
        b"http2-settings",
        b"proxy-connection",
        b"te",
        b"trailer",
    }
)
_ONCE = frozenset({b"host", b"authorization", b"range", b"connection"})
_STATUS = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}
_BEGINNINGS = frozenset({word[:length] for word in (b"GET ", b"HEAD") for length in range(1, 5)})


class _NotHere(Exception):
    """This request is Hypercorn's."""


@define(eq=False)
class _Head:
    """One request's head, filled by httptools' callbacks. Reused for every request of a connection."""

    target: bytes = b""
    headers: list[tuple[bytes, bytes]] = field(factory=list)
    keep_alive: bool = False
    parser: httptools.HttpRequestParser | None = None

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        # llhttp leaves white space behind a value, which is no part of it (RFC 9110, 5.5).
        self.headers.append((name.lower(), value.strip(b" \t")))

    def on_headers_complete(self) -> None:
        # Asked here: llhttp has forgotten it when feed_data returns.
        assert self.parser is not None
        self.keep_alive = self.parser.should_keep_alive()

    def parse(self, head: bytes) -> str:
        """Read exactly one head; return its method. Raises _NotHere."""
        self.target, self.headers, self.keep_alive = b"", [], False
        self.parser = parser = httptools.HttpRequestParser(self)
        try:
            parser.feed_data(head)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            raise _NotHere from error
        finally:
            self.parser = None
        method, version = parser.get_method(), parser.get_http_version()
        if method not in (b"GET", b"HEAD") or version not in ("1.1", "1.0") or not self.target.startswith(b"/v2/"):
            raise _NotHere
        if not head.startswith(b"%s %s HTTP/%s\r\n" % (method, self.target, version.encode())):
            # llhttp overlooks white space that it should not.
            raise _NotHere
        seen: set[bytes] = set()
        for name, _ in self.headers:
            if name in _ODD or (name in _ONCE and name in seen):
                raise _NotHere
            seen.add(name)
        if b"host" not in seen:
            raise _NotHere
        # HTTP/1.0 may ask to be kept alive; closing is always allowed.
        self.keep_alive = self.keep_alive and version == "1.1"
        return str(method.decode())


class Bytes(Protocol):
    """What the lane needs of a stream."""

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """Return some bytes, b"" at the end."""
        ...

    async def send_all(self, data: bytes | memoryview) -> None:
        """Send everything."""
        ...


@define(eq=False)
class Lane:
    """What the connections of a node share: the handler, and whether the node stops."""

    handler: Handler
    draining: Callable[[], bool] = lambda: False
    observe: Observe = unobserved
    write: Observe = log_exchange
    keep_alive: float = KEEP_ALIVE
    patience: float = PATIENCE
    """Seconds that a client may keep an answer waiting beyond what its pace excuses."""
    _stopping: bool = field(default=False, init=False)
    _idle: set[trio.CancelScope] = field(factory=set, init=False)

    def stop(self) -> None:
        """Close the connections that wait for a request, now; the others after their answer."""
        self._stopping = True
        for scope in self._idle:
            scope.cancel(reason="the node stops")

    async def serve(self, stream: Bytes, peer: str, proxies: Proxies = NO_PROXIES) -> bytes | None:
        """Answer pulls on a connection. Return the bytes with which Hypercorn goes on, or None when the connection is over.

        Raises what the stream raises.
        """
        head, buffer, client = _Head(), bytearray(), address_text(peer)
        while not self._stopping:
            end = await self._read_head(stream, buffer)
            if end is None:
                return None
            if end == 0:
                break
            try:
                method = head.parse(bytes(buffer[:end]))
                origin = proxies.origin(client, head.headers)
                made, theirs = request_ids(origin.headers, believed=origin.believed)
                request = _request(head, method, origin, made)
            except _NotHere:
                break
            del buffer[:end]
            close = not head.keep_alive or self._stopping or self.draining()
            if not await self._answer(stream, request, theirs, close=close):
                return None
        else:
            return None
        return bytes(buffer)

    async def _read_head(self, stream: Bytes, buffer: bytearray) -> int | None:
        """Read until the buffer begins with a whole head; return where that ends, 0 to hand over, None when the client is gone."""
        searched = 0
        with trio.CancelScope() as scope:
            if not buffer:
                scope.deadline = trio.current_time() + self.keep_alive
                self._idle.add(scope)
                try:
                    buffer += await stream.receive_some(READ)
                finally:
                    self._idle.discard(scope)
                if not buffer:
                    return None
            began = False
            while (end := buffer.find(b"\r\n\r\n", searched)) < 0:
                if not began:
                    # Most heads come in one piece, and moving a deadline costs as much as parsing one.
                    scope.deadline, began = trio.current_time() + min(HEAD_SECONDS, self.keep_alive), True
                if len(buffer) > HEAD_MOST or bytes(buffer[:4]) not in _BEGINNINGS:
                    return 0
                searched = max(0, len(buffer) - 3)
                data = await stream.receive_some(READ)
                if not data:
                    # Half a head and then the end: Hypercorn closes such a connection as it always did.
                    return 0
                buffer += data
            return end + 4 if end + 4 <= HEAD_MOST else 0
        return None

    async def _answer(self, stream: Bytes, request: Request, client_id: str, *, close: bool) -> bool:
        """Answer one request; return whether the connection may go on."""
        exchange = Exchange(request.id, request.method, shown(request.path), request.client, client_id=client_id)
        began = trio.current_time()
        with tracing(exchange.trace):
            try:
                await respond(
                    self.handler,
                    lambda: request,
                    _Wire(stream, exchange, Pace(self.patience), close=close).send,
                    exchange,
                )
            except ClientGone:
                exchange.client_left = True
            except Exception:
                exchange.failed = True
                raise
            finally:
                seconds = trio.current_time() - began
                self.write(exchange, seconds)
                self.observe(exchange, seconds)
        return exchange.finished and not close


def _request(head: _Head, method: str, origin: Origin, made: str) -> Request:
    raw_path, _, query = head.target.partition(b"?")
    try:
        return Request(
            method=method,
            path=path_of(raw_path),
            query=query_of(query),
            headers=headers_of(origin.headers),
            body=EmptyBody(),
            client=origin.client,
            id=made,
        )
    except RegistryError as error:
        # A target that cannot be decoded: the other edge has the answer.
        raise _NotHere from error


class _Wire:
    """Turns an answer's ASGI messages into bytes: the head goes out with the first of the body, in one piece."""

    def __init__(self, stream: Bytes, exchange: Exchange, pace: Pace, *, close: bool) -> None:
        self._stream = stream
        self._exchange = exchange
        self._pace = pace
        self._close = close
        self._head = b""

    async def send(self, message: Message) -> None:
        """Send one message."""
        exchange = self._exchange
        if message["type"] == START:
            exchange.status = message["status"]
            lines = [_STATUS[exchange.status], *(b"%s: %s\r\n" % header for header in message["headers"])]
            lines.append(b"x-request-id: %s\r\ndate: %s\r\n" % (exchange.id.encode(), _date()))
            if self._close:
                lines.append(b"connection: close\r\n")
            self._head = b"".join((*lines, b"\r\n"))
            return
        assert message["type"] == BODY
        body = message.get("body", b"")
        if exchange.method == "HEAD":
            body = b""
        if data := self._head + body:
            self._head = b""
            try:
                if len(data) <= AT_ONCE:
                    # Not even looking at the clock keeps a warm pull cheap.
                    await self._stream.send_all(data)
                else:
                    with waiting("client"):
                        await self._send_slices(data)
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                raise ClientGone from error
        exchange.sent += len(body)
        exchange.finished = not message.get("more_body", False)

    async def _send_slices(self, data: bytes) -> None:
        """Send a large piece. Raises ClientGone when the client takes it too slowly."""
        for start in range(0, len(data), _SLICE):
            part = memoryview(data)[start : start + _SLICE]
            began = trio.current_time()
            with trio.move_on_after(self._pace.allowance(len(part))) as scope:
                await self._stream.send_all(part)
            if scope.cancelled_caught:
                raise ClientGone
            self._pace.waited(trio.current_time() - began, len(part))


_dated: tuple[int, bytes] = (0, b"")


def _date() -> bytes:
    """Return the Date header's value, made once a second."""
    global _dated  # a memory of one value; formatting it costs more than the rest of a head
    now = int(time())
    if _dated[0] != now:
        _dated = now, formatdate(now, usegmt=True).encode()
    return _dated[1]
