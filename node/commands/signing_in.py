"""`antipode login` and `antipode logout`: people of an identity provider, whose logins this machine keeps."""

import base64
import hashlib
import os
import secrets
import sys
import webbrowser
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from socket import gethostname
from typing import Any, NoReturn, TypeVar
from urllib.parse import urlsplit

import click
import httpx
import trio
from attrs import field, frozen

from node.commands.loopback import wait_for_return
from node.commands.options import EXIT_FAILED, output_option
from node.commands.own_logins import OwnLogin, keep_login, place, read_login
from node.commands.registry_client import is_loopback
from node.commands.tables import show
from node.config.values import Unfit, parse_host

T = TypeVar("T")

_SECONDS = 30.0
"""How long an answer may take: the node asks the provider for it."""
_MOST = 64 * 1024
_LONGEST_PAUSE = 60.0
_ANY_PORT = "http://127.0.0.1/callback"

_EXIT_CODES = """\b
Exit codes:
  0  logged in
  1  not logged in: refused, too late, or the registry or the provider is out of reach
  2  the command line is wrong

\b
Examples:
  antipode login registry.example.com
  antipode login registry.example.com --show-token | docker login registry.example.com -u alice --password-stdin
"""


class Failed(Exception):
    """There is no login; the text says why."""


class _Away(Failed):
    """The registry, or the provider behind it, may answer a moment later."""


@frozen
class Client:
    """The registry's API."""

    _http: httpx.AsyncClient = field(alias="http")

    async def ask(self, method: str, path: str, body: Mapping[str, object] | None = None) -> Mapping[str, Any]:
        """Return the answer. Raises Failed."""
        data = b""
        try:
            with trio.fail_after(_SECONDS), trio.CancelScope() as reading:
                async with self._http.stream(method, f"/api/v1{path}", json=body) as answer:
                    async for chunk in answer.aiter_bytes():
                        data += chunk
                        if len(data) > _MOST:
                            # Not by leaving the loop: httpx's generators end in order only where they wait.
                            reading.cancel()
        except (httpx.HTTPError, trio.TooSlowError) as error:
            raise _Away(f"the registry cannot be reached: {type(error).__name__}: {error}".rstrip(": ")) from None
        if len(data) > _MOST:
            raise Failed("the registry's answer is too long")
        return read_answer(answer.status_code, data)


def read_answer(status: int, data: bytes) -> Mapping[str, Any]:
    """Return the JSON object of an answer. Raises Failed with what the registry says is wrong."""
    try:
        document = httpx.Response(status, content=data).json()
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise Failed(f"it answered {status}, and not as a registry of this kind does")
    if status == httpx.codes.OK:
        return document
    said = ": ".join(str(document[name]) for name in ("title", "detail") if document.get(name))
    text = "".join(letter if letter.isprintable() else "?" for letter in said)[:1000] or f"it answered {status}"
    raise _Away(text) if status in (429, 502, 503, 504) else Failed(text)


def _host(_context: click.Context, _parameter: click.Parameter, text: str) -> str:
    try:
        parse_host(text)
    except Unfit as error:
        raise click.BadParameter(f"found {text!r}; {error}") from None
    return text


def _redirect(_context: click.Context, _parameter: click.Parameter, text: str) -> str:
    parts = urlsplit(text)
    local = parts.scheme == "http" and parts.hostname in ("127.0.0.1", "::1", "localhost") and not parts.query
    if not local or (parts.port is None and text != _ANY_PORT):
        raise click.BadParameter(f"found {text!r}; write http://127.0.0.1:PORT/callback, or localhost")
    return text


_PLAIN = click.option(
    "--plain-http", is_flag=True, help="Speak HTTP; without it that is done only on this very machine."
)


@click.command(
    "login", epilog=_EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120}
)
@click.argument("host", callback=_host)
@click.option(
    "--way",
    type=click.Choice(["auto", "device", "code"]),
    default="auto",
    show_default=True,
    help="device: a browser anywhere, and a code to type there. code: a browser of this machine, which comes back by itself.",
)
@click.option(
    "--redirect",
    default=_ANY_PORT,
    callback=_redirect,
    metavar="URL",
    help="Where the browser comes back to, where the provider wants one that it knows. Default: any free port of 127.0.0.1.",
)
@click.option("--browser/--no-browser", default=True, help="Open a browser, or only show the address.")
@click.option("--show-token", is_flag=True, help="Print the token, and keep it as well.")
@_PLAIN
@output_option
def command(host: str, way: str, redirect: str, browser: bool, show_token: bool, plain_http: bool, output: str) -> None:
    """Log in to the registry HOST (host[:port]) with its identity provider.

    What is left of it is an application token with an end, in $XDG_CONFIG_HOME/antipode/logins.json (~/.config), which other
    commands use by themselves and nobody else can read. docker takes it as a password: see the example.
    """

    async def main() -> OwnLogin:
        async with _open(host, plain_http, None) as client:
            return await _log_in(client, way, redirect, browser=browser)

    login = _run(main)
    try:
        keep_login(place(os.environ), host, login)
    except Unfit as error:
        _fail(str(error))
    document = {"registry": host, "account": login.account, "id": login.id, "expires": login.expires}
    click.echo(f"logged in to {host} as {login.account}, until {login.expires}", err=True)
    if output == "json":
        show({**document, **({"secret": login.secret} if show_token else {})}, output)
    elif show_token:
        click.echo(login.secret)


@click.command("logout")
@click.argument("host", callback=_host)
@_PLAIN
def logout(host: str, plain_http: bool) -> None:
    """End the login to the registry HOST: its token is void, and forgotten here."""
    path = place(os.environ)
    try:
        login = read_login(path, host)
        keep_login(path, host, None)
    except Unfit as error:
        _fail(str(error))
    if login is None:
        click.echo(f"there is no login to {host}")
        return

    async def main() -> Mapping[str, Any]:
        async with _open(host, plain_http, login.secret) as client:
            return await client.ask("DELETE", f"/namespace/{login.account}/token/{login.id}")

    _run(main, "the login is forgotten here, but its token goes on until its end: ")
    click.echo(f"logged out of {host}")


async def _log_in(client: Client, way: str, redirect: str, *, browser: bool) -> OwnLogin:
    ways = await client.ask("GET", "/login")
    if ways.get("authentication") != "OIDC":
        raise Failed("people log in to this registry by a password: docker login")
    service = shown(ways.get("service"), 100) or "the identity provider"
    if way == "device" or (way == "auto" and ways.get("device") is True):
        if ways.get("device") is not True:
            raise Failed(f"{service} knows no login by a browser elsewhere: leave --way out")
        return await _by_device(client, service, browser)
    return await _by_code(client, service, redirect, browser)


async def _by_device(client: Client, service: str, browser: bool) -> OwnLogin:
    begun = await client.ask("POST", "/login/device")
    user_code = shown(begun.get("user_code"), 64)
    click.echo(f"Log in with {service} at {_web(begun['uri'])} and enter the code {user_code}", err=True)
    if browser:
        await _open_browser(_web(begun.get("complete_uri") or begun["uri"]))
    interval, waited = float(begun["interval"]), {"handle": begun["handle"], "title": _title()}
    with trio.move_on_after(float(begun["expires_in"])):
        while True:
            await trio.sleep(interval)
            try:
                found = await client.ask("POST", "/login/token", waited)
            except _Away as error:
                # RFC 8628, 3.5: as after slow_down.
                click.echo(f"{error}; trying again", err=True)
                interval = min(interval * 2, _LONGEST_PAUSE)
                continue
            if found["status"] == "done":
                return _login_of(found)
            if found["slower"]:
                interval += 5
    raise Failed("nobody logged in within the time that the provider gives")


async def _by_code(client: Client, service: str, redirect: str, browser: bool) -> OwnLogin:
    verifier, state = secrets.token_urlsafe(48), secrets.token_urlsafe(24)
    challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
    parts = urlsplit(redirect)
    address = "::1" if parts.hostname == "::1" else "127.0.0.1"
    try:
        (listener,) = await trio.open_tcp_listeners(parts.port or 0, host=address)
    except OSError as error:
        raise Failed(f"nothing can be listened to at {redirect}: {error.strerror or error}") from None
    async with listener:
        back = redirect if parts.port else f"http://127.0.0.1:{listener.socket.getsockname()[1]}{parts.path}"
        asked = {"redirect_uri": back, "code_challenge": challenge, "state": state}
        begun = await client.ask("POST", "/login/code", asked)
        click.echo(f"Log in with {service} at {_web(begun['uri'])}", err=True)
        if browser:
            await _open_browser(_web(begun["uri"]))
        with trio.move_on_after(float(begun["expires_in"])) as scope:
            came = await wait_for_return(listener, parts.path, state)
    if scope.cancelled_caught:
        raise Failed("nobody logged in within ten minutes")
    if came.code is None:
        raise Failed(f"{service} says: {came.error}")
    given = {"handle": begun["handle"], "code": came.code, "code_verifier": verifier, "title": _title()}
    return _login_of(await client.ask("POST", "/login/token", given))


def _login_of(found: Mapping[str, Any]) -> OwnLogin:
    return OwnLogin(str(found["account"]), str(found["id"]), str(found["secret"]), found["expires"])


def _title() -> str:
    return f"antipode login on {gethostname()}"[:200]


def shown(text: object, most: int) -> str:
    """Return a text of somebody else's as it may be shown on a terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in str(text or ""))[:most]


def _web(text: object) -> str:
    if not isinstance(text, str) or not text.startswith("https://") or not text.isascii() or not text.isprintable():
        raise Failed("the registry's answer has no address that a browser may open")
    return text


async def _open_browser(uri: str) -> None:
    # It may print, or wait for a browser of the terminal's.
    with trio.move_on_after(5.0):
        await trio.to_thread.run_sync(webbrowser.open, uri, abandon_on_cancel=True)


@asynccontextmanager
async def _open(host: str, plain_http: bool, token: str | None) -> AsyncIterator[Client]:
    local = is_loopback(host)
    headers = {"accept": "application/json", "accept-encoding": "identity"}
    if token is not None:
        headers["authorization"] = f"Bearer {token}"
    scheme = "http" if plain_http or local else "https"
    async with httpx.AsyncClient(
        base_url=f"{scheme}://{host}", trust_env=not local, headers=headers, timeout=_SECONDS
    ) as http:
        yield Client(http)


def _run(main: Callable[[], Awaitable[T]], before: str = "") -> T:
    try:
        return trio.run(main, strict_exception_groups=True)
    except Failed as error:
        _fail(f"{before}{error}")
    except KeyError as error:
        _fail(f"{before}the registry's answer lacks {error}")


def _fail(text: str) -> NoReturn:
    click.echo(text, err=True)
    sys.exit(EXIT_FAILED)
