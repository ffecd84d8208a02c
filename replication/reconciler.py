"""The reconciler: recomputes required minus present in pages, gently all the time and at once after a change, with other nodes."""

from collections.abc import Callable, Iterable

import structlog
import trio
from attrs import define, evolve, field, frozen

from replication.ports import Forget, Hints, LedgerUnavailable, Placed, Publish, Wake
from replication.reconcile import Settlement, settle
from replication.rounds import Applied, Candidate, CandidatePage, PageKind, Rounds

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
    keep: float = 605.0
    """How long trimmed bytes stay: the lifetime of a presigned URL, and of what nodes remember."""
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
    trimmed: int = 0
    """Copies that nothing required, or that were forbidden: their objects are dead."""
    tags: int = 0
    """Rows of tags' locations that changed."""
    busy: int = 0
    """Blobs that were in use, or changed while they were looked at: left to the next round."""

    def __add__(self, other: "Findings") -> "Findings":
        """Return both together."""
        names = ("blobs", "owed", "moving", "struck", "trimmed", "tags", "busy")
        return Findings(**{name: getattr(self, name) + getattr(other, name) for name in names})


async def settle_page(
    rounds: Rounds, publish: Publish, page: CandidatePage, settings: ReconcilerSettings, down: frozenset[str]
) -> Findings:
    """Decide and apply what a page of blobs needs, and tell the nodes. Raises LedgerUnavailable."""
    decided = [
        (candidate, settle(candidate.facts, replicate=settings.replicate, down=down)) for candidate in page.candidates
    ]
    todo = [(candidate, made) for candidate, made in decided if not made.settled]
    findings = Findings(blobs=page.looked_at)
    if not todo:
        return findings
    outcomes = await rounds.apply_settlements(todo, settings.keep)
    done = [pair for pair, outcome in zip(todo, outcomes, strict=True) if outcome is Applied.DONE]
    _tell(publish, done)
    return findings + Findings(
        owed=sum(len(made.owe) for _, made in done),
        moving=sum(len(made.owe) for _, made in done if made.moving),
        struck=sum(len(made.strike) for _, made in done),
        trimmed=sum(len(made.trim) for _, made in done),
        busy=len(todo) - len(done),
    )


def _tell(publish: Publish, done: Iterable[tuple[Candidate, Settlement]]) -> None:
    woken: set[str] = set()
    for candidate, made in done:
        woken.update(made.owe)
        publish(*(Placed(candidate.digest, at) for at in made.trim))
    if woken:
        publish(Wake(tuple(sorted(woken))))


async def backfill(
    rounds: Rounds,
    publish: Publish,
    settings: ReconcilerSettings,
    *,
    down: frozenset[str] = frozenset(),
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
        findings += await settle_page(rounds, publish, page, settings, down)
        progress(findings)
        after = page.last
    return findings


@define(eq=False)
class Reconciler:
    """One node's part in the shared rounds. `down` returns the locations that this node sees down."""

    rounds: Rounds
    hints: Hints
    settings: ReconcilerSettings
    down: Callable[[], frozenset[str]]
    totals: Findings = Findings()
    """What this node found since it began."""
    failures: int = 0
    """Steps that failed because the database was away."""
    _nudged: trio.Event = field(factory=trio.Event)

    def nudge(self) -> None:
        """Look at once whether somebody asked for a round. Never waits."""
        self._nudged.set()

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Reconcile for ever. Ends by cancellation; a database that is away is waited for."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self._listen)
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
                _log.info("location is drained: nothing is only there any more", location=name)
                self.hints.publish(Forget())
            # Only who has nothing better to do takes rows of removed locations away.
            purged = await rounds.purge_removed()
            return 0.0 if purged else settings.shortest_rest if page.hurry else settings.poll
        if page.kind is PageKind.TAGS:
            await rounds.forget_wishes()
            found = Findings(tags=await rounds.compile_tags() if settings.replicate else 0)
        else:
            candidates = await rounds.find_candidates(
                page.after, page.last, settings.page, replicate=settings.replicate
            )
            found = await settle_page(rounds, self.hints.publish, candidates, settings, self.down())
        await rounds.finish_page(page)
        self.totals += found
        if evolve(found, blobs=0) != Findings():
            _log.info("reconciled", owed=found.owed, struck=found.struck, trimmed=found.trimmed, tags=found.tags)
        if page.hurry:
            return 0.0
        took = trio.current_time() - began
        return min(max(settings.rest * took, settings.shortest_rest), settings.longest_rest)
