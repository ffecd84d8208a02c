"""Rules about a robot's tokens that its owners make by the API: who may, which issuers, and that they count at once."""

import json
from typing import Any

import httpx
import pytest

from node.api.openapi import PREFIX
from node.records.robot_federation import MOST
from tests.api.test_rights import app_of
from tests.auth.people import HOST, ROLES, Person, bearing
from tests.auth.provider import Provider, provider
from tests.auth.test_federation import federated
from tests.registry.world import MakeWorld, Region

__all__ = ["provider"]
ROBOT = "private+reader"
PATH = f"{PREFIX}/namespace/private/robot/reader/federation"
SUBJECT = "repo:team/app:*"


async def ask(region: Region, who: str, method: str, path: str = PATH, **body: Any) -> httpx.Response:
    person = ROLES[who]
    async with httpx.AsyncClient(transport=app_of(region), base_url="http://registry.test") as http:
        content = json.dumps(body) if method == "POST" else None
        return await http.request(method, path, content=content, headers=person.basic if person else {})


async def status(region: Region, token: str) -> int:
    return (await region.ask("GET", "/v2/auth", headers=Person(ROBOT, token).basic)).status


async def test_a_rule_of_the_owners(world: MakeWorld, provider: Provider) -> None:
    """Who administers the namespace makes a rule, which counts at once, and ends it, which ends what was issued by it."""
    us = await federated(world, provider, federation=(), federation_issuers=(provider.url,))
    token = await provider.token("repo:team/app:main", HOST)
    assert await status(us, token) == 401
    for who, expected in (("stranger", 403), ("reader", 403), ("robot that may read", 403), ("nobody", 401)):
        assert (await ask(us, who, "POST", issuer=provider.url, subject=SUBJECT)).status_code == expected, who
    made = await ask(us, "organisation's admin", "POST", issuer=provider.url, subject=SUBJECT)
    assert made.status_code == 200, made.text
    rule = made.json()
    assert (rule["audience"], rule["counts"]) == (HOST, True)
    again = await ask(us, "organisation's admin", "POST", issuer=provider.url, subject=SUBJECT)
    assert again.json()["id"] == rule["id"]
    bought = await us.ask("GET", "/v2/auth?scope=repository:private/app:pull", headers=Person(ROBOT, token).basic)
    assert bought.status == 200
    shown = bearing(bought.json["token"])
    assert (await us.ask("GET", "/v2/private/app/tags/list", headers=shown)).status == 200
    assert (await ask(us, "organisation's admin", "GET")).json()["rules"] == [rule]
    gone = await ask(us, "organisation's admin", "DELETE", f"{PATH}/{rule['id']}")
    assert gone.json() == {"id": rule["id"], "deleted": True}
    assert (await ask(us, "organisation's admin", "DELETE", f"{PATH}/{rule['id']}")).status_code == 404
    await us.node.access.open()
    assert await status(us, token) == 401
    assert (await us.ask("GET", "/v2/private/app/tags/list", headers=shown)).status == 401


async def test_issuers_that_are_not_allowed(world: MakeWorld, provider: Provider) -> None:
    """Nobody names an issuer that the operator has not; one that is taken from the list ends its rules on nodes that know it."""
    us = await federated(world, provider, federation=(), federation_issuers=(provider.url,))
    other = await ask(us, "organisation's admin", "POST", issuer="https://evil.test", subject=SUBJECT)
    assert (other.status_code, "ROBOT_FEDERATION_ISSUERS" in other.json()["detail"]) == (403, True)
    assert (await ask(us, "organisation's admin", "POST", issuer=provider.url, subject=SUBJECT)).status_code == 200
    (without,) = await world(
        "us", open_registry=False, secret_key="a secret key for tests", authorities=provider.authorities
    )
    await without.node.access.open()
    assert await status(without, await provider.token("repo:team/app:main", HOST)) == 401
    (rule,) = (await ask(without, "organisation's admin", "GET")).json()["rules"]
    assert rule["counts"] is False


@pytest.mark.parametrize(
    ("field", "body"),
    [
        ("issuer", {"issuer": "http://i.test"}),
        ("issuer", {"issuer": "https://[i"}),
        ("subject", {"subject": "*"}),
        ("subject", {"subject": "repo:*"}),
    ],
)
async def test_rules_that_cannot_be_used(
    world: MakeWorld, provider: Provider, field: str, body: dict[str, str]
) -> None:
    """A rule is refused for what ROBOT_FEDERATION's are."""
    us = await federated(world, provider, federation_issuers=(provider.url,))
    given = {"issuer": provider.url, "subject": SUBJECT, **body}
    answer = await ask(us, "organisation's admin", "POST", **given)
    assert (answer.status_code, [line["field"] for line in answer.json()["errors"]]) == (400, [field])


async def test_how_many(world: MakeWorld, provider: Provider) -> None:
    """A robot has so many rules and no more; those of the configuration are listed without an id; other robots have none."""
    us = await federated(world, provider, federation_issuers=(provider.url,))
    for number in range(MOST + 1):
        made = await ask(us, "organisation's admin", "POST", issuer=provider.url, subject=f"{SUBJECT}{number}")
        assert made.status_code == (200 if number < MOST else 409)
    writer = PATH.replace("reader", "writer")
    (configured,) = (await ask(us, "organisation's admin", "GET", writer)).json()["rules"]
    assert (configured["id"], configured["subject"]) == (None, SUBJECT)
    assert (await ask(us, "organisation's admin", "GET", PATH.replace("reader", "none"))).status_code == 404
