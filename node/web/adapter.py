"""The plain-ASGI edge of the registry: request facts in, an `Answer` out, and a watch on the client meanwhile."""

from collections.abc import Awaitable, Callable

import structlog
import trio

from node.answers import Answer, ClientGone, EmptyBody, Request, Stream
from node.web.access import Exchange, exchange_of
from node.web.asgi import DISCONNECT, Message, Receive, Scope, Send
from node.web.failures import INTERNAL, answer_to
from node.web.groups import EXPECTED, unwrap
from node.web.incoming import IncomingBody, body_of, request_from
from node.web.outgoing import Outlet, head_of, send_whole

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger("antipode.edge")

Handler = Callable[[Request], Awaitable[Answer]]
"""What a registry is to the edge. It may raise RegistryError; anything else it raises is answered 500 and logged.

When the client leaves, the handler is cancelled, or gets ClientGone if it is waiting for the body just then: what must not be cut
in two is shielded, with a deadline. The body may be received until the handler returns, not by the stream that it returns.
"""


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
            await respond(self._handler, lambda: request_from(scope, body, exchange.id), send, exchange, body)
            nursery.cancel_scope.cancel(reason="the request is answered")


async def respond(
    handler: Handler,
    request: Callable[[], Request],
    send: Send,
    exchange: Exchange,
    body: IncomingBody | EmptyBody | None = None,
) -> None:
    """Ask the handler and send what it answers, or what its failure means. `send` takes ASGI messages, whatever carries them."""
    method = exchange.method
    try:
        with unwrap():
            answer = await handler(request())
        head = head_of(answer, method)
    except ClientGone:
        exchange.client_left = True
        return
    except Exception as error:  # noqa: BLE001  # the one place where any error becomes an answer; it logs what is ours
        answer, head = _failure(error, exchange)
    if isinstance(body, IncomingBody):
        body.over.set()
    exchange.answered = answer.outcome
    if isinstance(answer.body, Stream) and method != "HEAD":
        await _stream(answer.body, Outlet(head, answer.body.length, exchange, send), exchange, send)
    else:
        await send_whole(answer, method, head, send)


async def _stream(stream: Stream, outlet: Outlet, exchange: Exchange, send: Send) -> None:
    try:
        with unwrap():
            async with stream.open() as chunks:
                async for chunk in chunks:
                    await outlet.put(chunk)
            await outlet.finish()
    except ClientGone:
        exchange.client_left = True
    except Exception as error:
        if not outlet.started:
            answer, head = _failure(error, exchange)
            exchange.answered = answer.outcome
            await send_whole(answer, exchange.method, head, send)
        elif isinstance(error, EXPECTED):
            log.warning("answer broken off", path=exchange.path, sent=exchange.sent, error=repr(error))
        else:
            log.exception("answer broken off", path=exchange.path, sent=exchange.sent, exc_info=error)


def _failure(error: Exception, exchange: Exchange) -> tuple[Answer, Message]:
    answer = answer_to(error, exchange.id)
    exchange.failed = answer.status == INTERNAL.status
    return answer, head_of(answer, exchange.method)


async def _watch(body: IncomingBody | EmptyBody, receive: Receive, scope: trio.CancelScope) -> None:
    """Cancel the work when the client leaves. While the handler receives the body, it is the one who finds out."""
    if isinstance(body, IncomingBody):
        await body.over.wait()
    while (await receive())["type"] != DISCONNECT:
        pass
    scope.cancel(reason="the client left")
