"""A failed login costs the same whoever it is about: nobody can tell by the time that it takes which names exist.

What costs is counted rather than timed: hashes, statements, questions to a directory and to a provider. That nothing shows beside
these is a least time, below which no failure is answered.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import bcrypt
import pytest
import trio
from argon2 import PasswordHasher
from argon2.exceptions import VerifyMismatchError

from node.auth import credentials, ldap, passwords
from node.auth.credentials import NotProven
from node.auth.federation import Federation
from node.auth.secrets import hash_secret
from node.records.accounts import create_user, update_account
from node.records.application_tokens import create_token
from tests.auth.people import HOST, PASSWORD, ROBOT_SECRET, TOKEN, settled
from tests.auth.provider import Provider, provider
from tests.auth.slapd import PASSWORD_THERE, Slapd, directory
from tests.auth.test_federation import LOCAL, ROBOT, rule_of
from tests.registry.world import MakeWorld, Region

__all__ = ["directory", "provider"]

LEAST = 0.05
"""Seconds that a failed login takes at least here; it is longer elsewhere."""


def counting(monkeypatch: pytest.MonkeyPatch, counted: Counter[str], owner: Any, name: str) -> None:
    """Count the calls of a function, which does what it did before."""
    work: Callable[..., Any] = getattr(owner, name)

    def count(*given: Any, **more: Any) -> Any:
        counted[name] += 1
        return work(*given, **more)

    monkeypatch.setattr(owner, name, count)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """What is counted: the hashes of passwords, and look-ups in the database."""
    made: Counter[str] = Counter()
    monkeypatch.setattr(credentials, "_FAILURE_SECONDS", LEAST)
    counting(monkeypatch, made, passwords, "verify_now")
    for name in ("find_by_name", "find_by_token"):
        counting(monkeypatch, made, credentials, name)
    return made


async def cost(region: Region, counted: Counter[str], name: str, secret: str) -> tuple[dict[str, int], float]:
    """Return the counts and the seconds of a login that fails."""
    assert region.registry.access.parts is not None
    counted.clear()
    began = trio.current_time()
    with pytest.raises(NotProven):
        await region.registry.access.parts.credentials.check(name, secret, "192.0.2.1")
    return dict(counted), trio.current_time() - began


async def same(region: Region, counted: Counter[str], *logins: tuple[str, str]) -> dict[str, int]:
    """Return what each of these costs, which is the same for all, and not less than the least time."""
    found = {f"{name} {secret}": await cost(region, counted, name, secret) for name, secret in logins}
    first, *others = (counts for counts, _ in found.values())
    assert all(other == first for other in others), found
    took = [seconds for _, seconds in found.values()]
    print(f"{len(took)} failed logins: {min(took):.3f} to {max(took):.3f} s, {first}")
    assert min(took) >= LEAST, found
    return first


def test_nobody_s_hash_is_one() -> None:
    """What is checked for names that do not exist is a whole hash by the rule of today: the library does all of its work on it."""
    hasher: PasswordHasher = passwords._HASHER
    with pytest.raises(VerifyMismatchError):
        hasher.verify(passwords._DUMMY, PASSWORD)
    assert not hasher.check_needs_rehash(passwords._DUMMY)


async def test_passwords(world: MakeWorld, counted: Counter[str]) -> None:
    """Unknown, known, disabled, organisations, users without a password and Quay's hashes: one hash and one statement each."""
    (us,) = await settled(world)
    database = us.registry.database
    assert await create_user(database, "imported", bcrypt.hashpw(b"another password", bcrypt.gensalt(4)).decode())
    assert await create_user(database, "without", None)
    await update_account(database, "writer", enabled=False)
    names = ("reader", "nobody", "writer", "private", "without", "imported", "elsewhere")
    logins = [(name, "a wrong password") for name in names]
    assert await same(us, counted, *logins, ("writer", PASSWORD)) == {"find_by_name": 1, "verify_now": 1}


async def test_robots_and_application_tokens(world: MakeWorld, counted: Counter[str]) -> None:
    """Their secrets are random, so that no slow hash is needed: none is computed for any, and one statement is asked."""
    (us,) = await settled(world)
    await update_account(us.registry.database, "private+writer", enabled=False)
    await create_token(us.registry.database, "reader", "ended", hash_secret("apt_ended"), -1.0)
    await update_account(us.registry.database, "admin", enabled=False)
    assert await create_token(us.registry.database, "admin", "disabled", hash_secret("apt_disabled"), None)
    robots = (("private+reader", "apr_wrong"), ("private+none", ROBOT_SECRET), ("private+writer", ROBOT_SECRET))
    tokens = (
        ("$app", "apt_none"),
        ("writer", TOKEN),
        ("nobody", TOKEN),
        ("reader", "apt_ended"),
        ("admin", "apt_disabled"),
    )
    assert await same(us, counted, *robots) == {"find_by_name": 1}
    assert await same(us, counted, *tokens) == {"find_by_token": 1}


async def test_people_of_a_directory(
    world: MakeWorld, directory: Slapd, counted: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The directory is asked as often for whom it knows as for whom it does not, and for those who are disabled here."""
    (us,) = await settled(world, authentication_type="LDAP", ldap=directory.settings())
    assert await create_user(us.registry.database, "alice", None)
    await update_account(us.registry.database, "alice", enabled=False)
    for name in ("_search", "_bind", "_enter"):
        counting(monkeypatch, counted, ldap, name)
    names = ("bob", "nobody", "alice", "gone", "twin")
    logins = [(name, "a wrong password") for name in names]
    asked = await same(us, counted, *logins, ("alice", PASSWORD_THERE), ("gone", PASSWORD_THERE))
    assert asked == {"find_by_name": 1, "_enter": 1, "_search": 2, "_bind": 1}


async def test_tokens_of_a_provider(
    world: MakeWorld, provider: Provider, counted: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A provider's token is looked at in the same way for a robot that exists, one that does not, and one that is disabled."""
    names: Sequence[str] = ("private+reader", "private+none", "private+writer")
    rules = tuple(rule_of(provider.url, robot=name, audience="another.test") for name in names)
    (us,) = await settled(world, federation=rules, webhook_networks=LOCAL, authorities=provider.authorities)
    await update_account(us.registry.database, ROBOT, enabled=False)
    token = await provider.token("repo:team/app:main", HOST)
    counting(monkeypatch, counted, Federation, "prove")
    assert await same(us, counted, *((name, token) for name in names)) == {"find_by_name": 1, "prove": 1}
