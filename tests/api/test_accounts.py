"""Accounts, teams, robots, tokens and permissions by the API of a real node."""

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from node.api.openapi import PREFIX
from tests.cluster import Cluster
from tests.registry.world import digest_of

PASSWORD = "correct horse battery staple"


@pytest.fixture
async def http(cluster: Cluster) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=f"{cluster['us'].url}{PREFIX}", trust_env=False, timeout=30) as client:
        yield client


async def ask(http: httpx.AsyncClient, method: str, path: str, status: int = 200, **body: Any) -> Any:
    answer = await http.request(method, path, json=body if method in ("PUT", "POST") else None)
    assert answer.status_code == status, (method, path, answer.text)
    return answer.json()


async def test_accounts(http: httpx.AsyncClient, repository: str) -> None:
    """A PUT makes an account or changes it, again and again the same; a name is taken once; no secret is shown or kept in sight."""
    name = repository.partition("/")[0]
    user, org = f"{name}-u", f"{name}-o"
    made = await ask(http, "PUT", f"/user/{user}", password=PASSWORD, email="a@example.com")
    assert (made["name"], made["kind"], made["superuser"], made["enabled"]) == (user, "user", False, True)
    assert await ask(http, "PUT", f"/user/{user}", email="a@example.com") == made
    assert (await ask(http, "PUT", f"/user/{user}", enabled=False))["enabled"] is False
    assert (await ask(http, "GET", f"/user/{user}"))["email"] == "a@example.com"
    short = await ask(http, "PUT", f"/user/{user}", 400, password="short")
    assert [wrong["field"] for wrong in short["errors"]] == ["password"]
    await ask(http, "PUT", f"/organization/{user}", 409)
    assert (await ask(http, "PUT", f"/organization/{org}", description="ours"))["description"] == "ours"
    robot = await ask(http, "PUT", f"/namespace/{org}/robot/ci", description="builds")
    assert robot["name"] == f"{org}+ci"
    again = await ask(http, "PUT", f"/namespace/{org}/robot/ci", description="builds")
    assert "token" not in again
    renewed = await ask(http, "POST", f"/namespace/{org}/robot/ci/token")
    assert renewed["token"] != robot["token"]
    token = await ask(http, "POST", f"/namespace/{user}/token", title="laptop", lifetime="90d")
    assert token["expires"]
    (listed,) = (await ask(http, "GET", f"/namespace/{user}/token"))["tokens"]
    assert "secret" not in listed
    await ask(http, "DELETE", f"/namespace/{user}/token/{token['id']}")
    await ask(http, "DELETE", f"/namespace/{user}/token/{token['id']}", 404)
    audit = json.dumps(await ask(http, "GET", "/audit?n=200"))
    for secret in (PASSWORD, robot["token"], renewed["token"], token["secret"]):
        assert secret not in audit
    for path in (f"/namespace/{org}/robot/ci", f"/organization/{org}", f"/user/{user}"):
        assert (await ask(http, "DELETE", path))["deleted"] is True
        await ask(http, "DELETE", path, 404)


async def test_teams_and_permissions(http: httpx.AsyncClient, cluster: Cluster, repository: str) -> None:
    """Teams have members and roles; accounts and teams have permissions on a repository; the last admin stays."""
    org = repository.partition("/")[0]
    user = f"{org}-u"
    await ask(http, "PUT", f"/user/{user}")
    await ask(http, "PUT", f"/organization/{org}")
    async with httpx.AsyncClient(base_url=cluster["us"].url, trust_env=False, timeout=30) as client:
        pushed = await client.post(f"/v2/{repository}/blobs/uploads/?digest={digest_of(b'x')}", content=b"x")
        assert pushed.status_code == 201
    team = await ask(http, "PUT", f"/organization/{org}/team/devs", role="creator")
    assert (team["role"], team["members"]) == ("creator", 0)
    for _ in range(2):
        await ask(http, "PUT", f"/organization/{org}/team/devs/member/{user}")
    members = await ask(http, "GET", f"/organization/{org}/team/devs/member")
    assert members == {"members": [{"name": user, "kind": "user"}], "next": None}
    await ask(http, "PUT", f"/organization/{org}/team/owners/member/{user}")
    await ask(http, "DELETE", f"/organization/{org}/team/owners/member/{user}", 409)
    await ask(http, "PUT", f"/repository/{repository}/permission/account/{user}", role="write")
    await ask(http, "PUT", f"/repository/{repository}/permission/team/devs", role="read")
    await ask(http, "PUT", f"/repository/{repository}/permission/account/nobody", 404, role="read")
    found = (await ask(http, "GET", f"/repository/{repository}/permission"))["permissions"]
    assert found == [
        {"account": user, "team": None, "role": "write"},
        {"account": None, "team": "devs", "role": "read"},
    ]
    await ask(http, "DELETE", f"/repository/{repository}/permission/team/devs")
    assert (await ask(http, "PUT", f"/repository/{repository}/visibility", public=True))["public"] is True
    default = await ask(http, "POST", f"/namespace/{org}/default-permission", role="read", team="devs")
    assert (await ask(http, "GET", f"/namespace/{org}/default-permission"))["defaults"] == [default]
    await ask(http, "DELETE", f"/namespace/{org}/default-permission/{default['id']}")
    await ask(http, "POST", f"/namespace/{org}/default-permission", 400, role="read")
    await ask(http, "DELETE", f"/organization/{org}", 409)
    await ask(http, "DELETE", f"/organization/{org}/team/devs")
