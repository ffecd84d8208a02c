"""`antipode login` as a program, with a real node and a real provider: a browser of this machine, one elsewhere, what is left."""

import json
import os
import re
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx
import trio
from attrs import define, field

from tests.auth.provider import Provider, provider
from tests.auth.test_nodes import registry, run, run_json
from tests.cluster import StartCluster, program
from tests.registry.world import until
from tests.services import execute

__all__ = ["provider"]


@define
class Running:
    """A command that runs; `errors` has what it wrote so far."""

    process: trio.Process
    errors: str = ""
    code: int | None = None
    output: str = ""
    _said: trio.Event = field(factory=trio.Event)

    async def wait_for(self, pattern: str) -> str:
        """Return what a pattern finds in what it writes."""
        with trio.fail_after(60):
            while (found := re.search(pattern, self.errors)) is None:
                assert self.code is None, self.errors
                await self._said.wait()
        return found[1]

    async def read(self) -> None:
        assert self.process.stderr is not None
        assert self.process.stdout is not None
        async for data in self.process.stderr:
            self.errors += data.decode()
            said, self._said = self._said, trio.Event()
            said.set()
        async for data in self.process.stdout:
            self.output += data.decode()
        self.code = await self.process.wait()


@asynccontextmanager
async def running(home: Path, *words: str) -> AsyncIterator[Running]:
    """Run the command line as somebody with this home."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ANTIPODE_")}
    environment |= {"HOME": str(home), "XDG_CONFIG_HOME": str(home / "config")}
    async with trio.open_nursery() as nursery:
        process = await trio.lowlevel.open_process(
            [*program(), *words], env=environment, stdout=-1, stderr=-1, stdin=None
        )
        made = Running(process)
        with trio.fail_after(90):
            nursery.start_soon(made.read)
            yield made
            await process.wait()


async def test_logins(start_cluster: StartCluster, provider: Provider, tmp_path: Path) -> None:
    """Either way leaves a token that the API takes, in a file that nobody else can read; logging out makes it void."""
    settings = {
        "AUTHENTICATION_TYPE": "OIDC",
        "MOCK_LOGIN_CONFIG": {"OIDC_SERVER": provider.url, "CLIENT_ID": "registry", "CLIENT_SECRET": "a secret"},
        "EXTRA_CA_CERTS": str(provider.authorities),
        "ROBOT_FEDERATION_ISSUERS": [provider.url],
    }
    cluster = await registry(start_cluster, "us eu", **settings)
    host = urlsplit(cluster["us"].url).netloc
    await provider.person("11", preferred_username="gina")
    path = tmp_path / "config" / "antipode" / "logins.json"
    async with running(tmp_path, "login", host, "--way", "code", "--no-browser", "--show-token") as login:
        uri = await login.wait_for(r"Log in with MOCK at (\S+)")
        query = parse_qs(urlsplit(uri).query)
        assert query["code_challenge_method"] == ["S256"]
        async with httpx.AsyncClient(trust_env=False, timeout=60) as browser:
            back = query["redirect_uri"][0]
            assert (await browser.get(back, params={"code": "evil", "state": "x"})).status_code == 404
            came = await provider.visit(uri, "11")
            page = await browser.get(back, params={name: values[0] for name, values in came.items()})
            assert (page.status_code, "Logged in" in page.text) == (200, True)
    assert (login.code, f"logged in to {host} as gina" in login.errors) == (0, True), login.errors
    kept = json.loads(path.read_text())[host]
    assert (kept["account"], kept["secret"]) == ("gina", login.output.strip())
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700

    async def me(secret: str) -> httpx.Response:
        async with httpx.AsyncClient(base_url=cluster["us"].url, trust_env=False, timeout=60) as client:
            return await client.get("/api/v1/me", headers={"authorization": f"Bearer {secret}"})

    assert (await me(kept["secret"])).json()["name"] == "gina"
    async with running(tmp_path, "login", host, "--no-browser", "--output", "json") as login:
        await provider.enter(await login.wait_for(r"enter the code (\S+)"), "11")
    assert login.code == 0, login.errors
    told, second = json.loads(login.output), json.loads(path.read_text())[host]
    assert (told["account"], told["id"], "secret" in told) == ("gina", second["id"], False)
    async with running(tmp_path, "logout", host) as logout:
        pass
    assert logout.code == 0, logout.errors
    assert json.loads(path.read_text()) == {}
    assert (await me(second["secret"])).status_code == 401
    assert (await me(kept["secret"])).status_code == 200
    async with running(tmp_path, "login", host, "--no-browser", "--way", "device") as login:
        await provider.enter(await login.wait_for(r"enter the code (\S+)"), "11", "deny")
    assert (login.code, "access_denied" in login.errors, "Traceback" in login.errors) == (1, True, False)
    made = await run_json(cluster, "user", "links", "gina")
    assert [link["subject"] for link in made["links"]] == ["11"]
    assert await run_json(cluster, "user", "unlink", "gina", "11")
    assert (await run_json(cluster, "user", "link", "gina", "12"))["subject"] == "12"
    await run(cluster, "robot", "create", "gina+ci")
    rule = await run_json(cluster, "robot", "add-federation", "gina+ci", provider.url, "repo:team/app:*")
    assert (await run_json(cluster, "robot", "federations", "gina+ci"))["rules"] == [rule]
    refused = await run(cluster, "robot", "add-federation", "gina+ci", "https://evil.test", "repo:team/app:*", code=1)
    assert "ROBOT_FEDERATION_ISSUERS" in refused
    assert (await run_json(cluster, "robot", "remove-federation", "gina+ci", str(rule["id"])))["deleted"] is True
    assert "none" in await run(cluster, "robot", "federations", "gina+ci")
    actions = [line["action"] for line in (await run_json(cluster, "audit", "--most", "20"))["lines"]]
    assert {"login", "createUser", "robot add-federation", "robot remove-federation", "user link"} <= set(actions)


async def test_a_node_looks_at_logins(start_cluster: StartCluster, provider: Provider) -> None:
    """With TEAM_LOGIN_STALE_TIME a node lets people leave their teams by itself, though the provider is not asked."""
    claims = {"PREFERRED_GROUP_CLAIM_NAME": "groups"}
    cluster = await registry(
        start_cluster,
        "us eu",
        AUTHENTICATION_TYPE="OIDC",
        MOCK_LOGIN_CONFIG={"OIDC_SERVER": provider.url, "CLIENT_ID": "registry", **claims},
        EXTRA_CA_CERTS=str(provider.authorities),
        FEATURE_TEAM_SYNCING=True,
        TEAM_LOGIN_STALE_TIME="1h",
    )
    for name in ("chief", "alice", "bob"):
        await run(cluster, "user", "create", name, "--password-stdin", given="a long password\n")
    await run(cluster, "org", "create", "acme", "--admin", "chief")
    await run(cluster, "team", "set", "acme", "devs")
    await run(cluster, "team", "sync", "acme", "devs", "--group", "devs")
    await trio.to_thread.run_sync(
        execute,
        cluster.configuration["DB_URI"],
        "INSERT INTO team_member (team_id, account_id, confirmed_at) "
        "SELECT t.id, a.id, now() - CASE a.name WHEN 'bob' THEN interval '2 hours' ELSE interval '1 minute' END "
        "FROM team t, account a WHERE t.name = 'devs' AND a.name IN ('alice', 'bob')",
    )
    node = cluster["us"]
    await node.stop()
    await node.start()

    async def looked() -> bool:
        members = (await run_json(cluster, "team", "members", "acme", "devs"))["members"]
        return [member["name"] for member in members] == ["alice"]

    await until(looked, 60)
    async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
        health = (await client.get(f"{node.url}/health/instance")).json()
    assert health["data"]["services"]["service_team sync"] is True
