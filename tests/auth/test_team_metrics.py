"""What a node counts of teams that follow groups, as a monitor sees it."""

from collections.abc import Iterator

import pytest

from node.auth.told import Unread
from node.metrics_state import State, Totals
from node.records.team_sync import bind_team
from node.records.teams import TeamDeletion, put_team
from tests.auth import provider as there
from tests.auth.people import Person
from tests.auth.provider import provider
from tests.auth.slapd import PASSWORD_THERE, Slapd, directory
from tests.auth.test_ldap_teams import following, login, stale, teams_of
from tests.auth.test_oidc import Client
from tests.auth.test_oidc_teams import following as following_provider
from tests.registry.world import MakeWorld, Region

__all__ = ["directory", "provider"]
Found = dict[tuple[str, ...], float]


@pytest.fixture
def running(directory: Slapd) -> Iterator[Slapd]:
    """The directory, which is up again after a test that stops it."""
    yield directory
    directory.stop()
    directory.start()


async def scraped(region: Region) -> Found:
    """Return what a monitor sees of teams: names without what all have, then the labels."""
    totals = Totals(database=region.registry.database)
    await totals.look()
    return {
        (sample.name.removeprefix("antipode_team_sync_").removesuffix("_total"), *sample.labels.values()): sample.value
        for family in State(region.node, region.registry.memory, totals, "0").collect()
        for sample in family.samples
        if sample.name.startswith("antipode_team_sync_")
    }


async def test_a_directory(world: MakeWorld, running: Slapd) -> None:
    """They say since when every team has followed its group, who came and went, and how often and why a group could not be read."""
    running.write_group("own", "bob", "alice")
    (us,) = await following(world, running.settings(timeout=2.0, fresh=0.0))
    database = us.registry.database
    await database.fetch("UPDATE team_sync SET created_at = now() - interval '2 hours'")
    before = await scraped(us)
    assert before["age_seconds",] == pytest.approx(7200, abs=60)
    assert [before[name] for name in (("teams", "ldap"), ("teams", "oidc"), ("held_teams",), ("rounds",))] == [
        1,
        0,
        0,
        0,
    ]
    for name in ("alice", "bob"):
        assert await login(us, Person(name, PASSWORD_THERE)) == 200
    assert await teams_of(us).resync()
    running.write_group("own", "bob")
    await stale(us)
    assert await teams_of(us).resync()
    found = await scraped(us)
    assert found["age_seconds",] < 60
    assert (found["rounds",], found["members", "ldap", "joined"], found["members", "ldap", "left"]) == (2, 2, 1)
    reasons = {name[2] for name in found if name[0] == "unread"}
    assert reasons == {reason.value for reason in Unread} - {"unsaid"}
    assert not any(found["unread", "ldap", reason] for reason in reasons)
    running.stop()
    await stale(us)
    await teams_of(us).round()
    assert (await scraped(us))["unread", "ldap", "away"] == 1


async def test_a_provider(world: MakeWorld, provider: there.Provider) -> None:
    """Of a provider they say who came and went, and which logins said nothing of groups; the directory's series are not there."""
    (us,) = await following_provider(world, provider)
    for given in ({"groups": ["red", "blue"]}, {"groups": ["red"]}, {}):
        await provider.person("m1", preferred_username="mia", **given)
        assert (await Client(us).log_in(provider, "m1")).status_code == 200
    found = await scraped(us)
    assert {name: value for name, value in found.items() if "oidc" in name} == {
        ("teams", "oidc"): 2,
        ("members", "oidc", "joined"): 2,
        ("members", "oidc", "left"): 1,
        ("unread", "oidc", "unsaid"): 1,
    }
    assert ("age_seconds",) not in found
    assert ("unread", "oidc", "away") not in found


async def test_teams_that_nothing_follows(world: MakeWorld, directory: Slapd) -> None:
    """A team that is bound to a group of a service that nobody asks any more is seen to grow old."""
    (us,) = await following(world, directory.settings(), team_syncing=False)
    assert await put_team(us.registry.database, "private", "blue")
    assert await bind_team(us.registry.database, "private", "blue", "oidc", "blue") is TeamDeletion.DONE
    found = await scraped(us)
    assert set(found) == {("teams", "ldap"), ("teams", "oidc"), ("age_seconds",), ("held_teams",)}
