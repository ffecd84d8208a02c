"""Teams that follow the groups of a real LDAP directory: at logins, and by themselves."""

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from attrs import define, field

from node.auth import ldap_search
from node.auth.directory import DirectoryUnavailable
from node.auth.directory_teams import DirectoryTeams
from node.auth.ldap_groups import LdapGroups
from node.auth.model import Role
from node.auth.told import Told, Unread
from node.config.settings import LdapSettings
from node.health import warning
from node.records.accounts import create_user, find_account
from node.records.auditlog import Filter, read_lines
from node.records.permissions import Grantee, set_permission
from node.records.team_sync import bind_team
from node.records.teams import TeamDeletion, add_member, list_members, put_team
from tests.auth.people import Person, bearing, settled, token_for
from tests.auth.slapd import PASSWORD_THERE, Slapd, directory
from tests.registry.world import MakeWorld, Region, until

__all__ = ["directory"]
ALICE, BOB = Person("alice", PASSWORD_THERE), Person("bob", PASSWORD_THERE)
TAGS = "/v2/private/app/tags/list"


@pytest.fixture
def running(directory: Slapd) -> Iterator[Slapd]:
    """The directory, which is up again after a test that stops it."""
    yield directory
    directory.stop()
    directory.start()


async def following(
    world: MakeWorld, ldap: LdapSettings, *regions: str, group: str = "own", **given: Any
) -> list[Region]:
    """Return nodes of a registry where the team `red` of `private`, which may read, follows a group of the directory."""
    settings = {"authentication_type": "LDAP", "ldap": ldap, "team_syncing": True, **given}
    made = await settled(world, *regions, **settings)
    database = made[0].registry.database
    assert await put_team(database, "private", "red")
    await set_permission(database, "private/app", Grantee(team="red"), Role.READ)
    assert await bind_team(database, "private", "red", "ldap", f"cn={group},ou=groups") is TeamDeletion.DONE
    for region in made:
        await region.node.access.open()
    return made


def teams_of(region: Region) -> DirectoryTeams:
    parts = region.node.access.parts
    assert parts is not None
    assert parts.teams is not None
    return parts.teams


async def stale(region: Region) -> None:
    """Let it be time for every team."""
    await region.registry.database.fetch("UPDATE team_sync SET synced_at = NULL, leased_until = NULL")


async def members(region: Region) -> list[str]:
    return [member.name for member in await list_members(region.registry.database, "private", "red")]


async def login(region: Region, person: Person) -> int:
    return (await region.ask("GET", "/v2/auth", headers=person.basic)).status


async def test_a_login_decides(world: MakeWorld, directory: Slapd) -> None:
    """Whoever logs in is in the teams of their groups from the first time on, with a line in the audit log, and leaves them so."""
    directory.write_group("own", "bob")
    (us,) = await following(world, directory.settings(fresh=0.0), metadata_staleness=0.0)
    assert await login(us, BOB) == 200
    assert await members(us) == ["bob"]
    assert (await us.ask("GET", TAGS, headers=BOB.basic)).status == 200
    directory.write_group("own", "alice")
    assert [await login(us, person) for person in (ALICE, BOB)] == [200, 200]
    assert await members(us) == ["alice"]
    kept = [line.line for line in await read_lines(us.registry.database, Filter(namespace="private"), None, 10)]
    assert [(line.action, line.actor, dict(line.detail)) for line in reversed(kept)] == [
        (action, name, {"team": "red", "member": name, "by": "ldap", "group": "cn=own,ou=groups"})
        for action, name in (("putMember", "bob"), ("putMember", "alice"), ("dropMember", "bob"))
    ]


async def test_who_left_without_logging_in(world: MakeWorld, directory: Slapd) -> None:
    """They leave the team when it is next synchronised, and a token that they have is void on every node."""
    directory.write_group("own", "bob", "alice")
    us, eu = await following(world, directory.settings(), "us eu", "eu us", metadata_staleness=3600.0)
    assert await login(us, ALICE) == 200
    token = bearing(await token_for(us, BOB, "repository:private/app:pull"))
    for region in (us, eu):
        assert (await region.ask("GET", TAGS, headers=token)).status == 200
    directory.write_group("own", "alice")
    assert await teams_of(eu).resync()
    assert await members(us) == ["alice"]

    for region in (us, eu):

        async def refused(asked: Region = region) -> bool:
            return (await asked.ask("GET", TAGS, headers=token)).status == 401

        await until(refused)
    assert await login(us, BOB) == 200
    assert await members(us) == ["alice"]
    kept = [line.line for line in await read_lines(us.registry.database, Filter(action="dropMember"), None, 10)]
    assert [(line.actor, line.detail["member"], line.node) for line in kept] == [("", "bob", eu.registry.instance)]


async def test_a_login_from_memory(world: MakeWorld, directory: Slapd, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a password counts without asking the directory for it, its groups are not asked for either."""
    directory.write_group("own", "bob")
    (us,) = await following(world, directory.settings(), metadata_staleness=0.0)
    asked, groups = [], LdapGroups.groups

    async def counted(self: LdapGroups, names: Sequence[str], *given: Any) -> Told:
        asked.append(list(names))
        return await groups(self, names, *given)

    monkeypatch.setattr(LdapGroups, "groups", counted)
    assert [await login(us, BOB) for _ in range(3)] == [200] * 3
    assert asked == [["bob"]]
    assert await members(us) == ["bob"]


async def test_everybody_of_a_group(world: MakeWorld, directory: Slapd) -> None:
    """A synchronisation puts in who has an account, makes none, and takes out whom the directory does not prove; robots stay."""
    directory.write_group("own", "bob", "alice", "private", "upper.case")
    (us,) = await following(world, directory.settings(), group="other")
    database = us.registry.database
    assert [await login(us, person) for person in (ALICE, BOB)] == [200, 200]
    assert await add_member(database, "private", "writers", "alice")
    assert await put_team(database, "private", "blue")
    for name in ("reader", "private+reader"):
        assert await add_member(database, "private", "blue", name)
    assert await bind_team(database, "private", "blue", "ldap", "cn=own,ou=groups") is TeamDeletion.DONE
    assert await teams_of(us).resync()
    found = [member.name for member in await list_members(database, "private", "blue")]
    assert found == ["alice", "bob", "private+reader"]
    assert await find_account(database, "upper.case") is None
    assert await members(us) == []
    assert not await teams_of(us).resync(), "it was done"
    directory.delete_group("own")
    await stale(us)
    assert await teams_of(us).resync()
    assert [member.name for member in await list_members(database, "private", "blue")] == ["private+reader"]
    assert "alice" in {member.name for member in await list_members(database, "private", "writers")}


async def test_a_directory_that_is_away(world: MakeWorld, running: Slapd) -> None:
    """Nobody loses anything by it; that teams do not follow their groups is said until they do again."""
    running.write_group("own", "bob")
    (us,) = await following(world, running.settings(timeout=2.0))
    assert await login(us, BOB) == 200
    running.stop()
    await teams_of(us).round()
    assert await members(us) == ["bob"]
    assert "cannot be asked for groups" in teams_of(us).trouble
    told = warning(us.node.facts())
    assert [check.message for check in told.checks if check.name == "team_sync"] == [teams_of(us).trouble]
    assert told.status == 200
    await teams_of(us).round()
    assert teams_of(us).trouble, "nobody else has done it"
    await us.registry.database.fetch("UPDATE team_sync SET synced_at = now(), leased_until = NULL")
    await teams_of(us).round()
    assert teams_of(us).trouble == "", "another node could"
    await stale(us)
    await teams_of(us).round()
    assert teams_of(us).trouble
    running.start()
    await stale(us)
    await teams_of(us).round()
    assert teams_of(us).trouble == ""
    assert "team_sync" not in {check.name for check in warning(us.node.facts()).checks}
    await us.registry.database.fetch(
        "UPDATE team_sync SET synced_at = now() - interval '3 hours', leased_until = now() + interval '1 hour'"
    )
    await teams_of(us).round()
    assert "1 teams were not synchronised for 3h" in teams_of(us).trouble


CROWD = [f"crowd-{number}" for number in range(12)]


async def full(world: MakeWorld, directory: Slapd, **given: Any) -> Region:
    """Return a node where a crowd is in the team and in its group."""
    directory.write_people(*CROWD)
    directory.write_group("crowd", *CROWD)
    (us,) = await following(world, directory.settings(fresh=0.0), group="crowd", metadata_staleness=0.0, **given)
    for name in CROWD:
        assert await create_user(us.registry.database, name, f"ldap:{name}")
    assert await teams_of(us).resync()
    assert await members(us) == sorted(CROWD)
    return us


async def old(region: Region) -> None:
    """Let it be time for every team, which has followed its group before."""
    await region.registry.database.fetch(
        "UPDATE team_sync SET synced_at = synced_at - interval '1 day', leased_until = NULL"
    )


async def test_a_group_that_has_nobody_any_more(world: MakeWorld, directory: Slapd) -> None:
    """Of a crowd that has left at once nobody goes for a while, at a login neither, and that is said; who is new comes at once."""
    us = await full(world, directory)
    assert await login(us, BOB) == 200
    directory.write_group("crowd", "bob")
    await old(us)
    await teams_of(us).round()
    assert await members(us) == sorted(["bob", *CROWD])
    assert "most people of private/red have left the group at once" in teams_of(us).trouble
    assert await login(us, Person(CROWD[0], PASSWORD_THERE)) == 200
    directory.delete_group("crowd")
    await old(us)
    await teams_of(us).round()
    assert await members(us) == sorted(["bob", *CROWD])
    directory.write_group("crowd", "bob", *CROWD[1:])
    await old(us)
    await teams_of(us).round()
    assert (await members(us), teams_of(us).trouble) == (sorted(["bob", *CROWD[1:]]), "")


async def test_a_crowd_that_has_left(world: MakeWorld, directory: Slapd) -> None:
    """They are out when the time to look is over."""
    us = await full(world, directory, team_hold=3600.0)
    directory.write_group("crowd")
    for hours, left in ((0, sorted(CROWD)), (0.9, sorted(CROWD)), (1.1, [])):
        await old(us)
        await us.registry.database.fetch(
            "UPDATE team_sync SET held_since = now() - $1::float8 * interval '1 hour' WHERE held_since IS NOT NULL",
            hours,
        )
        await teams_of(us).round()
        assert await members(us) == left
    assert teams_of(us).trouble == ""


async def test_a_crowd_that_may_leave(world: MakeWorld, directory: Slapd) -> None:
    """They are out soon once the team is bound to the same group again, and at once where nothing waits."""
    us = await full(world, directory)
    directory.write_group("crowd")
    await old(us)
    await teams_of(us).round()
    assert await members(us) == sorted(CROWD)
    group = "cn=crowd,ou=groups"
    assert await bind_team(us.registry.database, "private", "red", "ldap", group) is TeamDeletion.DONE
    await teams_of(us).round()
    assert (await members(us), teams_of(us).trouble) == ([], "")


async def test_a_registry_that_does_not_wait(world: MakeWorld, directory: Slapd) -> None:
    """Where TEAM_RESYNC_HOLD_TIME is 0 a crowd that has left is out with the next synchronisation."""
    us = await full(world, directory, team_hold=0.0)
    directory.write_group("crowd")
    await old(us)
    await teams_of(us).round()
    assert await members(us) == []


async def test_a_group_that_is_hidden(world: MakeWorld, directory: Slapd) -> None:
    """A login takes nobody out of a team whose group is not to be seen, or has nobody at all: the next synchronisation does."""
    directory.write_group("own", "bob")
    (us,) = await following(world, directory.settings(fresh=0.0), metadata_staleness=0.0)
    assert await login(us, BOB) == 200
    directory.delete_group("own")
    assert await login(us, BOB) == 200
    assert await members(us) == ["bob"]
    await old(us)
    assert await teams_of(us).resync()
    assert await members(us) == []


@define
class Blocked:
    """Groups of which one keeps everything that is asked with it without an answer."""

    asked: list[int] = field(factory=list)

    async def groups(self, names: Sequence[str], groups: Sequence[str], within: float | None = None) -> Told:
        assert within == 90.0
        self.asked.append(len(groups))
        if "cn=poison" in groups:
            raise DirectoryUnavailable("no answer within 90 s")
        return Told({name: frozenset(groups) for name in names})

    async def listing(self, groups: Sequence[str]) -> Sequence[str]:
        return groups


async def test_a_group_that_keeps_others_waiting(world: MakeWorld, directory: Slapd) -> None:
    """One that the directory does not tell in time holds up the others only until fewer are asked about together."""
    (us,) = await following(world, directory.settings())
    database = us.registry.database
    for number in range(30):
        assert await put_team(database, "private", f"team-{number}")
        group = "cn=poison" if number == 0 else f"cn={number}"
        assert await bind_team(database, "private", f"team-{number}", "ldap", group) is TeamDeletion.DONE
    groups = Blocked()
    teams = DirectoryTeams(teams_of(us).teams, groups, database, 1800.0, 3600.0, "us")
    for _ in range(12):
        await teams.round()
        await database.fetch("UPDATE team_sync SET leased_until = leased_until - interval '1 hour'")
    (left,) = await database.fetch("SELECT array_agg(group_name) AS names FROM team_sync WHERE synced_at IS NULL")
    assert left["names"] == ["cn=poison"]
    assert "no answer within 90 s" in teams.trouble
    assert teams.teams.counts.unread[Unread.AWAY] >= 30


async def test_a_group_that_cannot_be_read(world: MakeWorld, directory: Slapd, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its team stays as it is, which is said, and other teams follow theirs."""
    directory.write_group("own", "bob", "private")
    directory.write_group("other", "alice")
    (us,) = await following(world, directory.settings())
    database = us.registry.database
    assert await put_team(database, "private", "blue")
    assert await bind_team(database, "private", "blue", "ldap", "cn=other,ou=groups") is TeamDeletion.DONE
    for name in ("alice", "bob", "upper.case"):
        assert await create_user(database, name, f"ldap:{name}")
    assert await teams_of(us).resync()
    directory.write_group("own", "alice", "private")
    directory.write_group("other")
    monkeypatch.setattr(ldap_search, "MOST_VALUES", 2)
    await old(us)
    await teams_of(us).round()
    assert await members(us) == ["bob"]
    assert [member.name for member in await list_members(database, "private", "blue")] == []
    assert "a group cannot be read: cn=own,ou=groups" in teams_of(us).trouble
    monkeypatch.undo()
    await old(us)
    await teams_of(us).round()
    assert (await members(us), teams_of(us).trouble) == (["alice"], "")


async def test_without_the_feature(world: MakeWorld, directory: Slapd) -> None:
    """Where FEATURE_TEAM_SYNCING is off nothing follows groups, though a team is bound."""
    directory.write_group("own", "bob")
    (us,) = await following(world, directory.settings(), team_syncing=False)
    assert us.node.access.parts is not None
    assert us.node.access.parts.teams is None
    assert await login(us, BOB) == 200
    assert await members(us) == []
