"""The reconciler: recomputes required minus present in pages, gently all the time and at once after a change, with other nodes."""

from collections.abc import Callable, Iterable

import structlog
import trio
from attrs import define, evolve, field, frozen

from replication.drainer import Drainer
from replication.ports import Forget, Hints, LedgerUnavailable, Publish, Wake
from replication.reconcile import Settlement, settle
from replication.rounds import Applied, Candidate, CandidatePage, PageKind, Rounds
from replication.trimmer import Trimmer

_log = structlog.get_logger("antipode.reconciler")


@frozen
class ReconcilerSettings:
    """Durations in seconds."""

    page: int = 500
    """Blobs looked at in one statement."""
    rest: float = 9.0
    """How many times as long as a page took the node rests after it, unless somebody waits."""
    shortest_rest: float = 1.0
    longest_rest: float = 15.0
    between_rounds: float = 60.0
    poll: float = 3.0
    """How soon a node that has nothing to do looks whether somebody asked for a round."""
    keep: float = 1505.0
    """How long what an orphaned task may have written stays: as long as bytes that were trimmed."""
    replicate: bool = True
    """FEATURE_STORAGE_REPLICATION."""


@frozen
class Findings:
    """What a reconciliation found and did. Counts of blobs, tasks and copies."""

    blobs: int = 0
    """Blobs looked at."""
    owed: int = 0
    """Copies that were owed without a task: scheduled now."""
    moving: int = 0
    """Of these, copies of blobs that must leave where they are."""
    struck: int = 0
    """Tasks that nothing required, or that were paid: removed."""
    spare: int = 0
    """Copies that nothing required, or that were forbidden: they go once another one was read."""
    trimmed: int = 0
    """Of these, copies that went: their objects are dead."""
    tags: int = 0
    """Rows of tags' locations that changed."""
    busy: int = 0
    """Blobs that were in use, or changed while they were looked at: left to the next round."""

    def __add__(self, other: "Findings") -> "Findings":
        """Return both together."""
        names = ("blobs", "owed", "moving", "struck", "spare", "trimmed", "tags", "busy")
        return Findings(**{name: getattr(self, name) + getattr(other, name) for name in names})


async def settle_page(
    rounds: Rounds,
    publish: Publish,
    page: CandidatePage,
    settings: ReconcilerSettings,
    down: frozenset[str],
    trimmer: Trimmer | None,
) -> Findings:
    """Decide and apply what a page of blobs needs, and tell the nodes. Raises LedgerUnavailable.

    Copies that have to go are offered to `trimmer`; with None they stay, and a node's own round finds them.
    """
    decided = [
        (candidate, settle(candidate.facts, replicate=settings.replicate, down=down)) for candidate in page.candidates
    ]
    if trimmer is not None:
        for candidate, made in decided:
            if made.trim:
                trimmer.offer(candidate)
    todo = [(candidate, evolve(made, trim=())) for candidate, made in decided if made.owe or made.strike]
    findings = Findings(blobs=page.looked_at, spare=sum(len(made.trim) for _, made in decided))
    if not todo:
        return findings
    outcomes = await rounds.apply_settlements(todo, settings.keep)
    done = [pair for pair, outcome in zip(todo, outcomes, strict=True) if outcome is Applied.DONE]
    _tell(publish, done)
    return findings + Findings(
        owed=sum(len(made.owe) for _, made in done),
        moving=sum(len(made.owe) for _, made in done if made.moving),
        struck=sum(len(made.strike) for _, made in done),
        busy=len(todo) - len(done),
    )


def _tell(publish: Publish, done: Iterable[tuple[Candidate, Settlement]]) -> None:
    woken: set[str] = set()
    for _, made in done:
        woken.update(made.owe)
    if woken:
        publish(Wake(tuple(sorted(woken))))


async def backfill(
    rounds: Rounds,
    publish: Publish,
    settings: ReconcilerSettings,
    *,
    down: frozenset[str] = frozenset(),
    trimmer: Trimmer | None = None,
    progress: Callable[[Findings], None] = lambda _: None,
) -> Findings:
    """Do a whole round now, alone, and return what it found. Idempotent; safe beside pushes and the nodes' own rounds.

    `progress` is told the findings so far after every page. Raises LedgerUnavailable.
    """
    await rounds.forget_wishes()
    findings = Findings(tags=await rounds.compile_tags() if settings.replicate else 0)
    after: int | None = 0
    while after is not None:
        page = await rounds.find_candidates(after, None, settings.page, replicate=settings.replicate)
        findings += await settle_page(rounds, publish, page, settings, down, trimmer)
        if trimmer is not None:
            findings += Findings(trimmed=await trimmer.work())
        progress(findings)
        after = page.last
    return findings


@define(eq=False)
class Reconciler:
    """One node's part in the shared rounds. `trimmer` takes away what has to go, and knows what this node sees down.

    `drainer` reads what a location that is being emptied must not be the last to have.
    """

    rounds: Rounds
    hints: Hints
    settings: ReconcilerSettings
    trimmer: Trimmer
    drainer: Drainer
    totals: Findings = Findings()
    """What this node found since it began, without what was trimmed: `findings` has that, too."""
    failures: int = 0
    """Steps that failed because the database was away."""
    _nudged: trio.Event = field(factory=trio.Event)

    def findings(self) -> Findings:
        """Return what this node found and did since it began."""
        return evolve(self.totals, trimmed=self.trimmer.totals.trimmed)

    def nudge(self) -> None:
        """Look at once whether somebody asked for a round. Never waits."""
        self._nudged.set()

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Reconcile for ever. Ends by cancellation; a database that is away is waited for."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self._listen)
            nursery.start_soon(self.trimmer.run)
            nursery.start_soon(self.drainer.run)
            task_status.started()
            while True:
                self._nudged = trio.Event()
                try:
                    pause = await self.step()
                except LedgerUnavailable as error:
                    self.failures += 1
                    _log.warning("reconciliation postponed: the database is away", reason=str(error))
                    pause = self.settings.longest_rest
                with trio.move_on_after(pause):
                    await self._nudged.wait()

    async def _listen(self, task_status: trio.TaskStatus[None]) -> None:
        """A hint that all may have changed comes with a change of policy or of a location's state."""
        async with self.hints.subscribe() as subscription:
            task_status.started()
            async for hint in subscription:
                if isinstance(hint, Forget) and hint.repository is None and hint.digest is None:
                    self.nudge()

    async def step(self) -> float:
        """Do the next piece of the round, if there is one; return the seconds to rest after it. Raises LedgerUnavailable."""
        rounds, settings, began = self.rounds, self.settings, trio.current_time()
        page = await rounds.claim_page(settings.page, settings.between_rounds)
        if page.kind is PageKind.REST:
            for name in await rounds.note_drained():
                _log.info("location is drained: each of its blobs has a copy elsewhere that was read", location=name)
                self.hints.publish(Forget())
            # Only who has nothing better to do takes rows of removed locations away.
            purged = await rounds.purge_removed()
            # Looking whether a large location is drained takes its time.
            pause = max(
                settings.shortest_rest if page.hurry else settings.poll, settings.rest * (trio.current_time() - began)
            )
            return 0.0 if purged else min(pause, settings.longest_rest)
        if page.kind is PageKind.TAGS:
            await rounds.forget_wishes()
            found = Findings(tags=await rounds.compile_tags() if settings.replicate else 0)
        else:
            candidates = await rounds.find_candidates(
                page.after, page.last, settings.page, replicate=settings.replicate
            )
            found = await settle_page(
                rounds, self.hints.publish, candidates, settings, self.trimmer.down(), self.trimmer
            )
        await rounds.finish_page(page)
        self.totals += found
        if evolve(found, blobs=0) != Findings():
            _log.info("reconciled", owed=found.owed, struck=found.struck, spare=found.spare, tags=found.tags)
        if page.hurry:
            return 0.0
        took = trio.current_time() - began
        return min(max(settings.rest * took, settings.shortest_rest), settings.longest_rest)
