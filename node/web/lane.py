"""The pull lane: answers what pulling clients ask straight from the socket, and hands every other connection to Hypercorn.

Hypercorn and ASGI cost a request 1 ms and more of the processor whatever the handler does; this loop costs a tenth of that. It
reads one head at a time, strictly (`heads.py`). What is not for it, or too large, goes to Hypercorn with every byte that was read:
it knows all the answers. There is no way back.

The handler is the same function that the ASGI edge calls, errors become answers in the same place, and one log line is written by
the same hand. `tests/edge/test_lane.py` compares the two edges.
"""

from collections.abc import Callable

import trio
from attrs import Factory, define, evolve, field, frozen

from engines.clock import trio_clock
from engines.trace import tracing
from node.answers import Again, Answer, Asker, ClientGone, Lasting, Request
from node.cache import Cache
from node.web.access import Exchange, Observe, Told, address_text, log_exchange, new_id, shown, told_again, unobserved
from node.web.adapter import Handler, respond
from node.web.direct import Bytes, Direct, Line, Scoped
from node.web.heads import VERSION, Head, Heads, Kept, NotHere
from node.web.outgoing import lines_of
from node.web.pace import PATIENCE
from node.web.proxies import NO_PROXIES, Proxies
from node.web.waits import HEAD_SECONDS, Socket, Waits
from node.web.wire import Rest, Wire, head_with

HEAD_MOST = 16 * 1024
KEEP_ALIVE = 75.0
"""As the listener's: a balancer must not reuse a connection that was just closed."""

_MOST_KNOWN = 1024
"""Answers that are given again: with what they were decided by 2 MiB."""

_GONE = (ClientGone, trio.BrokenResourceError, trio.ClosedResourceError)
_END = b"\r\n\r\n"
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
    write: Told
    """For those that go out at once, as nearly all do."""
    observe: Told

    def exchange(self, asker: Asker, made: str) -> Exchange:
        """Return the record of one that does not."""
        return Exchange(made, self.method, self.path, asker.client, self.status, answered=self.outcome)


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
    _now: Callable[[], float] = field(factory=trio_clock, init=False)

    async def run(self) -> None:
        """Close connections that wait too long, for ever."""
        await self.waits.run()

    async def serve(self, stream: Bytes | Socket, peer: str, proxies: Proxies = NO_PROXIES) -> bytes | None:
        """Answer pulls on a connection. Return the bytes with which Hypercorn goes on, or None when the connection is over.

        A socket must not block. Raises what the stream raises.
        """
        line = Direct(stream, self.waits) if isinstance(stream, Socket) else Scoped(stream, self.waits)
        heads, buffer = Heads(address_text(peer), proxies, self._kept), bytearray()
        idle: float | None = self._now()
        while idle is not None:
            # While it waits a connection holds nothing of what was asked and answered before: a body may be a manifest's.
            data = head = given = None
            raw = b""
            if buffer:
                # Whoever sends many requests at once must not keep the others waiting.
                await trio.lowlevel.checkpoint()
            elif data := await line.receive(idle + self.keep_alive, idle=idle):
                buffer += data
            else:
                return None
            end = buffer.find(_END) + len(_END)
            if not len(_END) <= end <= HEAD_MOST:
                whole = await self._read_on(line, buffer)
                if not whole:
                    return None if whole is None else bytes(buffer)
                end = whole
            raw = bytes(buffer if end == len(buffer) else buffer[:end])
            began = self._now()
            given = self._given(raw, heads, began)
            if given is not None:
                del buffer[:end]
                idle = await self._answer_again(line, began, *given)
                continue
            try:
                head = heads.read(raw)
            except NotHere:
                return bytes(buffer)
            del buffer[:end]
            idle = await self._answer(line, began, head)
        return None

    async def _read_on(self, line: Line, buffer: bytearray) -> int | None:
        """Read until the buffer begins with a whole head; return where that ends, 0 to hand over, None when the client is gone."""
        searched, until = 0, 0.0
        while (end := buffer.find(_END, searched)) < 0:
            if len(buffer) > HEAD_MOST or bytes(buffer[:4]) not in _BEGINNINGS:
                return 0
            searched = max(0, len(buffer) - 3)
            until = until or self._now() + min(HEAD_SECONDS, self.keep_alive)
            data = await line.receive(until, idle=None)
            if data is None:
                return None
            if not data:
                # Half a head and then the end: Hypercorn closes such a connection as it always did.
                return 0
            buffer += data
        return end + len(_END) if end + len(_END) <= HEAD_MOST else 0

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
    ) -> float | None:
        """Answer one request as one before; return since when the connection is idle, None when it is over.

        As `_answer` does, in one go: in a machine that is busy otherwise each of a dozen calls takes a microsecond, not a tenth.
        """
        sent = b"" if known.method == "HEAD" else body
        close = self.waits.stopping or self.draining()
        whole = head_with(known.lines, made, close=close) + sent
        left, gone = len(whole), False
        exchange: Exchange | None = None
        try:
            left = await line.send_soon(whole)
            if left:
                exchange = known.exchange(asker, made)
                await Rest(line, self.patience).send(memoryview(whole)[-left:], exchange)
                exchange.sent, exchange.finished = len(sent), True
        except _GONE:
            gone = True
        finally:
            if left:
                exchange = exchange or known.exchange(asker, made)
                exchange.client_left = gone
                ended = self._note(exchange, began)
            else:
                ended = self._now()
                known.write(made, asker.client, ended - began)
                known.observe(made, asker.client, ended - began)
        return None if close or gone else ended

    async def _answer(self, line: Line, began: float, head: Head) -> float | None:
        """Answer one request; return since when the connection is idle, None when it is over."""
        request, lasting = head.request, None

        def at_once(asked: Request) -> Answer | None:
            nonlocal lasting
            lasting = self.at_once(asked)
            return None if lasting is None else lasting.answer

        exchange = Exchange(request.id, request.method, shown(request.path), request.client, client_id=head.client_id)
        wire = Wire(
            line, exchange, self.patience, lambda: self.waits.stopping or self.draining() or not head.keep_alive
        )
        try:
            with tracing(exchange.trace):
                await respond(self.handler, lambda: request, wire, exchange, at_once=at_once)
        except _GONE:
            exchange.client_left = True
        except Exception:
            exchange.failed = True
            raise
        finally:
            ended = self._note(exchange, began)
        if head.plain and lasting is not None and exchange.finished:
            answer, like = lasting.answer, evolve(exchange, client_id="")
            lines, write, observe = (
                lines_of(answer, like.method),
                told_again(self.write, like),
                told_again(self.observe, like),
            )
            known = _Known(like.method, like.path, answer.status, lines, answer.outcome, lasting.again, write, observe)
            self._known.keep(head.plain, known, 0.0)
        # A client that was not told that the connection ends may be sending its next request on it.
        return ended if exchange.finished and not wire.close else None

    def _note(self, exchange: Exchange, began: float) -> float:
        """Say what became of an answer; return when that was."""
        ended = self._now()
        self.write(exchange, ended - began)
        self.observe(exchange, ended - began)
        return ended
