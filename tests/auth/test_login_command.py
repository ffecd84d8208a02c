"""`antipode login`: a browser of this machine, one elsewhere, the file of logins, and what the browser brings back."""

import json
import re
from contextlib import suppress
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
import trio

from node.commands.loopback import read_return, wait_for_return
from node.commands.own_logins import OwnLogin, keep_login, place, read_login
from node.commands.signing_in import Client, Failed, _log_in, read_answer
from node.config.values import Unfit
from tests.api.test_rights import app_of
from tests.auth.people import Person
from tests.auth.provider import Provider, provider
from tests.auth.test_oidc import with_provider
from tests.registry.world import MakeWorld

__all__ = ["provider"]


async def test_both_ways(world: MakeWorld, provider: Provider, capsys: pytest.CaptureFixture[str]) -> None:
    """The command follows whichever way the provider has, and ends with a token; what the provider refuses it says."""
    (us,) = await with_provider(world, provider)
    await provider.person("21", preferred_username="hedy")
    ended: list[OwnLogin | Failed] = []

    async def log_in(way: str) -> None:
        async with httpx.AsyncClient(transport=app_of(us), base_url="http://registry.test") as http:
            try:
                ended.append(await _log_in(Client(http), way, "http://127.0.0.1/callback", browser=False))
            except Failed as error:
                ended.append(error)

    async def said(pattern: str) -> str:
        text = ""
        while (found := re.search(pattern, text)) is None:
            await trio.sleep(0.01)
            text += capsys.readouterr().err
        return found[1]

    with trio.fail_after(60):
        for action in ("allow", "deny"):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(log_in, "auto")
                await provider.enter(await said(r"enter the code (\S+)"), "21", action)
        for answer in ("code", "error"):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(log_in, "code")
                uri = await said(r"Log in with Mock at (\S+)")
                query = parse_qs(urlsplit(uri).query)
                assert query["code_challenge_method"] == ["S256"]
                came = await provider.visit(uri, "21")
                back = {"state": came["state"][0], answer: came["code"][0]}
                async with httpx.AsyncClient(trust_env=False, timeout=60) as browser:
                    page = await browser.get(query["redirect_uri"][0], params=back)
                assert page.status_code == 200
    device, denied, code, failed = ended
    assert isinstance(device, OwnLogin)
    assert isinstance(code, OwnLogin)
    assert (device.account, code.account) == ("hedy", "hedy")
    assert "access_denied" in str(denied)
    assert "Mock says:" in str(failed)
    assert (await us.ask("GET", "/v2/auth", headers=Person("hedy", device.secret).basic)).status == 200


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, b"[]"),
        (200, b"{"),
        (403, b'{"title": "no", "detail": "because"}'),
        (502, b"<html>"),
        (404, b"\xff"),
    ],
)
def test_answers_that_are_none(status: int, body: bytes) -> None:
    """What is no answer of a registry of this kind, or says that it will not, ends the command with a line."""
    with pytest.raises(Failed):
        read_answer(status, body)


def test_the_file_of_logins(tmp_path: Path) -> None:
    """It is where the environment says, has one login per registry until that ends, and is refused when others may read it."""
    environment = {"HOME": str(tmp_path)}
    path = place(environment)
    assert path == tmp_path / ".config" / "antipode" / "logins.json"
    assert read_login(path, "a") is None
    login, ended = OwnLogin("alice", "1", "apt_x", None), OwnLogin("alice", "1", "apt_x", "2020-01-01T00:00:00.000Z")
    keep_login(path, "a", login)
    keep_login(path, "b", ended)
    assert (read_login(path, "a"), read_login(path, "b")) == (login, None)
    keep_login(path, "b", None)
    assert list(json.loads(path.read_text())) == ["a"]
    assert "apt_x" not in repr(login)
    assert [file.name for file in path.parent.iterdir()] == ["logins.json"]
    path.chmod(0o644)
    with pytest.raises(Unfit, match="chmod 600"):
        read_login(path, "a")
    path.chmod(0o600)
    for wrong in ("[]", "{", '{"a": {"account": 1, "more": 2}}'):
        path.write_text(wrong)
        with pytest.raises(Unfit):
            read_login(path, "a")


def came(**query: str) -> bytes:
    return f"GET /callback?{httpx.QueryParams(query)} HTTP/1.1\r\nhost: x\r\n\r\n".encode()


def test_what_a_browser_brings() -> None:
    """Only what has the login's own state is its end."""
    found = read_return(came(code="c", state="s"), "/callback", "s")
    assert found is not None
    assert found.code == "c"
    denied = read_return(came(error="access_denied", error_description="no\x1b[2J", state="s"), "/callback", "s")
    assert denied is not None
    assert (denied.code, denied.error) == (None, "access_denied no?[2J")
    for head in (
        came(code="c", state="t"),
        came(code="c"),
        came(code="c", state="s").replace(b"GET", b"POST"),
        came(code="c", state="s").replace(b"/callback", b"/other"),
        came(code="c", state="s").replace(b"?", b"?state=s&"),
        b"",
        b"\xff\r\n\r\n",
    ):
        assert read_return(head, "/callback", "s") is None


async def test_strangers_at_the_listener() -> None:
    """Whatever else is sent there, and never ends, does not keep the browser away."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    silent = await trio.open_tcp_stream("127.0.0.1", port)

    async def visit() -> None:
        async with await trio.open_tcp_stream("127.0.0.1", port) as noise:
            # It may be hung up on before all of it is sent.
            with suppress(trio.BrokenResourceError):
                await noise.send_all(b"\0" * 100_000)
        async with await trio.open_tcp_stream("127.0.0.1", port) as browser:
            await browser.send_all(came(code="c", state="s"))
            assert b"Logged in" in b"".join([data async for data in browser])

    async with listener, silent, trio.open_nursery() as nursery:
        nursery.start_soon(visit)
        with trio.fail_after(30):
            found = await wait_for_return(listener, "/callback", "s")
    assert found.code == "c"
