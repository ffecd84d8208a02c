"""The one ASGI application of a node: hygiene and access log outside, the registry under /v2, the operators' part beside it."""

from collections.abc import Callable
from typing import cast

from quart import Blueprint

from node.config.settings import Settings
from node.errors import UNAVAILABLE, Code, RegistryError
from node.health import HealthSource
from node.metrics import Metrics
from node.web.access import BELIEVED, AccessLog, Observe, address_text, exchange_of, unobserved
from node.web.adapter import Adapter, Handler
from node.web.asgi import App, Receive, Scope, Send
from node.web.failures import answer_to
from node.web.hygiene import LINGER, Hygiene
from node.web.incoming import origin_form
from node.web.operator_app import create_operator_app
from node.web.outgoing import AsgiCarrier, send_whole
from node.web.proxies import Proxies
from node.web.slow import SlowRequests

BEYOND_LIMIT = "antipode.beyond_limit"
"""Key of the ASGI state of a connection that is one too many: it serves health checks and tells everybody else to come back."""

_ALWAYS = (b"/health", b"/status", b"/metrics", b"/_internal_ping", b"/v1/_internal_ping")
_NO_METHOD = Code("UNSUPPORTED", 501, "the operation is unsupported")
_BUSY = {"reason": "this node has as many connections as it may (MAXIMUM_CONNECTIONS)"}
_RETRY_AFTER_BUSY = 5
"""Seconds. Long enough for a pull to end and free a connection."""


def create_app(
    registry: Handler,
    health: HealthSource,
    settings: Settings,
    *,
    api: Blueprint | None = None,
    draining: Callable[[], bool] = lambda: False,
    linger: float = LINGER,
    metrics: Metrics | None = None,
    write: Observe | None = None,
) -> App:
    """Return the application that `listener.serve` serves.

    `registry` answers `/v2` and everything below it; `api` has the routes below /api/v1; `health` answers the rest. While
    `draining()` every answer says `connection: close`, so that clients with a kept connection go elsewhere before the listener
    closes. `linger`: see `hygiene.py`, seconds.
    `metrics` counts all requests, and answers /metrics; `write` writes their log lines (None: as all others).
    """
    adapter = Adapter(registry, stall_deadline=settings.stall_deadline)
    operator = create_operator_app(
        health, api=api, debug_secret=settings.debug_secret, metrics=None if metrics is None else metrics.expose
    )
    router = Router(adapter, cast("App", operator))
    observe = SlowRequests(settings.slow_request, unobserved if metrics is None else metrics)
    logged = AccessLog(router, draining=draining, observe=observe, write=write)
    return Hygiene(Proxied(logged, Proxies(settings.edge.trusted_proxies)), linger=linger)


class Proxied:
    """Lets an application see each request as its client sent it to the first listed proxy."""

    def __init__(self, app: App, proxies: Proxies) -> None:
        self._app = app
        self._proxies = proxies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] == "http" and scope.get("client"):
            peer, port = scope["client"]
            origin = self._proxies.origin(address_text(peer), scope["headers"])
            scheme = origin.scheme or scope["scheme"]
            told = {"client": (origin.client, port), "headers": origin.headers, "scheme": scheme}
            scope = {**scope, **told, BELIEVED: origin.believed}
        await self._app(scope, receive, send)


class Router:
    """Sends a request to the registry or to the operators' application, by its path as it came."""

    def __init__(self, registry: App, operator: App) -> None:
        self._registry = registry
        self._operator = operator

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        try:
            _check_method(scope["method"])
            path = origin_form(scope["raw_path"])
        except RegistryError as error:
            await _refuse(error, scope, send)
            return
        if scope.get("state", {}).get(BEYOND_LIMIT) and not path.startswith(_ALWAYS):
            close = (("connection", "close"),)
            await _refuse(RegistryError(UNAVAILABLE, _BUSY, headers=close, retry_after=_RETRY_AFTER_BUSY), scope, send)
            return
        inner = self._registry if path == b"/v2" or path.startswith(b"/v2/") else self._operator
        await inner(scope, receive, send)


def _check_method(method: str) -> None:
    # Frameworks take `head` for HEAD, and leave out the body that a client waits for who knows that they differ (RFC 9110, 9.1).
    if not method.isupper():
        raise RegistryError(_NO_METHOD, {"method": method[:80], "reason": "methods are written in capital letters"})


async def _refuse(error: RegistryError, scope: Scope, send: Send) -> None:
    exchange = exchange_of(scope)
    answer = answer_to(error, exchange.id)
    exchange.answered = answer.outcome
    carrier = AsgiCarrier(exchange.method, send)
    carrier.begin(answer)
    await send_whole(answer, exchange.method, carrier)
