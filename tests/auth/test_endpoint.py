"""The token endpoint as the clients use it, and what a registry with accounts says to those who come without a token."""

import json
from typing import Any
from urllib.parse import urlencode

import jwt
import trio

from node.auth.secrets import hash_secret
from node.records.accounts import set_secret, update_account
from node.records.application_tokens import create_token, delete_token, list_tokens
from tests.auth.people import (
    HOST,
    PASSWORD,
    ROBOT_SECRET,
    ROLES,
    Person,
    basic,
    bearing,
    scope_of,
    settled,
    token_for,
)
from tests.registry.world import Body, MakeWorld, Region, Reply

READER, WRITER = Person("reader"), Person("writer")


def claims(token: str) -> dict[str, Any]:
    return dict(jwt.decode(token, options={"verify_signature": False}))


async def post(region: Region, **form: str) -> Reply:
    headers = {"content-type": "application/x-www-form-urlencoded"}
    return await region.ask("POST", "/v2/auth", urlencode(form).encode(), headers)


async def test_the_challenge(world: MakeWorld) -> None:
    """Who comes without a token is told where to get one and for what, whether or not there is such a repository."""
    (us,) = await settled(world)
    realm = f'Bearer realm="https://{HOST}/v2/auth",service="{HOST}"'
    for method, target, scope in (
        ("GET", "/v2/", None),
        ("HEAD", "/v2/private/app/manifests/v1", "repository:private/app:pull"),
        ("GET", "/v2/nowhere/app/tags/list", "repository:nowhere/app:pull"),
        ("POST", "/v2/private/app/blobs/uploads/", "repository:private/app:pull,push"),
        ("PUT", "/v2/private/app/manifests/v1", "repository:private/app:pull,push"),
        ("DELETE", "/v2/private/app/manifests/v1", "repository:private/app:delete"),
        ("GET", "/v2/_catalog", "registry:catalog:*"),
    ):
        reply = await us.ask(method, target)
        assert reply.failure == (401, "UNAUTHORIZED")
        challenge = reply.headers["www-authenticate"]
        assert challenge == realm + (f',scope="{scope}"' if scope else "")
        assert reply.headers["docker-distribution-api-version"] == "registry/2.0"
    short = await us.ask(
        "PUT",
        "/v2/private/app/manifests/v1",
        headers=bearing(await token_for(us, READER, "repository:private/app:pull")),
    )
    assert short.status == 401
    assert short.headers["www-authenticate"].endswith(
        ',scope="repository:private/app:pull,push",error="insufficient_scope"'
    )
    broken = await us.ask("GET", "/v2/", headers=bearing("no.such.token"))
    assert broken.status == 401
    assert broken.headers["www-authenticate"].endswith(',error="invalid_token"')


async def test_scopes(world: MakeWorld) -> None:
    """A token has what was asked for and may be had: scopes repeated or joined, fewer actions rather than an error."""
    (us,) = await settled(world)
    a, b = "repository:private/app:push,pull", "repository:public/app:pull"
    for asked in ((a, b), (f"{a} {b}",), (f"{a}+{b}",), (f"{b} {a}", a)):
        access = claims(await token_for(us, READER, *asked))["access"]
        assert sorted((entry["name"], entry["actions"]) for entry in access) == [
            ("private/app", ["pull"]),
            ("public/app", ["pull"]),
        ]
    for scope, expected in (
        ("repository:private/app:*", ["pull", "push", "delete"]),
        ("repository(plugin):private/app:pull", ["pull"]),
        ("repository:private/app:delete", ["delete"]),
        ("repository:private/app:fly", []),
        ("repository:elsewhere/app:pull,push", []),
        ("repository:nowhere/app:pull,push", []),
    ):
        (entry,) = claims(await token_for(us, WRITER, scope))["access"]
        assert entry["actions"] == expected, scope
    for nonsense in (
        "",
        "repository",
        "repository:",
        ":::",
        "repository:No/Such:pull",
        "banana:private/app:pull",
        "%22%3E",
    ):
        assert claims(await token_for(us, WRITER, nonsense))["access"] == []


async def test_the_answer(world: MakeWorld) -> None:
    """The answer has the token under both names, its lifetime and when that begins; a token names its registry and its holder."""
    (us,) = await settled(world, token_lifetime=120.0)
    reply = await us.ask("GET", f"/v2/auth?service={HOST}&account=reader", headers=READER.basic)
    document = reply.json
    assert (document["expires_in"], reply.headers["cache-control"]) == (120, "no-store")
    assert document["issued_at"].endswith("Z")
    assert "refresh_token" not in document
    told = claims(document["token"])
    assert (told["iss"], told["aud"], told["sub"], told["exp"] - told["iat"]) == (HOST, HOST, "reader", 120)
    assert jwt.get_unverified_header(document["token"])["alg"] == "EdDSA"


async def test_nobody(world: MakeWorld) -> None:
    """Who says no name gets a token for what is public, unless that was forbidden."""
    (us,) = await settled(world)
    token = await token_for(us, None, "repository:public/app:pull,push repository:private/app:pull")
    access = claims(token)["access"]
    assert {entry["name"]: entry["actions"] for entry in access} == {"public/app": ["pull"], "private/app": []}
    assert (await us.ask("GET", "/v2/", headers=bearing(token))).status == 200
    (eu,) = await world("us", open_registry=False, secret_key=us.registry.settings.secret_key, anonymous_access=False)
    refused = await eu.ask("GET", "/v2/auth?scope=repository:public/app:pull")
    assert refused.failure == (401, "UNAUTHORIZED")
    assert (await eu.ask("GET", "/v2/public/app/tags/list")).status == 401


async def test_logins(world: MakeWorld) -> None:
    """Users, robots and application tokens log in with GET, with POST, and with Basic on /v2/ itself."""
    (us,) = await settled(world)
    for person in filter(None, ROLES.values()):
        assert (await us.ask("GET", "/v2/", headers=bearing(await token_for(us, person)))).status == 200
        assert (await us.ask("GET", "/v2/", headers=person.basic)).status == 200
        form = {"grant_type": "password", "service": HOST, "client_id": "containerd-client"}
        reply = await post(us, **form, username=person.name, password=person.secret, scope="repository:public/app:pull")
        assert reply.status == 200
        assert reply.json["scope"] == "repository:public/app:pull"
        assert (await us.ask("GET", "/v2/", headers=bearing(reply.json["access_token"]))).status == 200


async def test_wrong_secrets(world: MakeWorld) -> None:
    """Whatever is wrong with a name or a secret, the answer is the same 401."""
    (us,) = await settled(world)
    await update_account(us.registry.database, "writer", enabled=False)
    answers = set()
    for name, secret in (
        ("reader", "wrong password"),
        ("reader", ""),
        ("nobody", PASSWORD),
        ("", ""),
        ("writer", PASSWORD),
        ("private", PASSWORD),
        ("private+reader", "wrong"),
        ("private+none", ROBOT_SECRET),
        ("writer", "apt_token"),
        ("$app", "apt_none"),
        ("x" * 500, PASSWORD),
    ):
        reply = await us.ask("GET", "/v2/auth", headers={"authorization": basic(name, secret)})
        answers.add((reply.status, reply.body, tuple(reply.headers.items())))
    reply = await post(us, grant_type="password", username="reader", password="wrong password")
    answers.add((reply.status, reply.body, tuple(reply.headers.items())))
    ((status, body, headers),) = answers
    assert status == 401
    assert dict(headers)["www-authenticate"] == f'Basic realm="{HOST}"'
    assert "reader" not in json.dumps(json.loads(body))


async def test_forms_that_cannot_be_read(world: MakeWorld) -> None:
    """A form that asks for nothing known is a 400, one with a token that is none a 401, other methods a 405."""
    (us,) = await settled(world)
    assert (await post(us)).status == 400
    assert (await post(us, grant_type="magic")).status == 400
    assert (await us.ask("POST", "/v2/auth", b"\xff\xfe")).status == 400
    assert (await us.ask("POST", "/v2/auth", b"x" * 70_000)).status == 400
    assert (await us.ask("POST", "/v2/auth", b"a=1&" * 200)).status == 400
    assert (await post(us, grant_type="refresh_token", refresh_token="x")).status == 401
    assert (await us.ask("DELETE", "/v2/auth")).status == 405
    for header in ("Basic", "Basic !!!", "Digest x", "Bearer", "Basic cmVhZGVy", basic("reader", "a\nb")):
        assert (await us.ask("GET", "/v2/auth", headers={"authorization": header})).status == 401
        assert (await us.ask("GET", "/v2/", headers={"authorization": header})).status == 401


async def test_refresh_tokens(world: MakeWorld) -> None:
    """What a login leaves with a client buys tokens until the password changes, and is no token itself."""
    (us,) = await settled(world)
    reply = await us.ask("GET", "/v2/auth?offline_token=true&client_id=docker", headers=READER.basic)
    refresh = reply.json["refresh_token"]
    assert (await us.ask("GET", "/v2/", headers=bearing(refresh))).status == 401
    form = {"grant_type": "refresh_token", "service": HOST, "refresh_token": refresh}
    bought = await post(us, **form, scope="repository:private/app:pull,push")
    assert bought.status == 200
    assert (bought.json["refresh_token"], bought.json["scope"]) == (refresh, "repository:private/app:pull")
    assert (await us.ask("GET", "/v2/", headers=bearing(bought.json["access_token"]))).status == 200
    assert (await post(us, **{**form, "refresh_token": bought.json["access_token"]})).status == 401
    posted = await post(us, grant_type="password", username="reader", password=PASSWORD, access_type="offline")
    assert posted.json["refresh_token"]
    await set_secret(us.registry.database, "reader", None)
    await us.node.access.open()
    assert (await post(us, **form)).status == 401


async def test_refresh_tokens_of_application_tokens(world: MakeWorld) -> None:
    """A refresh token that was given for an application token ends with it."""
    (us,) = await settled(world)
    database = us.registry.database
    assert await create_token(database, "reader", "short", hash_secret("apt_short"), 3600)
    assert await list_tokens(database, "reader")
    reply = await us.ask("GET", "/v2/auth?offline_token=true", headers=Person("reader", "apt_short").basic)
    refresh = reply.json["refresh_token"]
    told = claims(refresh)
    assert told["exp"] - told["iat"] <= 3600
    form = {"grant_type": "refresh_token", "refresh_token": refresh}
    assert (await post(us, **form)).status == 200
    (token,) = [token for token in await list_tokens(database, "reader") if token.title == "short"]
    assert await delete_token(database, "reader", token.id)
    await us.node.access.open()
    assert (await post(us, **form)).status == 401


async def test_an_open_registry(world: MakeWorld) -> None:
    """Where anyone may do anything nobody is asked for a token, and what is shown is not looked at."""
    (us,) = await world("us")
    for headers in ({}, bearing("nonsense"), {"authorization": "Basic !!!"}):
        assert (await us.ask("GET", "/v2/", headers=headers)).status == 200
        assert (await us.ask("POST", "/v2/any/thing/blobs/uploads/", headers=headers)).status == 202
    assert (await us.ask("GET", "/v2/auth")).status == 405
    assert scope_of("") is None


async def test_names_that_nobody_can_have(world: MakeWorld) -> None:
    """A name with a NUL, or one without end, is a wrong name like any other."""
    (us,) = await settled(world)
    for name in ("a\0b", "\0", "n" * 10_000):
        reply = await post(us, grant_type="password", username=name, password="x")
        assert reply.failure == (401, "UNAUTHORIZED")


async def test_no_more_at_once_than_may(world: MakeWorld) -> None:
    """More requests for tokens than may be answered at once are told when to come back; pulls and pushes go on meanwhile.

    A form that does not arrive keeps nobody out.
    """
    (us,) = await settled(world, maximum_token_requests=1, queue_patience=0.05)
    token = bearing(await token_for(us, WRITER, "repository:private/app:pull,push"))
    slow = Body(urlencode({"grant_type": "password", "username": "reader", "password": PASSWORD}).encode(), pause_at=0)
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(us.ask, "POST", "/v2/auth", slow)
            await slow.paused.wait()
            assert (await us.ask("GET", "/v2/auth", headers=READER.basic)).status == 200
            async with us.registry.gates.tokens.enter("somebody"):
                slow.go_on.set()
                for reply in (await us.ask("GET", "/v2/auth"), await post(us, grant_type="password")):
                    assert reply.failure == (429, "TOOMANYREQUESTS")
                    assert int(reply.headers["retry-after"]) > 0
                assert (await us.ask("GET", "/v2/private/app/tags/list", headers=token)).status == 200
                assert (await us.ask("POST", "/v2/private/app/blobs/uploads/", headers=token)).status == 202
    assert (await us.ask("GET", "/v2/auth", headers=READER.basic)).status == 200
