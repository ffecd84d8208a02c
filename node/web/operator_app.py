"""What operators, load balancers and scripts ask, as a Quart application: health, status, ping; all answered from memory."""

import hmac
from collections.abc import Callable
from typing import cast

import quart
import trio
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException, MethodNotAllowed

from node import health
from node.answers import Answer, Headers
from node.errors import NOT_FOUND, Code, RegistryError
from node.health import HealthAnswer, HealthFacts, HealthSource
from node.web import api_app
from node.web.access import exchange_of
from node.web.asgi import Scope
from node.web.failures import INTERNAL, answer_to

MAXIMUM_BODY = 64 * 1024
"""Bytes of a request body. Quart keeps bodies in memory; nothing that it serves takes more."""

DEBUG_HEADER = "x-health-debug"
"""Carries ENABLE_HEALTH_DEBUG_SECRET; Quay keeps a session for it, which a probe does not have."""

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"

NO_CACHE = "no-cache, no-store, must-revalidate"


def create_operator_app(
    source: HealthSource,
    *,
    debug_secret: str | None = None,
    clock: Callable[[], float] = trio.current_time,
    metrics: Callable[[], bytes] | None = None,
    api: quart.Blueprint | None = None,
) -> QuartTrio:
    """Return the application. It must run inside `AccessLog`.

    `clock` is the clock of the facts' times; `metrics` returns everything in Prometheus' text form, without waiting; `api`
    are the routes below /api/v1 (`api_app.py`).
    """
    app = QuartTrio("antipode.operator")
    # Quart would end a slow client's answer after a minute without a word, and take 16 MiB of body.
    app.config.update(RESPONSE_TIMEOUT=None, MAX_CONTENT_LENGTH=MAXIMUM_BODY)
    app.url_map.strict_slashes = False
    # It would redirect `/a//b` to `/a/b` of whatever host the client names.
    app.url_map.merge_slashes = False

    def expanded() -> bool:
        given = quart.request.headers.get(DEBUG_HEADER, "")
        return debug_secret is not None and hmac.compare_digest(given.encode(), debug_secret.encode())

    def health_route(rules: tuple[str, ...], decide: Callable[[HealthFacts, float], HealthAnswer]) -> None:
        async def view() -> quart.Response:
            facts = source.facts()
            answer = decide(facts, clock())
            return _json(answer.body(expanded=expanded(), node=facts.node), answer.status)

        for rule in rules:
            app.add_url_rule(rule, endpoint=rule, view_func=view, methods=["GET"])

    health_route(("/health", "/health/instance"), health.instance)
    health_route(("/health/endtoend", "/status"), health.end_to_end)
    health_route(("/health/warning",), lambda facts, _now: health.warning(facts))

    @app.get("/api/v1/health/locations")
    async def locations() -> quart.Response:
        return _json(health.locations(source.facts(), clock(), expanded=expanded()), 200)

    @app.get("/_internal_ping")
    @app.get("/v1/_internal_ping")
    async def ping() -> quart.Response:
        return _json(True, 200)  # Quay's body: the JSON value true

    if metrics is not None:
        expose = metrics

        @app.get("/metrics")
        async def scrape() -> quart.Response:
            return quart.Response(expose(), headers={"content-type": METRICS_TYPE, "cache-control": NO_CACHE})

    if api is not None:
        app.register_blueprint(api)

    @app.errorhandler(RegistryError)
    @app.errorhandler(Exception)
    async def failed(error: Exception) -> quart.Response:
        return _failed(error)

    return app


def _failed(error: Exception) -> quart.Response:
    if quart.request.path.startswith(f"{api_app.PREFIX}/"):
        return api_app.failed(error)
    exchange = exchange_of(cast("Scope", quart.request.scope))
    if isinstance(error, HTTPException):
        error = _in_our_words(error)
    answer = answer_to(error, exchange.id)
    exchange.failed = answer.status == INTERNAL.status
    return _response(answer)


def _json(document: object, status: int) -> quart.Response:
    response = quart.jsonify(document)
    response.status_code = status
    response.headers["cache-control"] = NO_CACHE
    return response


def _response(answer: Answer) -> quart.Response:
    assert isinstance(answer.body, bytes)  # errors never stream
    return quart.Response(answer.body, answer.status, dict(answer.headers))


def _in_our_words(error: HTTPException) -> RegistryError:
    """Return the framework's error (no such route, wrong method, bad request) with the body that all errors here have."""
    if error.code == NOT_FOUND.status:
        return RegistryError(NOT_FOUND, quart.request.path)
    allowed: Headers = ()
    if isinstance(error, MethodNotAllowed) and error.valid_methods:
        allowed = (("allow", ", ".join(sorted(error.valid_methods))),)
    return RegistryError(Code("UNSUPPORTED", error.code or 500, error.description or error.name), headers=allowed)
