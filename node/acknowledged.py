"""What this node has acknowledged of late: after a fail-over of the database somebody must know what should be there."""

from collections import OrderedDict
from collections.abc import Iterable

from attrs import define, field, frozen

_SECONDS = 15 * 60.0
"""Longer than a standby that is worth promoting lags behind."""
_MOST = 20_000


@frozen
class Push:
    """A manifest that a repository was told to have; and that a tag points to, where `tag` is not empty."""

    repository: str
    tag: str
    digest: str


@define(eq=False)
class Acknowledged:
    """Remembers pushes for a while. Times are Trio's clock."""

    _pushes: OrderedDict[tuple[str, str, str], tuple[Push, float]] = field(factory=OrderedDict, init=False)

    def note(self, repository: str, digest: str, tags: Iterable[str], now: float) -> None:
        """A push was committed: remember it, and what its tags point to now."""
        for tag in ("", *tags):
            key = (repository, tag, "" if tag else digest)
            self._pushes.pop(key, None)
            self._pushes[key] = Push(repository, tag, digest), now
        while self._pushes and (len(self._pushes) > _MOST or next(iter(self._pushes.values()))[1] < now - _SECONDS):
            self._pushes.popitem(last=False)

    def forget(self, repository: str | None, digest: str | None) -> None:
        """It was deleted: a manifest with its tags, or (`digest` of None) all of a repository, or (both None) nobody knows what."""
        gone = [
            key
            for key, (push, _) in self._pushes.items()
            if repository in (None, push.repository) and digest in (None, push.digest)
        ]
        for key in gone:
            del self._pushes[key]

    def forget_tag(self, repository: str, tag: str) -> None:
        """A tag was deleted."""
        self._pushes.pop((repository, tag, ""), None)

    def since(self, now: float) -> tuple[Push, ...]:
        """Return what should still be there, oldest first."""
        return tuple(push for push, at in self._pushes.values() if at >= now - _SECONDS)
