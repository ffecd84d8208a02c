"""Who is in which group of an LDAP directory: whom a group lists (`member`, `uniqueMember`), and who says so (`memberOf`).

Groups in groups are not looked into; a directory whose `memberOf` does so says the same by that. What is not answered whole is no
answer: half of a group would take the others' rights away.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import structlog
import trio
from attrs import define, field, frozen
from ldap3 import BASE, SUBTREE, Connection
from ldap3.utils.conv import escape_filter_chars

from node.auth.directory import DirectoryUnavailable
from node.auth.dn import Dn, parse
from node.auth.ldap import entered
from node.config_values import Unfit
from node.settings import LdapSettings

T = TypeVar("T")

_log = structlog.get_logger("antipode.access")

_AT_ONCE = 4
_NAMES = 50
"""Names in one filter: servers bound a filter's length and the size of an answer."""
_PAGE = 500
_PAGED = "1.2.840.113556.1.4.319"
_SUCCESS, _NO_SUCH_OBJECT = 0, 32
_CROWD = 10
"""That as many people have all left at once is less likely than a filter, or a right of LDAP_ADMIN_DN, that is wrong."""
_LISTS = ("member", "uniqueMember")


@define(eq=False)
class LdapGroups:
    """The groups of a directory, by their names relative to LDAP_BASE_DN. Whatever asks it raises DirectoryUnavailable."""

    _settings: LdapSettings = field(alias="settings")
    _limiter: trio.CapacityLimiter = field(factory=lambda: trio.CapacityLimiter(_AT_ONCE), init=False)

    async def groups(
        self, names: Sequence[str], groups: Sequence[str], within: float | None = None
    ) -> Mapping[str, frozenset[str]]:
        """Return in which of `groups` everybody of these names is; whom the directory does not know is not there.

        A group that is not in the directory has nobody. `within` seconds; without: LDAP_TIMEOUT.
        """
        return await self._ask(within, partial(groups_now, self._settings, names, groups))

    async def has_group(self, group: str) -> bool:
        """Tell whether there is a group. Raises Unfit for what is no name."""
        parse(group)
        return await self._ask(None, partial(has_group_now, self._settings, group))

    async def _ask(self, within: float | None, ask: Callable[[], T]) -> T:
        seconds = self._settings.timeout if within is None else within
        try:
            with trio.fail_after(seconds):
                return await trio.to_thread.run_sync(ask, limiter=self._limiter, abandon_on_cancel=True)
        except trio.TooSlowError:
            reason = f"no answer within {seconds:g} s"
        except DirectoryUnavailable as error:
            reason = str(error)
        _log.warning("the directory cannot be asked for groups", directory=self._settings.uri, reason=reason)
        raise DirectoryUnavailable(reason)


@frozen
class _Entry:
    """Somebody's entry: its name, and the groups that it names."""

    dn: Dn
    text: str
    """The name as the directory writes it."""
    says: frozenset[Dn]


def groups_now(settings: LdapSettings, names: Sequence[str], groups: Sequence[str]) -> Mapping[str, frozenset[str]]:
    """Ask the directory as `LdapGroups.groups` does, and wait for it."""
    # One group may be written in more than one way.
    wanted = {text: dn for text in groups for dn in _names((f"{text},{settings.base_dn}",))}
    texts, listed = defaultdict[Dn, list[str]](list), defaultdict[Dn, set[Dn]](set)
    for text, dn in wanted.items():
        texts[dn].append(text)
    with entered(settings) as connection:
        people = _people(connection, settings, names)
        if not people and len(names) >= _CROWD:
            raise DirectoryUnavailable(f"it knows none of {len(names)} people whom it has proven before")
        if len(people) < len(wanted):
            found = _groups_that_list(connection, settings, people.values())
        else:
            found = _lists(connection, settings, wanted)
        for group, member in found:
            listed[member].add(group)
    return {
        name: frozenset(text for dn in entry.says | listed.get(entry.dn, set()) for text in texts.get(dn, ()))
        for name, entry in people.items()
    }


def has_group_now(settings: LdapSettings, group: str) -> bool:
    """Tell whether there is a group, and wait for the directory."""
    with entered(settings) as connection:
        return _read_group(connection, settings, group) is not None


def _people(connection: Connection, settings: LdapSettings, names: Sequence[str]) -> Mapping[str, _Entry]:
    """Return the entries of people as a login finds them: by their names, and nobody whose name two entries have."""
    uid, found = settings.uid_attribute, dict[str, list[_Entry]]()
    for some in _batches(sorted(names)):
        any_of = "".join(f"({uid}={escape_filter_chars(name)})" for name in some)
        wanted = f"(&(|{any_of}){settings.user_filter})"
        for line in _search(connection, settings.base, wanted, (uid, settings.memberof_attribute)):
            entry = _entry(line, settings)
            for name in {value.lower() for value in _values(line, uid)} & set(some):
                found.setdefault(name, []).extend(entry)
    return {name: entries[0] for name, entries in found.items() if len(entries) == 1}


def _entry(line: Any, settings: LdapSettings) -> list[_Entry]:
    says = frozenset(_names(_values(line, settings.memberof_attribute)))
    text = str(line["dn"])
    return [_Entry(dn, text, says) for dn in _names((text,))]


def _groups_that_list(
    connection: Connection, settings: LdapSettings, people: Iterable[_Entry]
) -> Iterator[tuple[Dn, Dn]]:
    """Yield the groups that list any of these people, with whom they list: few questions where there are few people."""
    for entry in people:
        member = escape_filter_chars(entry.text)
        wanted = "".join(f"({attribute}={member})" for attribute in _LISTS)
        for line in _search(connection, settings.base_dn, f"(|{wanted})", ("1.1",)):
            for group in _names((str(line["dn"]),)):
                yield group, entry.dn


def _lists(connection: Connection, settings: LdapSettings, groups: Mapping[str, Dn]) -> Iterator[tuple[Dn, Dn]]:
    """Yield whom these groups list: few questions where there are few groups."""
    missing = []
    for text, group in groups.items():
        line = _read_group(connection, settings, text)
        if line is None:
            missing.append(text)
            continue
        for attribute in _LISTS:
            for member in _names(_values(line, attribute)):
                yield group, member
    if missing:
        _log.warning("groups that decide who is in a team are not in the directory", groups=missing[:10])
        # Where not even the base can be read, that nothing is below it means nothing.
        if not _search(connection, settings.base_dn, "(objectClass=*)", ("1.1",), BASE):
            raise DirectoryUnavailable("LDAP_BASE_DN cannot be read, and groups below it are not found")


def _read_group(connection: Connection, settings: LdapSettings, group: str) -> Any:
    """Return a group's entry; None: there is none."""
    place = f"{group},{settings.base_dn}"
    found = _search(connection, place, "(objectClass=*)", _LISTS, BASE, may_lack=True)
    return found[0] if found else None


def _search(
    connection: Connection,
    base: str,
    wanted: str,
    attributes: Sequence[str],
    scope: Any = SUBTREE,
    *,
    may_lack: bool = False,
) -> list[Any]:
    """Return all entries that there are, page by page. `may_lack`: none where there is no such base."""
    entries, cookie = [], None
    while True:
        paged = {} if scope == BASE else {"paged_size": _PAGE, "paged_cookie": cookie}
        connection.search(base, wanted, scope, attributes=list(attributes), **paged)
        result = connection.result
        if may_lack and result["result"] == _NO_SUCH_OBJECT:
            return []
        if result["result"] != _SUCCESS:
            raise DirectoryUnavailable(f"the search below {base}: {result['description']}")
        entries += [line for line in connection.response or () if line["type"] == "searchResEntry"]
        cookie = result.get("controls", {}).get(_PAGED, {}).get("value", {}).get("cookie")
        if not cookie:
            return entries


def _values(line: Any, attribute: str) -> list[str]:
    """Return an attribute's values. Of a long list Active Directory sends a part by another name: there memberOf counts alone."""
    return [value.decode(errors="replace") for value in line["raw_attributes"].get(attribute, ())]


def _names(texts: Iterable[str]) -> Iterator[Dn]:
    """Yield those that are names: what a directory has besides is nobody's."""
    for text in texts:
        try:
            yield parse(text)
        except Unfit:
            continue


def _batches(names: Sequence[str]) -> Iterator[Sequence[str]]:
    return (names[at : at + _NAMES] for at in range(0, len(names), _NAMES))
