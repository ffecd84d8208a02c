"""Who is in which group of a real LDAP directory, also where long lists come in parts, and what says nothing of anybody."""

import random
import time
from collections.abc import Iterator
from functools import partial

import pytest

from node.auth import ldap_lists, ldap_search
from node.auth.directory import DirectoryUnavailable
from node.auth.ldap_groups import LdapGroups, groups_now, has_group_now, listing_now
from node.auth.told import Told, Unread
from node.config.values import Unfit
from tests.auth.ranged import Fault, Ranged
from tests.auth.slapd import Slapd, directory

__all__ = ["directory"]
DEVS, OPS, EMPTY, SAID = (f"cn={name},ou=groups" for name in ("devs", "ops", "empty", "said"))


@pytest.fixture
def in_parts(directory: Slapd) -> Iterator[Ranged]:
    """The same directory, which gives two values of a list at once."""
    with Ranged(directory.port).serve() as made:
        yield made


@pytest.mark.parametrize("most", [None, 1, 2, 1500])
async def test_who_is_in_a_group(directory: Slapd, in_parts: Ranged, most: int | None) -> None:
    """Whom a group lists in either way, or who says so; nobody who is not found by a login, and the same however it is asked."""
    in_parts.most = most or 0
    port = directory.port if most is None else in_parts.port
    groups = LdapGroups(directory.settings(memberof_attribute="businessCategory", port=port))
    wanted = [DEVS, "CN=ops, ou=Groups", EMPTY, SAID, "cn=none,ou=groups"]
    names = ["alice", "bob", "carol", "gone", "twin", "nobody", "*", "upper.case"]
    known = {
        "alice": {DEVS},
        "bob": {DEVS, "CN=ops, ou=Groups", SAID},
        "upper.case": set[str](),
    }
    assert await groups.groups(names, wanted) == told(known), "few people"
    many = [*names, *(f"somebody-{number}" for number in range(200))]
    for group in wanted:
        expected = {name: theirs & {group} for name, theirs in known.items()}
        assert await groups.groups(many, [group]) == told(expected), "few groups"
    for name in names:
        assert await groups.groups([name], wanted) == told({name: known[name]} if name in known else {})
    assert await groups.groups([], wanted) == told({})
    assert await LdapGroups(directory.settings()).groups(["bob"], [SAID]) == told({"bob": set()})
    assert bool(in_parts.asked) == (most in (1, 2))


def told(who: dict[str, set[str]]) -> Told:
    return Told({name: frozenset(groups) for name, groups in who.items()})


@pytest.mark.parametrize("fault", list(Fault))
async def test_a_list_that_breaks_off(directory: Slapd, in_parts: Ranged, fault: Fault) -> None:
    """Half of a group is no answer: nothing is known of it then, and other groups are known as ever."""
    in_parts.fault = fault
    found = await LdapGroups(directory.settings(port=in_parts.port)).groups(["alice", "bob", "private"], [DEVS, OPS])
    assert found.who == {"alice": set(), "bob": {OPS}, "private": set()}
    assert {group: trouble.why for group, trouble in found.unread.items()} == {DEVS: Unread.REFUSED}
    assert in_parts.asked == ["member;range=2-*"]


@pytest.mark.parametrize("parts", [False, True])
async def test_a_group_without_an_end(
    directory: Slapd, in_parts: Ranged, monkeypatch: pytest.MonkeyPatch, *, parts: bool
) -> None:
    """Of a group with more members than a node reads nothing is known, however they come."""
    monkeypatch.setattr(ldap_search, "MOST_VALUES", 2)
    settings = directory.settings(port=in_parts.port if parts else directory.port)
    found = await LdapGroups(settings).groups(["alice", "bob", "private"], [DEVS, OPS])
    assert {group: trouble.why for group, trouble in found.unread.items()} == {DEVS: Unread.LARGE}
    assert found.who["bob"] == {OPS}
    monkeypatch.setattr(ldap_search, "MOST_ENTRIES", 2)
    with pytest.raises(DirectoryUnavailable, match="more than 2 entries") as raised:
        await LdapGroups(directory.settings(nested_groups=True)).groups(["alice", "bob"], [OPS])
    assert raised.value.why is Unread.LARGE


async def test_groups_that_cannot_be_told(directory: Slapd) -> None:
    """A directory whose people or base are not there says nothing of anybody, and no name of a group is looked for that is none."""
    for wrong in ({"admin_password": "wrong"}, {"user_rdn": "ou=nowhere"}, {"base_dn": "dc=nowhere", "user_rdn": None}):
        asked = LdapGroups(directory.settings(**wrong))
        for names in (["alice"], ["alice", "bob", "carol"]):
            with pytest.raises(DirectoryUnavailable):
                await asked.groups(names, [DEVS, OPS])
    blind = LdapGroups(directory.settings(user_filter="(title=nobody)"))
    assert await blind.groups(["alice", "bob"], [DEVS]) == told({})
    with pytest.raises(DirectoryUnavailable, match="none of"):
        await blind.groups(["alice", "bob", *(f"somebody-{number}" for number in range(8))], [DEVS])
    groups = LdapGroups(directory.settings())
    assert await groups.has_group(DEVS)
    assert await groups.has_group("CN=Devs,OU=Groups")
    assert not await groups.has_group("cn=none,ou=groups")
    with pytest.raises(Unfit):
        await groups.has_group("devs")


def test_nobody_waits_any_more(directory: Slapd, in_parts: Ranged) -> None:
    """A thread that nobody waits for asks the directory for nothing further."""
    settings, over = directory.settings(port=in_parts.port), time.monotonic()
    for ask in (
        partial(groups_now, settings, ["alice", "bob"], [DEVS]),
        partial(listing_now, settings, [DEVS]),
        partial(has_group_now, settings, DEVS),
    ):
        with pytest.raises(DirectoryUnavailable, match="no answer in time"):
            ask(over)
    assert in_parts.searches == 0


async def test_groups_that_list_anybody(directory: Slapd) -> None:
    """They are told from those that are not there; whether whom they list is there makes no difference."""
    groups = LdapGroups(directory.settings())
    assert await groups.listing([DEVS, OPS, EMPTY, SAID, "ou=groups"]) == {DEVS, OPS, EMPTY}
    with pytest.raises(DirectoryUnavailable):
        await LdapGroups(directory.settings(admin_password="wrong")).listing([DEVS])


def named(*names: str) -> set[str]:
    return {f"cn={name},ou=groups" for name in names}


@pytest.mark.parametrize("nested", [False, True])
async def test_groups_in_groups(directory: Slapd, in_parts: Ranged, *, nested: bool) -> None:
    """Whoever is in a group is in those that it is in, where LDAP_NESTED_GROUPS says so, loops or not, however it is asked."""
    directory.write_group("loop-1", "alice", groups=["loop-2"])
    directory.write_group("loop-2", "bob", groups=["loop-1", "loop-2"])
    directory.write_group("above", groups=["loop-2", "empty", "none", "ops", "said"])
    directory.write_group("beside", "alice")
    wanted = sorted(named("loop-1", "loop-2", "above", "beside", "ops"))
    groups = LdapGroups(
        directory.settings(memberof_attribute="businessCategory", nested_groups=nested, port=in_parts.port)
    )
    loop = ("loop-1", "loop-2", "above") if nested else ()
    known = {
        "alice": named("loop-1", "beside", *loop),
        "bob": named("loop-2", "ops", *loop),
        "private": set[str](),
    }
    assert await groups.groups(sorted(known), wanted) == told(known), "few people"
    for group in wanted:
        assert await groups.groups(sorted(known), [group]) == told({who: of & {group} for who, of in known.items()})
    for who, of in known.items():
        assert await groups.groups([who], wanted) == told({who: of})


@pytest.mark.parametrize("seed", range(4))
async def test_any_groups_in_groups(directory: Slapd, seed: int) -> None:
    """Both ways to ask say what follows from who is in what, whatever is in which group."""
    chance = random.Random(seed)
    names, people = [f"any-{number}" for number in range(7)], ["alice", "bob", "private"]
    inner = {name: chance.sample(names, chance.choice([0, 1, 1, 2])) for name in names}
    listed = {name: chance.sample(people, chance.choice([0, 0, 1])) for name in names}
    for name in names:
        directory.write_group(name, *listed[name], groups=inner[name])

    def below(name: str, seen: set[str]) -> set[str]:
        if name not in seen:
            seen.add(name)
            for other in inner[name]:
                below(other, seen)
        return seen

    known = {
        who: named(*(name for name in names if any(who in listed[other] for other in below(name, set()))))
        for who in people
    }
    groups = LdapGroups(directory.settings(nested_groups=True))
    wanted = sorted(named(*names))
    assert await groups.groups(people, wanted) == told(known)
    for some in (wanted[:3], wanted[3:6], wanted[6:]):
        assert await groups.groups(people, some) == told({who: of & set(some) for who, of in known.items()})


async def test_groups_that_go_too_deep(directory: Slapd, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten levels of groups in groups are followed; of what goes deeper, or has too many in it, nothing is known."""
    for number in range(12):
        inner = [f"deep-{number + 1}"] if number < 11 else []
        directory.write_group(f"deep-{number}", *(["alice"] if number == 11 else []), groups=inner)
    top, second = "cn=deep-0,ou=groups", "cn=deep-1,ou=groups"
    groups = LdapGroups(directory.settings(nested_groups=True))
    people = ["alice", "bob", "private"]
    found = await groups.groups(people, [top, second, DEVS])
    assert found.who == {"alice": {second, DEVS}, "bob": {DEVS}, "private": set()}
    assert {group: trouble.why for group, trouble in found.unread.items()} == {top: Unread.DEEP}
    with pytest.raises(DirectoryUnavailable, match="deeper than 10") as raised:
        await groups.groups(["alice"], [top, second])
    assert raised.value.why is Unread.DEEP
    assert (await groups.groups(["bob"], [top, DEVS])).who == {"bob": {DEVS}}
    monkeypatch.setattr(ldap_lists, "MOST_GROUPS", 5)
    assert set((await groups.groups(people, [second, DEVS])).unread) == {second}
    with pytest.raises(DirectoryUnavailable, match="more than 5 groups"):
        await groups.groups(["alice"], [second, DEVS])
