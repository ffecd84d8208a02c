"""Where people's passwords are proven when not in the database (AUTHENTICATION_TYPE), and for how long an answer counts.

One interface: a directory says who has a name and a password. Whoever it knows has an account here, which is linked or made at the
first login (`node/auth/linking.py`). What was proven is kept in memory under a hash that this process alone can make.
"""

import hmac
import secrets
from typing import Protocol

import trio
from attrs import define, evolve, field, frozen

from node.auth.told import Unread
from node.cache import Cache

_MOST = 20_000


@frozen
class Person:
    """Somebody whom a directory knows. `superuser`: it says that they administer the registry."""

    email: str | None = None
    superuser: bool = False
    remembered: bool = field(default=False, eq=False)
    """Whether the directory said so a while ago, and was not asked again."""


class DirectoryUnavailable(Exception):
    """The directory could not be asked. The text is for the log, `why` for a metric."""

    def __init__(self, text: str, why: Unread = Unread.AWAY) -> None:
        super().__init__(text)
        self.why = why


class Directory(Protocol):
    """Says who somebody is."""

    @property
    def kind(self) -> str:
        """What the accounts of its people are marked with."""

    async def prove(self, name: str, password: str) -> Person | None:
        """Return who has this name, in lower case, and password; None: nobody. Raises DirectoryUnavailable."""


@define(eq=False)
class Remembering:
    """A directory that is asked again after `fresh` seconds; while it cannot be asked, its last answer counts for `grace`."""

    _directory: Directory = field(alias="directory")
    _fresh: float = field(alias="fresh")
    _grace: float = field(alias="grace")
    _pepper: bytes = field(factory=lambda: secrets.token_bytes(32), init=False)
    _known: Cache[bytes, Person | None] = field(factory=lambda: Cache(_MOST), init=False)

    @property
    def kind(self) -> str:
        """The directory's."""
        return self._directory.kind

    async def prove(self, name: str, password: str) -> Person | None:
        """Return as `Directory.prove`."""
        key = hmac.digest(self._pepper, f"{name}\0{password}".encode(), "sha256")
        now = trio.current_time()
        known = self._known.get(key, now - self._fresh)
        if known is not None:
            return known
        seen = self._known.get(key, now - self._grace)
        try:
            person = await self._directory.prove(name, password)
        except DirectoryUnavailable:
            if seen is None:
                raise
            return seen
        # A wrong password is kept only in place of a right one: guesses push nobody out.
        if person is not None or seen is not None:
            self._known.keep(key, None if person is None else evolve(person, remembered=True), now)
        return person
