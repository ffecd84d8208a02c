"""People who log in with an identity provider; the provider is a real one, over TLS, and the registry is its client."""

import base64
import hashlib
import json
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
import trio
import trio.testing
from attrs import define, evolve, field
from cryptography.hazmat.primitives.asymmetric import rsa

from node.api.openapi import PREFIX
from node.auth.id_token import email_of, name_of, refuse
from node.auth.issuers import Issuers, Key
from node.auth.outgoing import ANYWHERE, Outgoing
from node.auth.provider import LoginRefused, Pending, Provider
from node.auth.sign_in import is_loopback, proves
from node.config.settings import OidcSettings
from node.errors import RegistryError
from node.gates import Gate
from node.records.accounts import create_user, find_account, update_account
from node.records.auditlog import Filter, read_lines
from tests.api.test_rights import app_of
from tests.auth import provider as there
from tests.auth.people import PASSWORD, ROLES, Person, settled
from tests.auth.provider import provider, running
from tests.registry.world import MakeWorld, Region

__all__ = ["provider"]
BACK = "http://127.0.0.1:1/callback"
ROOT = ROLES["superuser"]


def settings_of(url: str, **changes: Any) -> OidcSettings:
    return OidcSettings(**{"name": "mock", "server": url, "issuer": url, "client_id": "registry", **changes})


async def with_provider(world: MakeWorld, provider: there.Provider, *preferences: str, **given: Any) -> list[Region]:
    oidc = settings_of(provider.url, client_secret="of the registry", service_name="Mock")
    regions = await settled(
        world, *preferences, authentication_type="OIDC", **{"oidc": oidc, "authorities": provider.authorities, **given}
    )
    for region in regions:
        await region.node.access.open()
    return regions


@define
class Client:
    """Somebody's own machine, as `antipode login` acts."""

    region: Region
    verifier: str = field(factory=lambda: secrets.token_urlsafe(48))

    async def ask(
        self, method: str, path: str, headers: Mapping[str, str] | None = None, **body: Any
    ) -> httpx.Response:
        async with httpx.AsyncClient(transport=app_of(self.region), base_url="http://registry.test") as http:
            content = json.dumps(body) if method != "GET" else None
            return await http.request(method, PREFIX + path, content=content, headers=headers)

    @property
    def challenge(self) -> str:
        return base64.urlsafe_b64encode(hashlib.sha256(self.verifier.encode()).digest()).rstrip(b"=").decode()

    async def begin(self, redirect: str = BACK) -> dict[str, Any]:
        begun = await self.ask(
            "POST", "/login/code", redirect_uri=redirect, code_challenge=self.challenge, state="a-state-of-it"
        )
        assert begun.status_code == 200, begun.text
        return dict(begun.json())

    async def finish(self, handle: str, code: str) -> httpx.Response:
        return await self.ask("POST", "/login/token", handle=handle, code=code, code_verifier=self.verifier, title="x")

    async def log_in(self, provider: there.Provider, subject: str) -> httpx.Response:
        begun = await self.begin()
        query = await provider.visit(begun["uri"], subject)
        assert query["state"] == ["a-state-of-it"]
        return await self.finish(begun["handle"], query["code"][0])


async def test_the_first_login_makes_an_account(world: MakeWorld, provider: there.Provider) -> None:
    """Whoever the provider proves gets an account and a token with an end, that the API and docker take; later the same account."""
    us, eu = await with_provider(world, provider, "us eu", "eu us", login_token_lifetime=3600)
    await provider.person("1-alice", preferred_username="Alice@example.com", email="a@example.com", email_verified=True)
    done = await Client(us).log_in(provider, "1-alice")
    assert done.status_code == 200, done.text
    told = done.json()
    assert (told["status"], told["account"]) == ("done", "alice")
    made = await find_account(us.registry.database, "alice")
    assert made is not None
    assert (made.email, made.superuser, made.kind.value) == ("a@example.com", False, "user")
    me = await Client(eu).ask("GET", "/me", {"authorization": f"Bearer {told['secret']}"})
    assert me.json() == {"name": "alice", "kind": "user", "superuser": False}
    for name in ("alice", "$app"):
        reply = await us.ask("GET", "/v2/auth?offline_token=true", headers=Person(name, told["secret"]).basic)
        assert reply.status == 200
    pushed = await us.ask("POST", "/v2/alice/app/blobs/uploads/", headers=Person("alice", told["secret"]).basic)
    assert pushed.status == 202
    await provider.person("1-alice", preferred_username="somebody.else")
    again = await Client(eu).log_in(provider, "1-alice")
    assert again.json()["account"] == "alice"
    assert await find_account(us.registry.database, "somebody.else") is None
    kept = [line.line for line in await read_lines(us.registry.database, Filter(namespace="alice"), None, 10)]
    assert [(line.action, line.actor, line.detail.get("first")) for line in kept if line.action != "push"] == [
        ("login", "alice", False),
        ("login", "alice", True),
        ("createUser", "alice", None),
    ]
    assert kept[-1].detail["subject"] == "1-alice"
    assert told["secret"] not in str(kept)


async def test_a_browser_elsewhere(world: MakeWorld, provider: there.Provider) -> None:
    """A device login is pending until somebody enters its code anywhere, is finished through any node, and once."""
    us, eu = await with_provider(world, provider, "us eu", "eu us")
    ways = (await Client(us).ask("GET", "/login")).json()
    assert ways == {"authentication": "OIDC", "service": "Mock", "device": True, "code": True}
    begun = (await Client(us).ask("POST", "/login/device")).json()
    assert (begun["uri"], begun["interval"]) == (f"{provider.url}/device", 1.0)
    waiting = await Client(eu).ask("POST", "/login/token", handle=begun["handle"])
    assert (waiting.status_code, waiting.json()["status"], waiting.json()["secret"]) == (200, "pending", None)
    await provider.person("2", preferred_username="carol")
    await provider.enter(begun["user_code"], "2")
    done = await Client(eu).ask("POST", "/login/token", handle=begun["handle"], title="elsewhere")
    assert (done.status_code, done.json()["account"]) == (200, "carol")
    again = await Client(us).ask("POST", "/login/token", handle=begun["handle"])
    assert again.status_code == 403
    denied = (await Client(us).ask("POST", "/login/device")).json()
    await provider.enter(denied["user_code"], "2", action="deny")
    refused = await Client(us).ask("POST", "/login/token", handle=denied["handle"])
    assert (refused.status_code, "access_denied" in refused.json()["detail"]) == (403, True)


async def test_nobody_gets_an_account_by_its_name(world: MakeWorld, provider: there.Provider) -> None:
    """Names of others, of superusers to be, and of organisations are not given; an administrator links who they belong to."""
    (us,) = await with_provider(world, provider, superusers=("chief",))
    bare = await create_user(us.registry.database, "bare", None)
    assert bare is not None
    for number, name in enumerate(("reader", "root", "bare", "private", "chief", "elsewhere")):
        await provider.person(f"3-{number}", preferred_username=name)
        refused = await Client(us).log_in(provider, f"3-{number}")
        assert refused.status_code == 403, name
        assert f"antipode user link {name} '3-{number}'" in refused.json()["detail"]
    assert ROOT is not None
    stranger = ROLES["stranger"]
    assert stranger is not None
    assert (await Client(us).ask("POST", "/user/reader/link", stranger.basic, subject="3-0")).status_code == 403
    for name, subject in (("reader", "3-0"), ("bare", "3-2")):
        linked = await Client(us).ask("POST", f"/user/{name}/link", ROOT.basic, subject=subject)
        assert (linked.status_code, linked.json()["issuer"]) == (200, provider.url), linked.text
        assert (await Client(us).log_in(provider, subject)).json()["account"] == name
    taken = await Client(us).ask("POST", "/user/writer/link", ROOT.basic, subject="3-0")
    assert taken.status_code == 409
    assert (await us.ask("GET", "/v2/auth", headers=Person("reader").basic)).status == 200
    gone = await Client(us).ask("DELETE", f"/user/reader/link?issuer={provider.url}&subject=3-0", ROOT.basic)
    assert gone.status_code == 200, gone.text
    assert (await Client(us).log_in(provider, "3-0")).status_code == 403


async def test_names_that_no_account_can_have(world: MakeWorld, provider: there.Provider) -> None:
    """What is no name here makes no account; the answer says what was found."""
    (us,) = await with_provider(world, provider)
    for name in ("a b", "a/b", "\u212aate", "", "-a", "a" * 300, ["a"]):
        await provider.person("4", preferred_username=name)
        refused = await Client(us).log_in(provider, "4")
        assert (refused.status_code, "no account can be made" in refused.json()["detail"]) == (403, True), name
    await provider.person("4")
    refused = await Client(us).log_in(provider, "4")
    assert "there is no preferred_username" in refused.json()["detail"]


async def test_nobody_holds_logins_up(
    world: MakeWorld, provider: there.Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many questions about a login one address has out, while the provider takes its time, another one begins a login."""
    (us,) = await with_provider(world, provider, "us")
    assert us.node.access.parts is not None
    signs, refused = us.node.access.parts.sign_in, list[RegistryError]()
    assert signs is not None
    begun = await signs.begin_device("192.0.2.1")
    verifier = base64.urlsafe_b64encode(hashlib.sha256(b"x").digest()).rstrip(b"=").decode()

    async def forever(_provider: Provider, _code: str) -> Pending:
        await trio.sleep_forever()
        raise AssertionError

    async def poll() -> None:
        try:
            await signs.finish(begun.handle, None, None, "x", "192.0.2.1")
        except RegistryError as error:
            refused.append(error)

    monkeypatch.setattr(Provider, "poll", forever)
    async with trio.open_nursery() as nursery:
        for _ in range(200):
            nursery.start_soon(poll)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert {error.code.status for error in refused} == {429}
        assert (await signs.begin_code(BACK, verifier, "a-state-of-it", "192.0.2.2")).uri
        nursery.cancel_scope.cancel()


async def test_disabled_accounts(world: MakeWorld, provider: there.Provider) -> None:
    """Somebody whom this registry has disabled stays so, whatever the provider says, and so do their tokens."""
    (us,) = await with_provider(world, provider)
    await provider.person("5", preferred_username="dora")
    told = (await Client(us).log_in(provider, "5")).json()
    await update_account(us.registry.database, "dora", enabled=False)
    await us.node.access.open()
    refused = await Client(us).log_in(provider, "5")
    assert (refused.status_code, "disabled" in refused.json()["detail"]) == (403, True)
    assert (await us.ask("GET", "/v2/auth", headers=Person("dora", told["secret"]).basic)).status == 401


async def test_a_provider_that_is_away(world: MakeWorld, tmp_path: Path) -> None:
    """New logins are told 503 and why; tokens that were given before go on."""
    with running(tmp_path) as provider:
        (us,) = await with_provider(world, provider)
        await provider.person("6", preferred_username="eve")
        told = (await Client(us).log_in(provider, "6")).json()
        begun = await Client(us).begin()
    for path, body in (
        ("/login/device", {}),
        ("/login/token", {"handle": begun["handle"], "code": "x", "code_verifier": "v" * 43}),
    ):
        client = Client(us, "v" * 43)
        if body:
            body["handle"] = (await client.begin())["handle"]
        answer = await client.ask("POST", path, **body)
        assert (answer.status_code, answer.json()["title"]) == (503, "the identity provider cannot be asked")
        assert "retry-after" in answer.headers
    assert (await us.ask("GET", "/v2/auth", headers=Person("eve", told["secret"]).basic)).status == 200
    (fresh,) = await world(
        "us",
        authentication_type="OIDC",
        open_registry=False,
        secret_key="another secret key",
        oidc=us.node.settings.oidc,
    )
    assert (await Client(fresh).ask("GET", "/login")).status_code == 503


async def test_logins_of_others(world: MakeWorld, provider: there.Provider) -> None:
    """A code is worth nothing without its login and its verifier, and a login nothing when it was changed or took too long."""
    (us,) = await with_provider(world, provider)
    await provider.person("7", preferred_username="frank")
    mine, other = Client(us), Client(us)
    begun, stranger = await mine.begin(), await other.begin()
    code = (await provider.visit(begun["uri"], "7"))["code"][0]
    assert (await other.finish(begun["handle"], code)).status_code == 403
    changed = begun["handle"][:-4] + "AAAA"
    for handle in (changed, "a1$", "x", ""):
        assert (await mine.finish(handle, code)).status_code == 403
    crossed = await other.finish(stranger["handle"], code)
    assert crossed.status_code == 403, "the nonce is of another login"
    assert (await mine.finish(begun["handle"], "made up")).status_code == 403
    signs = us.node.access.parts and us.node.access.parts.sign_in
    assert signs
    signs._clock = lambda: time.time() + 601
    assert "too long" in (await mine.finish(begun["handle"], code)).json()["detail"]


@pytest.mark.parametrize(
    "redirect", ["https://evil.test/", "http://evil.test:1/", "http://127.0.0.1.evil.test:1/callback"]
)
async def test_where_codes_go(world: MakeWorld, provider: there.Provider, redirect: str) -> None:
    """A browser comes back to its own machine and nowhere else."""
    (us,) = await with_provider(world, provider)
    client = Client(us)
    answer = await client.ask(
        "POST", "/login/code", redirect_uri=redirect, code_challenge=client.challenge, state="a-state-of-it"
    )
    assert answer.status_code == 400
    assert not is_loopback(redirect)


async def test_passwords_of_people(world: MakeWorld, provider: there.Provider) -> None:
    """docker, which knows no such login, is told which one there is; passwords of the database and robots go on."""
    (us,) = await with_provider(world, provider)
    refused = await us.ask("GET", "/v2/auth", headers=Person("reader", "wrong").basic)
    assert (refused.status, "antipode login" in refused.json["errors"][0]["message"]) == (401, True)
    direct = await us.ask("GET", "/v2/private/app/tags/list", headers=Person("reader", "wrong").basic)
    assert (direct.status, "antipode login" in direct.json["errors"][0]["message"]) == (401, True)
    assert (await us.ask("GET", "/v2/auth", headers=Person("reader", PASSWORD).basic)).status == 200


async def test_too_many_logins(world: MakeWorld, provider: there.Provider) -> None:
    """One address begins so many logins and no more: each is a request to the provider."""
    (us,) = await with_provider(world, provider)
    signs = us.node.access.parts and us.node.access.parts.sign_in
    assert signs
    for _ in range(100):
        await signs._begun.note("", "127.0.0.1")
    assert (await Client(us).ask("POST", "/login/device")).status_code == 429


async def test_a_provider_that_answers_slowly(world: MakeWorld, provider: there.Provider) -> None:
    """A few ask the provider at once, and the others wait for their turn or are sent away; nobody waits for ever."""
    (us,) = await with_provider(world, provider)
    signs = us.node.access.parts and us.node.access.parts.sign_in
    assert signs
    # As full as it gets at once: one asks, and nobody may wait.
    signs._gate = Gate("logins", 1, 0, 20.0)
    async with signs._gate.enter("somebody"):
        assert (await Client(us).ask("POST", "/login/device")).status_code == 429
    assert (await Client(us).ask("POST", "/login/device")).status_code == 200


async def test_registries_without_a_provider(world: MakeWorld) -> None:
    """Others say how people log in there, and that there is no such login."""
    (us,) = await settled(world)
    assert (await Client(us).ask("GET", "/login")).json()["authentication"] == "Database"
    assert (await Client(us).ask("POST", "/login/device")).status_code == 404
    (opened,) = await world("us")
    assert (await Client(opened).ask("GET", "/login")).json()["authentication"] == "none"


NOW = 1_800_000_000.0
GOOD: dict[str, Any] = {
    "iss": "https://i.test",
    "aud": "registry",
    "sub": "1",
    "iat": NOW,
    "exp": NOW + 600,
    "nonce": "n",
}


def judged(**changes: Any) -> str | None:
    claims = {name: value for name, value in {**GOOD, **changes}.items() if value is not None}
    return refuse(claims, issuer="https://i.test", client="registry", nonce="n", now=NOW)


@pytest.mark.parametrize(
    "changes",
    [
        {"iss": "https://i.test/"},
        {"iss": None},
        {"aud": "other"},
        {"aud": ["registry", "other"]},
        {"aud": ["registry", "other"], "azp": "other"},
        {"azp": "other"},
        {"aud": None},
        {"nonce": "m"},
        {"nonce": None},
        {"sub": ""},
        {"sub": None},
        {"sub": "x" * 256},
        {"sub": "a\nb"},
        {"sub": 7},
        {"exp": NOW - 61},
        {"exp": None},
        {"exp": True},
        {"exp": float("nan")},
        {"iat": NOW + 61},
        {"iat": None},
        {"nbf": NOW + 61},
    ],
)
def test_claims_that_do_not_count(changes: dict[str, Any]) -> None:
    """Each claim that the specification names is looked at."""
    assert judged() is None
    assert judged(aud=["registry", "other"], azp="registry") is None
    assert judged(**changes) is not None


KEY = rsa.generate_private_key(65537, 2048)


class Known(Issuers):
    """A provider whose keys are given."""

    def __init__(self) -> None:
        super().__init__((), None)

    async def key(self, _issuer: str, name: str | None) -> Key | None:
        return Key(KEY.public_key(), ("RS256",)) if name == "one" else None

    async def metadata(self, issuer: str) -> Mapping[str, Any]:
        return {"issuer": issuer}


async def test_signatures() -> None:
    """An ID token counts when the provider's own key signed it, in the way that is that key's own."""
    proving = Provider(settings_of("https://i.test"), Known(), Outgoing(ANYWHERE, None), lambda: NOW)
    good = jwt.encode(GOOD, KEY, algorithm="RS256", headers={"kid": "one"})
    assert (await proving._claims({"id_token": good}, "n")).claims["sub"] == "1"
    other = rsa.generate_private_key(65537, 2048)
    for wrong in (
        jwt.encode(GOOD, other, algorithm="RS256", headers={"kid": "one"}),
        jwt.encode(GOOD, KEY, algorithm="RS256", headers={"kid": "two"}),
        jwt.encode(GOOD, KEY, algorithm="PS256", headers={"kid": "one"}),
        jwt.encode(GOOD, "", algorithm="none", headers={"kid": "one"}),
        jwt.encode(GOOD, "x" * 40, algorithm="HS256", headers={"kid": "one"}),
        good[:-8] + "AAAAAAAA",
        "x",
        None,
    ):
        with pytest.raises(LoginRefused):
            await proving._claims({"id_token": wrong}, "n")


def test_what_people_are_called() -> None:
    """The claim that the configuration names is the name; an address counts only when it was verified."""
    plain = settings_of("https://i.test")
    assert name_of({"preferred_username": "Alice"}, plain) == "alice"
    assert name_of({"upn": "bob@example.com"}, plain) == "bob"
    named = evolve(plain, username_claim="nickname", email_claim="mail")
    assert name_of({"preferred_username": "alice", "nickname": "al"}, named) == "al"
    assert name_of({"preferred_username": "alice"}, named) is None
    assert email_of({"email": "a@b.c"}, plain) is None
    assert email_of({"email": "a@b.c", "email_verified": True}, plain) == "a@b.c"
    assert email_of({"mail": "a@b.c"}, named) == "a@b.c"


def test_verifiers() -> None:
    """RFC 7636, appendix B."""
    verifier = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"
    assert proves(verifier, "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM")
    assert not proves(verifier[:-1] + "l", "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM")
    assert not proves("short", "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM")
