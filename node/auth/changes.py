"""What took rights away lately, in a node's memory: a token or a decision that is older than a change is refused.

The database numbers such changes (`access_change`). A node reads the new ones when a hint says that there are some, and every
METADATA_STALENESS seconds without. So a revoked right is visible everywhere as fast as a deleted image, and no request asks for it.
"""

from collections import OrderedDict
from collections.abc import Iterable

from attrs import define, field

from node.records.rights import Changes
from replication.ports import News

ACCESS_CHANGED = News("access")
"""Tells all nodes that rights were taken away just now."""
KEYS_CHANGED = News("signing keys")

_MOST = 200_000


@define(eq=False)
class ChangeLog:
    """The latest change of every account and repository that had one. Without waiting."""

    number: int = 0
    """How far the log was when it was last read."""
    _floor: int = field(default=0, init=False)
    """Nothing that is older may be relied on: changes may have been forgotten."""
    _latest: "OrderedDict[tuple[bool, str], int]" = field(factory=OrderedDict, init=False)

    def take(self, changes: Changes) -> None:
        """Take in what was read."""
        if not changes.all:
            self._latest.clear()
            self._floor = changes.number
        for change in changes.changes:
            key = (True, change.account) if change.account is not None else (False, change.repository or "")
            self._latest[key] = max(change.number, self._latest.pop(key, 0))
        while len(self._latest) > _MOST:
            self._floor = max(self._floor, self._latest.popitem(last=False)[1])
        self.number = max(self.number, changes.number)

    def is_current(self, epoch: int, account: str, repositories: Iterable[str]) -> bool:
        """Tell whether nothing took rights away from this account, or on one of these repositories, since `epoch`."""
        if epoch < self._floor:
            return False
        latest = self._latest
        if not latest:
            return True
        return latest.get((True, account), 0) <= epoch and all(
            latest.get((False, repository), 0) <= epoch for repository in repositories
        )

    def known(self, epoch: int, account: str, repositories: Iterable[str]) -> int:
        """Return how far in the log it is known that what was read at `epoch` still holds."""
        return max(epoch, self.number) if self.is_current(epoch, account, repositories) else epoch
