"""From an `Answer` to ASGI messages: heads that cannot be split, bodies that are whole or visibly broken."""

import re
from functools import lru_cache

from node.answers import Answer, Stream
from node.web.access import Exchange
from node.web.asgi import BODY, START, Message, Send

TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
FRAMING = frozenset({"content-length", "date", "transfer-encoding", "x-request-id"})
"""Headers that are the edge's own."""


class BadAnswer(Exception):
    """A handler made an answer that cannot be sent as it is: a bug of ours, never the client's."""


def head_of(answer: Answer, method: str) -> Message:
    """Return the message that begins an answer. Raises BadAnswer for headers that HTTP cannot carry."""
    headers: list[tuple[bytes, bytes]] = []
    for name, value in answer.headers:
        # Nearly every value is plain text, which needs no pattern.
        if not (value.isascii() and value.isprintable()) and not VALUE.fullmatch(value):
            raise BadAnswer(f"header {name}: its value has characters that a header cannot carry")
        headers.append((_name(name), value.encode("latin-1")))
    # RFC 9110, 8.6: a 204 has no content-length. A 304 may have one, but only the one that GET would have had.
    if answer.status not in (204, 304) or answer.length is not None:
        headers.append((b"content-length", str(content_length(answer, method)).encode()))
    return {"type": START, "status": answer.status, "headers": headers}


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


async def send_whole(answer: Answer, method: str, head: Message, send: Send) -> None:
    """Send an answer whose body is in memory, or that has none because of HEAD."""
    body = b"" if method == "HEAD" or isinstance(answer.body, Stream) else answer.body
    await send(head)
    await send({"type": BODY, "body": body, "more_body": False})


class Outlet:
    """Sends a body of a promised length. It is never completed short, long or wrong.

    The head goes out with the first chunk, so that a failure before it can still become a proper answer. The chunk that completes
    the body is held back until its source has ended without an error: what a source finds out at the very end still counts.
    """

    def __init__(self, head: Message, length: int, exchange: Exchange, send: Send) -> None:
        self._head = head
        self._left = length
        self._exchange = exchange
        self._send = send
        self._last = b""

    @property
    def started(self) -> bool:
        """Whether the client has seen the head."""
        return self._exchange.status != 0

    async def put(self, chunk: bytes) -> None:
        """Send the next bytes; returns when the socket has taken them. Raises BadAnswer for more than was promised."""
        if not chunk:
            return
        self._left -= len(chunk)
        if self._left < 0:
            raise BadAnswer(f"the body is at least {-self._left} bytes longer than promised")
        if self._left == 0:
            self._last = chunk
            return
        await self._begin()
        await self._send({"type": BODY, "body": chunk, "more_body": True})

    async def finish(self) -> None:
        """Complete the answer. Raises BadAnswer if bytes are missing."""
        if self._left:
            raise BadAnswer(f"the body ended {self._left} bytes short of its promised length")
        await self._begin()
        await self._send({"type": BODY, "body": self._last, "more_body": False})

    async def _begin(self) -> None:
        if not self.started:
            await self._send(self._head)
