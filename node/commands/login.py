"""How the command line shows a registry who asks, as people expect it: by options, by the environment, or as docker is logged in.

Loads nothing of the node.
"""

import base64
import binascii
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click
import httpx
from attrs import define, field

from node.commands.own_logins import place, read_login
from node.config.values import Unfit

TOKEN = "ANTIPODE_TOKEN"  # noqa: S105  # a name
_HELPER_SECONDS = 30
_IDENTITY = "<token>"
"""The name that docker's credential helpers give to a refresh token."""

Verb = TypeVar("Verb", bound=Callable[..., Any])


def login_options(verb: Verb) -> Verb:
    """Give a verb `--username` and `--password-stdin`."""
    verb = click.option(
        "--password-stdin", is_flag=True, help="Read its password or token from standard input, one line."
    )(verb)
    return click.option(
        "--username",
        metavar="NAME",
        help=f"Log in as this account. Default: ${TOKEN}, else antipode login, else docker's or podman's.",
    )(verb)


def find_login(
    host: str,
    repository: str,
    username: str | None,
    *,
    password_stdin: bool,
    environment: Mapping[str, str] = os.environ,
) -> httpx.Auth | None:
    """Return what to show the registry `host`, None for nothing. Raises click.UsageError, Unfit.

    In this order: the options, an application token in $ANTIPODE_TOKEN, what `antipode login` left, and the files of podman and
    docker with their helpers.
    """
    if (username is not None) != password_stdin:
        raise click.UsageError("--username and --password-stdin go together")
    if username is not None:
        return httpx.BasicAuth(username, sys.stdin.readline().rstrip("\r\n"))
    if token := environment.get(TOKEN):
        return _Bearer(token)
    if (own := read_login(place(environment), host)) is not None:
        return _Bearer(own.secret)
    for path in _files(environment):
        found = _from_file(path, host, repository)
        if found is not None:
            return found
    return None


@define(eq=False)
class _Bearer(httpx.Auth):
    token: str = field(repr=False)

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        request.headers["authorization"] = f"Bearer {self.token}"
        yield request


@define(eq=False)
class _Refreshed(httpx.Auth):
    """A refresh token, as docker keeps it after a login: it buys tokens that last for minutes."""

    requires_response_body = True

    refresh_token: str = field(repr=False)
    repository: str
    token: str | None = field(default=None, repr=False)

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        if self.token is not None:
            request.headers["authorization"] = f"Bearer {self.token}"
            answer = yield request
            if answer.status_code != httpx.codes.UNAUTHORIZED:
                return
        form = {
            "grant_type": "refresh_token",
            "refresh_token": self.refresh_token,
            "service": request.url.netloc.decode(),
            "scope": f"repository:{self.repository}:pull",
        }
        answer = yield httpx.Request("POST", request.url.copy_with(path="/v2/auth", query=None), data=form)
        if answer.status_code != httpx.codes.OK:
            # The answer to this is then the answer to the request.
            return
        self.token = str(answer.json()["access_token"])
        request.headers["authorization"] = f"Bearer {self.token}"
        yield request


def _files(environment: Mapping[str, str]) -> Sequence[Path]:
    """Return where podman and docker keep their logins, the most particular first."""
    home = Path(environment.get("HOME", "/nonexistent"))
    found = []
    if given := environment.get("REGISTRY_AUTH_FILE"):
        found.append(Path(given))
    if run := environment.get("XDG_RUNTIME_DIR"):
        found.append(Path(run, "containers/auth.json"))
    found.append(Path(environment.get("DOCKER_CONFIG") or home / ".docker", "config.json"))
    return found


def _from_file(path: Path, host: str, repository: str) -> httpx.Auth | None:
    """Return the login for a registry that a file has. Raises Unfit."""
    try:
        document = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise Unfit(f"{path} cannot be read: {type(error).__name__}; log in again, or give --username") from None
    match document:
        case {"credHelpers": {**helpers}} if isinstance(helpers.get(host), str):
            return _from_helper(str(helpers[host]), host, repository)
    entries = document.get("auths") if isinstance(document, dict) else None
    for key, entry in entries.items() if isinstance(entries, dict) else ():
        if re.sub(r"^https?://|/.*$", "", key) == host and isinstance(entry, dict) and entry:
            return _from_entry(path, entry, repository)
    match document:
        case {"credsStore": str(helper)} if helper:
            return _from_helper(helper, host, repository)
    return None


def _from_entry(path: Path, entry: Mapping[str, Any], repository: str) -> httpx.Auth | None:
    if entry.get("identitytoken"):
        return _Refreshed(str(entry["identitytoken"]), repository)
    if not entry.get("auth"):
        return None
    try:
        name, _, password = base64.b64decode(str(entry["auth"]), validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        raise Unfit(f"{path}: an auth is not base64; log in again, or give --username") from None
    return httpx.BasicAuth(name, password)


def _from_helper(helper: str, host: str, repository: str) -> httpx.Auth | None:
    """Ask `docker-credential-<helper>`; None: it has no login. Raises Unfit."""
    program = f"docker-credential-{helper}"
    try:
        done = subprocess.run(  # noqa: S603  # the program that the user's own configuration names, as docker runs it
            [program, "get"], input=host, capture_output=True, text=True, timeout=_HELPER_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unfit(f"{program}, which docker is configured for, cannot be asked: {type(error).__name__}") from None
    if done.returncode != 0:
        return None
    try:
        said = json.loads(done.stdout)
        name, secret = str(said["Username"]), str(said["Secret"])
    except (ValueError, KeyError, TypeError):
        raise Unfit(f"{program} answered what is no login") from None
    return _Refreshed(secret, repository) if name == _IDENTITY else httpx.BasicAuth(name, secret)
