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

from tests.certificates import Authority

_SERVE = """
import sys
import oidc_provider_mock
from werkzeug.serving import make_server
server = make_server("127.0.0.1", 0, oidc_provider_mock.app(), threaded=True, ssl_context=(sys.argv[1], sys.argv[2]))
print(server.server_port, flush=True)
server.serve_forever()
"""


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


@contextmanager
def running(folder: Path) -> Iterator[Provider]:
    """Run a provider whose certificate lies in this folder."""
    authority = Authority.make(folder)
    pair = authority.sign("provider")
    process = subprocess.Popen(
        [sys.executable, "-c", _SERVE, pair.certificate, pair.key],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    try:
        port = process.stdout.readline().strip()
        assert port.isdigit(), "the provider did not start"
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
