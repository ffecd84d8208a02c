"""Who is in which group of an LDAP directory: whom a group lists, and who says so in their own entry (`memberOf`).

Groups in groups count where LDAP_NESTED_GROUPS says so; without it as far as the directory's own `memberOf` looks into them.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import structlog
import trio
from attrs import define, field, frozen
from ldap3 import BASE
from ldap3.utils.conv import escape_filter_chars

from node.auth.directory import DirectoryUnavailable
from node.auth.dn import Dn, parse
from node.auth.ldap import entered
from node.auth.ldap_lists import ANYBODY, Lists, all_groups, batches, climb, holders_of, reach
from node.auth.ldap_search import ANYTHING, NOTHING, Session, names, search, values
from node.auth.told import Told, Trouble, Unread
from node.config.settings import LdapSettings

T = TypeVar("T")

_log = structlog.get_logger("antipode.access")

_AT_ONCE = 4
_CROWD = 10
"""That as many people have all left at once is less likely than a filter, or a right of LDAP_ADMIN_DN, that is wrong."""


@define(eq=False)
class LdapGroups:
    """The groups of a directory, by their names relative to LDAP_BASE_DN. Whatever asks it raises DirectoryUnavailable."""

    _settings: LdapSettings = field(alias="settings")
    _limiter: trio.CapacityLimiter = field(factory=lambda: trio.CapacityLimiter(_AT_ONCE), init=False)

    async def groups(self, names: Sequence[str], groups: Sequence[str], within: float | None = None) -> Told:
        """Return in which of `groups` everybody of these names is; whom the directory does not know is not there.

        A group that is not in the directory has nobody. `within` seconds; without: LDAP_TIMEOUT.
        """
        return await self._ask(within, partial(groups_now, self._settings, names, groups))

    async def listing(self, groups: Sequence[str]) -> frozenset[str]:
        """Return the groups that list anybody, a person or another group."""
        return await self._ask(None, partial(listing_now, self._settings, groups))

    async def has_group(self, group: str) -> bool:
        """Tell whether there is a group. Raises Unfit for what is no name."""
        parse(group)
        return await self._ask(None, partial(has_group_now, self._settings, group))

    async def _ask(self, within: float | None, ask: Callable[[float], T]) -> T:
        seconds = self._settings.timeout if within is None else within
        try:
            with trio.fail_after(seconds):
                until = time.monotonic() + seconds
                return await trio.to_thread.run_sync(ask, until, limiter=self._limiter, abandon_on_cancel=True)
        except trio.TooSlowError:
            error = DirectoryUnavailable(f"no answer within {seconds:g} s")
        except DirectoryUnavailable as failed:
            error = failed
        _log.warning("the directory cannot be asked for groups", directory=self._settings.uri, reason=str(error))
        raise error


@contextmanager
def _asking(settings: LdapSettings, until: float) -> Iterator[Session]:
    with entered(settings) as connection:
        yield Session(connection, until)


@frozen
class _Entry:
    """Somebody's entry: its name, and the groups that it names."""

    dn: Dn
    text: str
    """The name as the directory writes it."""
    says: frozenset[Dn]


def groups_now(settings: LdapSettings, people: Sequence[str], groups: Sequence[str], until: float) -> Told:
    """Ask the directory as `LdapGroups.groups` does, and wait for it until then, by `time.monotonic`."""
    # One group may be written in more than one way.
    wanted = {text: dn for text in groups for dn in names((f"{text},{settings.base_dn}",))}
    texts = defaultdict[Dn, list[str]](list)
    for text, dn in wanted.items():
        texts[dn].append(text)
    with _asking(settings, until) as session:
        entries = _people(session, settings, people)
        if not entries and len(people) >= _CROWD:
            reason = f"it knows none of {len(people)} people whom it has proven before"
            raise DirectoryUnavailable(reason, Unread.UNLIKELY)
        found: Mapping[str, Iterable[Dn]]
        unread: Mapping[str, Trouble] = {}
        if len(entries) < len(wanted):
            found = {name: _climbed(session, settings, entry) for name, entry in entries.items()}
        else:
            found, unread = _listed(session, settings, entries, wanted)
    return Told(
        {
            name: frozenset(text for dn in theirs for text in texts.get(dn, ()) if text not in unread)
            for name, theirs in found.items()
        },
        unread,
    )


def listing_now(settings: LdapSettings, groups: Sequence[str], until: float) -> frozenset[str]:
    """Return the groups that list anybody, and wait for the directory."""
    with _asking(settings, until) as session:
        return frozenset(
            group
            for group in groups
            if search(session, f"{group},{settings.base_dn}", ANYBODY, NOTHING, BASE, may_lack=True)
        )


def has_group_now(settings: LdapSettings, group: str, until: float) -> bool:
    """Tell whether there is a group, and wait for the directory."""
    with _asking(settings, until) as session:
        place = f"{group},{settings.base_dn}"
        return bool(search(session, place, ANYTHING, NOTHING, BASE, may_lack=True))


def _people(session: Session, settings: LdapSettings, people: Sequence[str]) -> Mapping[str, _Entry]:
    """Return the entries of people as a login finds them: by their names, and nobody whose name two entries have."""
    uid, found = settings.uid_attribute, dict[str, list[_Entry]]()
    for some in batches(sorted(people)):
        any_of = "".join(f"({uid}={escape_filter_chars(name)})" for name in some)
        wanted = f"(&(|{any_of}){settings.user_filter})"
        for line in search(session, settings.base, wanted, (uid, settings.memberof_attribute)):
            entry = _entry(session, line, settings)
            for name in {value.lower() for value in values(session, line, uid)} & set(some):
                found.setdefault(name, []).extend(entry)
    return {name: entries[0] for name, entries in found.items() if len(entries) == 1}


def _entry(session: Session, line: Any, settings: LdapSettings) -> list[_Entry]:
    says = frozenset(names(values(session, line, settings.memberof_attribute)))
    text = str(line["dn"])
    return [_Entry(dn, text, says) for dn in names((text,))]


def _climbed(session: Session, settings: LdapSettings, entry: _Entry) -> Iterable[Dn]:
    """Return the groups of somebody: few questions where there are few people."""
    own = entry.says | set(holders_of(session, settings.base_dn, (entry.text,)))
    return climb(session, settings.base_dn, own) if settings.nested_groups else own


def _listed(
    session: Session, settings: LdapSettings, entries: Mapping[str, _Entry], wanted: Mapping[str, Dn]
) -> tuple[Mapping[str, Iterable[Dn]], Mapping[str, Trouble]]:
    """Return the groups of everybody, of those that are wanted: few questions where there are few groups.

    One that cannot be read keeps nobody from knowing of the others: whoever chose it may be anybody's administrator.
    """
    groups = all_groups(session, settings.base_dn) if settings.nested_groups else {}
    lists = Lists(session, {entry.dn for entry in entries.values()}, groups)
    missing, unread = [], dict[str, Trouble]()
    for text, dn in wanted.items():
        try:
            if not lists.read(dn, f"{text},{settings.base_dn}"):
                missing.append(text)
        except DirectoryUnavailable as error:
            unread[text] = Trouble(error.why, str(error))
    if missing:
        _log.warning("groups that decide who is in a team are not in the directory", groups=missing[:10])
        # Where not even the base can be read, that nothing is below it means nothing.
        if not search(session, settings.base_dn, ANYTHING, NOTHING, BASE):
            reason = "LDAP_BASE_DN cannot be read, and groups below it are not found"
            raise DirectoryUnavailable(reason, Unread.UNLIKELY)
    found = {
        name: reach(entry.says | lists.holders.get(entry.dn, set()), lists.holders) for name, entry in entries.items()
    }
    return found, unread
