"""An identity provider of the test's own: oidc-provider-mock's OpenID Connect server, over TLS, in a process of its own."""

import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from attrs import frozen

from node.auth import outgoing
from tests.certificates import Authority


@frozen
class Provider:
    """The provider. Whoever says to be somebody gets a token about them."""

    url: str
    authorities: Path
    process: "subprocess.Popen[str]"

    async def token(self, subject: str, audience: str) -> str:
        """Log in by the authorisation code flow, and return the ID token."""
        asked = {
            "client_id": audience,
            "redirect_uri": "https://client.test/back",
            "response_type": "code",
            "scope": "openid",
        }
        async with httpx.AsyncClient(
            base_url=self.url, verify=ssl.create_default_context(cafile=self.authorities), timeout=30
        ) as client:
            back = await client.post("/oauth2/authorize", params=asked, data={"sub": subject})
            assert back.status_code == 302, back.text
            (code,) = parse_qs(urlsplit(back.headers["location"]).query)["code"]
            answer = await client.post(
                "/oauth2/token",
                data={"grant_type": "authorization_code", "code": code, "redirect_uri": asked["redirect_uri"]},
                auth=(audience, "any secret"),
            )
            assert answer.status_code == 200, answer.text
            return str(answer.json()["id_token"])

    async def person(self, subject: str, **claims: object) -> None:
        """Say who somebody is."""
        async with self._client() as client:
            assert (await client.put(f"/users/{subject}", json=claims)).status_code == 204

    async def visit(self, uri: str, subject: str) -> dict[str, list[str]]:
        """Log in where a login sends somebody's browser, and return what the browser comes back with."""
        async with self._client() as client:
            back = await client.post(uri, data={"sub": subject})
            assert back.status_code == 302, back.text
            return parse_qs(urlsplit(back.headers["location"]).query)

    async def enter(self, user_code: str, subject: str, action: str = "allow") -> None:
        """Enter a device's code as somebody."""
        async with self._client() as client:
            done = await client.post(
                "/device", params={"user_code": user_code}, data={"sub": subject, "action": action}
            )
            assert done.status_code == 200, done.text

    def _client(self) -> httpx.AsyncClient:
        context = ssl.create_default_context(cafile=self.authorities)
        return httpx.AsyncClient(base_url=self.url, verify=context, timeout=30)


@contextmanager
def running(folder: Path) -> Iterator[Provider]:
    """Run a provider whose certificate lies in this folder.

    Whoever asks it meanwhile waits for its answer as long as a busy machine takes: the node's own limit would be struck by that.
    """
    authority = Authority.make(folder)
    pair = authority.sign("provider")
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.auth.provider_server", pair.certificate, pair.key],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    try:
        port = process.stdout.readline().strip()
        assert port.isdigit(), "the provider did not start"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(outgoing, "_SECONDS", 60.0)
            yield Provider(f"https://localhost:{port}", authority.own.certificate, process)
    finally:
        process.kill()
        process.wait(30)
        process.stdout.close()


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Provider]:
    """A running provider, for the tests of one file."""
    with running(tmp_path_factory.mktemp("provider")) as made:
        yield made
