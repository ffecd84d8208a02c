"""Secrets are planted in every place of a configuration, everything that can fail is made to, and nobody sees one of them."""

import subprocess
from base64 import b64encode
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
import yaml
from attrs import evolve
from click.testing import CliRunner, Result

from node.cli import main
from tests.certificates import Authority
from tests.cluster import Cluster, Node, StartCluster, program
from tests.configurations import document, stores
from tests.security.conftest import MARK, Guarded, planted
from tests.services import Store

PATIENCE = 30.0
DIGEST = "sha256:" + "0" * 64


def seen(text: str) -> list[str]:
    """Return the lines that tell a secret."""
    return [line for line in text.splitlines() if MARK in line]


def check(path: Path, **environment: str) -> Result:
    """Say what `antipode config check` says."""
    return CliRunner(env=environment).invoke(main, ["config", "check", str(path)], prog_name="antipode")


async def antipode(*words: str | Path) -> subprocess.CompletedProcess[bytes]:
    """Run the command line in a process of its own."""
    with trio.fail_after(PATIENCE):
        return await trio.run_process(
            [*program(), *map(str, words)], capture_stdout=True, capture_stderr=True, check=False
        )


async def logged(node: Node, *words: str) -> None:
    with trio.fail_after(PATIENCE):
        while not all(word in node.log for word in words):  # noqa: ASYNC110 - a file tells nobody that it grew
            await trio.sleep(0.05)


def basic(name: str, password: str) -> str:
    """Return an Authorization header's value."""
    return f"Basic {b64encode(f'{name}:{password}'.encode()).decode()}"


def everywhere() -> dict[str, Any]:
    """Return a configuration with a secret in every place that takes one."""
    return {
        "DB_URI": f"postgresql://antipode:{planted('uri')}@127.0.0.1:1/registry",
        "USER_EVENTS_REDIS": {"host": "127.0.0.1", "port": 1, "password": planted("redis")},
        "DISTRIBUTED_STORAGE_CONFIG": stores(access_key=planted("access"), secret_key=planted("secret")),
        "ENABLE_HEALTH_DEBUG_SECRET": planted("debug"),
        "DATABASE_SECRET_KEY": planted("sealing"),
    }


SPOILED: dict[str, Mapping[str, Any]] = {
    "good": {},
    "a number where the URI is due": {"DB_URI": [planted("uri")]},
    "another database": {"DB_URI": f"mysql://root:{planted('uri')}@db/registry"},
    "an unescaped password": {"DB_URI": f"postgresql://root:p@{MARK}#s@db/registry"},
    "an unescaped slash": {"DB_URI": f"postgresql://root:{MARK}/s@db/registry"},
    "no name": {"DB_URI": f"postgresql://root:{MARK}@db"},
    "two passwords": {"DB_CONNECTION_ARGS": {"password": planted("other")}},
    "a password that is a list": {"DB_CONNECTION_ARGS": {"password": [planted("other")]}},
    "no port": {"USER_EVENTS_REDIS": {"host": "h", "port": "x", "password": planted("redis")}},
    "a list as password": {"USER_EVENTS_REDIS": {"host": "h", "password": [planted("redis")]}},
    "text where arguments are due": {"DB_CONNECTION_ARGS": f"password={MARK}"},
    "text where a store is due": {
        "DISTRIBUTED_STORAGE_CONFIG": {"us": f"s3://key:{MARK}@bucket", "eu": ["S3Storage", MARK]}
    },
    "text where Redis is due": {"USER_EVENTS_REDIS": f"redis://:{MARK}@h"},
    "a list as key": {"DISTRIBUTED_STORAGE_CONFIG": stores(secret_key=[planted("secret")])},
    "a number as key": {"DISTRIBUTED_STORAGE_CONFIG": stores(access_key=planted("access"), secret_key=1)},
    "an endpoint with a user": {"DISTRIBUTED_STORAGE_CONFIG": stores(public_endpoint=f"https://u:{MARK}@h")},
    "a mapping as debug secret": {"ENABLE_HEALTH_DEBUG_SECRET": {"a": planted("debug"), "b": 1}},
    "a short sealing key": {"DATABASE_SECRET_KEY": MARK},
    "a list as sealing key": {"DATABASE_SECRET_KEY": [planted("sealing")]},
    "a misspelt key": {"ENABLE_HEALTH_DEBUG_SECRETS": planted("debug")},
    "a key of nobody": {"MY_OWN": planted("own"), "SECRET_KEY": planted("quay")},
    "a secret that is not there": {"DB_URI": {"env": "NOT_SET"}, "MY": {"file": "/nowhere"}},
}


@pytest.mark.parametrize("what", SPOILED)
def test_config_check_tells_no_secret(what: str, tmp_path: Path) -> None:
    """Neither a good configuration's report nor any error or warning about a bad one shows a secret."""
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(document(**{**everywhere(), **SPOILED[what]})))
    done = check(path)
    assert done.exit_code == (0 if what in ("good", "a key of nobody") else 2), done.stderr
    assert seen(done.output) == []


def test_text_that_is_no_configuration_tells_no_secret(tmp_path: Path) -> None:
    """Broken YAML and broken JSON are not quoted."""
    path = tmp_path / "config.yaml"
    for text in (
        f"DB_URI: *{MARK}",
        f"A: {{password: '{MARK}",
        f"{MARK}: [",
        f"- {MARK}",
        f"A: !!int {MARK}",
        f"\t{MARK}",
    ):
        path.write_text(text)
        done = check(path)
        assert done.exit_code == 2
        assert seen(done.output) == []
    path.write_text(yaml.safe_dump(document()))
    done = check(path, QUAY_OVERRIDE_CONFIG=f'{{"DB_URI": "{MARK}"')
    assert done.exit_code == 2
    assert seen(done.output) == []


async def test_a_refused_password_of_the_database_is_not_told(
    start_cluster: StartCluster, guarded_postgres: Guarded, authority: Authority, tmp_path: Path
) -> None:
    """A node, and a verb of the command line, that the database refuses end with one line and without the password."""
    (tmp_path / "password").write_text(planted("wrong"))
    nodes = await start_cluster(
        "us eu",
        launch=False,
        DB_URI=f"postgresql://antipode@127.0.0.1:{guarded_postgres.port}/registry",
        DB_CONNECTION_ARGS={
            "sslmode": "verify-full",
            "sslrootcert": str(authority.own.certificate),
            "password": {"file": str(tmp_path / "password")},
        },
    )
    node = nodes["us"]
    node.options = ["--log-level", "debug"]
    node.launch()
    assert await node.wait_ended() == 1
    assert "password authentication failed" in node.log
    assert "Traceback" not in node.log
    done = await antipode("location", "list", "--config", nodes.configuration_file)
    assert done.returncode == 1
    assert b"password authentication failed" in done.stderr
    assert seen(node.log + (done.stdout + done.stderr).decode()) == []


async def test_what_redis_and_a_store_refuse_is_not_told(
    start_cluster: StartCluster,
    s3_stores: dict[str, Store],
    guarded_redis: Guarded,
    authority: Authority,
    repository: str,
) -> None:
    """A node that Redis and a store refuse works on; neither its log nor any answer of it shows what was refused."""
    eu = evolve(s3_stores["eu"], secret_key=planted("secret"))
    nodes = await start_cluster(
        "eu us",
        stores={"eu": eu},
        launch=False,
        USER_EVENTS_REDIS={
            "host": "127.0.0.1",
            "port": guarded_redis.port,
            "password": planted("wrong"),
            "ssl": True,
            "ssl_ca_certs": str(authority.own.certificate),
        },
        ENABLE_HEALTH_DEBUG_SECRET=planted("debug"),
        FEATURE_PROXY_STORAGE=True,
    )
    node = nodes["eu"]
    node.options = ["--log-level", "debug"]
    await node.start()
    await logged(
        node, "hints lost their connection", "invalid username-password", "location is down", "SignatureDoesNotMatch"
    )
    told = await answers(node, repository)
    spoil(nodes)
    node.signal("SIGHUP")
    await logged(node, "the old values stay", "configuration was not reloaded")
    await node.stop()
    assert seen(node.log + told) == []
    assert s3_stores["us"].secret_key not in node.log + told


async def test_what_people_type_is_not_told(start_cluster: StartCluster, repository: str) -> None:
    """Passwords and tokens that prove nothing, in every form in which they come, are neither logged nor repeated."""
    nodes = await start_cluster(
        "us eu", launch=False, FEATURE_OPEN_REGISTRY=None, DATABASE_SECRET_KEY=planted("sealing-key")
    )
    node, secret = nodes["us"], planted("typed")
    node.options = ["--log-level", "debug"]
    await node.start()
    shown = [
        {"Authorization": said} for said in (f"Bearer {secret}", f"Basic {secret}", secret, basic("somebody", secret))
    ]
    paths = ("/v2/auth", "/v2/auth?scope=repository:a/b:pull", "/v2/", f"/v2/{repository}/tags/list", "/api/v1/users")
    forms: list[dict[str, str]] = [
        {"grant_type": "password", "username": "somebody", "password": secret},
        {"grant_type": "refresh_token", "refresh_token": secret},
        {"grant_type": secret},
    ]
    async with httpx.AsyncClient(base_url=node.url, timeout=PATIENCE) as client:
        told = [await client.get(path, headers=headers) for path in paths for headers in shown]
        told += [await client.post("/v2/auth", data=form) for form in forms]
    assert {answer.status_code for answer in told} <= {400, 401, 404}
    await node.stop()
    assert seen(node.log + "\n".join(f"{answer.headers!r} {answer.text}" for answer in told)) == []


def spoil(nodes: Cluster) -> None:
    """Put an error beside a new secret into the file."""
    changed = {**nodes.configuration, "ENABLE_HEALTH_DEBUG_SECRET": [planted("new")], "REPLICATION_STREAMS": "many"}
    nodes.configuration_file.write_text(yaml.safe_dump(changed))


async def answers(node: Node, repository: str) -> str:
    """Return all that a node answers to requests good and bad, headers and bodies."""
    blob, secret = f"/v2/{repository}/blobs", planted("client")
    told: list[str] = []
    async with httpx.AsyncClient(base_url=node.url, timeout=PATIENCE) as client:
        requests: list[tuple[str, str, dict[str, Any]]] = [
            ("GET", "/v2/", {"headers": {"Authorization": f"Bearer {secret}"}}),
            ("GET", "/v2/_catalog", {"auth": ("somebody", secret)}),
            ("POST", f"{blob}/uploads/?digest={DIGEST}", {"content": b"wrong"}),
            ("POST", f"{blob}/uploads/", {"headers": {"Cookie": f"session={secret}"}}),
            ("GET", f"{blob}/{DIGEST}", {}),
            ("GET", f"/v2/{repository}/manifests/{DIGEST}", {}),
            ("PUT", f"/v2/{repository}/manifests/v1", {"content": b"{}"}),
            ("GET", "/v2/UPPER/manifests/x", {}),
            ("GET", f"/health/endtoend?debug_secret={secret}", {}),
            ("GET", "/health/dbrevision", {}),
            ("GET", "/health/warning", {}),
            ("GET", "/health/instance", {}),
            ("GET", "/metrics", {}),
            ("GET", f"/api/v1/repository/{repository}/manifest/v1/replication?location=eu", {}),
        ]
        for method, path, options in requests:
            answer = await client.request(method, path, **options)
            told += [str(answer.status_code), repr(answer.headers), answer.text]
    return "\n".join(told)
