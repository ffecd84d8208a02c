"""Teams that follow the groups of an identity provider: each login decides, by what a real provider says over TLS."""

from collections.abc import Mapping
from typing import Any

import pytest

from node.auth.id_token import Said, Unsaid, groups_of, joined, wants_more
from node.auth.model import Role
from node.config.settings import OidcSettings
from node.records.accounts import create_user
from node.records.auditlog import Filter, read_lines
from node.records.federated_logins import add_link
from node.records.permissions import Grantee
from node.records.permissions import set_permission as give
from node.records.team_sync import bind_team
from node.records.teams import TeamDeletion, add_member, list_members, put_team
from tests.auth import provider as there
from tests.auth.people import Person, bearing, token_for
from tests.auth.provider import provider
from tests.auth.test_oidc import Client, settings_of, with_provider
from tests.registry.world import MakeWorld, Region, until

__all__ = ["provider"]
TAGS = "/v2/private/app/tags/list"


async def following(
    world: MakeWorld, provider: there.Provider, *regions: str, believed: float | None = None, **changes: Any
) -> list[Region]:
    """Return nodes of a registry where the teams red and blue of `private` follow the groups of these names."""
    oidc = settings_of(
        provider.url, client_secret="of the registry", service_name="Mock", group_claim="groups", **changes
    )
    given = {"team_syncing": True, "metadata_staleness": 3600.0, "oidc": oidc, "team_login": believed}
    made = await with_provider(world, provider, *regions, **given)
    database = made[0].registry.database
    for name in ("red", "blue"):
        assert await put_team(database, "private", name)
        assert await bind_team(database, "private", name, "oidc", name) is TeamDeletion.DONE
    await give(database, "private/app", Grantee(team="red"), Role.READ)
    return made


async def teams(region: Region, name: str) -> list[str]:
    return [
        team
        for team in ("blue", "red", "writers")
        if name in {member.name for member in await list_members(region.registry.database, "private", team)}
    ]


async def test_each_login_decides(world: MakeWorld, provider: there.Provider) -> None:
    """Whoever logs in is in the teams of their groups and in no other bound one, with a line each; others stay."""
    (us,) = await following(world, provider)
    await provider.person("t1", preferred_username="gina", groups=["red", "green"])
    told = (await Client(us).log_in(provider, "t1")).json()
    assert await teams(us, "gina") == ["red"]
    assert (await us.ask("GET", TAGS, headers=Person("gina", told["secret"]).basic)).status == 200
    assert await add_member(us.registry.database, "private", "writers", "gina")
    await provider.person("t1", preferred_username="gina", groups=["blue"])
    await Client(us).log_in(provider, "t1")
    assert await teams(us, "gina") == ["blue", "writers"]
    await provider.person("t1", preferred_username="gina", groups=[])
    await Client(us).log_in(provider, "t1")
    assert await teams(us, "gina") == ["writers"]
    kept = [line.line for line in await read_lines(us.registry.database, Filter(namespace="private"), None, 10)]
    assert [(line.action, line.actor, line.detail["team"], line.detail["by"]) for line in reversed(kept)] == [
        ("putMember", "gina", "red", "oidc"),
        ("putMember", "gina", "blue", "oidc"),
        ("dropMember", "gina", "red", "oidc"),
        ("dropMember", "gina", "blue", "oidc"),
    ]
    assert {(line.detail["member"], line.detail["group"] == line.detail["team"]) for line in kept} == {("gina", True)}


async def test_rights_that_go_with_a_group(world: MakeWorld, provider: there.Provider) -> None:
    """A login without the group ends what was issued before on every node, though nobody asks the database again."""
    us, eu = await following(world, provider, "us eu", "eu us")
    await provider.person("t2", preferred_username="hans", groups=["red"])
    told = (await Client(us).log_in(provider, "t2")).json()
    token = bearing(await token_for(us, Person("hans", told["secret"]), "repository:private/app:pull"))
    basic = Person("hans", told["secret"]).basic
    for region in (us, eu):
        for headers in (token, basic):
            assert (await region.ask("GET", TAGS, headers=headers)).status == 200
    await provider.person("t2", preferred_username="hans", groups=["blue"])
    await Client(eu).log_in(provider, "t2")

    for region in (us, eu):

        async def refused(asked: Region = region) -> bool:
            return (await asked.ask("GET", TAGS, headers=token)).status == 401 and (
                await asked.ask("GET", TAGS, headers=basic)
            ).status == 403

        await until(refused)


async def test_a_claim_that_is_missing(world: MakeWorld, provider: there.Provider) -> None:
    """It means no groups where the provider was asked for it; elsewhere, and where it cannot be read, it changes no team."""
    (us,) = await following(world, provider)
    silences: tuple[dict[str, Any], ...] = (
        {},
        {"groups": 7},
        {"groups": ["red", 7]},
        {"_claim_names": {"groups": "src1"}},
    )
    for number, silent in enumerate(silences):
        await provider.person(f"t3-{number}", preferred_username=f"ida{number}", groups=["red"])
        assert (await Client(us).log_in(provider, f"t3-{number}")).status_code == 200
        await provider.person(f"t3-{number}", preferred_username=f"ida{number}", **silent)
        assert (await Client(us).log_in(provider, f"t3-{number}")).status_code == 200
        assert await teams(us, f"ida{number}") == ["red"]


@pytest.mark.parametrize("changes", [{"silence_is_none": True}, {"scopes": ("openid", "profile", "groups")}])
async def test_a_claim_that_was_asked_for(
    world: MakeWorld, provider: there.Provider, changes: Mapping[str, Any]
) -> None:
    """Whoever comes without it then is in no group."""
    (us,) = await following(world, provider, **changes)
    await provider.person("t4", preferred_username="jan", groups="red")
    assert (await Client(us).log_in(provider, "t4")).status_code == 200
    assert await teams(us, "jan") == ["red"]
    await provider.person("t4", preferred_username="jan")
    assert (await Client(us).log_in(provider, "t4")).status_code == 200
    assert await teams(us, "jan") == []


async def test_without_the_feature(world: MakeWorld, provider: there.Provider) -> None:
    """Where FEATURE_TEAM_SYNCING is off a login changes no team, bound or not."""
    (us,) = await with_provider(world, provider)
    assert await put_team(us.registry.database, "private", "red")
    assert await bind_team(us.registry.database, "private", "red", "oidc", "red") is TeamDeletion.DONE
    await provider.person("t5", preferred_username="kim", groups=["red"])
    assert (await Client(us).log_in(provider, "t5")).status_code == 200
    assert await list_members(us.registry.database, "private", "red") == []


async def let_pass(region: Region, days: float) -> None:
    """Let every membership have been confirmed so many days ago."""
    await region.registry.database.fetch(
        "UPDATE team_member SET confirmed_at = now() - $1::float8 * interval '1 day'", days
    )


async def expire(region: Region) -> None:
    parts = region.node.access.parts
    assert parts is not None
    assert parts.login_teams is not None
    await parts.login_teams.round()


async def test_a_login_that_is_long_ago(world: MakeWorld, provider: there.Provider) -> None:
    """Whoever does not log in again leaves when TEAM_LOGIN_STALE_TIME is over, on every node, until a login says it anew."""
    us, eu = await following(world, provider, "us eu", "eu us", believed=30 * 86400.0)
    database = us.registry.database
    await provider.person("t7", preferred_username="mona", groups=["red", "blue"])
    told = (await Client(us).log_in(provider, "t7")).json()
    assert await add_member(database, "private", "writers", "mona")
    assert await add_member(database, "private", "red", "private+reader")
    token = bearing(await token_for(us, Person("mona", told["secret"]), "repository:private/app:pull"))
    await let_pass(us, 29)
    await expire(us)
    assert await teams(us, "mona") == ["blue", "red", "writers"]
    await let_pass(us, 31)
    await expire(eu)
    assert await teams(us, "mona") == ["writers"]
    assert [member.name for member in await list_members(database, "private", "red")] == ["private+reader"]

    for region in (us, eu):

        async def refused(asked: Region = region) -> bool:
            return (await asked.ask("GET", TAGS, headers=token)).status == 401

        await until(refused)
    kept = [line.line for line in await read_lines(database, Filter(action="dropMember"), None, 10)]
    assert {(line.actor, line.detail["team"], line.detail["by"], line.node) for line in kept} == {
        ("", team, "oidc", eu.registry.instance) for team in ("blue", "red")
    }
    assert all(isinstance(line.detail["confirmed"], int) for line in kept)
    assert (await Client(us).log_in(provider, "t7")).status_code == 200
    await expire(us)
    assert await teams(us, "mona") == ["blue", "red", "writers"]


async def test_a_login_again(world: MakeWorld, provider: there.Provider) -> None:
    """It confirms the teams that somebody is in; one that says nothing of groups confirms none."""
    (us,) = await following(world, provider, believed=30 * 86400.0)
    await provider.person("t8", preferred_username="nina", groups=["red", "blue"])
    await Client(us).log_in(provider, "t8")
    await let_pass(us, 31)
    await provider.person("t8", preferred_username="nina", groups=["red"])
    await Client(us).log_in(provider, "t8")
    await expire(us)
    assert await teams(us, "nina") == ["red"]
    lines = await read_lines(us.registry.database, Filter(namespace="private"), None, 10)
    assert len(lines) == 3, "a confirmation has no line of its own"
    await let_pass(us, 31)
    await provider.person("t8", preferred_username="nina")
    await Client(us).log_in(provider, "t8")
    await expire(us)
    assert await teams(us, "nina") == []


async def test_logins_that_are_believed_for_ever(world: MakeWorld, provider: there.Provider) -> None:
    """Without TEAM_LOGIN_STALE_TIME nobody leaves a team by time alone."""
    (us,) = await following(world, provider)
    assert us.node.access.parts is not None
    assert us.node.access.parts.login_teams is None


async def test_teams_of_linked_accounts(world: MakeWorld, provider: there.Provider) -> None:
    """The account is what the login is linked with, whatever name the provider says."""
    (us,) = await following(world, provider)
    assert await create_user(us.registry.database, "lena", None)
    assert await add_link(us.registry.database, "lena", provider.url, "t6")
    await provider.person("t6", preferred_username="reader", groups=["red"])
    assert (await Client(us).log_in(provider, "t6")).json()["account"] == "lena"
    assert (await teams(us, "lena"), await teams(us, "reader")) == (["red"], [])


SETTINGS = settings_of("https://i.test", group_claim="groups")


@pytest.mark.parametrize(
    ("claims", "groups"),
    [
        ({"groups": ["a", "b", "a", ""]}, {"a", "b"}),
        ({"groups": "a b"}, {"a b"}),
        ({"groups": []}, set()),
        ({"groups": ["a"], "_claim_names": {"groups": "x"}}, {"a"}),
        ({"groups": {"a": True}}, None),
        ({"groups": [["a"]]}, None),
        ({"groups": None}, None),
        ({"_claim_names": {"groups": "x"}}, None),
        ({"_claim_names": ["groups"]}, None),
        ({}, None),
    ],
)
def test_what_a_claim_says(claims: Mapping[str, Any], groups: set[str] | None) -> None:
    """A list of names, or one name; nothing else says anything, least of all that there are none."""
    if groups is None:
        with pytest.raises(Unsaid):
            groups_of(Said(claims), SETTINGS)
    else:
        assert groups_of(Said(claims), SETTINGS) == groups


def test_what_two_answers_say() -> None:
    """The ID token counts before the user endpoint, also with an empty list; null is no answer, least of all that of no groups."""
    strict = settings_of("https://i.test", group_claim="groups", silence_is_none=True)
    more = {"groups": ["red"]}
    for claims, groups in (
        ({"groups": None}, {"red"}),
        ({}, {"red"}),
        ({"groups": []}, set()),
        ({"groups": ["a"]}, {"a"}),
    ):
        assert groups_of(Said(joined({"sub": "1", **claims}, more)), strict) == groups


def test_a_silence_that_counts() -> None:
    """No claim means no groups if it was asked for, and only if all who were asked have answered, and there are not too many."""
    asked = settings_of("https://i.test", group_claim="groups", scopes=("openid", "groups"))
    told: OidcSettings
    for told in (asked, settings_of("https://i.test", group_claim="groups", silence_is_none=True)):
        assert groups_of(Said({"sub": "1"}), told) == frozenset()
        for said in (Said({}, whole=False), Said({"_claim_names": {"groups": "x"}}), Said({"groups": 7})):
            with pytest.raises(Unsaid):
                groups_of(said, told)


def test_when_the_user_endpoint_is_asked() -> None:
    """It is where the ID token has no groups that are wanted, unless it may not be."""
    named = {"preferred_username": "alice"}
    assert wants_more(named, SETTINGS)
    assert not wants_more({**named, "groups": []}, SETTINGS)
    assert not wants_more(named, settings_of("https://i.test"))
    assert not wants_more(named, settings_of("https://i.test", group_claim="groups", user_endpoint=False))
