"""From an `Answer` to ASGI messages: heads that cannot be split, bodies that are whole or visibly broken."""

import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from http import HTTPStatus
from typing import Protocol

from node.answers import Answer, Chunk, Headers, Stream
from node.cache import Cache
from node.web.access import Exchange
from node.web.asgi import BODY, START, Message, Send
from replication.flow import Sink

TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
FRAMING = frozenset({"content-length", "date", "transfer-encoding", "x-request-id"})
"""Headers that are the edge's own."""
_STATUS = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}


class BadAnswer(Exception):
    """A handler made an answer that cannot be sent as it is: a bug of ours, never the client's."""


def head_of(answer: Answer, method: str) -> Message:
    """Return the message that begins an answer. Raises BadAnswer for headers that HTTP cannot carry."""
    headers: list[tuple[bytes, bytes]] = []
    for name, value in answer.headers:
        _check_value(name, value)
        headers.append((_name(name), value.encode("latin-1")))
    if _has_length(answer):
        headers.append((b"content-length", str(content_length(answer, method)).encode()))
    return {"type": START, "status": answer.status, "headers": headers}


def lines_of(answer: Answer, method: str) -> bytes:
    """Return the lines that begin an answer over a socket, from its status on. Raises BadAnswer as `head_of`."""
    length = content_length(answer, method) if _has_length(answer) else None
    key = (answer.status, answer.headers, length)
    lines = _kept.glance(key)
    if lines is None:
        lines = _lines(*key)
        _kept.keep(key, lines, 0.0)
    return lines


def _lines(status: int, headers: Headers, length: int | None) -> bytes:
    lines = [_STATUS[status], *(_line(name, value) for name, value in headers)]
    if length is not None:
        lines.append(b"content-length: %d\r\n" % length)
    return b"".join(lines)


_kept: Cache[tuple[int, Headers, int | None], bytes] = Cache(1 << 20, weigh=len)
"""Many ask for the same things: the lines of a redirect take 1 us instead of 3. A MiB of them, and as much again for the keys."""


def _has_length(answer: Answer) -> bool:
    # RFC 9110, 8.6: a 204 has no content-length. A 304 may have one, but only the one that GET would have had.
    return answer.status not in (204, 304) or answer.length is not None


def _check_value(name: str, value: str) -> None:
    # Nearly every value is plain text, which needs no pattern.
    if not (value.isascii() and value.isprintable()) and not VALUE.fullmatch(value):
        raise BadAnswer(f"header {name}: its value has characters that a header cannot carry")


def _line(name: str, value: str) -> bytes:
    _check_value(name, value)
    return b"%s: %s\r\n" % (_name(name), value.encode("latin-1"))


@lru_cache(maxsize=256)
def _name(name: str) -> bytes:
    if not TOKEN.fullmatch(name) or name in FRAMING:
        raise BadAnswer(f"header name {name!r} is not a handler's to send")
    return name.encode()


def content_length(answer: Answer, method: str) -> int:
    """Return the length to announce; for HEAD that of GET's body."""
    if answer.length is not None and (method == "HEAD" or answer.status == 304):
        return answer.length
    return answer.body.length if isinstance(answer.body, Stream) else len(answer.body)


class Carrier(Protocol):
    """How an edge sends one answer."""

    def begin(self, answer: Answer) -> None:
        """Make the answer's head ready, in place of one that was made before. Nothing is sent yet. Raises BadAnswer."""
        ...

    async def send(self, data: Chunk, *, more: bool) -> None:
        """Send the next bytes of the body, before the first of them the head. Raises what the edge raises."""
        ...

    def sink(self, sent: Callable[[int], None]) -> AbstractContextManager[Sink | None]:
        """Open a way for more of the body beside `send`, which tells `sent` what has gone; None where there is none."""
        ...


class AsgiCarrier:
    """Sends an answer as ASGI messages."""

    def __init__(self, method: str, send: Send) -> None:
        self._method = method
        self._send = send
        self._head: Message | None = None

    def begin(self, answer: Answer) -> None:
        """Make the head ready."""
        self._head = head_of(answer, self._method)

    async def send(self, data: Chunk, *, more: bool) -> None:
        """Send bytes of the body."""
        if self._head is not None:
            head, self._head = self._head, None
            await self._send(head)
        await self._send({"type": BODY, "body": data, "more_body": more})

    def sink(self, sent: Callable[[int], None]) -> AbstractContextManager[Sink | None]:  # noqa: ARG002 - the protocol's argument
        """Have none: the connection is Hypercorn's."""
        return nullcontext()


async def send_whole(answer: Answer, method: str, carrier: Carrier) -> None:
    """Send an answer that was begun and whose body is in memory, or that has none because of HEAD."""
    await carrier.send(b"" if method == "HEAD" or isinstance(answer.body, Stream) else answer.body, more=False)


class Outlet:
    """Sends a body of a promised length. It is never completed short, long or wrong.

    The head goes out with the first chunk, so that a failure before it can still become a proper answer. The chunk that completes
    the body is held back until its source has ended without an error: what a source finds out at the very end still counts.
    """

    def __init__(self, length: int, exchange: Exchange, carrier: Carrier) -> None:
        self._left = length
        self._exchange = exchange
        self._carrier = carrier
        self._last: Chunk = b""

    @property
    def started(self) -> bool:
        """Whether the client has seen the head."""
        return self._exchange.status != 0

    async def put(self, chunk: Chunk) -> None:
        """Send the next bytes; returns when the socket has taken them. Raises BadAnswer for more than was promised."""
        if not chunk:
            return
        self._left -= len(chunk)
        if self._left < 0:
            raise BadAnswer(f"the body is at least {-self._left} bytes longer than promised")
        if self._left == 0:
            self._last = chunk
            return
        await self._carrier.send(chunk, more=True)

    def passed(self, count: int) -> None:
        """Note that so many of the next bytes went by the carrier's sink."""
        self._left -= count
        self._exchange.sent += count

    async def finish(self) -> None:
        """Complete the answer. Raises BadAnswer if bytes are missing."""
        if self._left:
            raise BadAnswer(f"the body ended {self._left} bytes short of its promised length")
        await self._carrier.send(self._last, more=False)
