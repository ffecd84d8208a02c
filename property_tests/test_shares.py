"""Shares: nobody has all places, who has none finds one before others get more, and all are free again at the end."""

from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.shares import GREED, NOBODY, Places, Share, Sources
from node.web.proxies import Proxies

WHO = st.sampled_from("abcdefgh")
STEPS = st.lists(st.tuples(st.booleans(), WHO), max_size=300)


def walk(places: Places, steps: list[tuple[bool, str]]) -> None:
    """Take and give back, whoever it is; each step keeps what is promised."""
    held: dict[str, int] = {}
    for takes, who in steps:
        had, free = held.get(who, 0), places.share.places - sum(held.values())
        if not takes:
            if had:
                places.give_back(who)
                held[who] = had - 1
        elif places.take(who):
            held[who] = had + 1
        else:
            # Only who has several, or a room that is full, is a reason.
            assert free == 0 or had >= GREED * free
            # And of those who have no less, nobody would get one instead.
            assert not any(places.open_to(other) for other, theirs in held.items() if theirs >= had)
        assert places.taken == sum(held.values()) <= places.share.places
        assert max(held.values(), default=0) <= places.share.most
    for who, had in held.items():
        for _ in range(had):
            places.give_back(who)
    assert places.taken == 0
    assert [who for who in held if places.held_by(who)] == []


@given(st.integers(0, 40), STEPS)
def test_nobody_has_more_than_their_share(many: int, steps: list[tuple[bool, str]]) -> None:
    """Whatever order they come and go in, none ever holds more than three quarters, and the counts end where they began."""
    walk(Places("places", Share(many)), steps)


@given(st.integers(4, 400))
def test_one_alone_does_not_fill_a_room(many: int) -> None:
    """Who takes all that they get leaves others a quarter: who comes next has a place at once, and more than one."""
    places = Places("places", Share(many))
    while places.take("greedy"):
        pass
    assert places.held_by("greedy") == places.share.most < many
    assert places.take("another")
    others = sum(places.take(f"other {number}") for number in range(many))
    assert others == many - places.share.most - 1
    assert not places.take("the last")


@given(st.integers(1, 1000), st.integers(1, 8))
def test_what_is_left_by_the_greedy(many: int, greedy: int) -> None:
    """Who comes after one who took all they got gets three quarters of what was left, and so on."""
    places, left = Places("places", Share(many)), many
    for number in range(greedy):
        while places.take(str(number)):
            pass
        assert places.held_by(str(number)) == Share(left).most
        left -= Share(left).most
    assert places.taken == many - left


@given(st.integers(16, 400), st.integers(1, 9))
def test_robots_of_one_owner_do_not_fill_a_room(many: int, robots: int) -> None:
    """However many accounts act for one, they leave places for others, who find one at once; each by itself has its share."""
    places = Places("places", Share(many))
    names = [f"team+{number}" for number in range(robots)] + ["team"]
    for name in names:
        while places.take(name):
            pass
    taken = {name: places.held_by(name) for name in names}
    assert taken["team+0"] == places.share.most
    assert places.taken == sum(taken.values()) < many
    assert places.taken <= places.share.most_together
    assert not any(places.open_to(name) for name in names)
    assert places.take("another+robot")
    assert places.take("@192.0.2.1") or places.taken == many
    places.give_back("another+robot")
    for name in names:
        for _ in range(taken[name]):
            places.give_back(name)
        assert places.take(name)
        places.give_back(name)


@given(st.integers(0, 40), st.lists(st.tuples(st.booleans(), st.sampled_from(["a", "a+b", "a+c", "d", "d+b", "@e"]))))
def test_owners_are_counted(many: int, steps: list[tuple[bool, str]]) -> None:
    """Whoever comes and goes, all places are free again at the end, for everybody."""
    places, held = Places("places", Share(many)), list[str]()
    for takes, who in steps:
        if takes and places.take(who):
            held.append(who)
        elif not takes and who in held:
            held.remove(who)
            places.give_back(who)
        assert places.taken == len(held) <= many
    for who in held:
        places.give_back(who)
    fresh = Places("places", Share(many))
    assert [places.take("a+b") for _ in range(many)] == [fresh.take("a+b") for _ in range(many)]


@given(st.integers(0, 50), st.integers(0, 50), st.integers(0, 50))
def test_less_is_never_a_reason(many: int, held: int, taken: int) -> None:
    """Where who holds more gets a place, who holds less does; so does the same one where more are free."""
    share = Share(many)
    if share.admits(held + 1, taken + 1):
        assert share.admits(held, taken + 1)
        assert share.admits(held + 1, taken)
    assert share.admits(0, taken) is (taken < many)


@given(st.integers(0, 40))
def test_nobody_in_particular_may_take_all(many: int) -> None:
    """What is taken for everybody has no share."""
    places = Places("places", Share(many))
    assert [places.take(NOBODY) for _ in range(many + 1)] == [True] * many + [False]
    for _ in range(many):
        places.give_back(NOBODY)
    assert places.taken == 0


@pytest.mark.parametrize(
    ("address", "who"),
    [
        ("192.0.2.1", "@192.0.2.1"),
        ("2001:db8::1", "@2001:db8::/64"),
        ("2001:db8:0:0:ffff::1", "@2001:db8::/64"),
        ("2001:db8:0:1::1", "@2001:db8:0:1::/64"),
        ("fe80::1%eth0", "@fe80::/64"),
        ("10.0.0.9", NOBODY),
        ("fd00::9", NOBODY),
        ("", NOBODY),
        ("no:address", "@no:address"),
    ],
)
def test_who_an_address_is(address: str, who: str) -> None:
    """An IPv4 address is one, and so is a whole network of IPv6, which a host may have; listed proxies are nobody."""
    assert Sources(Proxies((ip_network("10.0.0.0/8"), ip_network("fd00::/64")))).of(address) == who
