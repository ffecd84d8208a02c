"""The pure part: what a role allows, how scopes are read, when logins are refused, which changes make a token stale."""

from typing import Any

import pytest
from attrs import define
from hypothesis import given
from hypothesis import strategies as st

from node.auth.changes import ChangeLog
from node.auth.header import Basic, Bearer, Malformed, read_authorization
from node.auth.limits import Failures, Limits, network_of
from node.auth.model import ROLE_ACTIONS, Action, Grant, Identity, Kind, Role, Standing, TeamRole, actions_of
from node.auth.passwords import check_password, hash_now, verify_now
from node.auth.scopes import narrow, read_access, read_scopes, write_access
from node.config.values import Unfit
from node.errors import RegistryError
from node.records.rights import Change, Changes
from tests.auth.people import basic

NAMES = st.sampled_from(["alice", "bob", "org", "org+ci", ""])
KINDS = st.sampled_from([Kind.USER, Kind.ROBOT])
STANDINGS = st.builds(
    Standing,
    st.booleans(),
    st.booleans(),
    st.sampled_from([None, Kind.USER, Kind.ORGANIZATION]),
    st.sampled_from(Role),
    st.sampled_from(TeamRole),
)
IDENTITIES = st.one_of(st.just(Identity()), st.builds(Identity, NAMES, KINDS, st.booleans()))


def decide(who: Identity, at: Standing, repository: str = "org/app", *, full: bool = False) -> Grant:
    return actions_of(who, repository, at, library="library", full_access=full)


@given(IDENTITIES, STANDINGS)
def test_more_is_never_less(who: Identity, at: Standing) -> None:
    """A better role, a better team, or a public repository never takes an action away."""
    from attrs import evolve

    now = decide(who, at).actions
    for better in (
        evolve(at, role=Role(min(3, at.role + 1))),
        evolve(at, team_role=TeamRole(min(3, at.team_role + 1))),
        evolve(at, public=True),
    ):
        assert decide(who, better).actions >= now
    assert decide(who, at, full=True).actions >= now


@given(STANDINGS)
def test_nobody(at: Standing) -> None:
    """Who has no account may pull from what is public, and nothing else."""
    nothing = Standing(at.exists, at.public, at.owner)
    expected = {Action.PULL} if at.exists and at.public else set()
    assert decide(Identity(), nothing).actions == expected


@given(IDENTITIES, STANDINGS)
def test_what_is_not_there_is_made_or_nothing(who: Identity, at: Standing) -> None:
    """On a repository that is not there somebody may make it, or do nothing; one that is there is not made."""
    grant = decide(who, at)
    assert grant.creates == (not at.exists and bool(grant.actions))


def test_owners() -> None:
    """A user owns their namespace, one-component names belong to the library, and robots own nothing by their owner."""
    assert decide(Identity("alice", Kind.USER), Standing(), "alice/app").actions == frozenset(Action)
    assert decide(Identity("alice", Kind.ROBOT), Standing(), "alice/app").actions == frozenset()
    assert decide(Identity("library", Kind.USER), Standing(), "app").actions == frozenset(Action)
    admin = Standing(owner=Kind.ORGANIZATION, team_role=TeamRole.ADMIN)
    assert decide(Identity("alice", Kind.USER), admin).actions == frozenset(Action)
    assert decide(Identity("root", Kind.USER, superuser=True), Standing(exists=True)).actions == frozenset()
    for name in ("", "No/Such", "a//b", "../x", "a/b\n", "a" * 300):
        assert decide(Identity("root", Kind.USER, superuser=True), Standing(), name, full=True) == Grant()


@pytest.mark.parametrize("role", Role)
def test_roles(role: Role) -> None:
    """Each role allows what those before it do."""
    assert all(ROLE_ACTIONS[role] >= ROLE_ACTIONS[lesser] for lesser in Role if lesser <= role)


@given(st.lists(st.text(max_size=60), max_size=10))
def test_any_scope_can_be_read(values: list[str]) -> None:
    """Whatever a client asks for, the answer is what is known in it."""
    asked = read_scopes(values)
    assert all(actions <= frozenset(Action) for actions in asked.repositories.values())


@given(
    st.dictionaries(
        st.sampled_from(["a/b", "c"]), st.builds(Grant, st.frozensets(st.sampled_from(Action)), st.booleans())
    ),
    st.booleans(),
)
def test_what_is_written_is_read(grants: dict[str, Grant], catalog: bool) -> None:
    """A token's claim says what was granted."""
    assert read_access(write_access(grants, catalog=catalog)) == (grants, catalog)


def test_scopes_of_names_with_ports() -> None:
    """A name that is no repository's is left out; actions are those behind the last colon."""
    asked = read_scopes(["repository:a/b:pull", "repository:host:5000/a:pull", "repository:a/b:push,fly"])
    assert asked.repositories == {"a/b": frozenset({Action.PULL, Action.PUSH})}
    assert narrow(frozenset({Action.PULL}), Grant(frozenset(Action), creates=True)) == Grant(frozenset({Action.PULL}))


@given(st.text(max_size=100))
def test_any_header_can_be_read(header: str) -> None:
    """An Authorization header is a name with a secret, a token, or refused without repeating it."""
    said = ""
    try:
        assert isinstance(read_authorization(header), Basic | Bearer)
    except Malformed as error:
        said = str(error)
    assert len(header) < 8 or header not in said


def test_headers() -> None:
    """Names have no colon and secrets may; the scheme's case does not matter."""
    assert read_authorization(basic("a", "b:c")) == Basic("a", "b:c")
    assert read_authorization(basic("org+ci", "ü")) == Basic("org+ci", "ü")
    assert read_authorization("bEARER  x") == Bearer("x")
    assert "b:c" not in repr(read_authorization(basic("a", "b:c")))


@define
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


async def test_failures_of_an_account() -> None:
    """Ten failures in five minutes are enough for an account, whoever asks; then it waits."""
    clock = Clock()
    failures = Failures(clock)
    for number in range(10):
        failures.check("alice", f"10.0.0.{number}")
        await failures.note("alice", f"10.0.0.{number}")
    with pytest.raises(RegistryError) as caught:
        failures.check("alice", "10.9.9.9")
    assert (caught.value.code.status, dict(caught.value.headers)["retry-after"]) == (429, "300")
    failures.check("bob", "10.0.0.1")
    clock.now = 301
    failures.check("alice", "10.9.9.9")


async def test_failures_of_an_address() -> None:
    """An address that tries many names waits, too; of IPv6 a whole network counts as one."""
    failures = Failures(Clock(), limits=Limits(account=10, address=20))
    for number in range(20):
        await failures.note(f"user{number}", f"2001:db8::{number}")
    with pytest.raises(RegistryError):
        failures.check("alice", "2001:db8::ffff")
    failures.check("alice", "2001:db8:1::1")
    assert network_of("10.0.0.1") == "10.0.0.1"
    assert network_of("no address") == "no address"


async def test_failures_elsewhere() -> None:
    """What other nodes counted counts here after one more failure."""

    async def shared(keys: Any, _seconds: float) -> list[int]:
        return [10 for _ in keys]

    failures = Failures(Clock(), shared)
    failures.check("alice", "10.0.0.1")
    await failures.note("alice", "10.0.0.1")
    with pytest.raises(RegistryError):
        failures.check("alice", "10.0.0.2")


async def test_failures_are_bounded() -> None:
    """However many names are tried, the node remembers a bounded number of them."""
    failures = Failures(Clock())
    for number in range(30_000):
        await failures.note(f"user{number}", f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")
    assert len(failures._counts) <= 50_000


def test_changes() -> None:
    """A token is stale when its account, or a repository that it is used for, lost rights after it was decided."""
    log = ChangeLog()
    log.take(Changes(5, (Change(3, "alice", None), Change(5, None, "org/app"))))
    assert not log.is_current(2, "alice", ())
    assert log.is_current(3, "alice", ())
    assert not log.is_current(4, "bob", ("org/app", "x/y"))
    assert log.is_current(5, "bob", ("org/app",))
    assert log.is_current(0, "bob", ("x/y",))
    assert log.known(0, "bob", ("x/y",)) == 5
    assert log.known(4, "bob", ("org/app",)) == 4
    log.take(Changes(9, (), all=False))
    assert not log.is_current(8, "bob", ())
    assert log.is_current(9, "bob", ())


def test_passwords() -> None:
    """argon2id hashes are right for their password only; Quay's bcrypt hashes are accepted and replaced; others never."""
    kept = hash_now("correct horse")
    assert kept.startswith("$argon2id$")
    assert verify_now("correct horse", kept).right
    assert verify_now("correct horse", kept).better is None
    assert not verify_now("correct horsf", kept).right
    # bcrypt, 4 rounds, of "correct horse" as Quay's library makes it.
    import bcrypt

    quays = bcrypt.hashpw(b"correct horse", bcrypt.gensalt(4)).decode()
    verdict = verify_now("correct horse", quays)
    assert verdict.right
    assert verdict.better is not None
    assert verify_now("correct horse", verdict.better).right
    assert not verify_now("wrong horse", quays).right
    for stored in (None, "", "sha256:abc", "$argon2id$nonsense", "correct horse"):
        assert not verify_now("correct horse", stored).right
    weak = "$argon2id$v=19$m=1024,t=1,p=1$"
    from argon2 import PasswordHasher

    older = PasswordHasher(time_cost=1, memory_cost=1024, parallelism=1).hash("correct horse")
    assert older.startswith(weak)
    assert verify_now("correct horse", older).better is not None


@pytest.mark.parametrize("password", ["", "short", "x" * 257, "bell\a bell bell"])
def test_passwords_that_may_not_be_set(password: str) -> None:
    """A password has 8 to 256 characters that can be typed."""
    with pytest.raises(Unfit):
        check_password(password)
