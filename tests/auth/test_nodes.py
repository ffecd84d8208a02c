"""Real nodes with accounts: the first superuser, the command line, and both edges, which ask for the same."""

import json
import os
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from node.push.reading import OCI_INDEX
from tests.auth.people import basic
from tests.cluster import Cluster, StartCluster, program
from tests.registry.world import digest_of

PASSWORD = "correct horse battery"
KEY = "a secret key for tests"


async def run(cluster: Cluster, *words: str, given: str = "", code: int = 0) -> str:
    """Run the command line with the cluster's configuration; return what it printed."""
    words = (*program(), *words, "--config", str(cluster.configuration_file))
    with trio.fail_after(60):
        done = await trio.run_process(
            words, capture_stdout=True, capture_stderr=True, stdin=given.encode(), check=False
        )
    said = done.stdout.decode() + done.stderr.decode()
    assert done.returncode == code, said
    assert "Traceback" not in said
    return said


async def run_json(cluster: Cluster, *words: str, given: str = "") -> Any:
    return json.loads(await run(cluster, *words, "--output", "json", given=given))


async def registry(start_cluster: StartCluster, *preferences: str, **settings: Any) -> Cluster:
    return await start_cluster(
        *preferences, FEATURE_OPEN_REGISTRY=None, DATABASE_SECRET_KEY=KEY, FEATURE_PROXY_STORAGE=True, **settings
    )


def auth(name: str, secret: str = PASSWORD) -> dict[str, str]:
    return {"authorization": basic(name, secret)}


async def test_the_first_superuser_by_the_token(start_cluster: StartCluster) -> None:
    """A registry without users shows a token that makes the first superuser, once; there is no password that anybody knows."""
    cluster = await registry(start_cluster, "us eu", "eu us")
    logs = "".join(node.log for node in cluster)
    (token,) = set(re.findall(r"apb_[\w-]+", logs))
    us, eu = cluster["us"].url, cluster["eu"].url
    async with httpx.AsyncClient(trust_env=False, timeout=30) as client:
        first = f"{us}/api/v1/user/initialize"
        assert (await client.get(f"{us}/api/v1/location", headers=auth("root"))).status_code == 401
        body = {"token": token, "username": "root", "password": PASSWORD}
        assert (await client.post(first, json={**body, "token": "apb_x"})).status_code == 403
        short = await client.post(first, json={**body, "password": "short"})
        assert (short.status_code, "8 to 256" in short.text) == (400, True)
        assert (await client.post(first, json={**body, "username": "No Name"})).status_code == 400
        made = await client.post(first, json=body)
        assert (made.status_code, made.json()) == (201, {"username": "root", "superuser": True})
        assert (await client.post(first, json={**body, "username": "other"})).status_code == 403
        assert (await client.get(f"{eu}/api/v1/location", headers=auth("root"))).status_code == 200
    assert PASSWORD not in "".join(node.log for node in cluster)


async def test_the_command_line(start_cluster: StartCluster) -> None:
    """Everything about accounts can be done with the command line, and a right that it takes away is gone at once."""
    cluster = await registry(start_cluster, "us eu", METADATA_STALENESS=3600)
    await run(cluster, "user", "create", "root", "--superuser", "--password-stdin", given=f"{PASSWORD}\n")
    assert "taken" in await run(cluster, "user", "create", "root", "--password-stdin", given=f"{PASSWORD}\n", code=1)
    await run(cluster, "user", "create", "alice", "--password-stdin", given=f"{PASSWORD}\n")
    assert [user["name"] for user in (await run_json(cluster, "user", "list"))["users"]] == ["alice", "root"]
    await run(cluster, "org", "create", "team", "--admin", "root")
    robot = await run_json(cluster, "robot", "create", "team+ci")
    await run(cluster, "team", "set", "team", "devs", "--role", "creator")
    await run(cluster, "team", "add", "team", "devs", "alice")
    await run(cluster, "org", "add-default", "team", "team+ci", "read")
    blob = b"a blob"
    async with httpx.AsyncClient(trust_env=False, timeout=30, base_url=cluster["us"].url) as client:
        upload = f"/v2/team/app/blobs/uploads/?digest={digest_of(blob)}"
        assert (await client.post(upload, content=blob, headers=auth("alice"))).status_code == 201
        target = f"/v2/team/app/blobs/{digest_of(blob)}"
        as_robot = auth("team+ci", robot["token"])
        assert (await client.get(target, headers=as_robot)).content == blob
        listed = await run_json(cluster, "permission", "list", "team/app")
        assert listed["permissions"] == [
            {"grantee": "alice", "role": "admin"},
            {"grantee": "team+ci", "role": "read"},
        ]
        scope = {"scope": "repository:team/app:pull"}
        token = (await client.get("/v2/auth", params=scope, headers=as_robot)).json()["token"]
        bearing = {"authorization": f"Bearer {token}"}
        assert (await client.get(target, headers=bearing)).status_code == 200
        await run(cluster, "permission", "remove", "team/app", "team+ci")
        with trio.fail_after(60):
            # A hint is on its way; without it the node would not look again for an hour.
            while (await client.get(target, headers=bearing)).status_code == 200:
                await trio.lowlevel.checkpoint()
        assert (await client.get(target, headers=as_robot)).status_code == 403
        assert (await client.get(target)).status_code == 401
        await run(cluster, "permission", "visibility", "team/app", "public")
        with trio.fail_after(60):
            while (await client.get(target)).status_code == 401:
                await trio.lowlevel.checkpoint()
        made = await run_json(cluster, "token", "create", "alice", "laptop", "--lifetime", "1h")
        as_token = {"authorization": f"Bearer {made['token']}"}
        assert (await client.get("/v2/", headers=as_token)).status_code == 200
        await run(cluster, "token", "revoke", "alice", made["id"])
        with trio.fail_after(60):
            while (await client.get("/v2/", headers=as_token)).status_code == 200:
                await trio.lowlevel.checkpoint()
        token = (await client.get("/v2/auth", headers=auth("alice"))).json()["token"]
        await run(cluster, "token", "rotate-keys", "--revoke")
        with trio.fail_after(60):
            while (await client.get("/v2/", headers={"authorization": f"Bearer {token}"})).status_code == 200:
                await trio.lowlevel.checkpoint()
        assert (await client.get("/v2/auth", headers=auth("alice"))).status_code == 200
        await run(cluster, "user", "change", "alice", "--disabled")
        with trio.fail_after(60):
            while (await client.get("/v2/", headers=auth("alice"))).status_code == 200:
                await trio.lowlevel.checkpoint()
    assert "has repositories" in await run(cluster, "user", "delete", "team", "--yes", code=1)
    assert "nobody would" in await run(cluster, "team", "remove", "team", "owners", "root", code=1)


async def test_both_edges(start_cluster: StartCluster) -> None:
    """The lane asks for the same as Hypercorn, which gets whatever is odd about a request."""
    cluster = await registry(start_cluster, "us eu")
    await run(cluster, "user", "create", "alice", "--password-stdin", given=f"{PASSWORD}\n")
    blob = b"a blob"
    lane: dict[str, str] = {}
    hypercorn = {"te": "trailers"}
    async with httpx.AsyncClient(trust_env=False, timeout=30, base_url=cluster["us"].url) as client:
        made = await client.post(
            f"/v2/alice/app/blobs/uploads/?digest={digest_of(blob)}", content=blob, headers=auth("alice")
        )
        assert made.status_code == 201
        target = f"/v2/alice/app/blobs/{digest_of(blob)}"
        for odd in (lane, hypercorn):
            nobody = await client.get(target, headers=odd)
            assert nobody.status_code == 401
            assert nobody.headers["www-authenticate"] == (
                'Bearer realm="http://127.0.0.1:8100/v2/auth",service="127.0.0.1:8100",scope="repository:alice/app:pull"'
            )
            answer = await client.get(
                "/v2/auth", params={"scope": "repository:alice/app:pull"}, headers={**auth("alice"), **odd}
            )
            bearing = {"authorization": f"Bearer {answer.json()['token']}"}
            assert (await client.get(target, headers={**bearing, **odd})).content == blob
            assert (await client.head(target, headers={**bearing, **odd})).status_code == 200
            assert (await client.get(target, headers={"authorization": "Bearer x.y.z", **odd})).status_code == 401
            assert (await client.get("/v2/bob/app/tags/list", headers={**bearing, **odd})).status_code == 401
            assert answer.json()["token"] not in cluster["us"].log


@pytest.mark.long
async def test_waiting_for_an_image_of_ones_own(start_cluster: StartCluster, tmp_path: Path) -> None:
    """`antipode wait` logs in by options, by an application token, and with the refresh token that docker keeps after a login."""
    cluster = await registry(start_cluster, "us eu")
    node = cluster["us"]
    await run(cluster, "user", "create", "alice", "--password-stdin", given=f"{PASSWORD}\n")
    body = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}).encode()
    async with httpx.AsyncClient(trust_env=False, timeout=30, base_url=node.url) as client:
        typed = {"content-type": OCI_INDEX, **auth("alice")}
        made = await client.put("/v2/alice/app/manifests/v1", content=body, headers=typed)
        assert made.status_code == 201, made.text
        login = await client.get("/v2/auth", params={"offline_token": "true"}, headers=auth("alice"))
    token = await run_json(cluster, "token", "create", "alice", "ci")

    async def wait(*words: str, given: str = "", code: int = 0, **environment: str) -> str:
        image = f"{node.url.removeprefix('http://')}/alice/app:v1"
        clean = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
        with trio.fail_after(90):
            done = await trio.run_process(
                [*program(), "wait", image, "--location", "us", "--timeout", "1m", *words],
                capture_stdout=True,
                capture_stderr=True,
                stdin=given.encode(),
                check=False,
                env={**clean, **environment},
            )
        said = done.stdout.decode() + done.stderr.decode()
        assert (done.returncode, "Traceback" in said) == (code, False), said
        return said

    assert "docker login" in await wait(code=2)
    await wait("--username", "alice", "--password-stdin", given=f"{PASSWORD}\n")
    await wait(ANTIPODE_TOKEN=token["token"])
    (tmp_path / "config.json").write_text(
        json.dumps({"auths": {node.url.removeprefix("http://"): {"identitytoken": login.json()["refresh_token"]}}})
    )
    await wait(DOCKER_CONFIG=str(tmp_path))
