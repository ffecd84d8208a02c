"""The collector: takes away what nothing references, in small batches at a gentle pace; any number of nodes do so at once.

It pauses by itself when the database turns out to be another one than it was (restored, failed over), and says so until
`antipode repair --after-restore` or `antipode collect --resume` lets it go on.
"""

from collections import Counter
from collections.abc import Callable

import structlog
import trio
from attrs import define, field, frozen

from node.config.settings import Settings
from node.records.collect import KINDS, Batch, CollectRules, collect_batch, expire_history, read_pause
from node.records.postgres import Database
from replication.ports import Forget, LedgerUnavailable, Publish

_log = structlog.get_logger("antipode.collector")


def collect_rules(settings: Settings) -> CollectRules:
    """Return how long things stay by this node's configuration."""
    return CollectRules(settings.garbage_grace, settings.deleted_blob_retention, settings.tag_expiration)


@frozen
class CollectorSettings:
    """Sizes in candidates, durations in seconds."""

    batch: int = 100
    """Candidates looked at in one statement; their rows stay locked that long."""
    history: int = 500
    rest: float = 4.0
    """How many times as long as a batch took the node rests after it."""
    shortest_rest: float = 0.05
    longest_rest: float = 5.0


@frozen
class Collected:
    """What a collection did: counts of removed links, manifests and blobs by kind, bytes of blobs whose objects are now dead."""

    removed: tuple[tuple[str, int], ...] = ()
    bytes: int = 0
    kept: int = 0
    """Candidates that turned out to be used."""
    busy: int = 0
    """Candidates that somebody was using at that moment; they come up again."""
    history: int = 0
    """Former states of tags that can no longer be restored."""

    @property
    def worked(self) -> int:
        """Return how many rows left a list."""
        return sum(count for _, count in self.removed) + self.kept + self.history

    def __add__(self, other: "Collected") -> "Collected":
        """Return both together."""
        counts = Counter(dict(self.removed))
        counts.update(dict(other.removed))
        return Collected(
            tuple((kind, counts[kind]) for kind in KINDS if kind in counts),
            self.bytes + other.bytes,
            self.kept + other.kept,
            self.busy + other.busy,
            self.history + other.history,
        )


@frozen
class CollectorStatistics:
    """What this node's collector did since it started. `paused` is the reason, empty while it is not."""

    rounds: int
    collected: Collected
    paused: str


@define(eq=False)
class Collector:
    """One node's collector. `run` is its service, `collect` one complete collection."""

    _database: Database = field(alias="database")
    _publish: Publish = field(alias="publish")
    _rules: CollectRules = field(alias="rules")
    _settings: CollectorSettings = field(factory=CollectorSettings, alias="settings")
    _rounds: int = field(default=0, init=False)
    _total: Collected = field(factory=Collected, init=False)
    _paused: str = field(default="", init=False)

    def statistics(self) -> CollectorStatistics:
        """Return the counts so far."""
        return CollectorStatistics(self._rounds, self._total, self._paused)

    async def collect(self, *, gentle: bool = True) -> Collected:
        """Look at every candidate that is due, and at what that sets free at once. Nothing while paused. Raises LedgerUnavailable.

        `gentle` rests between batches.
        """
        reason = await read_pause(self._database)
        self._note_pause(reason or "")
        found = Collected()
        if reason is not None:
            return found
        while True:
            step = await self._history(gentle=gentle)
            for kind in KINDS:
                step += await self._kind(kind, gentle=gentle)
            found += step
            self._total += step
            if not step.worked:
                self._rounds += 1
                return found

    async def _history(self, *, gentle: bool) -> Collected:
        most, gone = self._settings.history, 0
        while True:
            began = trio.current_time()
            expired = await expire_history(self._database, self._rules, most)
            gone += expired
            if expired < most:
                return Collected(history=gone)
            await self._rest(began, gentle=gentle)

    async def _kind(self, kind: str, *, gentle: bool) -> Collected:
        total = Collected()
        while True:
            began = trio.current_time()
            batch = await collect_batch(self._database, kind, self._rules, self._settings.batch)
            self._tell(batch)
            total += Collected(
                ((kind, len(batch.removed)),) if batch.removed else (),
                sum(gone.size for gone in batch.removed) if kind == "blob" else 0,
                batch.kept,
                batch.busy,
            )
            # A batch of nothing but busy candidates would be the same once more.
            if batch.looked_at + batch.busy < self._settings.batch or not batch.looked_at:
                return total
            await self._rest(began, gentle=gentle)

    def _tell(self, batch: Batch) -> None:
        """Let every node forget what links it remembers."""
        self._publish(*(Forget(gone.repository, gone.digest) for gone in batch.removed if gone.repository is not None))

    async def _rest(self, began: float, *, gentle: bool) -> None:
        settings = self._settings
        took = trio.current_time() - began
        pause = min(settings.longest_rest, max(settings.shortest_rest, settings.rest * took))
        await trio.sleep(pause if gentle else 0)

    def _note_pause(self, reason: str) -> None:
        if reason and not self._paused:
            _log.error(
                "collection is paused",
                reason=reason,
                go_on="antipode repair --after-restore, or antipode collect --resume",
            )
        elif self._paused and not reason:
            _log.info("collection goes on")
        self._paused = reason

    async def run(
        self,
        every: float,
        held: Callable[[], bool] = lambda: False,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Collect for ever, `every` so many seconds, unless `held()`; a database that is away is simply asked again next time."""
        task_status.started()
        while True:
            try:
                found = Collected() if held() else await self.collect()
                if found.removed:
                    _log.info(
                        "garbage collected",
                        **{kind.replace(" ", "_"): n for kind, n in found.removed},
                        bytes=found.bytes,
                    )
            except LedgerUnavailable as error:
                _log.warning("collection postponed: the database is away", reason=str(error))
            await trio.sleep(every)
