"""One log line per request, with what became of it; never headers, never a query.

Hypercorn's own access log copies every header into every line, and cannot say whether the client got all of an answer.
"""

import re
from collections.abc import Callable, Iterable
from enum import StrEnum
from random import getrandbits
from typing import Protocol, runtime_checkable

import structlog
import trio
from attrs import define, evolve, field

from engines.trace import Trace, tracing, waiting
from node.web.asgi import BODY, DISCONNECT, START, App, Message, Receive, Scope, Send

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger("antipode.access")

KEY = "antipode.exchange"
BELIEVED = "antipode.believed"
"""Whether a request's scope came from a listed proxy: `Origin.believed`."""
SANE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/+=-]{0,127}")
QUIET = re.compile(r"/(health|status|metrics|_internal_ping|v1/_internal_ping)(/|$)")
"""Load balancers and monitors ask these every few seconds: their good answers are logged at debug level."""


class Outcome(StrEnum):
    """What became of an answer, as far as this side can know."""

    COMPLETE = "complete"
    ABORTED = "aborted"
    """The client left before the end."""
    TRUNCATED = "truncated"
    """The node broke it off: a body failed half-way, or the node was stopped."""
    ERROR = "error"
    """The node failed: a 500, or no answer at all."""


@define
class Exchange:
    """What the access log learns about one request while it is answered."""

    id: str
    method: str
    path: str
    client: str
    status: int = 0
    sent: int = 0
    """Bytes of the body handed to the socket."""
    answered: str = ""
    """One word about how it was answered (`Answer.outcome`)."""
    client_id: str = ""
    """What its client calls it, where that is not its id."""
    failed: bool = False
    client_left: bool = False
    finished: bool = False
    _trace: Trace | None = field(default=None, init=False)

    @property
    def trace(self) -> Trace:
        """Return what the request waits for."""
        if self._trace is None:
            self._trace = Trace(self.id)
        return self._trace

    @property
    def outcome(self) -> Outcome:
        """Return what became of it, seen from the end."""
        if self.failed and (self.finished or not self.status):
            return Outcome.ERROR
        if self.finished:
            return Outcome.COMPLETE
        if self.client_left:
            return Outcome.ABORTED
        return Outcome.TRUNCATED

    def fields(self, seconds: float) -> dict[str, object]:
        """Return what its log line says; `seconds` is how long it took."""
        theirs = {"client_request_id": self.client_id} if self.client_id else {}
        return {
            "method": self.method,
            "path": self.path,
            "status": self.status,
            "sent": self.sent,
            "duration": round(seconds, 6),
            "outcome": str(self.outcome),
            "answered": self.answered,
            "request_id": self.id,
            "client": self.client,
            **theirs,
        }


def exchange_of(scope: Scope) -> Exchange:
    """Return the record of this request. `AccessLog` must stand outside of whoever asks."""
    exchange = scope[KEY]
    assert isinstance(exchange, Exchange)
    return exchange


Observe = Callable[[Exchange, float], None]
"""Told of every request that has ended, and how many seconds it took. Must not wait."""


def unobserved(_exchange: Exchange, _seconds: float) -> None:
    """Take no notice."""


Told = Callable[[str, str, float], None]
"""Told of a request that ended as another one did: its id, its client, and how many seconds it took. Must not wait."""


@runtime_checkable
class Repeating(Protocol):
    """An observer that has a shorter way for requests that end alike."""

    def again(self, exchange: Exchange) -> Told:
        """Return what is told of others that end as this one did, in place of the observer itself."""
        ...


def told_again(observe: Observe, exchange: Exchange) -> Told:
    """Return what tells `observe` of others that end as this one did: of each the same as if it were told itself."""
    observer: object = observe
    if isinstance(observer, Repeating):
        return observer.again(exchange)
    return lambda made, client, seconds: observe(evolve(exchange, id=made, client=client), seconds)


class AccessLog:
    """Give every request an id, put it and a draining node's `connection: close` on every answer, and log one line at the end."""

    def __init__(
        self,
        app: App,
        *,
        draining: Callable[[], bool] = lambda: False,
        observe: Observe = unobserved,
        write: Observe | None = None,
    ) -> None:
        self._app = app
        self._draining = draining
        self._observe = observe
        self._write = write or log_exchange

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application for one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        made, theirs = request_ids(scope["headers"], believed=scope.get(BELIEVED, False))
        exchange = Exchange(made, scope["method"], shown(scope["path"]), client_address(scope), client_id=theirs)
        scope[KEY] = exchange

        async def receive_noting() -> Message:
            message = await receive()
            if message["type"] == DISCONNECT and not exchange.finished:
                exchange.client_left = True
            return message

        async def send_noting(message: Message) -> None:
            if message["type"] == START:
                exchange.status = message["status"]
                extra = [(b"x-request-id", exchange.id.encode())]
                if self._draining():
                    extra.append((b"connection", b"close"))
                message = {**message, "headers": [*message.get("headers", ()), *extra]}
            with waiting("client"):
                await send(message)
            if message["type"] == BODY:
                if exchange.method != "HEAD":
                    exchange.sent += len(message.get("body", b""))
                exchange.finished = not message.get("more_body", False)

        began = trio.current_time()
        with tracing(exchange.trace):
            try:
                await self._app(scope, receive_noting, send_noting)
            except Exception:
                exchange.failed = True
                raise
            finally:
                seconds = trio.current_time() - began
                self._write(exchange, seconds)
                self._observe(exchange, seconds)


def request_ids(headers: Iterable[tuple[bytes, bytes]], *, believed: bool) -> tuple[str, str]:
    """Return a request's id, and what its client calls it where that is another, else "".

    The id is `X-Request-ID` where a listed proxy said so, else a new one: whoever could choose it could hide among the lines of
    others. An `X-Request-ID` that is not harmless in logs, headers and JSON is none.
    """
    for name, value in headers:
        text: str = value.decode("latin-1")
        if name == b"x-request-id" and SANE_ID.fullmatch(text):
            return (text, "") if believed else (new_id(), text)
    return new_id(), ""


def new_id() -> str:
    """Return an id for a request that nobody has given one."""
    # No secret, and the kernel's random bytes are a system call.
    return f"{getrandbits(64):016x}"


def client_address(scope: Scope) -> str:
    """Return the peer's address; an IPv4 peer of a dual-stack socket in its usual form."""
    peer = scope.get("client")
    return address_text(str(peer[0])) if peer else ""


def address_text(host: str) -> str:
    """Return an address in its usual form."""
    return host.removeprefix("::ffff:")


def shown(path: str) -> str:
    """Return a path as a log may show it."""
    return path if path.isprintable() else repr(path)


def level_of(exchange: Exchange) -> str:
    """Return "debug" for what nobody wants to read every second, else "info"."""
    # Pulls first: they are many, and never quiet.
    if exchange.path.startswith("/v2/") or not QUIET.match(exchange.path):
        return "info"
    return "debug" if exchange.outcome is Outcome.COMPLETE and exchange.status < 400 else "info"


def log_exchange(exchange: Exchange, seconds: float) -> None:
    """Write the one line about a request that has ended."""
    (log.debug if level_of(exchange) == "debug" else log.info)("request", **exchange.fields(seconds))
