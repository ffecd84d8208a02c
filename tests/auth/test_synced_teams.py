"""Teams that a group decides, as the records have them: bound, changed by hand, claimed, and their members changed."""

import pytest

from node.auth.memberships import Bound
from node.auth.model import TeamRole
from node.records.accounts import create_organization, create_robot, create_user, update_account
from node.records.auditlog import Filter, Line, read_lines
from node.records.postgres import Database
from node.records.rights import read_changes
from node.records.team_confirmations import list_unconfirmed
from node.records.team_sync import (
    Done,
    Overdue,
    Step,
    bind_team,
    claim_stale,
    list_candidates,
    note_synced,
    overdue_teams,
    standing_of,
    take_steps,
    unbind_team,
)
from node.records.teams import (
    Sync,
    TeamDeletion,
    TeamSynced,
    add_member,
    delete_team,
    find_team,
    list_members,
    list_teams,
    put_team,
    remove_member,
)

GROUP = "cn=devs,ou=groups"


async def made(database: Database) -> dict[str, int]:
    """Make org with its admin alice, and dev with bob and a robot; return the users' ids."""
    ids = {}
    for name in ("alice", "bob", "carol"):
        user = await create_user(database, name, f"ldap:{name}" if name != "alice" else "a hash")
        assert user is not None
        ids[name] = user.id
    assert await create_organization(database, "org", "alice")
    assert await create_robot(database, "org", "ci", "secret")
    assert await put_team(database, "org", "dev")
    for name in ("bob", "org+ci"):
        assert await add_member(database, "org", "dev", name)
    return ids


async def members(database: Database, team: str = "dev") -> list[str]:
    return [member.name for member in await list_members(database, "org", team)]


async def bound_to(database: Database, service: str = "ldap") -> Bound:
    assert await bind_team(database, "org", "dev", service, GROUP) is TeamDeletion.DONE
    (bound,) = (await standing_of(database, service, 0)).bound
    return bound


@pytest.mark.parametrize(("service", "left"), [("ldap", ["bob", "org+ci"]), ("oidc", ["org+ci"])])
async def test_a_team_is_bound(database: Database, service: str, left: list[str]) -> None:
    """Its listings say so; users leave it where only their next login tells who is in the group; robots stay; again is the same."""
    await made(database)
    await bound_to(database, service)
    assert await members(database) == left
    team = await find_team(database, "org", "dev")
    assert team is not None
    assert team.sync == Sync(service, GROUP)
    assert [line.sync for line in await list_teams(database, "org")] == [team.sync, None]
    changed = await put_team(database, "org", "dev", TeamRole.CREATOR)
    assert changed is not None
    assert changed.sync == team.sync
    assert await bind_team(database, "org", "none", service, GROUP) is TeamDeletion.UNKNOWN
    assert await bind_team(database, "none", "dev", service, GROUP) is TeamDeletion.UNKNOWN


async def test_who_is_in_it_stays(database: Database) -> None:
    """The same binding again takes nobody out, another one does; without one whoever is in the team stays, and can be taken out."""
    ids = await made(database)
    bound = await bound_to(database, "oidc")
    join = Step(bound, ids["carol"], True, Line("putMember"))
    assert await take_steps(database, "oidc", [join]) == Done(1, 0)
    await bound_to(database, "oidc")
    assert await members(database) == ["carol", "org+ci"]
    assert await unbind_team(database, "org", "dev")
    assert not await unbind_team(database, "org", "dev")
    assert await members(database) == ["carol", "org+ci"]
    assert await remove_member(database, "org", "dev", "carol") is TeamDeletion.DONE
    assert await add_member(database, "org", "dev", "bob")
    await bound_to(database, "oidc")
    assert await members(database) == ["org+ci"]


async def test_changes_by_hand(database: Database) -> None:
    """Nobody puts users into a bound team or takes them out by hand; robots come and go, and so does the team."""
    await made(database)
    await bound_to(database)
    for name in ("carol", "bob"):
        with pytest.raises(TeamSynced):
            await add_member(database, "org", "dev", name)
    with pytest.raises(TeamSynced):
        await remove_member(database, "org", "dev", "bob")
    assert await remove_member(database, "org", "dev", "carol") is TeamDeletion.UNKNOWN
    assert await members(database) == ["bob", "org+ci"]
    assert await remove_member(database, "org", "dev", "org+ci") is TeamDeletion.DONE
    assert await add_member(database, "org", "dev", "org+ci")
    assert not await add_member(database, "org", "dev", "nobody")
    assert await delete_team(database, "org", "dev") is TeamDeletion.DONE
    assert (await standing_of(database, "ldap", 0)).bound == []


async def test_the_last_admins(database: Database) -> None:
    """The only team that has an admin is not bound; it is once another one has, and may be bound again as it is."""
    await made(database)
    assert await bind_team(database, "org", "owners", "ldap", GROUP) is TeamDeletion.LAST_ADMIN
    assert await put_team(database, "org", "rescue", TeamRole.ADMIN)
    assert await bind_team(database, "org", "rescue", "ldap", GROUP) is TeamDeletion.DONE
    assert await unbind_team(database, "org", "rescue")
    assert await add_member(database, "org", "rescue", "carol")
    assert await bind_team(database, "org", "owners", "ldap", GROUP) is TeamDeletion.DONE
    assert await remove_member(database, "org", "rescue", "carol") is TeamDeletion.DONE
    assert await bind_team(database, "org", "owners", "ldap", GROUP) is TeamDeletion.DONE


async def test_steps(database: Database) -> None:
    """Members come and go together, with a line each; whoever goes loses what was issued to them; nothing is done twice."""
    ids = await made(database)
    bound = await bound_to(database)
    before = (await read_changes(database, None, 60)).number
    steps = [
        Step(bound, ids[name], joins, Line("putMember" if joins else "dropMember", name, "org", detail={"by": "ldap"}))
        for name, joins in (("bob", False), ("carol", True), ("alice", False))
    ]
    assert await take_steps(database, "ldap", steps) == Done(1, 1)
    assert await members(database) == ["carol", "org+ci"]
    assert await take_steps(database, "ldap", steps) == Done(0, 0)
    kept = [line.line for line in await read_lines(database, Filter(namespace="org"), None, 10)]
    assert sorted((line.action, line.actor, line.detail["by"]) for line in kept) == [
        ("dropMember", "bob", "ldap"),
        ("putMember", "carol", "ldap"),
    ]
    changes = await read_changes(database, before, 60)
    assert [change.account for change in changes.changes] == ["bob"]
    standing = await standing_of(database, "ldap", ids["carol"])
    assert standing.present == {(bound.team, ids["carol"])}


async def test_a_login_and_its_end_at_once(database: Database) -> None:
    """Nobody leaves whom a login has confirmed since somebody looked; nor are they left out who were taken out meanwhile."""
    ids = await made(database)
    bound = await bound_to(database, "oidc")
    join = Step(bound, ids["carol"], True, Line("putMember"))
    leave = Step(bound, ids["carol"], False, Line("dropMember"))
    assert await take_steps(database, "oidc", [join]) == Done(1, 0)
    await database.fetch("UPDATE team_member SET confirmed_at = now() - interval '2 hours'")
    (old,) = await list_unconfirmed(database, "oidc", 3600, 10)
    assert (old.bound, old.account, old.name) == (bound, ids["carol"], "carol")
    assert await list_unconfirmed(database, "ldap", 3600, 10) == []
    assert await take_steps(database, "oidc", [join]) == Done(0, 0)
    assert await list_unconfirmed(database, "oidc", 3600, 10) == []
    assert await take_steps(database, "oidc", [leave], 3600) == Done(0, 0)
    await database.fetch("UPDATE team_member SET confirmed_at = now() - interval '2 hours'")
    assert await take_steps(database, "oidc", [leave], 3600) == Done(0, 1)
    assert await take_steps(database, "oidc", [join]) == Done(1, 0)
    assert await members(database) == ["carol", "org+ci"]


async def test_steps_that_come_too_late(database: Database) -> None:
    """What another group, another service or nobody decides by now stays as it is, and an account that is gone is no error."""
    ids = await made(database)
    bound = await bound_to(database)
    leaves = [Step(bound, ids["bob"], False, Line("dropMember")), Step(bound, 10**9, True, Line("putMember"))]
    assert await take_steps(database, "oidc", leaves) == Done(0, 0)
    assert await bind_team(database, "org", "dev", "ldap", "cn=others") is TeamDeletion.DONE
    assert await take_steps(database, "ldap", leaves) == Done(0, 0)
    assert await unbind_team(database, "org", "dev")
    assert await take_steps(database, "ldap", leaves) == Done(0, 0)
    assert await members(database) == ["bob", "org+ci"]


async def test_one_node_at_a_time(database: Database) -> None:
    """A team is claimed by one node until its lease has ended, and not again before it is stale; another group makes it stale."""
    await made(database)
    bound = await bound_to(database)
    assert await claim_stale(database, "ldap", 3600, 3600, 10) == [bound]
    assert await claim_stale(database, "ldap", 3600, 3600, 10) == []
    assert (await overdue_teams(database, "ldap", 3600)).teams == 1
    assert await overdue_teams(database, "oidc", 0) == Overdue(0, 0.0)
    await note_synced(database, [bound])
    assert await overdue_teams(database, "ldap", 3600) == Overdue(0, 0.0)
    assert await claim_stale(database, "ldap", 3600, 3600, 10) == []
    team = await find_team(database, "org", "dev")
    assert team is not None
    assert team.sync is not None
    assert team.sync.synced_at is not None
    assert await claim_stale(database, "ldap", 0, 0, 10) == [bound]
    assert await claim_stale(database, "ldap", 0, 3600, 10) == [bound]
    assert await bind_team(database, "org", "dev", "ldap", "cn=others") is TeamDeletion.DONE
    (other,) = await claim_stale(database, "ldap", 3600, 3600, 10)
    assert other.group == "cn=others"
    await note_synced(database, [bound])
    again = await find_team(database, "org", "dev")
    assert again is not None
    assert again.sync == Sync("ldap", "cn=others")


async def test_whom_a_synchronisation_is_about(database: Database) -> None:
    """Everybody whom the directory proves, and users who are in such a team though it does not; no robots."""
    ids = await made(database)
    assert await add_member(database, "org", "dev", "alice")
    await update_account(database, "carol", enabled=False)
    bound = await bound_to(database)
    found = {who.name: who for who in await list_candidates(database, "ldap:", [bound.team])}
    assert {name: (who.account, who.linked, len(who.teams)) for name, who in found.items()} == {
        "alice": (ids["alice"], False, 1),
        "bob": (ids["bob"], True, 1),
        "carol": (ids["carol"], True, 0),
    }
