"""What a node has leased: copies that run, copies that have landed and are being recorded, and tasks that wait for a stream.

Tasks are claimed ahead, so that no stream waits for the database between two small blobs. What waits too long goes back: another
node may have streams to spare.
"""

from bisect import insort
from collections.abc import Callable, Collection, Sequence

import trio
from attrs import define, field

from replication.model import CopyTask
from replication.ports import Ledger, LedgerUnavailable

HAND_BACK_DEADLINE = 5.0
"""Seconds that giving leases back may take."""


@define(eq=False)
class Held:
    """A task under a lease which is certainly ours until `sure_until`."""

    task: CopyTask
    since: float
    sure_until: float
    scope: trio.CancelScope = field(factory=trio.CancelScope)
    share: float = 1.0
    """How much of a stream it takes (`plan.stream_share`)."""
    landed: bool = False
    """Its bytes are where they belong, and only the ledger is left to be told."""


class Leases:
    """The leases of one node. `seconds` is how long one lasts; `failed` is told that the ledger could not be reached."""

    def __init__(self, ledger: Ledger, seconds: Callable[[], float], failed: Callable[[], None]) -> None:
        self._ledger = ledger
        self._seconds = seconds
        self._failed = failed
        self._paid: dict[str, Held] = {}
        self._waiting: dict[str, list[Held]] = {}

    def hold(self, tasks: Sequence[CopyTask], asked: float) -> None:
        """Let tasks that were asked for at `asked` (Trio's clock) wait for a stream, in the order of the queue."""
        for task in tasks:
            held = Held(task, asked, asked + self._seconds())
            insort(self._waiting.setdefault(task.destination, []), held, key=lambda other: other.task.place)

    def begin(
        self, location: str, free: float = 1.0, share: Callable[[CopyTask], float] = lambda _task: 1.0
    ) -> Held | None:
        """Take the first task that waits for a stream into a location; None if there is none, or its share is not free."""
        waiting = self._waiting.get(location, [])
        while waiting:
            held = waiting[0]
            # Of one that is not sure any more another node may be at work.
            sure = held.sure_until > trio.current_time()
            held.share = share(held.task)
            if sure and held.share > free:
                return None
            waiting.pop(0)
            if sure:
                self._paid[held.task.lease] = held
                return held
        return None

    async def begin_at_once(self, blob_id: int, location: str, key_prefix: str) -> Held | None:
        """Take exactly this task, which may wait here, or is claimed. Raises LedgerUnavailable."""
        waiting = self._waiting.get(location, [])
        held = next((held for held in waiting if held.task.blob.id == blob_id), None)
        if held is not None and held.sure_until > trio.current_time():
            waiting.remove(held)
        else:
            asked = trio.current_time()
            task = await self._ledger.claim_copy(blob_id, location, key_prefix, self._seconds())
            if task is None:
                return None
            held = Held(task, asked, asked + self._seconds())
        self._paid[held.task.lease] = held
        return held

    def end(self, held: Held) -> None:
        """Forget a task that was settled, or whose lease may run out by itself."""
        self._paid.pop(held.task.lease, None)

    async def abort(self, held: Held) -> None:
        """Give a task back that was begun and has not ended, if it is still ours. Not cancelled, but bounded."""
        if self._paid.pop(held.task.lease, None) is not None:
            await self._give_back([held])

    def count(self) -> dict[str, int]:
        """Return how many copies have been begun and not ended, by destination."""
        counts: dict[str, int] = {}
        for held in self._paid.values():
            counts[held.task.destination] = counts.get(held.task.destination, 0) + 1
        return counts

    def streams(self) -> dict[str, float]:
        """Return how many streams are taken by destination: a copy that has landed has left its own."""
        taken: dict[str, float] = {}
        for held in self._paid.values():
            if not held.landed:
                taken[held.task.destination] = taken.get(held.task.destination, 0.0) + held.share
        return taken

    def count_landed(self) -> int:
        """Return how many copies are being recorded."""
        return sum(1 for held in self._paid.values() if held.landed)

    def count_waiting(self, location: str) -> int:
        """Return how many tasks wait for a stream into a location."""
        return len(self._waiting.get(location, ()))

    async def hand_back(self, location: str | None = None) -> None:
        """Give back what waits for a stream into a location, which takes none now; None: everything. Not cancelled, but bounded."""
        if location is None:
            given = [*self._paid.values(), *(held for waiting in self._waiting.values() for held in waiting)]
            self._paid.clear()
            self._waiting.clear()
        else:
            given = self._waiting.pop(location, [])
        if given:
            await self._give_back(given)

    async def renew(self) -> Collection[str]:
        """Keep the leases of copies, and stop those whose lease is lost or can no longer be known to be ours.

        What has waited for a third of a lease goes back; returns the locations into which there was such. To be called as often.
        """
        asked = trio.current_time()
        late = [
            held for waiting in self._waiting.values() for held in waiting if held.since <= asked - self._seconds() / 3
        ]
        for held in late:
            self._waiting[held.task.destination].remove(held)
        if late:
            await self._give_back(late)
        leases = list(self._paid)
        if leases:
            await self._renew(leases)
        return {held.task.destination for held in late}

    async def _renew(self, leases: list[str]) -> None:
        asked = trio.current_time()
        kept: frozenset[str] = frozenset(leases)
        with trio.move_on_after(self._seconds() / 3):
            try:
                kept = await self._ledger.renew(leases, self._seconds())
            except LedgerUnavailable:
                self._failed()
            else:
                for lease in kept & self._paid.keys():
                    self._paid[lease].sure_until = asked + self._seconds()
        now = trio.current_time()
        for lease in leases:
            held = self._paid.get(lease)
            if held is not None and (lease not in kept or held.sure_until <= now):
                held.scope.cancel()

    async def _give_back(self, given: Sequence[Held]) -> None:
        with trio.move_on_after(HAND_BACK_DEADLINE, shield=True):
            try:
                await self._ledger.hand_back([held.task.lease for held in given])
            except LedgerUnavailable:
                self._failed()  # They run out by themselves.
