"""How the lane's answers go out: the head with the first of the body, and what a socket does not take at its client's pace."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from email.utils import formatdate
from time import time

import trio

from engines.trace import tracing, waiting
from node.answers import Answer, Chunk, ClientGone
from node.web.access import Exchange
from node.web.direct import SLICE, Direct, Line
from node.web.outgoing import lines_of
from node.web.pace import Pace
from replication.flow import Sink


class Wire:
    """Carries an answer as bytes: the head goes out with the first of the body, in one piece."""

    __slots__ = ("_closes", "_exchange", "_head", "_line", "_rest", "_status", "close")

    def __init__(self, line: Line, exchange: Exchange, patience: float, closes: Callable[[], bool]) -> None:
        self._line = line
        self._exchange = exchange
        self._rest = Rest(line, patience)
        self._closes = closes
        self.close = False
        """Whether the client was told that the connection ends."""
        self._head = b""
        self._status = 0

    def begin(self, answer: Answer) -> None:
        """Make the head ready."""
        exchange, self.close, self._status = self._exchange, self._closes(), answer.status
        self._head = head_with(lines_of(answer, exchange.method), exchange.id, close=self.close)

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


class Rest:
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


def head_with(lines: bytes, request_id: str, *, close: bool) -> bytes:
    """Return a whole head whose first lines are these."""
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
