"""Every client that is installed, against nodes of two regions that speak TLS and ask for tokens.

Clients of which there is no program are skipped. docs/clients.md has what was seen.
"""

import json
import os
from functools import partial
from pathlib import Path
from typing import Protocol

import pytest
import trio

from tests.auth.test_nodes import run, run_json
from tests.certificates import Authority
from tests.cluster import Cluster, Node, StartCluster
from tests.registry.world import until
from tests.security.clients import CLIENTS, Bench, Client, bench
from tests.test_store_dies import image_layout

PASSWORD = "correct horse battery"
REFUSED = ("unauthorized", "denied", "authorization failed", "invalid username", "toomanyrequests", "401", "403")
IN_OTHER_WORDS = ("closed pipe", '/v2/": eof')
"""ctr, when the answer comes before it has sent everything; docker, which tries plain HTTP after that, as this is the loopback."""


@pytest.fixture
async def nodes(start_cluster: StartCluster, authority: Authority) -> Cluster:
    """A registry with accounts over TLS: the organisation `team`, its admin alice, and bob."""
    pair = authority.sign("node")
    cluster = await start_cluster(
        "us eu",
        "eu us",
        launch=False,
        PREFERRED_URL_SCHEME="https",
        SSL_CERTIFICATE=str(pair.certificate),
        SSL_CERTIFICATE_KEY=str(pair.key),
        FEATURE_OPEN_REGISTRY=None,
        DATABASE_SECRET_KEY="a secret key for tests",
        # Its stores speak plain HTTP.
        FEATURE_PROXY_STORAGE=True,
    )
    for node in cluster:
        node.environment = {"QUAY_OVERRIDE_CONFIG": json.dumps({"SERVER_HOSTNAME": f"127.0.0.1:{node.port}"})}
    await trio.to_thread.run_sync(cluster.start_now)
    await run(cluster, "user", "create", "alice", "--password-stdin", given=f"{PASSWORD}\n")
    await run(cluster, "user", "create", "bob", "--password-stdin", given=f"{PASSWORD}\n")
    await run(cluster, "org", "create", "team", "--admin", "alice")
    return cluster


def layout_words(folder: Path) -> dict[str, str]:
    """Write an image that is called v1, and return what the clients' lines call it."""
    layout = image_layout(folder, 3 << 20)
    for left in ("content", "layer.tar"):
        (layout / left).unlink()
    index = json.loads((layout / "index.json").read_text())
    (described,) = index["manifests"]
    described["annotations"] = {"org.opencontainers.image.ref.name": "v1"}
    (layout / "index.json").write_text(json.dumps(index))
    digest = described["digest"]
    manifest = json.loads((layout / "blobs" / "sha256" / digest.removeprefix("sha256:")).read_text())
    return {"layout": str(layout), "image": manifest["config"]["digest"].removeprefix("sha256:"), "manifest": digest}


class Words(Protocol):
    """What a client's lines call a repository of some host, and who uses it."""

    def __call__(self, at: str, user: str, password: str) -> dict[str, str]: ...


def words_of(repository: str, at: str, user: str, password: str) -> dict[str, str]:
    refs = {
        "ref": f"{at}/{repository}:v1",
        "other": f"{at}/{repository}-beside:v1",
        "repository": f"{at}/{repository}",
    }
    return {"host": at, "user": user, "password": password, **refs}


async def mounted(node: Node, repository: str) -> bool:
    """Return whether a blob came into a repository by being asked for: a POST that is answered 201 and brings no bytes."""
    lines = [json.loads(line) for line in node.log.splitlines() if '"antipode.access"' in line]
    return any(
        line["method"] == "POST" and line["status"] == 201 and line["path"] == f"/v2/{repository}/blobs/uploads/"
        for line in lines
    )


async def succeeds(bench: Bench, line: str, given: str = "", /, **words: str) -> None:
    code, said = await bench.run(line, given, words)
    assert code == 0, f"{bench.client.name}: {line}\n{said}"


async def is_refused(bench: Bench, line: str, given: str = "", /, **words: str) -> None:
    """A command that fails because of the registry's answer, and says so."""
    code, said = await bench.run(line, given, words)
    assert code != 0, f"{bench.client.name}: {line}\n{said}"
    assert any(word in said.lower() for word in (*REFUSED, *IN_OTHER_WORDS)), said


@pytest.mark.parametrize("client", [pytest.param(client, id=client.program) for client in CLIENTS])
async def test_a_client_by_tokens(nodes: Cluster, authority: Authority, tmp_path: Path, client: Client) -> None:
    """Log in, push here and pull there at once, copy beside, both ways; wrong passwords and a reader's push are refused.

    Without a login, a public repository's image is pulled, and a private one's is refused.
    """
    if not client.here:
        pytest.skip(f"no {client.program}")
    robot = (await run_json(nodes, "robot", "create", "team+reader"))["token"]
    await run(nodes, "org", "add-default", "team", "team+reader", "read")
    token = (await run_json(nodes, "token", "create", "alice", "a laptop"))["token"]
    environment = {**os.environ, "SSL_CERT_FILE": str(authority.own.certificate)}
    hosts = {name: f"127.0.0.1:{nodes[name].port}" for name in ("us", "eu")}
    layout = {**layout_words(tmp_path / "layout"), **hosts}
    async with bench(client, layout, environment) as made:
        _, version = await made.run(client.version)
        await succeeds(made, client.prepare)
        for here, there in (("us", "eu"), ("eu", "us")):
            repository, host, other_host = f"team/from-{here}", hosts[here], hosts[there]
            words = partial(words_of, repository)

            async def log_in(at: str, user: str, password: str, words: Words = words) -> dict[str, str]:
                await succeeds(made, client.login, password, **words(at, user, password))
                return words(at, user, password)

            alice = await log_in(host, "alice", PASSWORD)
            await succeeds(made, client.push, **alice)
            if client.beside is not None:
                await succeeds(made, client.beside, **alice)
                await until(partial(mounted, nodes[here], f"{repository}-beside"), 30)
            await succeeds(made, client.pull, **await log_in(other_host, "alice", token))
            reader = await log_in(other_host, "team+reader", robot)
            await succeeds(made, client.pull, **reader)
            await succeeds(made, client.prepare)
            await is_refused(made, client.push, **{**reader, "ref": f"{other_host}/{repository}:v2"})
            wrong = words(host, "bob", "wrong")
            if client.login_asks:
                await is_refused(made, client.login, "wrong", **wrong)
            else:
                await succeeds(made, client.login, "wrong", **wrong)
                await is_refused(made, client.pull, **wrong)
    await run(nodes, "permission", "visibility", "team/from-us", "public")
    async with bench(client, layout, environment) as made:
        pull = client.pull_as_nobody or client.pull
        # What is set up besides the login itself.
        if client.pull_as_nobody is not None:
            await succeeds(made, client.login, "", **words_of("team/from-us", hosts["eu"], "", ""))
        await succeeds(made, pull, **words_of("team/from-us", hosts["eu"], "", ""))
        await is_refused(made, pull, **words_of("team/from-eu", hosts["eu"], "", ""))
    print(f"{client.name}: {version.strip()}")
