"""Accounts, teams, permissions and tokens as the database keeps them, and what is noted when rights are taken away."""

import time

import pytest

from node.auth.model import Kind, Role, Standing, TeamRole
from node.records.accounts import (
    Deletion,
    any_user,
    create_organization,
    create_robot,
    create_user,
    delete_account,
    find_account,
    list_accounts,
    set_secret,
    update_account,
    upgrade_secret,
)
from node.records.application_tokens import create_token, delete_token, drop_ended_tokens, list_tokens
from node.records.default_permissions import add_default, list_defaults, remove_default
from node.records.logins import find_by_token, find_renewal
from node.records.permissions import (
    Grantee,
    Granting,
    create_repository,
    is_public,
    list_permissions,
    remove_permission,
    set_permission,
    set_visibility,
)
from node.records.postgres import Database
from node.records.rights import drop_old_changes, read_changes, read_standings
from node.records.teams import (
    TeamDeletion,
    add_member,
    delete_team,
    find_team,
    list_members,
    list_teams,
    put_team,
    remove_member,
    teams_of,
)

LIBRARY = "library"


async def people(database: Database) -> None:
    """Make alice and bob, the organisation org of alice, its robot org+ci, its team dev with bob, and the repository org/app."""
    for name in ("alice", "bob"):
        assert await create_user(database, name, f"hash of {name}")
    assert await create_organization(database, "org", "alice")
    assert await create_robot(database, "org", "ci", "sha256:x")
    assert await put_team(database, "org", "dev")
    assert await add_member(database, "org", "dev", "bob")
    assert await create_repository(database, "org/app", LIBRARY, "alice")


async def standing(database: Database, account: str, repository: str = "org/app") -> Standing:
    return (await read_standings(database, account, [repository], LIBRARY))[repository]


async def noted(database: Database, after: int) -> list[tuple[str | None, str | None]]:
    return [(change.account, change.repository) for change in (await read_changes(database, after, 0)).changes]


async def test_accounts(database: Database) -> None:
    """A name belongs to one account, whatever its kind; a robot's is its owner's and its own."""
    assert not await any_user(database)
    await people(database)
    assert await any_user(database)
    assert await create_user(database, "org", None) is None
    assert await create_organization(database, "alice", "bob") is None
    assert await create_robot(database, "org", "ci", "sha256:y") is None
    assert await create_robot(database, "org+ci", "ci", "sha256:y") is None
    robot = await find_account(database, "org+ci")
    assert robot is not None
    assert (robot.kind, robot.owner, robot.secret) == (Kind.ROBOT, "org", "sha256:x")
    assert [account.name for account in await list_accounts(database, Kind.USER)] == ["alice", "bob"]
    assert [account.name for account in await list_accounts(database, Kind.USER, after="alice", most=1)] == ["bob"]
    assert [account.name for account in await list_accounts(database, Kind.ROBOT, owner="org")] == ["org+ci"]
    assert await list_accounts(database, Kind.ROBOT, owner="alice") == []
    changed = await update_account(database, "alice", email="a@example.com", superuser=True)
    assert changed is not None
    assert (changed.email, changed.superuser, changed.enabled) == ("a@example.com", True, True)
    changed = await update_account(database, "alice", email="")
    assert changed is not None
    assert (changed.email, changed.superuser) == (None, True)
    organization = await update_account(database, "org", superuser=True)
    assert organization is not None
    assert not organization.superuser
    assert await update_account(database, "nobody", enabled=False) is None


async def test_names_of_namespaces_in_use(database: Database) -> None:
    """Who makes an account gets the repositories of its name only where that was asked for."""
    assert await create_repository(database, "old/app", LIBRARY, None)
    assert await create_user(database, "old", None) is None
    assert await create_organization(database, "old", None) is None
    assert await create_organization(database, "old", None, adopt=True)


async def test_secrets(database: Database) -> None:
    """A new secret makes what was issued before void; a better hash of the same one does not."""
    await people(database)
    before = await find_account(database, "bob")
    assert before is not None
    await upgrade_secret(database, before.id, "another", "new")
    await upgrade_secret(database, before.id, "hash of bob", "better hash of bob")
    upgraded = await find_account(database, "bob")
    assert upgraded is not None
    assert (upgraded.secret, upgraded.generation) == ("better hash of bob", before.generation)
    assert await set_secret(database, "bob", "another")
    after = await find_account(database, "bob")
    assert after is not None
    assert (after.secret, after.generation) == ("another", before.generation + 1)
    assert not await set_secret(database, "org", "x")


async def test_deleting_accounts(database: Database) -> None:
    """An account goes with its robots and teams, but not while its namespace has repositories."""
    await people(database)
    assert await delete_account(database, "org") is Deletion.IN_USE
    await database.fetch("DELETE FROM repository")
    assert await delete_account(database, "org") is Deletion.DONE
    assert await delete_account(database, "org") is Deletion.UNKNOWN
    assert await find_account(database, "org+ci") is None
    assert await list_teams(database, "org") == []


async def test_teams(database: Database) -> None:
    """A team has users, and robots of its organisation; somebody is always left who administers the organisation."""
    await people(database)
    assert await create_robot(database, "bob", "ci", "sha256:z")
    assert await add_member(database, "org", "dev", "org+ci")
    assert not await add_member(database, "org", "dev", "bob+ci")
    assert not await add_member(database, "org", "none", "bob")
    assert [member.name for member in await list_members(database, "org", "dev")] == ["bob", "org+ci"]
    assert [(team.name, team.role, team.members) for team in await list_teams(database, "org")] == [
        ("dev", TeamRole.MEMBER, 2),
        ("owners", TeamRole.ADMIN, 1),
    ]
    assert [team.name for team in await teams_of(database, "alice")] == ["owners"]
    assert await remove_member(database, "org", "owners", "alice") is TeamDeletion.LAST_ADMIN
    assert await delete_team(database, "org", "owners") is TeamDeletion.LAST_ADMIN
    assert await add_member(database, "org", "owners", "bob")
    assert await remove_member(database, "org", "owners", "alice") is TeamDeletion.DONE
    assert await remove_member(database, "org", "owners", "alice") is TeamDeletion.UNKNOWN
    assert await delete_team(database, "org", "dev") is TeamDeletion.DONE
    assert await delete_team(database, "org", "dev") is TeamDeletion.UNKNOWN
    changed = await put_team(database, "org", "owners", description="all of it")
    assert changed is not None
    assert (changed.role, changed.description) == (TeamRole.ADMIN, "all of it")
    assert await find_team(database, "org", "owners") == changed
    assert await put_team(database, "alice", "team") is None


async def test_permissions(database: Database) -> None:
    """A permission is a user's, a robot's or a team's of the organisation; what counts is the best that somebody has."""
    await people(database)
    assert (await standing(database, "bob")).role is Role.NONE
    dev, bob = Grantee(team="dev"), Grantee("bob")
    assert await set_permission(database, "org/app", dev, Role.WRITE) is Granting.DONE
    assert await set_permission(database, "org/app", bob, Role.READ) is Granting.DONE
    assert (await standing(database, "bob")).role is Role.WRITE
    assert await set_permission(database, "org/app", bob, Role.ADMIN) is Granting.DONE
    assert (await standing(database, "bob")).role is Role.ADMIN
    assert await set_permission(database, "org/none", bob, Role.READ) is Granting.NO_REPOSITORY
    for nobody in (Grantee("nobody"), Grantee("org"), Grantee(team="none")):
        assert await set_permission(database, "org/app", nobody, Role.READ) is Granting.NO_GRANTEE
    found = await list_permissions(database, "org/app")
    assert found is not None
    assert [(one.grantee, one.role) for one in found] == [
        (Grantee("alice"), Role.ADMIN),
        (bob, Role.ADMIN),
        (dev, Role.WRITE),
    ]
    assert await remove_permission(database, "org/app", bob) is Granting.DONE
    assert await remove_permission(database, "org/app", bob) is Granting.NO_GRANTEE
    assert await list_permissions(database, "org/none") is None
    assert await is_public(database, "org/app") is False
    assert await set_visibility(database, "org/app", public=True)
    assert await is_public(database, "org/app") is True
    assert not await set_visibility(database, "org/none", public=True)
    assert await is_public(database, "org/none") is None


async def test_standings(database: Database) -> None:
    """A standing has all that a decision needs, of repositories that exist and of others."""
    await people(database)
    alice = await read_standings(database, "alice", ["org/app", "org/new", "nowhere/app", "bob/app"], LIBRARY)
    assert {name: (at.exists, at.owner, at.role, at.team_role) for name, at in alice.items()} == {
        "org/app": (True, Kind.ORGANIZATION, Role.ADMIN, TeamRole.ADMIN),
        "org/new": (False, Kind.ORGANIZATION, Role.NONE, TeamRole.ADMIN),
        "nowhere/app": (False, None, Role.NONE, TeamRole.NONE),
        "bob/app": (False, Kind.USER, Role.NONE, TeamRole.NONE),
    }
    nobody = await standing(database, "")
    assert (nobody.exists, nobody.public, nobody.role, nobody.team_role) == (True, False, Role.NONE, TeamRole.NONE)


async def test_default_permissions(database: Database) -> None:
    """A new repository begins with what its namespace gives to new ones, and its creator administers it."""
    await people(database)
    dev = await add_default(database, "org", Grantee(team="dev"), Role.READ)
    dev = await add_default(database, "org", Grantee(team="dev"), Role.WRITE)
    assert dev is not None
    assert await add_default(database, "org", Grantee("org+ci"), Role.READ, creator="bob")
    assert await add_default(database, "org", Grantee("nobody"), Role.READ) is None
    assert await add_default(database, "org", Grantee("bob"), Role.READ, creator="nobody") is None
    assert await create_repository(database, "org/alices", LIBRARY, "alice")
    assert await create_repository(database, "org/bobs", LIBRARY, "bob", public=True)
    assert not await create_repository(database, "org/bobs", LIBRARY, "alice")
    for name, expected in (
        ("org/alices", [(Grantee("alice"), Role.ADMIN), (Grantee(team="dev"), Role.WRITE)]),
        ("org/bobs", [(Grantee("bob"), Role.ADMIN), (Grantee("org+ci"), Role.READ), (Grantee(team="dev"), Role.WRITE)]),
    ):
        found = await list_permissions(database, name)
        assert found is not None
        assert [(one.grantee, one.role) for one in found] == expected
    assert await is_public(database, "org/bobs")
    assert [(one.grantee.account, one.creator) for one in await list_defaults(database, "org")] == [
        (None, None),
        ("org+ci", "bob"),
    ]
    assert await remove_default(database, "org", dev.id)
    assert not await remove_default(database, "org", dev.id)


async def test_application_tokens(database: Database) -> None:
    """A token is found by its hash until its end or its account's."""
    await people(database)
    token = await create_token(database, "bob", "laptop", "sha256:a", None)
    assert token is not None
    assert await create_token(database, "bob", "ended", "sha256:b", -100_000)
    assert await create_token(database, "nobody", "laptop", "sha256:c", None) is None
    holder = await find_by_token(database, "sha256:a")
    assert holder is not None
    assert (holder.account.name, holder.token, holder.ends) == ("bob", token.id, None)
    assert await find_by_token(database, "sha256:b") is None
    generation, number, now = holder.account.generation, holder.account.id, time.time() + 60
    assert await find_renewal(database, "bob", generation, None, number, 0)
    assert await find_renewal(database, "bob", generation, token.id, number, 0)
    assert await find_renewal(database, "bob", generation, token.id, None, now)
    assert await find_renewal(database, "bob", generation + 1, None, number, now) is None
    assert await find_renewal(database, "bob", generation, None, number + 1, now) is None
    assert await find_renewal(database, "bob", generation, None, None, holder.account.created_at - 1) is None
    assert await find_renewal(database, "alice", generation, token.id, number, now) is None
    assert [one.title for one in await list_tokens(database, "bob")] == ["laptop"]
    assert await drop_ended_tokens(database) == 1
    assert not await delete_token(database, "alice", token.id)
    assert await delete_token(database, "bob", token.id)
    assert await find_by_token(database, "sha256:a") is None
    assert await find_renewal(database, "bob", generation, token.id, number, now) is None


async def test_what_takes_rights_away_is_noted(database: Database) -> None:
    """Whatever takes rights away is noted for its account or repository, and nothing else is."""
    await people(database)
    assert await set_permission(database, "org/app", Grantee(team="dev"), Role.WRITE) is Granting.DONE
    assert await set_visibility(database, "org/app", public=True)
    token = await create_token(database, "bob", "laptop", "sha256:a", None)
    assert token is not None
    assert (await read_changes(database, None, 3600)).number == 0, "giving rights takes none away"
    repository, bob = (None, "org/app"), ("bob", None)
    for work, expected in (
        (set_permission(database, "org/app", Grantee(team="dev"), Role.READ), [repository]),
        (remove_permission(database, "org/app", Grantee(team="dev")), [repository]),
        (set_visibility(database, "org/app", public=False), [repository]),
        (put_team(database, "org", "dev", TeamRole.CREATOR), []),
        (put_team(database, "org", "dev", TeamRole.MEMBER), [bob]),
        (remove_member(database, "org", "dev", "bob"), [bob]),
        (add_member(database, "org", "dev", "bob"), []),
        (delete_team(database, "org", "dev"), [bob]),
        (set_secret(database, "bob", "another"), [bob]),
        (update_account(database, "bob", superuser=True, email="b@example.com"), []),
        (update_account(database, "bob", superuser=False), [bob]),
        (update_account(database, "bob", enabled=False), [bob]),
        (update_account(database, "bob", enabled=True), []),
        (delete_token(database, "bob", token.id), [bob]),
        (delete_account(database, "bob"), [bob]),
        (database.fetch("DELETE FROM repository"), [repository]),
        (delete_account(database, "org"), [("alice", None), ("org", None), ("org+ci", None)]),
    ):
        before = (await read_changes(database, 0, 0)).number
        await work
        found = await noted(database, before)
        assert sorted(found, key=str) == sorted(expected, key=str)
    recent = await read_changes(database, None, 3600)
    assert (recent.number, len(recent.changes), recent.all) == (14, 15, True)
    assert await drop_old_changes(database, 3600) == 0
    assert await drop_old_changes(database, -1) == len(recent.changes)
    assert (await read_changes(database, None, 3600)).number == recent.number


@pytest.mark.parametrize("after", [None, 0])
async def test_too_many_changes(database: Database, after: int | None) -> None:
    """Where changes are too many to be told one by one, nothing older may be relied on."""
    await database.fetch("SELECT note_access(array_agg('u' || n), NULL) FROM generate_series(1, 10001) n")
    found = await read_changes(database, after, 3600)
    assert (found.number, found.changes, found.all) == (1, (), False)
