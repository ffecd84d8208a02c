"""The scheduler: one loop per location that claims what is due and pays it, woken by hints and by timers."""

from collections.abc import Awaitable, Callable, Mapping

import trio
from attrs import define, evolve, field, frozen

from replication import plan
from replication.copier import Copier, CopyEnd, CopyReport
from replication.model import Board, ClusterView, CopyTask, Verdict
from replication.ports import Hints, Ledger, LedgerUnavailable, Placed, Wake
from replication.sources import health_of
from replication.sweeper import Sweeper


@frozen
class SchedulerSettings:
    """Durations in seconds."""

    streams: int = 8
    """Copies at once, per node."""
    streams_per_location: int = 8
    lease_seconds: float = 30.0
    poll: float = 30.0
    """The safety net: how long a location may go without being looked at."""
    between_sweeps: float = 1.0
    """A location's dead objects are asked for at most so often, however many wake-ups come."""
    shortest_wait: float = 0.25
    """Between two looks at a location where something is due but nothing could be had."""
    heartbeat: float = 2.0
    silent_after: float = 10.0
    """A node that has been silent for so long owns nothing."""
    hand_back_deadline: float = 5.0
    """How long stopping may take to give leases back."""


@frozen
class Statistics:
    """What the scheduler did since it began; `running` is copies by destination, `last_error` by destination."""

    running: Mapping[str, int] = field(factory=dict)
    copied: int = 0
    copied_bytes: int = 0
    kept_bytes: int = 0
    """Bytes that were not fetched again when a copy was resumed."""
    superseded: int = 0
    failed: int = 0
    leases_lost: int = 0
    deleted: int = 0
    deletes_failed: int = 0
    ledger_failures: int = 0
    last_error: Mapping[str, str] = field(factory=dict)


@define(eq=False)
class _Running:
    """A copy that runs under a lease which is certainly ours until `sure_until`."""

    task: CopyTask
    sure_until: float
    scope: trio.CancelScope = field(factory=trio.CancelScope)


@define(eq=False)
class _Lane:
    """One location's loop."""

    location: str
    woken: trio.Event = field(factory=trio.Event)
    hungry: bool = False
    """The last claim got as much as it asked for: there may be more."""
    claiming: int = 0
    """Copies that a claim which is out may bring."""
    sweeping: bool = False
    sweep_not_before: float = float("-inf")

    def wake(self) -> None:
        self.woken.set()


class Scheduler:
    """Pays debt and deletes dead objects for the locations that this node serves. One per node; run `run` in a nursery.

    `prefixes` are the locations of this node's file with their engines' key prefixes; `board` returns the current board; `jitter`
    a number in [0, 1). `copied` is told every try that ended. `settings` may be replaced at any time. The ledger's own troubles
    are waited out; a bug ends `run`.
    """

    def __init__(
        self,
        ledger: Ledger,
        hints: Hints,
        copier: Copier,
        sweeper: Sweeper,
        board: Callable[[], Board],
        preference: tuple[str, ...],
        prefixes: Mapping[str, str],
        settings: SchedulerSettings,
        jitter: Callable[[], float],
        copied: Callable[[CopyTask, CopyReport], None] | None = None,
    ) -> None:
        self._ledger = ledger
        self._hints = hints
        self._copier = copier
        self._sweeper = sweeper
        self._board = board
        self._preference = preference
        self._prefixes = dict(prefixes)
        self.settings = settings
        self._jitter = jitter
        self._copied = copied
        self._lanes = {location: _Lane(location) for location in prefixes}
        self._running: dict[str, _Running] = {}
        self._duties = plan.Duties((), ())
        self._statistics = Statistics()
        self._last_error: dict[str, str] = {}
        self.cluster: ClusterView | None = None
        """What the latest heartbeat brought back."""
        self.cluster_at = float("-inf")
        """When that was, on Trio's clock."""
        self.draining = False
        """Set by a node that is about to stop: it takes on nothing new."""

    @property
    def statistics(self) -> Statistics:
        """Return the counts as of now."""
        return evolve(self._statistics, running=self._count_running(), last_error=dict(self._last_error))

    @property
    def duties(self) -> plan.Duties:
        """Return what this node serves at the moment."""
        return self._duties

    def nudge(self, location: str | None = None) -> None:
        """Look at a location (None: at all) at once; for example because its health changed. Never waits."""
        for lane in self._lanes.values():
            if location is None or lane.location == location:
                lane.wake()

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Work for ever; started when hints are being listened to. Ends by cancellation, and gives back what it had leased."""
        self._lanes = {location: _Lane(location) for location in self._prefixes}
        self._duties = plan.Duties((), ())
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(self._listen)
                nursery.start_soon(self._beat)
                nursery.start_soon(self._renew)
                for lane in self._lanes.values():
                    nursery.start_soon(self._serve, lane)
                task_status.started()
        finally:
            await self._hand_back()

    async def pay_at_once(self, blob_id: int, location: str) -> bool:
        """Claim and pay the debt of exactly this blob in the caller's task, beyond the limits of streams: a client waits.

        False: this node does not serve the location now, nothing is owed there, or another claim holds the task.
        """
        lane, asked = self._lanes.get(location), trio.current_time()
        if lane is None or location not in self._duties.copies:
            return False
        try:
            task = await self._ledger.claim_copy(
                blob_id, location, self._prefixes[location], self.settings.lease_seconds
            )
        except LedgerUnavailable:
            self._count(ledger_failures=1)
            return False
        if task is None:
            return False
        running = self._running[task.lease] = _Running(task, asked + self.settings.lease_seconds)
        try:
            await self._pay(lane, running)
        finally:
            if self._running.pop(task.lease, None) is not None:
                await self._give_back([task.lease])
        return True

    async def _hand_back(self) -> None:
        leases = list(self._running)
        self._running.clear()
        if leases:
            await self._give_back(leases)

    async def _give_back(self, leases: list[str]) -> None:
        with trio.move_on_after(self.settings.hand_back_deadline, shield=True):
            try:
                await self._ledger.hand_back(leases)
            except LedgerUnavailable:
                self._count(ledger_failures=1)  # They run out by themselves.

    async def _listen(self, task_status: trio.TaskStatus[None]) -> None:
        async with self._hints.subscribe() as subscription:
            task_status.started()
            async for hint in subscription:
                if isinstance(hint, Wake):
                    for location in hint.locations or tuple(self._lanes):
                        if location in self._lanes:
                            self._lanes[location].wake()

    async def _beat(self) -> None:
        while True:
            await self._with_ledger(self._beat_once)
            await trio.sleep(self.settings.heartbeat)

    async def _beat_once(self) -> None:
        drilled = set(self.cluster.drills) if self.cluster is not None else set()
        self.cluster = await self._ledger.heartbeat()
        self.cluster_at = trio.current_time()
        # What a location owes waits while it is drilled, and no longer.
        for location in drilled ^ set(self.cluster.drills):
            self.nudge(location)
        before = self._duties
        self._duties = plan.duties(
            self._preference, self._prefixes, self.cluster, self.settings.silent_after, self.draining
        )
        for location in self._duties.sweeps:
            if location not in before.sweeps or (location in self._duties.copies and location not in before.copies):
                self.nudge(location)

    async def _with_ledger(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do `work`, as often as it takes until the ledger is there."""
        failures = 0
        while True:
            try:
                return await work()
            except LedgerUnavailable:
                failures += 1
                self._count(ledger_failures=1)
                await trio.sleep(plan.backoff(failures, self._jitter(), base=0.5, cap=10.0))

    async def _serve(self, lane: _Lane) -> None:
        """Look at one location whenever something may be due there."""
        wait = 0.0
        async with trio.open_nursery() as nursery:

            async def look() -> None:
                nonlocal wait
                wait = await self._look(lane, nursery)

            while True:
                lane.woken = trio.Event()
                await self._with_ledger(look)
                with trio.move_on_after(min(wait, self.settings.poll)):
                    await lane.woken.wait()

    async def _look(self, lane: _Lane, nursery: trio.Nursery) -> float:
        """Start what can be started at one location; return how many seconds to wait for a wake-up."""
        location, settings = lane.location, self.settings
        if location not in self._duties.sweeps:
            return settings.poll
        health = health_of(self._board(), location)
        lane.hungry = False
        if health.verdict is Verdict.DOWN:
            return settings.poll
        self._start_sweep(lane, nursery)
        if location not in self._duties.copies:
            return settings.poll if lane.sweeping else await self._until_due(lane)
        room = plan.copies_to_claim(
            location,
            self._duties.copies,
            self._count_running(),
            health,
            total=settings.streams,
            per_location=settings.streams_per_location,
        )
        lane.hungry = room == 0
        if room == 0:
            return settings.poll
        asked = trio.current_time()
        lane.claiming = room
        try:
            tasks = await self._ledger.claim_copies(location, self._prefixes[location], room, settings.lease_seconds)
        finally:
            lane.claiming = 0
        for task in tasks:
            running = _Running(task, asked + settings.lease_seconds)
            self._running[task.lease] = running
            nursery.start_soon(self._pay, lane, running)
        lane.hungry = len(tasks) == room
        return settings.poll if lane.hungry else await self._until_due(lane)

    async def _until_due(self, lane: _Lane) -> float:
        due = await self._ledger.next_due([lane.location])
        return self.settings.poll if due is None else max(due, self.settings.shortest_wait)

    def _start_sweep(self, lane: _Lane, nursery: trio.Nursery) -> None:
        now = trio.current_time()
        if lane.sweeping or now < lane.sweep_not_before:
            return
        lane.sweeping = True
        lane.sweep_not_before = now + self.settings.between_sweeps
        nursery.start_soon(self._sweep, lane)

    async def _sweep(self, lane: _Lane) -> None:
        """Delete until nothing is due. A store that is slow in this holds up nothing but its own deletes."""
        try:
            while True:
                report = await self._sweeper.sweep(lane.location)
                self._count(deleted=report.deleted, deletes_failed=report.failed)
                if report.deleted == 0:
                    break
        except LedgerUnavailable:
            self._count(ledger_failures=1)
        lane.sweeping = False
        lane.wake()

    async def _pay(self, lane: _Lane, running: _Running) -> None:
        task = running.task
        try:
            with running.scope:
                await self._settle(lane, task, await self._copier.pay(task))
        except LedgerUnavailable:
            self._count(ledger_failures=1)  # The lease runs out by itself.
        except Exception as bug:
            # It ends the scheduler; without this the next one would meet the same task at once, for ever.
            with trio.move_on_after(self.settings.hand_back_deadline, shield=True):
                await self._fail(task, f"bug: {type(bug).__name__}: {bug}")
            raise
        self._running.pop(task.lease, None)
        if running.scope.cancelled_caught:
            self._count(leases_lost=1)
        for other in self._lanes.values():
            if other.hungry:
                other.wake()

    async def _settle(self, lane: _Lane, task: CopyTask, report: CopyReport) -> None:
        if self._copied is not None:
            self._copied(task, report)
        if report.end is CopyEnd.PLACED:
            self._count(copied=1, copied_bytes=report.fetched, kept_bytes=report.kept)
            self._last_error.pop(task.destination, None)
            self._hints.publish(Placed(task.blob.digest, task.destination))
        elif report.end is CopyEnd.SUPERSEDED:
            self._count(superseded=1)
            lane.wake()
        elif report.end is CopyEnd.LEASE_LOST:
            self._count(leases_lost=1)
        elif report.end is CopyEnd.LEDGER_UNAVAILABLE:
            self._count(ledger_failures=1)
        else:
            await self._fail(task, report.error)

    async def _fail(self, task: CopyTask, error: str) -> None:
        self._count(failed=1)
        self._last_error[task.destination] = error
        await self._ledger.fail_copy(task, error, plan.backoff(task.attempts + 1, self._jitter()))

    async def _renew(self) -> None:
        """Keep the leases of running copies, and stop the copies whose lease is lost or can no longer be known to be ours."""
        while True:
            await trio.sleep(self.settings.lease_seconds / 3)
            asked = trio.current_time()
            leases = list(self._running)
            if not leases:
                continue
            kept: frozenset[str] = frozenset(leases)
            with trio.move_on_after(self.settings.lease_seconds / 3):
                try:
                    kept = await self._ledger.renew(leases, self.settings.lease_seconds)
                except LedgerUnavailable:
                    self._count(ledger_failures=1)
                else:
                    for lease in kept & self._running.keys():
                        self._running[lease].sure_until = asked + self.settings.lease_seconds
            now = trio.current_time()
            for lease in leases:
                running = self._running.get(lease)
                if running is not None and (lease not in kept or running.sure_until <= now):
                    running.scope.cancel()

    def _count_running(self) -> dict[str, int]:
        counts: dict[str, int] = {}
        for running in self._running.values():
            counts[running.task.destination] = counts.get(running.task.destination, 0) + 1
        for lane in self._lanes.values():
            if lane.claiming:
                counts[lane.location] = counts.get(lane.location, 0) + lane.claiming
        return counts

    def _count(self, **more: int) -> None:
        self._statistics = evolve(
            self._statistics, **{name: getattr(self._statistics, name) + by for name, by in more.items()}
        )
