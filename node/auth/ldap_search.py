"""Searches of an LDAP directory that are answered whole: page by page, and a long list part by part.

Active Directory gives at most 1500 values of an attribute at once, as `member;range=0-1499`, and the rest to whoever asks for
`member;range=1500-*` (MS-ADTS, 3.1.1.3.1.3.3). What is not answered whole is no answer: half of a group would take the others'
rights away.
"""

import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from attrs import frozen
from ldap3 import BASE, SUBTREE, Connection

from node.auth.directory import DirectoryUnavailable
from node.auth.dn import Dn, parse
from node.auth.told import Unread
from node.config.values import Unfit

MOST_VALUES = 100_000
"""Of one attribute of one entry: they are in memory together."""
MOST_ENTRIES = 100_000
"""Of one search, likewise."""
ANYTHING = "(objectClass=*)"
NOTHING = ("1.1",)
"""No attribute: the names of the entries alone."""
_PAGE = 500
_PAGED = "1.2.840.113556.1.4.319"
_SUCCESS, _NO_SUCH_OBJECT = 0, 32
_RANGE = re.compile(r"([^;]+);range=(\d{1,9})-(\d{1,9}|\*)", re.IGNORECASE)


@frozen
class Session:
    """A connection, and until when somebody waits for its answers, by `time.monotonic`.

    A thread cannot be stopped. One for which nobody waits any more ends with its next question: otherwise a group that takes long
    would keep one more of them busy every time that it is asked for.
    """

    connection: Connection
    until: float


def search(
    session: Session,
    base: str,
    wanted: str,
    attributes: Sequence[str],
    scope: Any = SUBTREE,
    *,
    may_lack: bool = False,
) -> list[Any]:
    """Return all entries that there are. `may_lack`: none where there is no such base. Raises DirectoryUnavailable."""
    entries, cookie, connection = [], None, session.connection
    while True:
        if time.monotonic() >= session.until:
            raise DirectoryUnavailable(f"the search below {base}: no answer in time")
        paged = {} if scope == BASE else {"paged_size": _PAGE, "paged_cookie": cookie}
        connection.search(base, wanted, scope, attributes=list(attributes), **paged)
        result = connection.result
        if may_lack and result["result"] == _NO_SUCH_OBJECT:
            return []
        if result["result"] != _SUCCESS:
            raise DirectoryUnavailable(f"the search below {base}: {result['description']}", Unread.REFUSED)
        entries += [line for line in connection.response or () if line["type"] == "searchResEntry"]
        if len(entries) > MOST_ENTRIES:
            raise DirectoryUnavailable(f"there are more than {MOST_ENTRIES} entries below {base}", Unread.LARGE)
        cookie = result.get("controls", {}).get(_PAGED, {}).get("value", {}).get("cookie")
        if not cookie:
            return entries


def values(session: Session, line: Any, attribute: str) -> list[str]:
    """Return all values of an entry's attribute, however many answers that takes. Raises DirectoryUnavailable."""
    found = list(line["raw_attributes"].get(attribute) or ())
    part = _part(line["raw_attributes"], attribute)
    while part is not None:
        if part.first != len(found) or not (part.values or part.last is None):
            raise DirectoryUnavailable(f"{line['dn']}: the parts of {attribute} do not fit together", Unread.REFUSED)
        found += part.values
        if part.last is None or len(found) > MOST_VALUES:
            break
        more = search(session, line["dn"], ANYTHING, [f"{attribute};range={len(found)}-*"], BASE, may_lack=True)
        part = _part(more[0]["raw_attributes"], attribute) if more else None
        if part is None:
            raise DirectoryUnavailable(f"{line['dn']}: {attribute} breaks off", Unread.REFUSED)
    if len(found) > MOST_VALUES:
        raise DirectoryUnavailable(f"{line['dn']} has more than {MOST_VALUES} of {attribute}", Unread.LARGE)
    return [value.decode(errors="replace") for value in found]


def names(texts: Iterable[str]) -> Iterator[Dn]:
    """Yield those that are names: what a directory has besides is nobody's."""
    for text in texts:
        try:
            yield parse(text)
        except Unfit:
            continue


@frozen
class _Part:
    """Some values of an attribute, from the place `first` on. `last`: the place of the last one; None: there are no more."""

    first: int
    last: int | None
    values: Sequence[bytes]


def _part(attributes: Mapping[str, Sequence[bytes] | None], attribute: str) -> _Part | None:
    for name, given in attributes.items():
        match = _RANGE.fullmatch(name)
        if match is not None and match[1].lower() == attribute.lower():
            return _Part(int(match[2]), None if match[3] == "*" else int(match[3]), given or ())
    return None
