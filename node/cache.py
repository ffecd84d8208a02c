"""A bounded cache whose entries remember when they were asked for, and the rule that says how old an answer may be."""

from collections import OrderedDict
from collections.abc import Callable
from math import inf
from typing import Generic, TypeVar

from attrs import frozen

from replication.ports import Forget, Placed

K = TypeVar("K")
V = TypeVar("V")


@frozen
class CacheStatistics:
    """Counts since the start; `weight` in the cache's own unit (entries, or bytes)."""

    hits: int
    misses: int
    weight: int


class Cache(Generic[K, V]):
    """Least recently used goes first when `most` is exceeded; `weigh` says what a value counts (1 by default)."""

    def __init__(self, most: int, weigh: Callable[[V], int] | None = None) -> None:
        self._most = most
        self._weigh = weigh
        self._entries: OrderedDict[K, tuple[V, float]] = OrderedDict()
        self._weight = 0
        self._hits = 0
        self._misses = 0

    def get(self, key: K, oldest: float = -inf) -> V | None:
        """Return the value if it was asked for after `oldest`, on the clock of `keep`."""
        value = self.glance(key, oldest)
        if value is None:
            self._misses += 1
        return value

    def glance(self, key: K, oldest: float = -inf) -> V | None:
        """Return what `get` does, for one who asks properly where there is none: only then is that a miss."""
        entry = self._entries.get(key)
        if entry is None or entry[1] <= oldest:
            return None
        self._entries.move_to_end(key)
        self._hits += 1
        return entry[0]

    def asked_at(self, key: K) -> float:
        """Return when the value was asked for, on the clock of `keep`; -inf where there is none."""
        entry = self._entries.get(key)
        return -inf if entry is None else entry[1]

    def keep(self, key: K, value: V, asked_at: float) -> None:
        """Keep a value that was asked for at `asked_at`; one that was asked for later stays."""
        entries, weigh = self._entries, self._weigh
        old = entries.get(key)
        if old is not None:
            if old[1] > asked_at:
                return
            entries.move_to_end(key)
            self._weight -= 1 if weigh is None else weigh(old[0])
        entries[key] = (value, asked_at)
        self._weight += 1 if weigh is None else weigh(value)
        while self._weight > self._most:
            _, (oldest, _) = entries.popitem(last=False)
            self._weight -= 1 if weigh is None else weigh(oldest)

    def statistics(self) -> CacheStatistics:
        """Return the counts so far."""
        return CacheStatistics(self._hits, self._misses, self._weight)


_MOST_HINTS = 100_000
"""16 MiB of them, as hashes; with the words that they are about it would be twice as much."""


class Freshness:
    """Decides how old an answer about a digest in a repository may be: `staleness` seconds, and not older than any hint about it.

    An answer counts from when it was asked for, so a hint that comes while it is on its way makes it out of date too. While the
    database is away answers may be `grace` seconds old, but still not older than a hint about them: hints are remembered for that
    long. That anything may have changed, as after every gap in the line, is then no reason: nobody could be asked what did, and
    what shakes the line to Redis often takes the database along.
    """

    def __init__(self, staleness: float, grace: float = 0.0) -> None:
        self.staleness = staleness
        """Seconds."""
        self.noted = 0
        """Hints so far: while no more come, an answer stays fresh for as long as it may be old."""
        self._grace = max(staleness, grace)
        self._hints: OrderedDict[int, float] = OrderedDict()
        """Hash of (repository, digest) -> when. Two that have the same are taken for one: what is fresh is asked for again."""
        self._floor = -inf
        """Everything asked for before this is out of date: hints about it may have been forgotten."""

    def note(self, hint: Forget | Placed, now: float) -> None:
        """Take a hint in."""
        self.noted += 1
        key = hash((None, hint.digest) if isinstance(hint, Placed) else (hint.repository, hint.digest))
        self._hints.pop(key, None)
        self._hints[key] = now
        while self._hints and next(iter(self._hints.values())) < now - self._grace:
            self._hints.popitem(last=False)
        while len(self._hints) > _MOST_HINTS:
            self._floor = self._hints.popitem(last=False)[1]

    def oldest(self, repository: str, digest: str, now: float, *, away: bool = False) -> float:
        """Return the time before which no answer about this digest in this repository may have been asked for.

        `away`: the database cannot be asked.
        """
        limit = max(now - (self._grace if away else self.staleness), self._floor)
        hints = self._hints
        if not hints:
            return limit
        about = hints.get
        return max(
            limit,
            about(hash((repository, None)), -inf),
            about(hash((None, digest)), -inf),
            about(hash((repository, digest)), -inf),
            -inf if away else about(hash((None, None)), -inf),
        )
