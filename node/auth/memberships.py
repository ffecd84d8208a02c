"""Which memberships of synchronised teams begin and end, given who is in which group. Pure."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from collections.abc import Set as AbstractSet

from attrs import frozen

Membership = tuple[int, int]
"""The ids of a team and of an account."""


@frozen
class Bound:
    """A team whose members are those of a group, as its binding names it."""

    team: int
    organization: str
    name: str
    group: str


@frozen
class Change:
    """What is to be done: both are empty where everything is as it should be."""

    joins: frozenset[Membership] = frozenset()
    leaves: frozenset[Membership] = frozenset()


def decide(bound: Iterable[Bound], present: AbstractSet[Membership], groups: Mapping[int, Collection[str]]) -> Change:
    """Return what makes the memberships in `bound` teams follow `groups`, which has the groups of each account that is known.

    An account that is not in `groups` is one of which nothing is known: it stays where it is. Teams that are not bound stay as
    they are.
    """
    teams = defaultdict[str, set[int]](set)
    for line in bound:
        teams[line.group].add(line.team)
    every = frozenset().union(*teams.values())
    entitled = {
        (team, account) for account, theirs in groups.items() for group in theirs for team in teams.get(group, ())
    }
    decided = {(team, account) for team, account in present if team in every and account in groups}
    return Change(frozenset(entitled - present), frozenset(decided - entitled))
