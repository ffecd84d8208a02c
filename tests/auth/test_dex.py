"""The same logins with Dex, a provider of the field, over TLS: by a code and by a browser elsewhere, with a secret and without.

Dex is no package of a system's: $ANTIPODE_TEST_DEX names its program, else it is looked for on the PATH.
"""

import os
import re
import shutil
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urljoin, urlsplit

import bcrypt
import httpx
import pytest
import trio
import yaml
from attrs import evolve, frozen

from node.commands.own_logins import OwnLogin
from node.commands.signing_in import Client as Registry
from node.commands.signing_in import _log_in
from node.config.settings import OidcSettings
from node.records.accounts import find_account
from scripts.services.processes import free_ports, tail
from tests.api.test_rights import app_of
from tests.auth.people import Person, settled
from tests.auth.test_oidc import Client
from tests.certificates import Authority
from tests.registry.world import MakeWorld, Region

_SECONDS = 60.0
_WORD = "a word of Dex's"
_SECRET = "the registry's / secret: +"


@frozen
class Dex:
    """A Dex that runs."""

    url: str
    authorities: Path

    def settings(self, **changes: Any) -> OidcSettings:
        """Return what a node has to know of it."""
        given = OidcSettings("dex", self.url, self.url, "registry", _SECRET, "Dex")
        return evolve(given, **changes)

    async def log_in(self, uri: str, **form: str) -> str:
        """Log in as ida where a login sends somebody's browser; return where the browser is led out of Dex, or the last page."""
        async with httpx.AsyncClient(verify=_context(self.authorities), timeout=30) as browser:
            answer = await (browser.post(uri, data=form) if form else browser.get(uri))
            for _ in range(20):
                if answer.is_redirect:
                    place = urljoin(str(answer.url), answer.headers["location"])
                    if not place.startswith(self.url):
                        return place
                    answer = await browser.get(place)
                elif 'name="password"' in answer.text:
                    found = re.search(r'action="([^"]+)"', answer.text)
                    place = urljoin(str(answer.url), found[1].replace("&amp;", "&") if found else "")
                    answer = await browser.post(place, data={"login": "ida@example.com", "password": _WORD})
                elif 'name="approval"' in answer.text:
                    found = re.search(r'name="req" value="([^"]+)"', answer.text)
                    assert found is not None
                    answer = await browser.post(answer.url, data={"req": found[1], "approval": "approve"})
                else:
                    return answer.text
        raise AssertionError("it leads nowhere")


def _context(authorities: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=authorities)


@pytest.fixture(scope="module")
def dex(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dex]:
    """A Dex with one person, and the registry as a client of either kind."""
    program = os.environ.get("ANTIPODE_TEST_DEX") or shutil.which("dex")
    if program is None:
        pytest.skip("no Dex: $ANTIPODE_TEST_DEX names none, and there is none on the PATH")
    folder = tmp_path_factory.mktemp("dex")
    authority = Authority.make(folder)
    pair = authority.sign("dex", names="DNS:localhost")
    (port,) = free_ports(1)
    url = f"https://localhost:{port}"
    configuration = {
        "issuer": url,
        "storage": {"type": "memory"},
        "web": {"https": f"127.0.0.1:{port}", "tlsCert": str(pair.certificate), "tlsKey": str(pair.key)},
        "oauth2": {"skipApprovalScreen": True},
        "enablePasswordDB": True,
        "staticPasswords": [
            {
                "email": "ida@example.com",
                "hash": bcrypt.hashpw(_WORD.encode(), bcrypt.gensalt(10)).decode(),
                "username": "ida",
                "preferredUsername": "Ida.L",
                "emailVerified": True,
                "userID": "ida-1",
            }
        ],
        "staticClients": [
            {
                "id": "registry",
                "secret": _SECRET,
                "name": "the registry",
                "redirectURIs": ["http://127.0.0.1:1/callback", "/device/callback"],
            },
            {"id": "public", "public": True, "name": "the registry", "redirectURIs": []},
        ],
    }
    file, log = folder / "dex.yaml", folder / "dex.log"
    file.write_text(yaml.safe_dump(configuration))
    with log.open("wb") as out:
        process = subprocess.Popen([program, "serve", str(file)], stdout=out, stderr=subprocess.STDOUT, cwd=folder)
    made = Dex(url, authority.own.certificate)
    try:
        deadline = time.monotonic() + _SECONDS
        while "listening on" not in log.read_text(errors="replace"):
            assert process.poll() is None, tail(log, 20)
            assert time.monotonic() < deadline, tail(log, 20)
            time.sleep(0.05)
        yield made
    finally:
        process.kill()
        process.wait(30)


async def registry(world: MakeWorld, dex: Dex, **changes: Any) -> Region:
    (us,) = await settled(world, authentication_type="OIDC", oidc=dex.settings(**changes), authorities=dex.authorities)
    await us.node.access.open()
    return us


@pytest.mark.parametrize("public", [False, True], ids=["secret", "public"])
async def test_a_code(world: MakeWorld, dex: Dex, public: bool) -> None:
    """A browser of the same machine comes back with a code, which makes an account with the name and the verified address."""
    us = await registry(world, dex, **({"client_id": "public", "client_secret": None} if public else {}))
    client = Client(us)
    begun = await client.begin()
    came = parse_qs(urlsplit(await dex.log_in(begun["uri"])).query)
    assert came["state"] == ["a-state-of-it"]
    stranger = await Client(us).finish(begun["handle"], came["code"][0])
    assert stranger.status_code == 403
    done = await client.finish(begun["handle"], came["code"][0])
    assert (done.status_code, done.json().get("account")) == (200, "ida.l"), done.text
    made = await find_account(us.registry.database, "ida.l")
    assert made is not None
    assert made.email == "ida@example.com"
    assert (await us.ask("GET", "/v2/auth", headers=Person("ida.l", done.json()["secret"]).basic)).status == 200
    again = await client.finish(begun["handle"], came["code"][0])
    assert again.status_code == 403, "a code counts once"


@pytest.mark.parametrize("public", [False, True], ids=["secret", "public"])
async def test_a_browser_elsewhere(
    world: MakeWorld, dex: Dex, capsys: pytest.CaptureFixture[str], public: bool
) -> None:
    """The command waits, as often as Dex wants, until somebody has entered the code and logged in, and has a token then."""
    us = await registry(world, dex, **({"client_id": "public", "client_secret": None} if public else {}))
    ended: list[OwnLogin] = []

    async def log_in() -> None:
        async with httpx.AsyncClient(transport=app_of(us), base_url="http://registry.test") as http:
            ended.append(await _log_in(Registry(http), "auto", "http://127.0.0.1/callback", browser=False))

    with trio.fail_after(90):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(log_in)
            text = ""
            while (found := re.search(r"enter the code (\S+)", text)) is None:
                await trio.sleep(0.01)
                text += capsys.readouterr().err
            await dex.log_in(f"{dex.url}/device/auth/verify_code", user_code=found[1])
    assert [login.account for login in ended] == ["ida.l"]
    assert (await us.ask("GET", "/v2/auth", headers=Person("ida.l", ended[0].secret).basic)).status == 200
