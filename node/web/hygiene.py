"""The outermost ASGI wrapper: it makes Hypercorn's connections close, their idle timers fire and early answers drain.

Two defects of hypercorn 0.18 with quart-trio 0.12 are worked around here (`tests/edge/test_hygiene.py` shows both; when they are
mended upstream this file goes):

1. Hypercorn announces `http.disconnect` while the application is still inside its final `send()`. quart-trio cancels that
   `send()`, and so the connection is neither recycled nor closed, for ever. Here the announcement waits until the final `send()`
   has returned.
2. When the application answers before it has read the request body, Hypercorn blocks on its own full body queue, for ever. Here
   the rest of the body is read and thrown away. The answer's last byte is already out then; for `linger` seconds the connection
   stays, so that a client that is still sending reads the answer instead of a reset (RFC 9112, 9.6).
"""

import trio

from node.web.asgi import BODY, DISCONNECT, App, Message, Receive, Scope, Send
from node.web.groups import unwrap

LINGER = 5.0
"""Seconds that a client may go on sending a body that nobody wants. nginx: lingering_timeout."""


class Hygiene:
    """Wrap an application. Only HTTP/1.1 has been tried: one request at a time per connection."""

    def __init__(self, app: App, *, linger: float = LINGER) -> None:
        self._app = app
        self._linger = linger

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application for one connection scope."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        with unwrap():
            async with trio.open_nursery() as nursery:
                exchange = _Exchange(receive, send, nursery, self._linger)
                try:
                    await self._app(scope, exchange.receive, exchange.send)
                finally:
                    await exchange.end()
                nursery.cancel_scope.cancel(reason="the application has answered")


class _Exchange:
    """One request and its answer, between the application and Hypercorn."""

    def __init__(self, receive: Receive, send: Send, nursery: trio.Nursery, linger: float) -> None:
        self._receive = receive
        self._send = send
        self._nursery = nursery
        self._linger = linger
        self._body_over = trio.Event()
        self._finishing = False
        self._finished = trio.Event()

    async def receive(self) -> Message:
        message = await self._next()
        if message["type"] == DISCONNECT and self._finishing:
            await self._finished.wait()
        return message

    async def send(self, message: Message) -> None:
        if message["type"] != BODY or message.get("more_body", False):
            await self._send(message)
            return
        self._finishing = True
        try:
            if not self._body_over.is_set():
                self._nursery.start_soon(self._drain)
                if message.get("body"):
                    await self._send({**message, "more_body": True})
                with trio.move_on_after(self._linger):
                    await self._body_over.wait()
                message = {"type": BODY, "body": b"", "more_body": False}
            await self._send(message)
        finally:
            self._finished.set()

    async def end(self) -> None:
        """Let Hypercorn close when the application gave up without an answer's end and part of the body is still queued."""
        if not self._finishing and not self._body_over.is_set():
            self._nursery.start_soon(self._drain)
            # Hypercorn's own word for "the application has ended"; it says so itself too, but only when nobody drains any more.
            await self._send(None)  # type: ignore[arg-type]  # not ASGI

    async def _next(self) -> Message:
        message = await self._receive()
        if message["type"] == DISCONNECT or not message.get("more_body", False):
            self._body_over.set()
        return message

    async def _drain(self) -> None:
        while (await self._next())["type"] != DISCONNECT:
            pass
