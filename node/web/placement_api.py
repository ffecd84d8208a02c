"""The API's routes for placement: debt, risk, residency, policies and locations."""

from collections.abc import Callable

import quart

from node.api.debts import replication_risk, replication_status, residency, stalled_copies
from node.api.frame import Json, Parameters, Problem, parse_flag
from node.api.locations import change_location, get_locations
from node.api.policies import Request, get_policies, get_policy, set_policy
from node.config_values import Unfit
from node.records.postgres import Database
from node.registry import Registry

_MOST = 1000


def create_placement_api(registry: Registry) -> quart.Blueprint:
    """Return the routes; their paths begin where the API's do."""
    api = quart.Blueprint("placement", __name__)
    _add_debts(api, registry.database)
    _add_policies(api, registry)
    _add_locations(api, registry)
    return api


def _add_debts(api: quart.Blueprint, database: Database) -> None:
    @api.get("/replication/status")
    async def status() -> quart.Response:
        _parameters().check()
        return _json(await replication_status(database))

    @api.get("/replication/stalled")
    async def stalled() -> quart.Response:
        given = _parameters()
        location, limit = given.optional("location", str, ""), given.optional("limit", _count(1), 100)
        given.check()
        return _json(await stalled_copies(database, location or None, limit))

    @api.get("/replication/risk")
    async def risk() -> quart.Response:
        given = _parameters()
        location, limit = given.optional("location", str, ""), given.optional("limit", _count(0), 20)
        given.check()
        return _json(await replication_risk(database, location or None, limit))

    @api.get("/replication/residency/<name>")
    async def residency_of(name: str) -> quart.Response:
        given = _parameters()
        after = given.optional("after", _pair, (0, 0))
        given.check()
        return _json(await residency(database, name, after))


def _add_policies(api: quart.Blueprint, registry: Registry) -> None:
    database, publish, replicate = registry.database, registry.hints.publish, registry.settings.replicate

    @api.get("/policy")
    async def policies() -> quart.Response:
        return _json(await get_policies(database))

    @api.get("/namespace/<namespace>/policy")
    async def policy(namespace: str) -> quart.Response:
        return _json(await get_policy(database, namespace))

    @api.put("/namespace/<namespace>/policy")
    async def policy_set(namespace: str) -> quart.Response:
        document = await quart.request.get_json(force=True, silent=True)
        if document is None:
            raise Problem(400, "no policy", "the body must be a JSON object; DELETE takes a policy away")
        return _json(await _change(namespace, document))

    @api.delete("/namespace/<namespace>/policy")
    async def policy_delete(namespace: str) -> quart.Response:
        return _json(await _change(namespace, None))

    async def _change(namespace: str, document: object | None) -> Json:
        given = _parameters()
        dry_run = given.optional("dry_run", parse_flag, False)
        expected = given.optional("version", _count(0, 1 << 62), -1)
        given.check()
        request = Request(namespace, document, dry_run, None if expected < 0 else expected)
        return await set_policy(database, publish, request, replicate=replicate)


def _add_locations(api: quart.Blueprint, registry: Registry) -> None:
    database, publish = registry.database, registry.hints.publish

    @api.get("/location")
    async def locations() -> quart.Response:
        return _json(await get_locations(database))

    @api.put("/location/<name>/state")
    async def location_state(name: str) -> quart.Response:
        body = await quart.request.get_json(force=True, silent=True)
        wanted = body.get("state") if isinstance(body, dict) else None
        if not isinstance(wanted, str):
            raise Problem(400, "no state", 'the body must be a JSON object such as {"state": "draining"}')
        return _json(await change_location(database, publish, name, wanted))


def _parameters() -> Parameters:
    given = quart.request.args
    return Parameters({name: tuple(given.getlist(name)) for name in given})


def _count(least: int, most: int = _MOST) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not (text.isascii() and text.isdigit()) or not least <= int(text) <= most:
            raise Unfit(f"write a whole number from {least} to {most}")
        return int(text)

    return read


def _pair(text: str) -> tuple[int, int]:
    first, comma, second = text.partition(",")
    if not (comma and first.isdigit() and second.isdigit()):
        raise Unfit("write the two numbers of `next`, with a comma between them")
    return int(first), int(second)


def _json(document: Json) -> quart.Response:
    response = quart.jsonify(document)
    response.headers["cache-control"] = "no-store"
    return response
