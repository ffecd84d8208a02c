"""The pull lane: answers what pulling clients ask straight from the socket, and hands every other connection to Hypercorn.

Hypercorn and ASGI cost a request 1 ms and more of the processor whatever the handler does; this loop costs a tenth of that. It
reads one head at a time, strictly (`heads.py`). What is not for it, or too large, goes to Hypercorn with every byte that was read:
it knows all the answers. There is no way back.

The handler is the same function that the ASGI edge calls, errors become answers in the same place, and one log line is written by
the same hand. `tests/edge/test_lane.py` compares the two edges.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from email.utils import formatdate
from time import time

import trio
from attrs import Factory, define, field, frozen

from engines.trace import tracing, waiting
from node.answers import Again, Answer, Asker, Chunk, ClientGone, Lasting, Request
from node.cache import Cache
from node.web.access import Exchange, Observe, address_text, log_exchange, new_id, shown, unobserved
from node.web.adapter import Handler, respond
from node.web.direct import SLICE, Bytes, Direct, Line, Scoped
from node.web.heads import VERSION, Head, Heads, Kept, NotHere
from node.web.outgoing import lines_of
from node.web.pace import PATIENCE, Pace
from node.web.proxies import NO_PROXIES, Proxies
from node.web.waits import HEAD_SECONDS, Waits
from replication.flow import Sink

HEAD_MOST = 16 * 1024
KEEP_ALIVE = 75.0
"""As the listener's: a balancer must not reuse a connection that was just closed."""

_MOST_KNOWN = 1024
"""Answers that are given again: with what they were decided by 2 MiB."""

_GONE = (ClientGone, trio.BrokenResourceError, trio.ClosedResourceError)
_BEGINNINGS = frozenset({word[:length] for word in (b"GET ", b"HEAD") for length in range(1, 5)})


def _nothing(_: Request) -> None:
    """Answer nothing at once."""


@frozen
class _Known:
    """What a plain first line is answered with, as long as that lasts."""

    method: str
    path: str
    """As a log may show it."""
    status: int
    lines: bytes
    outcome: str
    again: Again


@define(eq=False)
class Lane:
    """What the connections of a node share: the handler, and whether the node stops. `run` must run beside `serve`.

    All of them come by way of the same proxies.
    """

    handler: Handler
    draining: Callable[[], bool] = lambda: False
    observe: Observe = unobserved
    write: Observe = log_exchange
    keep_alive: float = KEEP_ALIVE
    patience: float = PATIENCE
    """Seconds that a client may keep an answer waiting beyond what its pace excuses."""
    at_once: Callable[[Request], Lasting | None] = _nothing
    """Answers what need not be waited for; None: the handler answers. It may raise as a handler may."""
    _known: Cache[bytes, _Known] = field(factory=lambda: Cache(_MOST_KNOWN), init=False)
    """By plain first lines: whoever sends the same one, and has the rights, gets the same."""
    _kept: Kept = field(factory=dict, init=False)
    waits: Waits = field(default=Factory(lambda self: Waits(self.keep_alive / 10), takes_self=True), init=False)
    """Which of them wait. Its `stop` closes those that have long been idle, and the others after the answer that tells them so."""

    async def run(self) -> None:
        """Close connections that wait too long, for ever."""
        await self.waits.run()

    async def serve(self, stream: Bytes, peer: str, proxies: Proxies = NO_PROXIES) -> bytes | None:
        """Answer pulls on a connection. Return the bytes with which Hypercorn goes on, or None when the connection is over.

        Raises what the stream raises.
        """
        line = Direct(stream, self.waits) if isinstance(stream, trio.SocketStream) else Scoped(stream, self.waits)
        heads, buffer = Heads(address_text(peer), proxies, self._kept), bytearray()
        while True:
            end = await self._read_head(line, buffer)
            if end is None:
                return None
            if end == 0:
                break
            raw = bytes(buffer if end == len(buffer) else buffer[:end])
            began = trio.current_time()
            given = self._given(raw, heads, began)
            if given is not None:
                del buffer[:end]
                if not await self._answer_again(line, began, *given):
                    return None
                continue
            try:
                head = heads.read(raw)
            except NotHere:
                break
            del buffer[:end]
            if not await self._answer(line, began, head):
                return None
        return bytes(buffer)

    def _closes(self) -> bool:
        """Tell whether an answer that begins now is the last of its connection."""
        return self.waits.stopping or self.draining()

    async def _read_head(self, line: Line, buffer: bytearray) -> int | None:
        """Read until the buffer begins with a whole head; return where that ends, 0 to hand over, None when the client is gone."""
        now = trio.current_time()
        if buffer:
            # Whoever sends many requests at once must not keep the others waiting.
            await trio.lowlevel.checkpoint()
        else:
            data = await line.receive(now + self.keep_alive, idle=now)
            if not data:
                return None
            buffer += data
        searched, until = 0, 0.0
        while (end := buffer.find(b"\r\n\r\n", searched)) < 0:
            if len(buffer) > HEAD_MOST or bytes(buffer[:4]) not in _BEGINNINGS:
                return 0
            searched = max(0, len(buffer) - 3)
            until = until or trio.current_time() + min(HEAD_SECONDS, self.keep_alive)
            data = await line.receive(until, idle=None)
            if data is None:
                return None
            if not data:
                # Half a head and then the end: Hypercorn closes such a connection as it always did.
                return 0
            buffer += data
        return end + 4 if end + 4 <= HEAD_MOST else 0

    def _given(self, head: bytes, heads: Heads, now: float) -> tuple[_Known, Asker, str, bytes] | None:
        """Return what a head is answered with that was answered before, to whom, by which id, and the body; None: ask for it."""
        first, _, lines = head.partition(VERSION)
        known = self._known.glance(first)
        asker = None if known is None else heads.asker(lines)
        if known is None or asker is None:
            return None
        made = new_id()
        body = known.again(asker, made, now)
        return None if body is None else (known, asker, made, body)

    async def _answer_again(
        self, line: Line, began: float, known: _Known, asker: Asker, made: str, body: bytes
    ) -> bool:
        """Answer one request as one before; return whether the connection may go on.

        As `_answer` does, in one go: in a machine that is busy otherwise each of a dozen calls takes a microsecond, not a tenth.
        """
        exchange = Exchange(made, known.method, known.path, asker.client, known.status, answered=known.outcome)
        sent = b"" if known.method == "HEAD" else body
        close = self._closes()
        whole = _head(known.lines, made, close=close) + sent
        try:
            if left := await line.send_soon(whole):
                await _Rest(line, self.patience).send(memoryview(whole)[-left:], exchange)
            exchange.sent, exchange.finished = len(sent), True
        except _GONE:
            exchange.client_left = True
        except Exception:
            exchange.failed = True
            raise
        finally:
            self._note(exchange, began)
        return exchange.finished and not close

    async def _answer(self, line: Line, began: float, head: Head) -> bool:
        """Answer one request; return whether the connection may go on."""
        request, lasting = head.request, None

        def at_once(asked: Request) -> Answer | None:
            nonlocal lasting
            lasting = self.at_once(asked)
            return None if lasting is None else lasting.answer

        exchange = Exchange(request.id, request.method, shown(request.path), request.client, client_id=head.client_id)
        wire = _Wire(line, exchange, self.patience, self._closes if head.keep_alive else _always)
        with tracing(exchange.trace):
            try:
                await respond(self.handler, lambda: request, wire, exchange, at_once=at_once)
            except _GONE:
                exchange.client_left = True
            except Exception:
                exchange.failed = True
                raise
            finally:
                self._note(exchange, began)
        if head.plain and lasting is not None:
            answer = lasting.answer
            lines = lines_of(answer, exchange.method)
            known = _Known(exchange.method, exchange.path, answer.status, lines, answer.outcome, lasting.again)
            self._known.keep(head.plain, known, 0.0)
        # A client that was not told that the connection ends may be sending its next request on it.
        return exchange.finished and not wire.close

    def _note(self, exchange: Exchange, began: float) -> None:
        seconds = trio.current_time() - began
        self.write(exchange, seconds)
        self.observe(exchange, seconds)


def _always() -> bool:
    return True


class _Wire:
    """Carries an answer as bytes: the head goes out with the first of the body, in one piece."""

    __slots__ = ("_closes", "_exchange", "_head", "_line", "_rest", "_status", "close")

    def __init__(self, line: Line, exchange: Exchange, patience: float, closes: Callable[[], bool]) -> None:
        self._line = line
        self._exchange = exchange
        self._rest = _Rest(line, patience)
        self._closes = closes
        self.close = False
        """Whether the client was told that the connection ends."""
        self._head = b""
        self._status = 0

    def begin(self, answer: Answer) -> None:
        """Make the head ready."""
        exchange, self.close, self._status = self._exchange, self._closes(), answer.status
        self._head = _head(lines_of(answer, exchange.method), exchange.id, close=self.close)

    async def send(self, data: Chunk, *, more: bool) -> None:
        """Send bytes of the body."""
        exchange = self._exchange
        # Pieces of a large blob are views, which nothing copies.
        whole = self._head + data if self._head else data
        exchange.status = self._status
        if whole:
            self._head = b""
            try:
                if left := await self._line.send_soon(whole):
                    await self._rest.send(memoryview(whole)[-left:], exchange)
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                raise ClientGone from error
        exchange.sent += len(data)
        exchange.finished = not more

    def sink(self, sent: Callable[[int], None]) -> AbstractContextManager[Sink | None]:
        """Open one to a plain socket; TLS has its state in the task."""
        return self._line.sink(sent) if isinstance(self._line, Direct) else nullcontext()


class _Rest:
    """Sends what a socket's buffer did not take, at the pace that its client has."""

    __slots__ = ("_line", "_pace", "_patience")

    def __init__(self, line: Line, patience: float) -> None:
        self._line = line
        self._patience = patience
        self._pace: Pace | None = None

    async def send(self, data: memoryview, exchange: Exchange) -> None:
        """Send a large piece of the exchange's answer. Raises ClientGone when the client takes it too slowly."""
        pace = self._pace = self._pace or Pace(self._patience)
        with tracing(exchange.trace), waiting("client"):
            while left := len(data):
                began = trio.current_time()
                with trio.move_on_after(pace.allowance(min(left, SLICE))) as scope:
                    left = await self._line.send_more(data)
                if scope.cancelled_caught:
                    raise ClientGone
                sent = len(data) - left
                pace.waited(trio.current_time() - began, sent)
                data = data[sent:]


def _head(lines: bytes, request_id: str, *, close: bool) -> bytes:
    ends = b"connection: close\r\n" if close else b""
    return b"%sx-request-id: %s\r\ndate: %s\r\n%s\r\n" % (lines, request_id.encode(), _date(), ends)


_dated: tuple[int, bytes] = (0, b"")


def _date() -> bytes:
    """Return the Date header's value, made once a second."""
    global _dated  # a memory of one value; formatting it costs more than the rest of a head
    now = int(time())
    if _dated[0] != now:
        _dated = now, formatdate(now, usegmt=True).encode()
    return _dated[1]
