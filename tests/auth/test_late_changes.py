"""Changes of accounts, rights, tokens and settings that arrive when nobody waits for them any more do nothing."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest

from node.auth.model import Role, TeamRole
from node.records.accounts import (
    create_organization,
    create_robot,
    create_user,
    delete_account,
    link_account,
    set_secret,
    update_account,
)
from node.records.application_tokens import create_token, delete_token
from node.records.auditlog import Line
from node.records.bootstrap import offer_bootstrap, use_bootstrap
from node.records.default_permissions import add_default, remove_default
from node.records.dial import Connection
from node.records.drills import begin_drill
from node.records.federated_logins import add_link, create_linked, remove_link
from node.records.immutability import write_patterns
from node.records.permissions import (
    Grantee,
    create_repository,
    remove_permission,
    set_permission,
    set_visibility,
)
from node.records.postgres import Database, DatabaseUnavailable
from node.records.quotas import write_quota
from node.records.robot_federation import add_rule, remove_rule
from node.records.team_sync import Step, bind_team, standing_of, take_steps, unbind_team
from node.records.teams import TeamDeletion, add_member, delete_team, put_team, remove_member
from node.records.webhooks import Webhook, delete_webhook, write_webhook

READ = Grantee("user")
PERSON = ("https://i.test", "somebody")
HOOK = Webhook("org", "hook", "https://hook.test", ("push",), active=True)

CHANGES: dict[str, Callable[[Database, Any], Awaitable[object]]] = {
    "a user is made": lambda database, _: create_user(database, "other", "secret"),
    "an organisation is made": lambda database, _: create_organization(database, "other", "user"),
    "a robot is made": lambda database, _: create_robot(database, "org", "other", "secret"),
    "a secret is set": lambda database, _: set_secret(database, "user", "other"),
    "a user is disabled": lambda database, _: update_account(database, "user", enabled=False),
    "a user is linked": lambda database, made: link_account(database, made["bare"], "mark", Line("linkUser")),
    "an account is deleted": lambda database, _: delete_account(database, "user"),
    "a token is made": lambda database, _: create_token(database, "user", "other", "secret", None),
    "an account is made by a provider": lambda database, _: create_linked(database, "other", None, *PERSON, Line("x")),
    "an account is linked": lambda database, _: add_link(database, "bare", *PERSON),
    "a link is taken away": lambda database, _: remove_link(database, "user", "https://i.test", "linked"),
    "a rule about a robot is made": lambda database, _: add_rule(database, "org+robot", "https://i.test", "a", "other"),
    "a rule about a robot is taken away": lambda database, made: remove_rule(database, "org+robot", made["rule"]),
    "a token is deleted": lambda database, made: delete_token(database, "user", made["token"]),
    "a permission is given": lambda database, _: set_permission(database, "org/app", Grantee("bare"), Role.READ),
    "a permission is changed": lambda database, _: set_permission(database, "org/app", READ, Role.ADMIN),
    "a permission is taken away": lambda database, _: remove_permission(database, "org/app", READ),
    "a repository is made public": lambda database, _: set_visibility(database, "org/app", public=True),
    "a repository is made": lambda database, _: create_repository(database, "org/other", "library", "user"),
    "a default is given": lambda database, _: add_default(database, "org", Grantee("bare"), Role.READ),
    "a default is taken away": lambda database, made: remove_default(database, "org", made["default"]),
    "a team is made": lambda database, _: put_team(database, "org", "other"),
    "a team is changed": lambda database, _: put_team(database, "org", "team", TeamRole.ADMIN),
    "a team is deleted": lambda database, _: delete_team(database, "org", "team"),
    "a member is added": lambda database, _: add_member(database, "org", "team", "bare"),
    "a member is removed": lambda database, _: remove_member(database, "org", "team", "user"),
    "a team is synchronised": lambda database, _: bind_team(database, "org", "team", "oidc", "devs"),
    "a team is not synchronised any more": lambda database, _: unbind_team(database, "org", "bound"),
    "a member is synchronised": lambda database, made: take_steps(
        database, "ldap", [Step(made["bound"], made["bare"], True, Line("putMember"))]
    ),
    "a quota is set": lambda database, _: write_quota(database, "org", reject=1, warn=None),
    "a quota is set for a new namespace": lambda database, _: write_quota(database, "other", reject=1, warn=None),
    "tags become immutable": lambda database, _: write_patterns(database, "org", None, [("v*", "v.*")]),
    "a webhook is changed": lambda database, _: write_webhook(database, HOOK, b"other", change_secret=True, most=9),
    "a webhook is deleted": lambda database, _: delete_webhook(database, "org", "hook"),
    "a drill begins": lambda database, _: begin_drill(database, uuid4(), "us", 60, balancer=False),
}


async def everything(database: Database) -> dict[str, list[str]]:
    """Return all rows of all tables."""
    tables = await database.fetch("SELECT tablename AS name FROM pg_tables WHERE schemaname = 'public'")
    return {
        table["name"]: sorted(
            row["text"]
            for row in await database.fetch(f"SELECT t::text AS text FROM {table['name']} t")  # noqa: S608
        )
        for table in tables
    }


async def make(database: Database) -> dict[str, Any]:
    """Make what the changes change; return the ids that they need."""
    await database.fetch(
        "INSERT INTO location (name, marker) VALUES ('us', gen_random_uuid()), ('eu', gen_random_uuid())"
    )
    assert await create_user(database, "user", "secret")
    bare = await create_user(database, "bare", None)
    assert await create_organization(database, "org", "user")
    assert await create_repository(database, "org/app", "library", None)
    assert await put_team(database, "org", "team")
    assert await add_member(database, "org", "team", "user")
    await set_permission(database, "org/app", READ, Role.READ)
    token = await create_token(database, "user", "token", "hash", None)
    default = await add_default(database, "org", READ, Role.READ)
    assert await write_webhook(database, HOOK, b"secret", change_secret=True, most=9) == "made"
    assert await create_robot(database, "org", "robot", "secret")
    rule = await add_rule(database, "org+robot", "https://i.test", "a", "subject")
    assert await add_link(database, "user", "https://i.test", "linked")
    assert await put_team(database, "org", "bound")
    assert await bind_team(database, "org", "bound", "ldap", "cn=devs") is TeamDeletion.DONE
    assert rule is not None
    assert bare is not None
    assert token is not None
    assert default is not None
    (bound,) = (await standing_of(database, "ldap", bare.id)).bound
    return {"bare": bare.id, "token": token.id, "default": default.id, "rule": rule.id, "bound": bound}


async def test_late_changes_do_nothing(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is told that a change failed can rely on it: it comes into force at no later time."""
    made = await make(database)
    before = await everything(database)
    done = []
    with monkeypatch.context() as late:
        late.setattr(Connection, "moment", lambda _self, _monotonic: datetime(2020, 1, 1, tzinfo=UTC))
        for name, change in CHANGES.items():
            try:
                await change(database, made)
            except DatabaseUnavailable:
                continue
            done.append(name)
    assert done == []
    assert await everything(database) == before


async def test_a_late_first_user(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same for the first superuser: the token is as good as before."""
    assert await offer_bootstrap(database, "hash", 60)
    with monkeypatch.context() as late:
        late.setattr(Connection, "moment", lambda _self, _monotonic: datetime(2020, 1, 1, tzinfo=UTC))
        with pytest.raises(DatabaseUnavailable):
            await use_bootstrap(database, "hash", "root", "secret")
    assert await use_bootstrap(database, "hash", "root", "secret")
