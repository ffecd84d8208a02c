"""The API asks who it is: every operation of the table, asked by everybody, over the application itself."""

import re
from collections.abc import Mapping

import httpx
import pytest
from quart_trio import QuartTrio

from node.api.openapi import PREFIX
from node.api.operations import Operation, Right
from node.api.table import OPERATIONS
from node.auth.model import Role
from node.records.permissions import Grantee, set_permission
from node.web.access import AccessLog
from node.web.api_app import create_api, failed
from tests.auth.people import ROLES, Person, bearing, settled, token_for
from tests.auth.test_table import BLOB, filled
from tests.registry.world import MakeWorld, Region, digest_of

MAY: Mapping[Right, frozenset[str]] = {
    Right.PULL: frozenset({"reader", "writer", "admin", "organisation's admin"}),
    Right.PUSH: frozenset({"writer", "admin", "organisation's admin"}),
    Right.DELETE: frozenset({"writer", "admin", "organisation's admin"}),
    Right.ADMIN: frozenset({"admin", "organisation's admin"}),
    Right.NAMESPACE: frozenset({"organisation's admin", "superuser"}),
    Right.USER: frozenset({"stranger", "reader", "writer", "admin", "organisation's admin", "superuser"}),
    Right.SUPERUSER: frozenset({"superuser"}),
}
"""Who may ask what, on private/app and in private."""

PEOPLE = ("nobody", "stranger", "reader", "writer", "admin", "organisation's admin", "superuser")
_PATHS = {"name": "private/app", "namespace": "private", "default": "0", "token": "0" * 36, "rule": "0"}


def app_of(region: Region) -> httpx.ASGITransport:
    app = QuartTrio("test")
    app.register_blueprint(create_api(region.registry))
    app.register_error_handler(Exception, failed)
    return httpx.ASGITransport(AccessLog(app, draining=lambda: False))  # type: ignore[arg-type]


def harmless(operation: Operation) -> str:
    """Return a path that is right for the gate, and names nothing behind it."""
    return PREFIX + re.sub(r"\{(\w+)\}", lambda found: _PATHS.get(found[1], "zzz"), operation.path)


async def test_every_operation_by_everybody(world: MakeWorld) -> None:
    """Nobody is asked to say who they are (401), who may not is told so (403), and who may gets past both."""
    (us,) = await settled(world)
    await us.node.access.open()
    wrong: list[tuple[str, str, int]] = []
    async with httpx.AsyncClient(transport=app_of(us), base_url="http://registry.test") as http:
        for operation in OPERATIONS:
            if operation.right is Right.NOTHING:
                continue
            for who in PEOPLE:
                person = ROLES[who]
                # A body or a parameter that cannot be used stops whoever gets past the gate from changing anything.
                query, body = {"nonsense": "1"}, "no JSON"
                answer = await http.request(
                    operation.method,
                    harmless(operation),
                    params=query,
                    content=body,
                    headers=person.basic if person else {},
                )
                may = who in MAY[operation.right]
                refused = answer.status_code in ((401,) if person is None else (403,))
                if refused == may or (may and answer.status_code not in (400, 404)):
                    wrong.append((operation.id, who, answer.status_code))
    assert wrong == []


async def test_who_makes_organisations(world: MakeWorld) -> None:
    """Every user makes organisations and administers what they made, and no other; robots and narrow tokens make none."""
    (us,) = await settled(world)
    await us.node.access.open()
    async with httpx.AsyncClient(transport=app_of(us), base_url="http://registry.test") as http:

        async def put(name: str, headers: Mapping[str, str]) -> int:
            return (
                await http.put(f"{PREFIX}/organization/{name}", json={"description": "ours"}, headers=headers)
            ).status_code

        stranger, reader, robot = (ROLES[who] for who in ("stranger", "reader", "robot that may write"))
        assert stranger is not None
        assert reader is not None
        assert robot is not None
        assert await put("made", stranger.basic) == 200
        assert await put("made", stranger.basic) == 200
        assert await put("made", reader.basic) == 403
        assert await put("private", stranger.basic) == 403
        assert await put("reader", stranger.basic) == 403
        assert await put("more", robot.basic) == 403
        assert await put("more", bearing(await token_for(us, stranger, "repository:private/app:pull"))) == 403
        assert await put("more", {}) == 401
        assert (
            await http.get(f"{PREFIX}/organization/made/team/owners/member", headers=stranger.basic)
        ).status_code == 200


async def test_organisations_of_superusers_alone(world: MakeWorld) -> None:
    """With FEATURE_SUPERUSERS_ORG_CREATION_ONLY other users make none, and go on changing those that they administer."""
    (us,) = await settled(world, superusers_make_organizations=True)
    await us.node.access.open()
    async with httpx.AsyncClient(transport=app_of(us), base_url="http://registry.test") as http:
        for who, name, status in (
            ("stranger", "made", 403),
            ("organisation's admin", "private", 200),
            ("superuser", "made", 200),
        ):
            person = ROLES[who]
            assert person is not None
            answer = await http.put(f"{PREFIX}/organization/{name}", json={}, headers=person.basic)
            assert answer.status_code == status, who


async def test_pages_of_other_sites(world: MakeWorld) -> None:
    """No page of another site changes anything with the password that a browser keeps; our own, and what is no browser, do."""
    (us,) = await settled(world)
    await us.node.access.open()
    root = ROLES["superuser"]
    assert root is not None
    foreign = (
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site", "origin": "http://registry.test"},
        {"origin": "https://evil.test"},
        {"origin": "http://registry.test.evil.test"},
        {"origin": "null"},
        {"origin": "http://[::1"},
    )
    own: tuple[dict[str, str], ...] = (
        {},
        {"sec-fetch-site": "same-origin"},
        {"sec-fetch-site": "none"},
        {"origin": "http://registry.test"},
    )
    wrong = []
    async with httpx.AsyncClient(transport=app_of(us), base_url="http://registry.test") as http:
        for operation in OPERATIONS:
            for headers in (*foreign, *own):
                given = {**root.basic, "content-type": "text/plain", **headers}
                answer = await http.request(
                    operation.method, harmless(operation), params={"nonsense": "1"}, content="no JSON", headers=given
                )
                refused = answer.json().get("title") == "a page of another site asks"
                if refused != (headers in foreign and operation.method != "GET"):
                    wrong.append((operation.id, headers, answer.status_code))
    assert wrong == []


@pytest.mark.parametrize("site", [{"sec-fetch-site": "cross-site"}, {"origin": "https://evil.test"}])
async def test_pages_of_other_sites_push_nothing(world: MakeWorld, site: dict[str, str]) -> None:
    """Nor does such a page mount a blob of its reader's where its author sees it; what shows a token is no page's doing."""
    (us,) = await filled(world)
    await set_permission(us.registry.database, "elsewhere/app", Grantee("reader"), Role.WRITE)
    reader = Person("reader")
    mount = f"/v2/elsewhere/app/blobs/uploads/?mount={digest_of(BLOB)}&from=private/app"
    whole = f"/v2/elsewhere/app/blobs/uploads/?digest={digest_of(b'x')}"
    host = {"host": "registry.test"}
    for path, body in ((mount, b""), (whole, b"x")):
        assert (await us.ask("POST", path, body, {**host, **reader.basic, **site})).failure == (403, "DENIED")
        own = {**host, **reader.basic, "sec-fetch-site": "same-origin", "origin": "http://registry.test"}
        assert (await us.ask("POST", path, body, own)).status == 201
        scopes = ("repository:elsewhere/app:pull,push", "repository:private/app:pull")
        token = bearing(await token_for(us, reader, *scopes))
        assert (await us.ask("POST", path, body, {**host, **token, **site})).status == 201
    pulled = await us.ask("GET", "/v2/private/app/manifests/v1", headers={**host, **reader.basic, **site})
    assert pulled.status == 200


async def test_bodies_that_are_nested(world: MakeWorld) -> None:
    """A body that nobody can look into is refused as one that cannot be read, however deep it goes."""
    (us,) = await settled(world)
    await us.node.access.open()
    root = ROLES["superuser"]
    assert root is not None
    async with httpx.AsyncClient(transport=app_of(us), base_url="http://registry.test") as http:
        for depth in (300, 400, 900, 5000):
            for begin, end in (("[", "]"), ('{"a":', "}")):
                body = f'{{"rules": {begin * depth}1{end * depth}}}'
                answer = await http.put(f"{PREFIX}/namespace/private/policy", content=body, headers=root.basic)
                assert answer.status_code == 400, (depth, begin)


async def test_parameters_without_number(world: MakeWorld) -> None:
    """Who asks with thousands of parameters, which need not be logged in, gets a short answer, and it takes no time to make."""
    (us,) = await settled(world)
    await us.node.access.open()
    query = "&".join(f"{number:x}q" for number in range(3000))
    async with httpx.AsyncClient(transport=app_of(us), base_url="http://registry.test") as http:
        for path in ("login", "me", "repository/public/app/tag"):
            answer = await http.get(f"{PREFIX}/{path}?{query}")
            assert (answer.status_code, len(answer.content) < 1000) == (400, True), path


@pytest.mark.parametrize("who", ["nobody", "reader"])
async def test_me(world: MakeWorld, who: str) -> None:
    """Anybody may ask who they are."""
    (us,) = await settled(world)
    await us.node.access.open()
    person = ROLES[who]
    async with httpx.AsyncClient(transport=app_of(us), base_url="http://registry.test") as http:
        answer = await http.get(f"{PREFIX}/me", headers=person.basic if person else {})
    assert answer.json()["name"] == ("" if person is None else "reader")
