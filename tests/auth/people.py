"""Who there is in these tests, and what everybody is to the repositories: the roles of the table of permissions.

    private/app, public/app       repositories of the organisations `private` and `public`; the second may be pulled from by anybody
    elsewhere/app                 somebody else's

`ROLES` has everybody with a name and a secret; `nobody` has neither.
"""

import base64
from collections.abc import Mapping
from typing import Any

from attrs import frozen

from node.auth.model import Role, TeamRole
from node.auth.passwords import hash_now
from node.auth.secrets import hash_secret
from node.records.accounts import create_organization, create_robot, create_user
from node.records.application_tokens import create_token
from node.records.permissions import Grantee, Granting, create_repository, set_permission, set_visibility
from node.records.postgres import Database
from node.records.teams import add_member, put_team
from tests.registry.world import MakeWorld, Region

SECRET_KEY = "a secret key for tests"
PASSWORD = "correct horse"
HASH = hash_now(PASSWORD)
HOST = "registry.test"
LIBRARY = "library"
ACCOUNTS: Mapping[str, Any] = {"open_registry": False, "secret_key": SECRET_KEY}
"""Settings of a registry with accounts."""

REPOSITORIES = ("private/app", "public/app")
ROBOT_SECRET = "apr_robot"
TOKEN = "apt_token"


@frozen
class Person:
    """Somebody who may log in."""

    name: str
    secret: str = PASSWORD

    @property
    def basic(self) -> dict[str, str]:
        """The header that says so."""
        return {"authorization": basic(self.name, self.secret)}


def basic(name: str, secret: str) -> str:
    return f"Basic {base64.b64encode(f'{name}:{secret}'.encode()).decode()}"


ROLES: Mapping[str, Person | None] = {
    "nobody": None,
    "stranger": Person("stranger"),
    "reader": Person("reader"),
    "writer": Person("writer"),
    "admin": Person("admin"),
    "member of a team that may write": Person("teamwriter"),
    "robot that may read": Person("private+reader", ROBOT_SECRET),
    "robot that may write": Person("private+writer", ROBOT_SECRET),
    "creator": Person("creator"),
    "organisation's admin": Person("owner"),
    "superuser": Person("root"),
    "reader's application token": Person("reader", TOKEN),
    "application token by itself": Person("$app", TOKEN),
}
"""Everybody, by what they are to private/app and public/app."""


async def settle(database: Database) -> None:
    """Make everybody, their organisations and their repositories."""
    for name in ("stranger", "reader", "writer", "admin", "teamwriter", "creator", "owner", "root", "tenant"):
        assert await create_user(database, name, HASH, superuser=name == "root")
    assert await create_organization(database, "elsewhere", "tenant")
    for organization in ("private", "public"):
        assert await create_organization(database, organization, "owner")
        for robot in ("reader", "writer"):
            assert await create_robot(database, organization, robot, hash_secret(ROBOT_SECRET))
        assert await put_team(database, organization, "writers")
        assert await add_member(database, organization, "writers", "teamwriter")
        assert await put_team(database, organization, "creators", TeamRole.CREATOR)
        assert await add_member(database, organization, "creators", "creator")
        repository = f"{organization}/app"
        assert await create_repository(database, repository, LIBRARY, None)
        for grantee, role in (
            (Grantee("reader"), Role.READ),
            (Grantee("writer"), Role.WRITE),
            (Grantee("admin"), Role.ADMIN),
            (Grantee("private+reader"), Role.READ),
            (Grantee("private+writer"), Role.WRITE),
            (Grantee(team="writers"), Role.WRITE),
        ):
            assert await set_permission(database, repository, grantee, role) is Granting.DONE
    assert await set_visibility(database, "public/app", public=True)
    assert await create_repository(database, "elsewhere/app", LIBRARY, "tenant")
    assert await create_token(database, "reader", "token", hash_secret(TOKEN), None)


async def settled(world: MakeWorld, *preferences: str, **settings: Any) -> list[Region]:
    """Assemble regions of a registry with accounts, and everybody in it."""
    regions = await world(*(preferences or ("us",)), **{**ACCOUNTS, **settings})
    await settle(regions[0].registry.database)
    return regions


def scope_of(challenge: str) -> str | None:
    """Return what a challenge wants a token for."""
    _, found, rest = challenge.partition('scope="')
    return rest.partition('"')[0] if found else None


async def token_for(region: Region, person: Person | None, *scopes: str, **query: str) -> str:
    """Get a token as a client does, with GET and Basic."""
    asked = "&".join(
        [*(f"scope={scope.replace(' ', '%20')}" for scope in scopes), *(f"{k}={v}" for k, v in query.items())]
    )
    reply = await region.ask("GET", f"/v2/auth?service={HOST}&{asked}", headers=person.basic if person else {})
    assert reply.status == 200, reply
    assert reply.json["token"] == reply.json["access_token"]
    return str(reply.json["token"])


def bearing(token: str) -> dict[str, str]:
    """Return the header that shows a token."""
    return {"authorization": f"Bearer {token}"}
