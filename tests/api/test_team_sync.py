"""Which group decides who is in a team, by the API: who may say so, what is told, and what cannot be done by hand then."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from node.api.openapi import PREFIX
from node.records.auditlog import Filter, read_lines
from node.records.teams import add_member, put_team
from tests.api.test_rights import app_of
from tests.auth.people import ROLES, Person, settled
from tests.auth.slapd import Slapd, directory
from tests.auth.test_oidc import settings_of
from tests.registry.conftest import database, migrated_uri, world
from tests.registry.world import MakeWorld, Region

__all__ = ["database", "directory", "migrated_uri", "world"]
OWNER, ROOT = Person("owner"), Person("root")
TEAM = "/organization/private/team/writers"
OIDC: dict[str, Any] = {
    "authentication_type": "OIDC",
    "oidc": settings_of("https://i.test", group_claim="groups"),
    "team_syncing": True,
}


class Asking:
    """The API of a node, asked by anybody."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http

    async def __call__(self, person: Person | None, method: str, path: str, status: int = 200, **body: Any) -> Any:
        answer = await self._http.request(
            method, PREFIX + path, json=body if method == "PUT" else None, headers=person.basic if person else {}
        )
        assert answer.status_code == status, (method, path, answer.text)
        return answer.json()


@asynccontextmanager
async def asking(region: Region) -> AsyncIterator[Asking]:
    await region.node.access.open()
    async with httpx.AsyncClient(transport=app_of(region), base_url="http://registry.test") as http:
        yield Asking(http)


@pytest.mark.parametrize("admins", [False, True])
async def test_who_may(world: MakeWorld, admins: bool) -> None:
    """A superuser; an organisation's admin, too, where FEATURE_NONSUPERUSER_TEAM_SYNCING_SETUP says so; nobody else."""
    (us,) = await settled(world, **OIDC, admins_sync_teams=admins)
    allowed = {"superuser", "organisation's admin"} if admins else {"superuser"}
    async with asking(us) as ask:
        for who in ("nobody", "stranger", "reader", "admin", "organisation's admin", "superuser"):
            person = ROLES[who]
            refused = 401 if person is None else 403
            await ask(person, "PUT", f"{TEAM}/syncing", 200 if who in allowed else refused, group="devs")
            await ask(person, "DELETE", f"{TEAM}/syncing", 200 if who in allowed else refused)


async def test_a_provider_s_group(world: MakeWorld) -> None:
    """It is told with the team, users leave, and are neither put in nor taken out by hand until it decides no more; robots are."""
    (us,) = await settled(world, **OIDC)
    async with asking(us) as ask:
        assert (await ask(OWNER, "GET", TEAM))["sync"] is None
        told = await ask(ROOT, "PUT", f"{TEAM}/syncing", group=" devs ")
        assert (told["sync"], told["members"]) == ({"service": "oidc", "group": "devs", "synced": None}, 0)
        assert await ask(ROOT, "PUT", f"{TEAM}/syncing", group="devs") == told
        listed = (await ask(OWNER, "GET", "/organization/private/team"))["teams"]
        assert {line["name"] for line in listed if line["sync"]} == {"writers"}
        for method in ("PUT", "DELETE"):
            assert await add_member(us.registry.database, "private", "creators", "reader")
            name = "reader" if method == "PUT" else "teamwriter"
            status = 409 if method == "PUT" else 404
            refused = await ask(OWNER, method, f"{TEAM}/member/{name}", status)
            assert status == 404 or refused["title"] == "the team is synchronised"
            await ask(OWNER, method, f"{TEAM}/member/private+reader")
        await ask(OWNER, "PUT", TEAM, role="member", description="ours")
        await ask(ROOT, "DELETE", f"{TEAM}/syncing")
        await ask(ROOT, "DELETE", f"{TEAM}/syncing", 404)
        await ask(OWNER, "PUT", f"{TEAM}/member/reader")
        await ask(ROOT, "PUT", "/organization/private/team/none/syncing", 404, group="devs")
        await ask(ROOT, "PUT", "/organization/private/team/owners/syncing", 409, group="devs")
        for wrong in ("", " ", "x" * 300):
            await ask(ROOT, "PUT", f"{TEAM}/syncing", 400, group=wrong)
    kept = [line.line for line in await read_lines(us.registry.database, Filter(action="setTeamSync"), None, 10)]
    assert [(line.actor, line.namespace, line.detail["team"], line.detail["group"]) for line in kept] == [
        ("root", "private", "writers", "devs"),
        ("root", "private", "writers", " devs "),
    ]


async def test_a_directory_s_group(world: MakeWorld, directory: Slapd) -> None:
    """It is looked for, and told relative to the base; who is in the team stays until the directory was asked."""
    (us,) = await settled(world, authentication_type="LDAP", ldap=directory.settings(), team_syncing=True)
    async with asking(us) as ask:
        for wrong in ("cn=none,ou=groups", "devs", "cn=devs,ou=groups,dc=elsewhere", "cn=devs,ou=gr)(oups"):
            refused = await ask(ROOT, "PUT", f"{TEAM}/syncing", 400, group=wrong)
            assert [line["field"] for line in refused["errors"]] == ["group"]
        for given in ("cn=devs,ou=groups", "CN=devs, OU=groups, DC=example, DC=com"):
            told = await ask(ROOT, "PUT", f"{TEAM}/syncing", group=given)
            assert told["sync"] == {"service": "ldap", "group": "cn=devs,ou=groups", "synced": None}
            assert told["members"] == 1
        await ask(OWNER, "DELETE", f"{TEAM}/member/teamwriter", 409)
        parts = us.node.access.parts
        assert parts is not None
        assert parts.teams is not None
        assert await parts.teams.resync()
        told = await ask(OWNER, "GET", TEAM)
        assert told["sync"]["synced"] is not None
        assert told["members"] == 0


async def test_the_same_group_again(world: MakeWorld, directory: Slapd) -> None:
    """It is taken in any spelling though the directory has it no more, so that those may leave who wait; another one is not."""
    (us,) = await settled(world, authentication_type="LDAP", ldap=directory.settings(), team_syncing=True)
    database = us.registry.database
    directory.write_group("short", "alice")
    async with asking(us) as ask:
        await ask(ROOT, "PUT", f"{TEAM}/syncing", group="cn=short,ou=groups")
        directory.delete_group("short")
        await database.fetch("UPDATE team_sync SET synced_at = now(), held_since = now()")
        told = await ask(ROOT, "PUT", f"{TEAM}/syncing", group="CN=Short, OU=groups,dc=example,DC=com")
        assert told["sync"] == {"service": "ldap", "group": "cn=short,ou=groups", "synced": None}
        (row,) = await database.fetch("SELECT held_since FROM team_sync")
        assert row["held_since"] is None
        await ask(ROOT, "PUT", f"{TEAM}/syncing", 400, group="cn=shorter,ou=groups")


async def test_a_directory_that_is_away(world: MakeWorld, directory: Slapd) -> None:
    """Nothing is bound while nobody can tell whether there is such a group."""
    away = directory.settings(port=1, timeout=1.0)
    (us,) = await settled(world, authentication_type="LDAP", ldap=away, team_syncing=True)
    async with asking(us) as ask:
        await ask(ROOT, "PUT", f"{TEAM}/syncing", 503, group="cn=devs,ou=groups")
        assert (await ask(OWNER, "GET", TEAM))["sync"] is None


async def test_without_the_feature(world: MakeWorld) -> None:
    """No group decides where FEATURE_TEAM_SYNCING is off, and one that did can be told not to."""
    (us,) = await settled(world, **{**OIDC, "team_syncing": False})
    assert await put_team(us.registry.database, "private", "red")
    async with asking(us) as ask:
        refused = await ask(ROOT, "PUT", f"{TEAM}/syncing", 409, group="devs")
        assert "FEATURE_TEAM_SYNCING" in refused["detail"]
        await us.registry.database.fetch(
            "INSERT INTO team_sync (team_id, service, group_name) SELECT id, 'oidc', 'x' FROM team WHERE name = 'red'"
        )
        await ask(ROOT, "DELETE", "/organization/private/team/red/syncing")
        await ask(OWNER, "PUT", "/organization/private/team/red/member/reader")
