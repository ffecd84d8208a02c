"""Which memberships a synchronisation begins and ends, and that a group's name is one however it is written."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.auth.dn import below, parse
from node.auth.memberships import Bound, Membership, decide
from node.config_values import Unfit

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


@pytest.mark.parametrize("text", ["", "devs", "cn=", "=x", "cn=a,,dc=b", 'cn="a"', "cn=a\\", "cn=\\ff", "c n=a"])
def test_what_is_no_name(text: str) -> None:
    """What has no attribute, no value, or bytes that are no text is refused."""
    with pytest.raises(Unfit):
        parse(text)
