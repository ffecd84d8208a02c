"""Logins that a real LDAP directory decides, beside accounts with passwords of their own."""

import socket
from collections.abc import Iterator
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from node.auth.directory import DirectoryUnavailable, Remembering
from node.auth.directory import Person as Known
from node.auth.ldap import Ldap, prove_now, user_filter
from node.config.settings import LdapSettings
from node.records.accounts import create_user, find_account, update_account
from node.records.auditlog import Filter, read_lines
from tests.auth.people import PASSWORD, ROBOT_SECRET, TOKEN, Person, settled
from tests.auth.slapd import PASSWORD_THERE, Slapd, directory
from tests.registry.world import MakeWorld, Region

__all__ = ["directory"]
ALICE, BOB = Person("alice", PASSWORD_THERE), Person("bob", PASSWORD_THERE)


@pytest.fixture
def running(directory: Slapd) -> Iterator[Slapd]:
    """The directory, which is up again after a test that stops it."""
    yield directory
    directory.stop()
    directory.start()


async def with_directory(world: MakeWorld, ldap: LdapSettings, **given: Any) -> Region:
    (us,) = await settled(world, authentication_type="LDAP", ldap=ldap, **given)
    return us


async def status(region: Region, person: Person, query: str = "") -> int:
    return (await region.ask("GET", f"/v2/auth{query}", headers=person.basic)).status


async def test_the_first_login_makes_an_account(world: MakeWorld, directory: Slapd) -> None:
    """Whoever the directory proves has an account from then on, with the name in lower case and the directory's address."""
    us = await with_directory(world, directory.settings())
    assert await find_account(us.registry.database, "bob") is None
    for name in ("bob", "Bob", "BOB"):
        assert await status(us, Person(name, PASSWORD_THERE)) == 200
    made = await find_account(us.registry.database, "bob")
    assert made is not None
    assert (made.email, made.secret, made.superuser) == ("bob@example.com", "ldap:bob", False)
    assert await find_account(us.registry.database, "Bob") is None
    assert (await us.ask("POST", "/v2/bob/app/blobs/uploads/", headers=BOB.basic)).status == 202
    assert await status(us, Person("upper.case", PASSWORD_THERE)) == 200


async def test_first_logins_in_the_audit_log(world: MakeWorld, directory: Slapd) -> None:
    """An account that a first login makes, or is let into, has one line that says so; later logins have none."""
    us = await with_directory(world, directory.settings())
    assert await create_user(us.registry.database, "alice", None)
    for person in (BOB, ALICE, BOB, Person("bob", "wrong")):
        await status(us, person)
    kept = await read_lines(us.registry.database, Filter(), None, 10)
    assert [(line.line.action, line.line.actor, line.line.namespace, dict(line.line.detail)) for line in kept] == [
        ("linkUser", "alice", "alice", {"by": "ldap"}),
        ("createUser", "bob", "bob", {"by": "ldap"}),
    ]
    assert {line.line.node for line in kept} == {us.registry.instance}


async def test_what_the_directory_does_not_prove(world: MakeWorld, directory: Slapd) -> None:
    """Wrong and empty passwords, filters in names, those whom the filters leave out and those of whom there are two are all 401."""
    us = await with_directory(world, directory.settings())
    for name, password in (
        ("bob", "wrong"),
        ("bob", ""),
        ("bob", "x" * 300),
        ("bo*", PASSWORD_THERE),
        ("*", PASSWORD_THERE),
        ("bob)(uid=*", PASSWORD_THERE),
        ("gone", PASSWORD_THERE),
        ("carol", PASSWORD_THERE),
        ("twin", PASSWORD_THERE),
        ("nobody", PASSWORD_THERE),
    ):
        assert await status(us, Person(name, password)) == 401, name
        assert await find_account(us.registry.database, name) is None


async def test_accounts_with_passwords_of_their_own(world: MakeWorld, directory: Slapd) -> None:
    """They stay the database's: nobody in the directory gets one by its name, and robots and tokens go on as before."""
    us = await with_directory(world, directory.settings())
    assert await status(us, Person("root")) == 200
    assert await status(us, Person("root", PASSWORD_THERE)) == 401
    assert await status(us, Person("private", PASSWORD_THERE)) == 401
    assert await status(us, Person("private+reader", ROBOT_SECRET)) == 200
    assert await status(us, Person("$app", TOKEN)) == 200
    assert await status(us, Person("reader", PASSWORD)) == 200


async def test_accounts_that_are_linked(world: MakeWorld, directory: Slapd) -> None:
    """A user without a password is whom the directory proves; disabled, they are nobody."""
    us = await with_directory(world, directory.settings())
    made = await create_user(us.registry.database, "bob", None)
    assert made is not None
    assert await status(us, BOB) == 200
    linked = await find_account(us.registry.database, "bob")
    assert linked is not None
    assert (linked.id, linked.secret) == (made.id, "ldap:bob")
    await update_account(us.registry.database, "bob", enabled=False)
    await us.node.access.open()
    assert await status(us, BOB) == 401


async def test_superusers(world: MakeWorld, directory: Slapd) -> None:
    """Whom the filter matches administers the registry, and nobody else."""
    us = await with_directory(world, directory.settings())
    for person, expected in ((ALICE, True), (BOB, False)):
        identity = await us.node.access.identify(person.basic["authorization"], "127.0.0.1")
        assert (identity.name, identity.superuser) == (person.name, expected)


async def test_no_refresh_token(world: MakeWorld, directory: Slapd) -> None:
    """A login by the directory leaves nothing that outlives the password there."""
    us = await with_directory(world, directory.settings())
    reply = await us.ask("GET", "/v2/auth?offline_token=true", headers=BOB.basic)
    assert reply.status == 200
    assert "refresh_token" not in reply.json
    own = await us.ask("GET", "/v2/auth?offline_token=true", headers=Person("reader").basic)
    assert "refresh_token" in own.json


async def test_a_directory_that_is_down(world: MakeWorld, running: Slapd) -> None:
    """Those who were proven go on, the others get 503, and accounts with passwords of their own notice nothing."""
    us = await with_directory(world, running.settings(fresh=0.0), metadata_staleness=0.0)
    assert await status(us, BOB) == 200
    running.stop()
    assert await status(us, BOB) == 200
    assert await status(us, Person("bob", "wrong")) == 503
    refused = await us.ask("GET", "/v2/auth", headers=ALICE.basic)
    assert refused.status == 503
    assert "retry-after" in refused.headers
    assert PASSWORD_THERE not in str(refused)
    assert await status(us, Person("root")) == 200
    assert await status(us, Person("private+reader", ROBOT_SECRET)) == 200


@pytest.mark.parametrize(("scheme", "start_tls"), [("ldaps", False), ("ldap", True)])
async def test_tls(directory: Slapd, scheme: str, start_tls: bool) -> None:
    """Over TLS, either way, the directory's certificate must be by a trusted authority and for its host."""
    good = directory.settings(scheme, start_tls=start_tls)
    assert await Ldap(good).prove("alice", PASSWORD_THERE) == Known("alice@example.com", superuser=True)
    for wrong in ({"ca_file": None}, {"host": "127.0.0.1"}):
        with pytest.raises(DirectoryUnavailable):
            await Ldap(directory.settings(scheme, start_tls=start_tls, timeout=5.0, **wrong)).prove(
                "alice", PASSWORD_THERE
            )


async def test_a_directory_that_never_answers() -> None:
    """A login waits no longer than it is told to."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        settings = LdapSettings(f"ldap://127.0.0.1:{port}", "127.0.0.1", port, "dc=x", "cn=a", "b", timeout=1.0)
        with trio.fail_after(20), pytest.raises(DirectoryUnavailable):
            await Ldap(settings).prove("alice", "password")


async def test_an_administrator_who_may_not(directory: Slapd) -> None:
    """A wrong password of the administrator's, and a base that is not there, are the directory's trouble and not the user's."""
    for wrong in ({"admin_password": "wrong"}, {"user_rdn": "ou=nowhere"}):
        with pytest.raises(DirectoryUnavailable, match=r"LDAP_ADMIN_DN|nowhere"):
            await trio.to_thread.run_sync(prove_now, directory.settings(**wrong), "alice", PASSWORD_THERE)


@given(st.text(min_size=1))
def test_filters_hold_any_name(name: str) -> None:
    """Whatever a name is, it changes nothing of the filter around it."""
    settings = LdapSettings("ldap://x", "x", 389, "dc=x", "cn=a", "b", user_filter="(a=b)")
    text = user_filter(settings, name)
    assert text.startswith("(&(uid=")
    assert text.endswith(")(a=b))")
    inside = text.removeprefix("(&(uid=").removesuffix(")(a=b))")
    assert not set(inside) & set("()*\0")


class Changing:
    """A directory whose answer a test sets."""

    kind = "ldap"

    def __init__(self) -> None:
        self.answer: Known | None = Known()
        self.down = False
        self.asked = 0

    async def prove(self, _name: str, _password: str) -> Known | None:
        self.asked += 1
        await trio.lowlevel.checkpoint()
        if self.down:
            raise DirectoryUnavailable("down")
        return self.answer


async def test_how_long_an_answer_counts(autojump_clock: trio.testing.MockClock) -> None:
    """A right password counts for a while without asking, for longer while nobody can be asked, and no more once it was refused."""
    there = Changing()
    remembering = Remembering(there, 60.0, 3600.0)
    for _ in range(3):
        assert await remembering.prove("bob", "x") == Known()
    assert there.asked == 1
    await trio.sleep(61)
    there.down = True
    assert await remembering.prove("bob", "x") == Known()
    with pytest.raises(DirectoryUnavailable):
        await remembering.prove("bob", "y")
    await trio.sleep(3600)
    with pytest.raises(DirectoryUnavailable):
        await remembering.prove("bob", "x")
    there.down = False
    assert await remembering.prove("bob", "x") == Known()
    await trio.sleep(61)
    there.answer = None
    assert await remembering.prove("bob", "x") is None
    there.down = True
    with pytest.raises(DirectoryUnavailable):
        await remembering.prove("bob", "x")
