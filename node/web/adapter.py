"""The plain-ASGI edge of the registry: request facts in, an `Answer` out, and a watch on the client meanwhile."""

from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Self

import structlog
import trio

from node.answers import Answer, ClientGone, EmptyBody, Flowing, Request, Stream
from node.web.access import Exchange, exchange_of
from node.web.asgi import DISCONNECT, Receive, Scope, Send
from node.web.failures import INTERNAL, answer_to
from node.web.groups import EXPECTED, unwrap
from node.web.incoming import IncomingBody, body_of, request_from
from node.web.outgoing import AsgiCarrier, Carrier, Outlet, send_whole
from replication.flow import Sink

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger("antipode.edge")

Handler = Callable[[Request], Awaitable[Answer]]
"""What a registry is to the edge. It may raise RegistryError; anything else it raises is answered 500 and logged.

When the client leaves, the handler is cancelled, or gets ClientGone if it is waiting for the body just then: what must not be cut
in two is shielded, with a deadline. The body may be received until the handler returns, not by the stream that it returns.
"""

AtOnce = Callable[[Request], Answer | None]
"""Answers what need not be waited for; None: the handler answers. It may raise as a handler may."""


def never(_: Request) -> None:
    """Answer nothing at once."""


class Adapter:
    """An ASGI application (HTTP only) around a handler. Must run inside `AccessLog`, which has the request's record."""

    def __init__(self, handler: Handler, *, stall_deadline: float) -> None:
        """Take a handler, and the longest silence of a client in a body, in seconds."""
        self._handler = handler
        self._stall_deadline = stall_deadline

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request. Returns without the answer's last message where it broke off: the connection then closes."""
        exchange = exchange_of(scope)
        body = body_of(scope, receive, self._stall_deadline)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_watch, body, receive, nursery.cancel_scope)
            carrier = AsgiCarrier(exchange.method, send)
            await respond(self._handler, lambda: request_from(scope, body, exchange.id), carrier, exchange, body)
            nursery.cancel_scope.cancel(reason="the request is answered")


async def respond(
    handler: Handler,
    request: Callable[[], Request],
    carrier: Carrier,
    exchange: Exchange,
    body: IncomingBody | EmptyBody | None = None,
    at_once: AtOnce = never,
) -> None:
    """Ask the handler and send what it answers, or what its failure means, by whatever carries it.

    `at_once` is asked first: a pull from memory needs no coroutines in one another, of which three cost 2 us.
    """
    method = exchange.method
    try:
        asked = request()
        answer = at_once(asked)
        if answer is None:
            with unwrap():
                answer = await handler(asked)
        carrier.begin(answer)
    except ClientGone:
        exchange.client_left = True
        return
    except Exception as error:  # noqa: BLE001  # the one place where any error becomes an answer; it logs what is ours
        answer = _failure(error, exchange, carrier)
    if isinstance(body, IncomingBody):
        body.over.set()
    exchange.answered = answer.outcome
    if isinstance(answer.body, Stream) and method != "HEAD":
        await _stream(answer.body, Outlet(answer.body.length, exchange, carrier), exchange, carrier)
    else:
        await send_whole(answer, method, carrier)


async def _stream(stream: Stream, outlet: Outlet, exchange: Exchange, carrier: Carrier) -> None:
    try:
        # The sink outlives the source, whose thread writes to it.
        with unwrap(), _Beside(carrier, outlet) as beside:
            async with stream.open() as chunks:
                flowing = chunks if isinstance(chunks, Flowing) else None
                async for chunk in chunks:
                    await outlet.put(chunk)
                    if flowing is not None and (sink := beside.sink()) is not None:
                        # The head has gone with the first chunk.
                        flowing.flow_into(sink)
            await outlet.finish()
    except ClientGone:
        exchange.client_left = True
    except Exception as error:
        if not outlet.started:
            answer = _failure(error, exchange, carrier)
            exchange.answered = answer.outcome
            await send_whole(answer, exchange.method, carrier)
        elif isinstance(error, EXPECTED):
            log.warning("answer broken off", path=exchange.path, sent=exchange.sent, error=repr(error))
        else:
            log.exception("answer broken off", path=exchange.path, sent=exchange.sent, exc_info=error)


class _Beside:
    """A sink, opened when it is first asked for: it is a file, and a thousand answers may wait for a store that never use one."""

    __slots__ = ("_carrier", "_opened", "_outlet", "_sink")

    def __init__(self, carrier: Carrier, outlet: Outlet) -> None:
        self._carrier = carrier
        self._outlet = outlet
        self._opened: AbstractContextManager[Sink | None] | None = None
        self._sink: Sink | None = None

    def __enter__(self) -> Self:
        """Begin."""
        return self

    def sink(self) -> Sink | None:
        """Return it; None where the carrier has none, or no more files may be open."""
        if self._opened is None:
            opened = self._carrier.sink(self._outlet.passed)
            try:
                self._sink = opened.__enter__()
            except OSError:
                opened = nullcontext()
            self._opened = opened
        return self._sink

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close it, if it was opened."""
        if self._opened is not None:
            self._opened.__exit__(kind, error, traceback)


def _failure(error: Exception, exchange: Exchange, carrier: Carrier) -> Answer:
    answer = answer_to(error, exchange.id)
    exchange.failed = answer.status == INTERNAL.status
    carrier.begin(answer)
    return answer


async def _watch(body: IncomingBody | EmptyBody, receive: Receive, scope: trio.CancelScope) -> None:
    """Cancel the work when the client leaves. While the handler receives the body, it is the one who finds out."""
    if isinstance(body, IncomingBody):
        await body.over.wait()
    while (await receive())["type"] != DISCONNECT:
        pass
    scope.cancel(reason="the client left")
