"""What the command line shows a registry: what options, the environment, or the files of docker and podman say."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import httpx
import pytest

from node.commands.login import find_login
from node.config.values import Unfit
from tests.auth.people import basic

HOST = "registry.example.com:8443"


def shown(environment: Mapping[str, str], *answers: httpx.Response) -> list[httpx.Request]:
    """Return the requests that one for an image becomes, each answered by the next of `answers`, and then by 200."""
    login = find_login(HOST, "team/app", None, password_stdin=False, environment=environment)
    if login is None:
        return []
    flow, left, seen = login.auth_flow(httpx.Request("GET", f"https://{HOST}/api?wait=5")), list(answers), []
    request = next(flow)
    while True:
        seen.append(httpx.Request(request.method, request.url, headers=request.headers, content=request.read()))
        try:
            request = flow.send(left.pop(0) if left else httpx.Response(200))
        except StopIteration:
            return seen


def docker(folder: Path, **settings: Any) -> Mapping[str, str]:
    (folder / "config.json").write_text(json.dumps(settings))
    return {"DOCKER_CONFIG": str(folder), "HOME": "/nonexistent"}


def helper(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, secret: str) -> None:
    """Put docker-credential-test on the path, which knows HOST and nothing else."""
    said = json.dumps({"ServerURL": HOST, "Username": name, "Secret": secret})
    program = folder / "docker-credential-test"
    program.write_text(f'#!/bin/sh\n[ "$1" = get ] && read host || [ "$host" = {HOST} ] || exit 1\necho \'{said}\'\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


@pytest.mark.parametrize("key", [HOST, f"https://{HOST}/v1/", f"{HOST}/team"])
def test_a_password_that_docker_keeps(tmp_path: Path, key: str) -> None:
    """The entry of this host is found however it is spelled, and no other's."""
    other = {"registry.example.com": {"auth": "bm86bm8="}}
    pair = basic("alice", "a:b").removeprefix("Basic ")
    (request,) = shown(docker(tmp_path, auths={**other, key: {"auth": pair}}))
    assert request.headers["authorization"] == basic("alice", "a:b")
    assert shown(docker(tmp_path, auths=other)) == []
    assert shown({"HOME": str(tmp_path)}) == []


def test_a_refresh_token_that_docker_keeps(tmp_path: Path) -> None:
    """It buys a token for this repository, which is shown; the answer to a refused one is the answer."""
    environment = docker(tmp_path, auths={HOST: {"identitytoken": "refresh me"}})
    bought, asked = shown(environment, httpx.Response(200, json={"access_token": "fresh"}))
    assert (bought.method, str(bought.url)) == ("POST", f"https://{HOST}/v2/auth")
    assert b"refresh_token=refresh+me" in bought.content
    assert b"scope=repository%3Ateam%2Fapp%3Apull" in bought.content
    assert (str(asked.url), asked.headers["authorization"]) == (f"https://{HOST}/api?wait=5", "Bearer fresh")
    assert len(shown(environment, httpx.Response(401))) == 1


def test_a_token_in_the_environment_goes_first(tmp_path: Path) -> None:
    """$ANTIPODE_TOKEN counts before files, and podman's file before docker's."""
    files = docker(tmp_path, auths={HOST: {"auth": "YTpi"}})
    podman = tmp_path / "auth.json"
    podman.write_text(json.dumps({"auths": {HOST: {"auth": basic("p", "q").removeprefix("Basic ")}}}))
    environment = {**files, "REGISTRY_AUTH_FILE": str(podman)}
    assert shown(environment)[0].headers["authorization"] == basic("p", "q")
    assert shown({**environment, "ANTIPODE_TOKEN": "t"})[0].headers["authorization"] == "Bearer t"


@pytest.mark.parametrize("where", [{"credsStore": "test"}, {"credHelpers": {HOST: "test"}}])
def test_a_credential_helper_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: Mapping[str, Any]
) -> None:
    """As docker asks it: the host on standard input; `<token>` for a name means a refresh token."""
    helper(tmp_path, monkeypatch, "alice", "secret")
    environment = docker(tmp_path, auths={HOST: {}}, **where)
    assert shown(environment)[0].headers["authorization"] == basic("alice", "secret")
    helper(tmp_path, monkeypatch, "<token>", "again")
    assert b"refresh_token=again" in shown(environment, httpx.Response(401))[0].content


def test_what_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is no JSON, an entry that is no base64, and a helper that is not there are errors that name it, not silence."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unfit, match="docker-credential-missing"):
        shown(docker(tmp_path, credsStore="missing"))
    with pytest.raises(Unfit, match=r"config\.json: an auth is not base64"):
        shown(docker(tmp_path, auths={HOST: {"auth": "%"}}))
    environment = docker(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(Unfit, match=r"config\.json cannot be read"):
        shown(environment)
    for username, stdin in (("alice", False), (None, True)):
        with pytest.raises(click.UsageError, match="go together"):
            find_login(HOST, "team/app", username, password_stdin=stdin, environment={})
