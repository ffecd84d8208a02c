"""Whom the groups of an LDAP directory list, as `member` or `uniqueMember`; with LDAP_NESTED_GROUPS also by groups in them."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet

from attrs import define, field
from ldap3 import BASE
from ldap3.utils.conv import escape_filter_chars

from node.auth.directory import DirectoryUnavailable
from node.auth.dn import Dn
from node.auth.ldap_search import ANYTHING, NOTHING, Session, names, search, values
from node.auth.told import Unread

DEEPEST = 10
"""How often a group may be in a group."""
MOST_GROUPS = 1000
"""Groups that one group may have in it, and that somebody may be in."""
_LISTS = ("member", "uniqueMember")
ANYBODY = f"(|{''.join(f'({attribute}=*)' for attribute in _LISTS)})"
"""The filter of groups that list anybody."""
_NAMES = 50
"""Names in one filter: servers bound a filter's length and the size of an answer."""


@define(eq=False)
class Lists:
    """The groups that were read so far, and who of those that matter is in them. Whatever reads raises DirectoryUnavailable."""

    _session: Session = field(alias="session")
    _people: AbstractSet[Dn] = field(alias="people")
    _groups: Mapping[Dn, str] = field(alias="groups")
    """The groups that may be in others, as the directory writes their names: none where those are not looked into."""
    holders: defaultdict[Dn, set[Dn]] = field(factory=lambda: defaultdict(set), init=False)
    """The groups that list a person or a group."""
    _read: dict[Dn, AbstractSet[Dn]] = field(factory=dict, init=False)

    def read(self, group: Dn, place: str) -> bool:
        """Read a group and those in it, level by level, so that a loop ends; tell whether there is one at this place."""
        found = self._below(group, place)
        if found is None:
            return False
        level, seen = found - {group}, {group}
        for _ in range(DEEPEST):
            if not level:
                return True
            seen |= level
            if len(seen) > MOST_GROUPS:
                raise DirectoryUnavailable(f"{place} has more than {MOST_GROUPS} groups in it", Unread.DEEP)
            level = {inner for held in level for inner in self._below(held, self._groups[held]) or ()} - seen
        if level:
            raise DirectoryUnavailable(f"{place} has groups in groups deeper than {DEEPEST}", Unread.DEEP)
        return True

    def _below(self, group: Dn, place: str) -> AbstractSet[Dn] | None:
        """Return the groups that a group lists; None: there is no such group."""
        if group not in self._read:
            found = search(self._session, place, ANYTHING, _LISTS, BASE, may_lack=True)
            if not found:
                return None
            inner = set()
            for attribute in _LISTS:
                for member in names(values(self._session, found[0], attribute)):
                    # Of a group with everybody in it those alone are kept who have an account.
                    if member in self._people or member in self._groups:
                        self.holders[member].add(group)
                    if member in self._groups:
                        inner.add(member)
            self._read[group] = inner
        return self._read[group]


def all_groups(session: Session, base: str) -> Mapping[Dn, str]:
    """Return all groups that list anybody, as the directory writes their names. Raises DirectoryUnavailable."""
    found = [str(line["dn"]) for line in search(session, base, ANYBODY, NOTHING)]
    return {name: text for text in found for name in names((text,))}


def holders_of(session: Session, base: str, texts: Iterable[str]) -> Iterator[Dn]:
    """Yield the groups that list any of these, which are few. Raises DirectoryUnavailable."""
    for some in batches(sorted(texts)):
        any_of = "".join(f"({attribute}={escape_filter_chars(text)})" for text in some for attribute in _LISTS)
        for line in search(session, base, f"(|{any_of})", NOTHING):
            yield from names((str(line["dn"]),))


def climb(session: Session, base: str, groups: AbstractSet[Dn]) -> AbstractSet[Dn]:
    """Return these groups and all that they are in, level by level, so that a loop ends. Raises DirectoryUnavailable."""
    seen, level = set(groups), set(groups)
    for _ in range(DEEPEST + 1):
        level = set(holders_of(session, base, [",".join(group) for group in level])) - seen
        if not level:
            return seen
        seen |= level
        if len(seen) > MOST_GROUPS:
            raise DirectoryUnavailable(f"somebody is in more than {MOST_GROUPS} groups", Unread.DEEP)
    raise DirectoryUnavailable(f"somebody is in groups in groups deeper than {DEEPEST}", Unread.DEEP)


def reach(groups: Iterable[Dn], holders: Mapping[Dn, Iterable[Dn]]) -> frozenset[Dn]:
    """Return these groups and all that they are in."""
    seen, waiting = set[Dn](), list(groups)
    while waiting:
        group = waiting.pop()
        if group not in seen:
            seen.add(group)
            waiting += holders.get(group, ())
    return frozenset(seen)


def batches(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """Yield as many names at once as one filter has room for."""
    return (texts[at : at + _NAMES] for at in range(0, len(texts), _NAMES))
