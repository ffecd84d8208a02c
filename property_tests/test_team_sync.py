"""Which memberships a synchronisation begins and ends, and that a group's name is one however it is written."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.auth.dn import below, parse
from node.auth.memberships import CROWD, Bound, Change, Membership, decide, unlikely
from node.config.values import Unfit

GROUPS = st.sampled_from(["a", "b", "c", "d"])
IDS = st.integers(1, 6)
BOUND = st.dictionaries(IDS, GROUPS).map(
    lambda teams: [Bound(team, "org", f"team{team}", group) for team, group in teams.items()]
)
PRESENT = st.frozensets(st.tuples(IDS, IDS))
KNOWN = st.dictionaries(IDS, st.frozensets(GROUPS))


@given(BOUND, PRESENT, KNOWN)
def test_members_follow_their_groups(
    bound: list[Bound], present: frozenset[Membership], groups: dict[int, frozenset[str]]
) -> None:
    """Afterwards whoever is known is in a bound team exactly if they are in its group, and all else is as it was."""
    change = decide(bound, present, groups)
    after = (present - change.leaves) | change.joins
    followed = {line.team: line.group for line in bound}
    for team in range(1, 7):
        for account in range(1, 7):
            if team in followed and account in groups:
                assert ((team, account) in after) == (followed[team] in groups[account])
            else:
                assert ((team, account) in after) == ((team, account) in present)


@given(BOUND, PRESENT, KNOWN)
def test_nothing_is_done_twice_or_for_nothing(
    bound: list[Bound], present: frozenset[Membership], groups: dict[int, frozenset[str]]
) -> None:
    """Only who is not in a team joins it, only who is in it leaves it, and after that there is nothing left to do."""
    change = decide(bound, present, groups)
    assert not change.joins & present
    assert change.leaves <= present
    again = decide(bound, (present - change.leaves) | change.joins, groups)
    assert (again.joins, again.leaves) == (frozenset(), frozenset())


@given(BOUND, PRESENT, KNOWN, GROUPS)
def test_leaving_a_group_gives_nothing(
    bound: list[Bound], present: frozenset[Membership], groups: dict[int, frozenset[str]], gone: str
) -> None:
    """Whoever is taken out of a group is in no team that they would not be in otherwise."""
    fewer = {account: theirs - {gone} for account, theirs in groups.items()}
    before, after = decide(bound, present, groups), decide(bound, present, fewer)
    assert after.joins <= before.joins
    assert before.leaves <= after.leaves


def crowd(team: int, members: int, leaving: int, first: int = 0) -> tuple[set[Membership], set[Membership]]:
    """Return who is in a team, and who of them leaves it."""
    present = {(team, account) for account in range(first, first + members)}
    return present, {one for one in present if one[1] < first + leaving}


@pytest.mark.parametrize(
    ("teams", "waiting"),
    [
        ([(CROWD, CROWD)], {0}),
        ([(CROWD - 1, CROWD - 1)], set()),
        ([(100, 51)], {0}),
        ([(100, 50)], set()),
        ([(100, 51), (200, 1)], {0}),
        ([(CROWD, 0), (1, 1), (5, 5)], set()),
        ([(1, 1)] * CROWD, set(range(CROWD))),
        ([(1, 1)] * CROWD + [(2 * CROWD, 0)], set()),
        ([(100, 100), (1, 1)], {0, 1}),
    ],
)
def test_a_crowd_does_not_leave_at_once(teams: list[tuple[int, int]], waiting: set[int]) -> None:
    """A team waits that ten people and most of its own would leave, and each that loses anybody where that is so of all."""
    present, leaves = set[Membership](), set[Membership]()
    for team, (members, leaving) in enumerate(teams):
        everybody, going = crowd(team, members, leaving)
        present |= everybody
        leaves |= going
    change = Change(frozenset({(0, 10**6)}), frozenset(leaves))
    bound = [Bound(team, "org", f"team{team}", "g", synced=True) for team in range(len(teams))]
    held = unlikely(change, bound, present, 60)
    assert held == waiting
    kept = change.keeping(held)
    assert kept.joins == change.joins
    assert kept.leaves == {one for one in leaves if one[0] not in waiting}


@given(BOUND, PRESENT, st.dictionaries(IDS, st.none() | st.floats(0, 100)), st.floats(0, 100), st.data())
def test_who_waits_and_for_how_long(
    bound: list[Bound],
    few: frozenset[Membership],
    since: dict[int, float | None],
    patience: float,
    data: st.DataObject,
) -> None:
    """Only a team that has followed its group waits, not beyond the time for it, and never for less than ten who leave."""
    present = few | {(line.team, account) for line in bound for account in range(100, data.draw(st.integers(100, 130)))}
    leaves = frozenset(data.draw(st.sets(st.sampled_from(sorted(present))))) if present else frozenset()
    bound = [
        Bound(line.team, "org", line.name, line.group, synced=line.team in since, held=since.get(line.team))
        for line in bound
    ]
    held = unlikely(Change(leaves=leaves), bound, present, patience)
    for line in bound:
        if line.team in held:
            assert line.synced
            assert (line.held or 0) < patience
    assert held <= {team for team, _ in leaves}
    assert len(leaves) >= CROWD or not held


VALUES = st.text(st.characters(categories=("L", "N", "P", "S")), min_size=1, max_size=12).filter(
    lambda text: text.lower().isprintable()
)


@given(st.lists(VALUES, min_size=1, max_size=4))
def test_names_however_they_are_escaped(values: list[str]) -> None:
    """A name of any characters is the same whether they are escaped one by one, as bytes, or in capitals with spaces between."""
    by_byte = ",".join("cn=" + "".join(f"\\{byte:02x}" for byte in value.encode()) for value in values)
    wanted = parse(by_byte)
    assert len(wanted) == len(values)
    one_by_one = " , ".join(
        "CN = "
        + "".join(
            f"\\{byte:02X}" if len(character.encode()) == 1 else character
            for character in value
            for byte in character.encode()[:1]
        )
        for value in values
    )
    assert parse(one_by_one) == wanted
    assert parse(",".join(wanted)) == wanted


@given(st.text(max_size=30))
def test_any_text_is_a_name_or_refused(text: str) -> None:
    """Whatever somebody writes for a name is read, or refused as no name; what was read reads as itself."""
    try:
        name = parse(text)
    except Unfit:
        return
    assert parse(",".join(name)) == name


@pytest.mark.parametrize(
    ("name", "base", "rest"),
    [
        ("cn=devs,ou=groups,dc=example,dc=com", "DC=example, DC=com", ("cn=devs", "ou=groups")),
        ("ou=x+cn=Devs Of It,dc=a", "dc=a", ("cn=devs of it+ou=x",)),
        (r"cn=a\,b,dc=a", "dc=a", (r"cn=a\,b",)),
        ("dc=a", "dc=a", None),
        ("cn=x,dc=b", "dc=a", None),
        ("cn=x", "cn=y,cn=x", None),
    ],
)
def test_what_is_below(name: str, base: str, rest: tuple[str, ...] | None) -> None:
    """A name is below another if that is its end, component by component."""
    assert below(parse(name), parse(base)) == rest


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("cn=dev  ops", "cn=dev ops"),
        (r"cn=\20devs", "cn=devs"),
        ("cn=devs\\ ", "cn=devs"),
        ("cn=\u212aey", "cn=key"),
        ("cn=\u2126", "cn=\u03c9"),
        ("cn=\u0130d", "cn=i\u0307d"),
        ("cn=stra\u1e9ee", "cn=stra\u00dfe"),
        ("cn=stra\u00dfe", "cn=strasse"),
        ("cn=\uff44evs", "cn=devs"),
        ("cn=\ufb01", "cn=fi"),
        ("cn=e\u0301", "cn=\u00e9"),
        (r"cn=\#616263", "cn=abc"),
        (r"cn=a\,ou=b", "cn=a,ou=b"),
        (r"cn=a\+ou=b", "cn=a+ou=b"),
    ],
)
def test_names_that_only_look_alike(one: str, other: str) -> None:
    """They are two: where a directory has both, nobody gets the one's teams by making the other."""
    assert parse(one) != parse(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("CN=\u00c4RZTE, OU = A", "cn=\u00e4rzte,ou=a"),
        ("cn=\u0394\u039f", "cn=\u03b4\u03bf"),
        ("cn=x+ou=y", "OU=Y + CN=X"),
    ],
)
def test_names_that_differ_in_case(one: str, other: str) -> None:
    """Capital letters are the same as the small ones that are theirs, of any alphabet."""
    assert parse(one) == parse(other)


@pytest.mark.parametrize("text", [r"cn=a\1cb", r"cn=a\00", r"cn=a\c2\a0b", r"cn=a\e2\80\8bb", "cn=#0403616263"])
def test_what_cannot_be_seen(text: str) -> None:
    """A value with characters that cannot be seen, however they are written, is nobody's, and so is an encoded one."""
    with pytest.raises(Unfit):
        parse(text)


@pytest.mark.parametrize("text", ["", "devs", "cn=", "=x", "cn=a,,dc=b", 'cn="a"', "cn=a\\", "cn=\\ff", "c n=a"])
def test_what_is_no_name(text: str) -> None:
    """What has no attribute, no value, or bytes that are no text is refused."""
    with pytest.raises(Unfit):
        parse(text)
