"""The API over HTTP: routes made of the table, JSON out, problems (RFC 9457) for everything that goes wrong."""

import json
import re
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any, cast

import quart
from jsonschema import Draft202012Validator
from werkzeug.exceptions import HTTPException, MethodNotAllowed

from node.answers import Headers
from node.api.frame import PROBLEM_TYPE, Json, Problem, Wrong
from node.api.openapi import PREFIX, document, parameters_of
from node.api.operations import Call, Operation, Right
from node.api.paths import PATH_PARAMETERS
from node.api.table import OPERATIONS
from node.auth.model import Action, Identity
from node.config.values import show
from node.modes import Change, check_change
from node.names import check_name, namespace_of
from node.records.auditlog import Line
from node.registry import Registry
from node.web.access import client_address, exchange_of
from node.web.asgi import Scope
from node.web.cross_site import is_foreign
from node.web.failures import INTERNAL, answer_to
from node.web.identity import identity, require, require_namespace, require_superuser, require_user
from node.web.incoming import MOST_PARAMETERS

__all__ = ["PREFIX", "create_api", "failed"]

_NO_STORE = "no-store"
_MOST_WRONG = 20
_SECRET = frozenset({"password", "secret", "token"})
_MOST_KEPT = 4096
"""Bytes of a body that the audit log keeps."""
_ACTIONS: Mapping[Right, Action] = {
    Right.PULL: Action.PULL,
    Right.PUSH: Action.PUSH,
    Right.DELETE: Action.DELETE,
    Right.ADMIN: Action.ADMIN,
}


_WHOLE = "/repository/{name}"
_BELOW = [
    (operation.method, re.compile(".+" + re.sub(r"\{\w+\}", "[^/]+", operation.path.removeprefix(_WHOLE))))
    for operation in OPERATIONS
    if operation.path.startswith(f"{_WHOLE}/")
]
"""What is below a repository: a name that ends so means that, and not a repository."""


def create_api(registry: Registry) -> quart.Blueprint:
    """Return the routes below /api/v1 that are answered from a node's parts, and the document that describes them."""
    api = quart.Blueprint("api", __name__, url_prefix=PREFIX)
    described = document(OPERATIONS, version("antipode"))

    @api.get("/openapi.json")
    async def openapi() -> quart.Response:
        return _json(described)

    for operation in OPERATIONS:
        rule = operation.path
        for name in parameters_of(rule):
            rule = rule.replace(f"{{{name}}}", f"<path:{name}>" if name == "name" else f"<{name}>")
        api.add_url_rule(rule, operation.id, _view(registry, operation), methods=[operation.method])
    return api


def _view(registry: Registry, operation: Operation) -> Callable[..., Any]:
    fits = None if operation.body is None else Draft202012Validator(operation.body)

    async def view(**path: str) -> quart.Response:
        if operation.path == _WHOLE and (methods := _below(path["name"])):
            # DELETE of .../team/app/tag must not be taken for that of a repository team/app/tag.
            raise MethodNotAllowed(valid_methods=methods)
        if operation.method != "GET" and is_foreign(quart.request.headers):
            raise Problem(
                403, "a page of another site asks", "nothing here is changed by what other sites have browsers send"
            )
        for name, value in path.items():
            if not PATH_PARAMETERS[name].fits(value):
                raise Problem(404, f"no such {name}", f"{show(value[:80])} is none")
        who = await _admit(registry, operation, path)
        if operation.method != "GET" and not operation.always:
            check_change(registry.current(), Change.ADMINISTER)
        query = _query()
        call = Call(
            registry,
            who,
            path,
            operation.read_query(query),
            None if fits is None else await _body(fits),
            client_address(cast("Scope", quart.request.scope)),
        )
        if operation.waits:
            answered = await operation.handle(call)
        else:
            async with registry.gates.api.enter(registry.sharer(who.name, call.client)):
                answered = await operation.handle(call)
        if operation.method != "GET" and not operation.own_lines:
            await registry.auditlog.record(_line(registry, operation, call))
        return _json(answered, operation.status)

    return view


def _line(registry: Registry, operation: Operation, call: Call) -> Line:
    """Return the audit log's line about a change: everything of it but secrets."""
    repository = call.path.get("name")
    namespace = call.path.get("namespace")
    if repository is not None:
        namespace = namespace_of(repository, registry.settings.library_namespace)
    named = {name: value for name, value in call.path.items() if name not in ("name", "namespace")}
    detail = {**named, **_open(operation, call.body)}
    request = exchange_of(cast("Scope", quart.request.scope)).id
    return Line(operation.id, call.who.name, namespace, repository, detail, call.client, registry.instance, request)


def _open(operation: Operation, body: object) -> Mapping[str, object]:
    """Return what of a body may be kept: short, and not what its schema calls `writeOnly`."""
    if not isinstance(body, dict):
        return {}
    known = cast("Mapping[str, Json]", (operation.body or {}).get("properties", {}))
    kept = {
        name: value for name, value in body.items() if name not in _SECRET and not known.get(name, {}).get("writeOnly")
    }
    return kept if len(json.dumps(kept)) <= _MOST_KEPT else {"body": "too long to be kept"}


def _below(name: str) -> list[str]:
    """Return the methods of the operations below a repository that a name could be taken for."""
    return [method for method, pattern in _BELOW if pattern.fullmatch(name)]


async def _admit(registry: Registry, operation: Operation, path: Mapping[str, str]) -> Identity:
    """Return who asks, if they may. Raises RegistryError (401, 403, 429)."""
    if (action := _ACTIONS.get(operation.right)) is not None:
        return await require(registry, action, check_name(path["name"]))
    if operation.right is Right.NAMESPACE:
        return await require_namespace(registry, path["namespace"])
    if operation.right is Right.USER:
        return await require_user(registry)
    if operation.right is Right.SUPERUSER:
        return await require_superuser(registry)
    return await identity(registry)


async def _body(fits: Draft202012Validator) -> object:
    """Return the request's body, which fits its schema. Raises Problem (400) with everything that does not."""
    text = await quart.request.get_data()
    try:
        given = json.loads(text, parse_constant=_no_constant)
        wrong = [
            Wrong(_place(error.absolute_path), show(error.instance)[:80], error.message[:300])
            for error, _ in zip(fits.iter_errors(given), range(_MOST_WRONG), strict=False)
        ]
        if not wrong and not _sane_deep(given):
            wrong = [Wrong("body", "a control character", "leave it out")]
    except (ValueError, RecursionError) as error:
        # Whoever looks at what is nested goes deeper than the reader of JSON.
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise Problem(400, "a body that is not JSON", reason[:200]) from None
    if wrong:
        detail = "; ".join(f"{line.field}: {line.right}" for line in wrong)
        raise Problem(400, "a body that cannot be used", detail, wrong=tuple(wrong))
    return cast("object", given)


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")


def _place(path: Any) -> str:
    return ".".join(str(part) for part in path) or "body"


def _sane(text: str) -> bool:
    """Tell whether the database can keep a text: no NUL, no half of a surrogate pair."""
    return "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)


def _sane_deep(value: object) -> bool:
    if isinstance(value, str):
        return _sane(value)
    if isinstance(value, dict):
        return all(_sane(key) and _sane_deep(inner) for key, inner in value.items())
    return not isinstance(value, list) or all(map(_sane_deep, value))


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
    if len(given) > MOST_PARAMETERS:
        # Each would be compared with all that are known, and named in the answer.
        raise Problem(400, "parameters that cannot be used", f"more than {MOST_PARAMETERS} query parameters")
    found = {name: tuple(given.getlist(name)) for name in given}
    for name, values in found.items():
        if not _sane(name) or not all(map(_sane, values)):
            raise Problem(
                400, "parameters that cannot be used", wrong=(Wrong(show(name), "a control character", "leave it out"),)
            )
    return found


def _json(document: Json, status: int = 200) -> quart.Response:
    response = quart.jsonify(document)
    response.status_code = status
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
    kept = tuple((name, value) for name, value in answer.headers if name in ("retry-after", "www-authenticate"))
    return Problem(answer.status, entry["message"], headers=kept)
