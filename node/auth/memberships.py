"""Which memberships of synchronised teams begin and end, given who is in which group. Pure."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from collections.abc import Set as AbstractSet

from attrs import evolve, field, frozen

Membership = tuple[int, int]
"""The ids of a team and of an account."""
CROWD = 10
"""That as many people, and most of a team, have all left a group at once is less likely than a mistake in the directory."""


@frozen
class Bound:
    """A team whose members are those of a group, as its binding names it."""

    team: int
    organization: str
    name: str
    group: str
    synced: bool = field(default=False, eq=False)
    """Whether it has followed this group before."""
    held: float | None = field(default=None, eq=False)
    """For how many seconds it waits with letting very many people go; None: it does not."""


@frozen
class Change:
    """What is to be done: both are empty where everything is as it should be."""

    joins: frozenset[Membership] = frozenset()
    leaves: frozenset[Membership] = frozenset()
    stays: frozenset[Membership] = field(default=frozenset(), eq=False)
    """Those that were there and are right."""

    def keeping(self, teams: Collection[int]) -> "Change":
        """Return the same where nobody leaves these teams."""
        return evolve(self, leaves=frozenset(one for one in self.leaves if one[0] not in teams))


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
    return Change(frozenset(entitled - present), frozenset(decided - entitled), frozenset(decided & entitled))


def unlikely(
    change: Change, bound: Iterable[Bound], present: AbstractSet[Membership], patience: float
) -> frozenset[int]:
    """Return the teams that shall wait with letting people go: `CROWD` or more, and most of them, would go at once.

    That counts for each team, and for all together: a directory that has lost its groups has lost the small ones, too. No team
    waits for longer than `patience` seconds, and none that has not followed its group before: whoever bound it wants that.
    """
    teams = {line.team: line for line in bound if line.synced}
    members, leaving = defaultdict[int, int](int), defaultdict[int, int](int)
    for team, _ in present:
        if team in teams:
            members[team] += 1
    for team, _ in change.leaves:
        if team in teams:
            leaving[team] += 1
    all_together = _crowd(sum(leaving.values()), sum(members.values()))
    return frozenset(
        team
        for team, going in leaving.items()
        if (all_together or _crowd(going, members[team])) and (teams[team].held or 0.0) < patience
    )


def _crowd(leaving: int, members: int) -> bool:
    return leaving >= CROWD and 2 * leaving > members
