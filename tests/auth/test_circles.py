"""Who gives rights, or deletes whoever has them, comes to them in one order: tests/test_circles.py says how that is seen."""

from uuid import UUID

import pytest
import trio

from node.auth.model import Role
from node.records.accounts import delete_account
from node.records.federated_logins import add_link
from node.records.permissions import Grantee, set_permission, set_visibility
from node.records.team_sync import bind_team
from node.records.teams import add_member, delete_team
from node.records.uploads import Choice, begin_upload
from replication.upload_state import UploadState
from tests.circles import Act, Half, check
from tests.collection.held import held_transaction, wait_until_one_waits, wait_until_one_waits_for
from tests.replication.conftest import world
from tests.replication.world import World

__all__ = ["world"]

_UPLOAD = UUID(int=7)

_ACCOUNT = "SELECT FROM account WHERE name = '{}' FOR UPDATE"
_CLUB = "SELECT FROM account WHERE name LIKE 'club%' ORDER BY id FOR UPDATE"
_TEAM = "SELECT FROM team FOR UPDATE"
_REPOSITORY = "SELECT FROM repository WHERE name = 'other/a' FOR UPDATE"

HALVES = {
    "an account is deleted while it is given something": Half(
        _ACCOUNT.format("ann"), lambda w: set_permission(w.database, "other/a", Grantee("ann"), Role.READ), _REPOSITORY
    ),
    "a team is deleted while it is given something": Half(
        _TEAM, lambda w: set_permission(w.database, "other/a", Grantee(team="crew"), Role.READ), _REPOSITORY
    ),
    "an organisation is deleted while its robot comes into a team": Half(
        _CLUB, lambda w: add_member(w.database, "club", "crew", "club+r"), _TEAM
    ),
    "an account is deleted while a person gets it": Half(
        _ACCOUNT.format("ann"),
        lambda w: add_link(w.database, "ann", "issuer", "subject"),
        "SELECT FROM federated_login FOR UPDATE",
    ),
    "somebody is deleted while a group gets a team": Half(
        "SELECT FROM team_member m JOIN account a ON a.id = m.account_id WHERE a.name = 'ann' FOR UPDATE OF m",
        lambda w: bind_team(w.database, "club", "crew", "oidc", "group"),
        "SELECT FROM team_member m JOIN account a ON a.id = m.account_id WHERE a.name = 'bob' FOR UPDATE OF m",
    ),
}


@pytest.fixture
async def full(world: World) -> World:
    """An organisation with a team and a robot, and two people; a repository of another one whose team has the same name."""
    for sql in (
        "INSERT INTO account (name, kind) VALUES ('club', 'organization'), ('other', 'organization')",
        "INSERT INTO account (name, kind) VALUES ('ann', 'user'), ('bob', 'user')",
        "INSERT INTO account (name, kind, owner_id) SELECT 'club+r', 'robot', id FROM account WHERE name = 'club'",
        "INSERT INTO team (organization_id, name) SELECT id, 'crew' FROM account WHERE kind = 'organization'",
        # Rows are as a table has them after a while: the later ones first.
        (
            "INSERT INTO team_member (team_id, account_id) SELECT t.id, a.id FROM team t, account a "
            "WHERE t.id = (SELECT min(id) FROM team) AND a.kind = 'user' ORDER BY a.id DESC"
        ),
        "INSERT INTO federated_login (issuer, subject, account_id) SELECT 'issuer', 'subject', id FROM account WHERE name = 'ann'",
    ):
        await world.database.fetch(sql)
    await world.repository("other/a")
    choice = Choice("us", UploadState("k", "k.tail", "sha256"))
    assert await begin_upload(world.database, "other/a", "library", _UPLOAD, [choice], 3600.0)
    await world.database.fetch("UPDATE upload SET made_repository = true")
    return world


@pytest.mark.parametrize("circle", HALVES)
async def test_who_waits_has_not_what_the_other_comes_to_next(full: World, database_uri: str, circle: str) -> None:
    """No two transactions wait for each other."""
    await check(HALVES[circle], full, database_uri)


@pytest.mark.parametrize(
    ("grantee", "goes"),
    [
        (Grantee("ann"), lambda w: delete_account(w.database, "ann")),
        (Grantee("club+r"), lambda w: delete_account(w.database, "club")),
        (Grantee(team="crew"), lambda w: delete_team(w.database, "other", "crew")),
    ],
    ids=["a user", "a robot of an organisation", "a team"],
)
async def test_what_is_given_to_somebody_who_is_being_deleted_goes_after_its_repository_is_locked(
    full: World, database_uri: str, grantee: Grantee, goes: Act
) -> None:
    """A permission that is given while its account or team goes, on a repository that goes, too, makes no circle of the three."""
    async with (
        trio.open_nursery() as nursery,
        held_transaction(database_uri) as user,
        held_transaction(database_uri) as rival,
    ):
        async with held_transaction(database_uri) as giver:
            await user.fetch("SELECT FROM team, account FOR KEY SHARE")
            await set_permission(giver, "other/a", grantee, Role.READ)
            nursery.start_soon(goes, full)
            await wait_until_one_waits(full.database)
        # An upload that began beside it.
        await full.database.fetch("UPDATE upload SET made_repository = true")
        # Whoever deletes the repository has it with its uploads before the other goes on.
        await rival.fetch("SET LOCAL lock_timeout = '200ms'")
        await rival.fetch(_REPOSITORY)
        await rival.fetch("SELECT FROM upload FOR UPDATE")
        await user.fetch("COMMIT")
        await wait_until_one_waits_for(full.database, rival)
        await rival.fetch("SELECT FROM permission FOR UPDATE")
        await rival.fetch("ROLLBACK")
    assert not await full.database.fetch("SELECT FROM permission")


async def test_who_shows_a_repository_does_not_come_to_its_namespace(full: World, database_uri: str) -> None:
    """A repository that a push made is shown while somebody has its namespace, and stays."""
    await full.database.fetch("UPDATE repository SET made_for_push = now()")
    async with held_transaction(database_uri) as held:
        await held.fetch("SELECT FROM namespace FOR UPDATE")
        with trio.fail_after(4):
            assert await set_visibility(full.database, "other/a", public=True)
    assert await full.database.fetch("SELECT FROM repository WHERE public AND made_for_push IS NULL")
