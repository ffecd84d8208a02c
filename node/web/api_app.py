"""The API over HTTP: paths to the functions of `node/api`, JSON out, problems (RFC 9457) for everything that goes wrong."""

import json
from typing import cast

import quart
from werkzeug.exceptions import HTTPException, MethodNotAllowed

from node.answers import Headers
from node.api.frame import PROBLEM_TYPE, Json, Problem
from node.api.replication import replication_of
from node.api.tags import (
    Means,
    expiration_of,
    history_of,
    remove_namespace,
    remove_repository,
    restore_tag,
    set_expiration,
)
from node.registry import Registry
from node.web.access import exchange_of
from node.web.asgi import Scope
from node.web.failures import INTERNAL, answer_to
from node.web.placement_api import create_placement_api

PREFIX = "/api/v1"
_NO_STORE = "no-store"


def create_api(registry: Registry) -> quart.Blueprint:
    """Return the routes below /api/v1 that are answered from a node's parts. Names of repositories may have slashes."""
    api = quart.Blueprint("api", __name__, url_prefix=PREFIX)

    @api.get("/repository/<path:name>/manifest/<reference>/replication")
    async def replication(name: str, reference: str) -> quart.Response:
        return _json(await replication_of(registry, name, reference, _query()))

    means = Means(registry.database, registry.settings, registry.hints.publish)

    @api.get("/repository/<path:name>/tag/<tag>/history")
    async def tag_history(name: str, tag: str) -> quart.Response:
        return _json(await history_of(means, name, tag, _query()))

    @api.post("/repository/<path:name>/tag/<tag>/restore")
    async def tag_restore(name: str, tag: str) -> quart.Response:
        return _json(await restore_tag(means, name, tag, await quart.request.get_json(force=True, silent=True)))

    @api.delete("/repository/<path:name>")
    async def repository_delete(name: str) -> quart.Response:
        return _json(await remove_repository(means, name))

    @api.delete("/namespace/<namespace>")
    async def namespace_delete(namespace: str) -> quart.Response:
        return _json(await remove_namespace(means, namespace))

    @api.get("/namespace/<namespace>/tag-expiration")
    async def expiration(namespace: str) -> quart.Response:
        return _json(await expiration_of(means, namespace))

    @api.put("/namespace/<namespace>/tag-expiration")
    async def expiration_set(namespace: str) -> quart.Response:
        body = await quart.request.get_json(force=True, silent=True)
        return _json(await set_expiration(means, namespace, body))

    api.register_blueprint(create_placement_api(registry))
    return api


def failed(error: Exception) -> quart.Response:
    """Return the problem document of an error in a request of the API, and log what is not the client's doing."""
    exchange = exchange_of(cast("Scope", quart.request.scope))
    problem = error if isinstance(error, Problem) else _problem(error, exchange.id)
    exchange.failed = problem.status == INTERNAL.status
    response = quart.Response(
        json.dumps(problem.document(exchange.id)), problem.status, dict(problem.headers), content_type=PROBLEM_TYPE
    )
    response.headers["cache-control"] = _NO_STORE
    return response


def _query() -> dict[str, tuple[str, ...]]:
    given = quart.request.args
    return {name: tuple(given.getlist(name)) for name in given}


def _json(document: Json) -> quart.Response:
    response = quart.jsonify(document)
    response.headers["cache-control"] = _NO_STORE
    return response


def _problem(error: Exception, request_id: str) -> Problem:
    """Return what the framework, or a part that is out of reach, raised as a problem."""
    if isinstance(error, HTTPException):
        allowed: Headers = ()
        if isinstance(error, MethodNotAllowed) and error.valid_methods:
            allowed = (("allow", ", ".join(sorted(error.valid_methods))),)
        detail = f"nothing answers {quart.request.path[:300]}" if error.code == 404 else error.description or ""
        return Problem(error.code or 500, error.name, detail, headers=allowed)
    answer = answer_to(error, request_id)
    assert isinstance(answer.body, bytes)  # errors never stream
    entry = json.loads(answer.body)["errors"][0]
    kept = tuple((name, value) for name, value in answer.headers if name == "retry-after")
    return Problem(answer.status, entry["message"], headers=kept)
