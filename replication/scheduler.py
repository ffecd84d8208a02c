"""The scheduler: one loop per location that claims what is due and pays it, woken by hints and by timers."""

from collections.abc import Awaitable, Callable, Mapping, Sequence

import trio
from attrs import define, evolve, field, frozen

from replication import plan
from replication.copier import Copier, CopyEnd, CopyReport
from replication.leases import HAND_BACK_DEADLINE, Held, Leases
from replication.model import Board, ClusterView, CopyTask, Verdict
from replication.ports import Hints, Ledger, LedgerUnavailable, Placed, Wake
from replication.sources import choose_sources, health_of
from replication.sweeper import Sweeper


@frozen
class SchedulerSettings:
    """Durations in seconds."""

    streams: int = 8
    """Copies at once, per node; of small blobs with a long way several share one (`plan.stream_share`)."""
    streams_per_location: int = 8
    lease_seconds: float = 30.0
    poll: float = 30.0
    """The safety net: how long a location may go without being looked at."""
    between_sweeps: float = 1.0
    """A location's dead objects are asked for at most so often, however many wake-ups come."""
    shortest_wait: float = 0.25
    """Between two looks at a location where something is due but nothing could be had."""
    heartbeat: float = 2.0
    silent_after: float = plan.SILENT_AFTER
    ahead: int = 32
    """Tasks per location that are claimed before there is a stream for them."""


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
class _Lane:
    """One location's loop."""

    location: str
    woken: trio.Event = field(factory=trio.Event)
    nursery: trio.Nursery | None = None
    """Where its copies run, as long as it is served."""
    hungry: bool = False
    """More may be due than is claimed."""
    slow: bool = False
    """What was claimed ahead had to go back: nothing is, until a stream is free again."""
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
        self._leases = Leases(ledger, lambda: self.settings.lease_seconds, lambda: self._count(ledger_failures=1))
        self._duties = plan.Duties((), ())
        self._statistics = Statistics()
        self._last_error: dict[str, str] = {}
        self.cluster: ClusterView | None = None
        """What the latest heartbeat brought back."""
        self.cluster_at = float("-inf")
        """When that was, on Trio's clock."""
        self.enrolled = trio.Event()
        """Set once the shared table has shown this node: the others can know of it."""
        self.draining = False
        """Set by a node that is about to stop: it takes on nothing new."""

    @property
    def statistics(self) -> Statistics:
        """Return the counts as of now."""
        return evolve(self._statistics, running=self._leases.count(), last_error=dict(self._last_error))

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
            await self._leases.hand_back()

    async def pay_at_once(self, blob_id: int, location: str) -> bool:
        """Claim and pay the debt of exactly this blob in the caller's task, beyond the limits of streams: a client waits.

        False: this node does not serve the location now, nothing is owed there, or another claim holds the task.
        """
        lane = self._lanes.get(location)
        if lane is None or location not in self._duties.copies:
            return False
        try:
            held = await self._leases.begin_at_once(blob_id, location, self._prefixes[location])
        except LedgerUnavailable:
            self._count(ledger_failures=1)
            return False
        if held is None:
            return False
        try:
            await self._pay(lane, held)
        finally:
            await self._leases.abort(held)
        return True

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
        self.enrolled.set()
        # What a location owes waits while it is drilled, and no longer.
        for location in drilled ^ set(self.cluster.drills):
            self.nudge(location)
        before = self._duties
        self._duties = plan.duties(
            self._preference, self._prefixes, self.cluster, self.settings.silent_after, self.draining
        )
        for location in {*self._duties.sweeps} - {*before.sweeps} | {*self._duties.copies} ^ {*before.copies}:
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
        async with trio.open_nursery() as lane.nursery:

            async def look() -> None:
                nonlocal wait
                wait = await self._look(lane)

            try:
                while True:
                    lane.woken = trio.Event()
                    await self._with_ledger(look)
                    with trio.move_on_after(min(wait, self.settings.poll)):
                        await lane.woken.wait()
            finally:
                lane.nursery = None

    async def _look(self, lane: _Lane) -> float:
        """Start what can be started at one location; return how many seconds to wait for a wake-up."""
        location, settings = lane.location, self.settings
        down = health_of(self._board(), location).verdict is Verdict.DOWN
        lane.hungry = False
        if down or location not in self._duties.copies:
            await self._leases.hand_back(location)
        if down or location not in self._duties.sweeps:
            return settings.poll
        self._start_sweep(lane)
        if location not in self._duties.copies:
            return settings.poll if lane.sweeping else await self._until_due(lane)
        self._start_waiting(lane)
        room, ahead = int(self._room(location)), self._room_ahead(lane)
        if room or ahead:
            asked = trio.current_time()
            lane.claiming = room
            try:
                tasks = await self._ledger.claim_copies(
                    location, self._prefixes[location], room, settings.lease_seconds, ahead
                )
            finally:
                lane.claiming = 0
            self._leases.hold(tasks, asked)
            self._start_waiting(lane)
            if len(tasks) < max(room, 1):
                return await self._until_due(lane)
        lane.hungry = True
        return settings.poll

    def _room(self, location: str) -> float:
        """Return how many streams are free for copies into a location."""
        if location not in self._duties.copies or self.draining:
            return 0.0
        running = self._leases.streams()
        for lane in self._lanes.values():
            if lane.claiming:
                running[lane.location] = running.get(lane.location, 0) + lane.claiming
        return plan.free_streams(
            location,
            self._duties.copies,
            running,
            health_of(self._board(), location),
            # A ledger that does not take what has landed must not be brought ever more.
            total=self.settings.streams - max(0, self._leases.count_landed() - self.settings.ahead),
            per_location=self.settings.streams_per_location,
        )

    def _room_ahead(self, lane: _Lane) -> int:
        """Return how many tasks to claim ahead: none before half of those that wait have begun, so that claims are few."""
        known = health_of(self._board(), lane.location).verdict is Verdict.HEALTHY
        waiting = self._leases.count_waiting(lane.location)
        enough = lane.slow or self.draining or not known or 2 * waiting > self.settings.ahead
        return 0 if enough else self.settings.ahead - waiting

    def _start_waiting(self, lane: _Lane) -> None:
        """Give free streams to what waits for them."""
        if lane.nursery is None or not self._leases.count_waiting(lane.location):
            return
        while (free := self._room(lane.location)) > 0.0:
            held = self._leases.begin(lane.location, free, self._share)
            if held is None:
                return
            lane.nursery.start_soon(self._pay, lane, held)

    def _share(self, task: CopyTask) -> float:
        board = self._board()
        source = choose_sources(task.placements, self._preference, board)[:1]
        ways = (health_of(board, name).distance for name in (task.destination, *(copy.location for copy in source)))
        return plan.stream_share(task.blob.size, max((way for way in ways if way is not None), default=None))

    def _freed(self, lane: _Lane) -> None:
        """A stream is free: the location with the fewest copies has it first."""
        lane.slow = False
        running = self._leases.streams()
        for other in sorted(self._lanes.values(), key=lambda lane: running.get(lane.location, 0)):
            self._start_waiting(other)
            if other.hungry and (self._room_ahead(other) or self._room(other.location) >= 1.0):
                other.wake()

    async def _until_due(self, lane: _Lane) -> float:
        due = await self._ledger.next_due([lane.location])
        return self.settings.poll if due is None else max(due, self.settings.shortest_wait)

    def _start_sweep(self, lane: _Lane) -> None:
        now = trio.current_time()
        if lane.sweeping or now < lane.sweep_not_before:
            return
        lane.sweeping = True
        lane.sweep_not_before = now + self.settings.between_sweeps
        assert lane.nursery is not None
        lane.nursery.start_soon(self._sweep, lane)

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

    async def _pay(self, lane: _Lane, held: Held) -> None:
        task = held.task

        def landed() -> None:
            held.landed = True
            self._freed(lane)

        try:
            with held.scope:
                await self._settle(lane, task, await self._copier.pay(task, landed))
        except LedgerUnavailable:
            self._count(ledger_failures=1)  # The lease runs out by itself.
        except Exception as bug:
            # It ends the scheduler; without this the next one would meet the same task at once, for ever.
            with trio.move_on_after(HAND_BACK_DEADLINE, shield=True):
                await self._fail(task, f"bug: {type(bug).__name__}: {bug}")
            raise
        self._leases.end(held)
        if held.scope.cancelled_caught:
            self._count(leases_lost=1)
        # The stream of one that landed is somebody else's already, unless so many had landed that none were given.
        if not held.landed or self._leases.count_landed() >= self.settings.ahead:
            self._freed(lane)

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
            await self._fail(task, report.error, report.unreached)
            # It is due again soon, and the lane may have asked what is due while this one was still under way.
            lane.wake()

    async def _fail(self, task: CopyTask, error: str, unreached: Sequence[str] = ()) -> None:
        self._count(failed=1)
        self._last_error[task.destination] = error
        await self._ledger.fail_copy(task, error, plan.backoff(task.attempts + 1, self._jitter()), unreached)

    async def _renew(self) -> None:
        """Keep the leases of running copies."""
        while True:
            await trio.sleep(self.settings.lease_seconds / 3)
            for location in await self._leases.renew():
                self._lanes[location].slow = True
                self._hints.publish(Wake((location,)))

    def _count(self, **more: int) -> None:
        self._statistics = evolve(
            self._statistics, **{name: getattr(self._statistics, name) + by for name, by in more.items()}
        )
