"""Waiting until a closure is where it should be: woken by hints, shared by all who wait for the same, never polling the database.

A hint is only ever a reason to look. What it says is put into a copy of the facts; when that would end somebody's wait, the
database is asked, once for all who wait for this closure. A slow safety net looks where hints were lost.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import trio
from attrs import define, field, frozen

from node.shares import Places
from replication.closure import Closure
from replication.ports import Forget, Hints, Placed

SAFETY_NET = 10.0
"""Seconds after which a closure that somebody waits for is looked at although no hint came."""

_AT_ONCE = 8
"""Looks at closures that are out at once: each takes the database as long as many pulls, and as many may be due as wait."""

_BETWEEN_DOUBTS = 0.25
"""Seconds between two looks at one closure because something about it may have changed for the worse."""

Done = Callable[[Closure], bool]


class TooManyWaiting(Exception):
    """Everybody who may wait at once does, or whoever asks has their share; the message says how many wait."""


class Vanished(Exception):
    """The repository has the manifest no more."""


@frozen
class Subject:
    """What is waited for: a manifest of a repository, with what is attached to it if `referrers`; where (empty: anywhere)."""

    repository: str
    digest: str
    referrers: bool = False
    locations: tuple[str, ...] = ()
    whole: bool = True
    """Whether queues and requirements are asked for, too."""


Look = Callable[[Subject], Awaitable[Closure | None]]


@define(eq=False)
class _Watch:
    """One closure that somebody waits for. `facts` are what the database said last, `assumed` what hints made of them."""

    subject: Subject
    waiters: int = 0
    facts: Closure | None = None
    assumed: Closure | None = None
    digests: frozenset[str] = frozenset()
    began: float = float("-inf")
    """When the look that brought `facts` began."""
    heard_at: float = float("-inf")
    """When the latest hint about it came: facts that were asked for before may lack what it says."""
    doubted: bool = False
    """Something may have changed that a hint does not say."""
    early: list[Placed] = field(factory=list)
    """What was heard while a look was out, whose answer may be older."""
    looking: trio.Lock = field(factory=trio.Lock)
    changed: trio.Event = field(factory=trio.Event)

    def note(self, hint: Placed | Forget) -> None:
        """Take in a hint, if it concerns this closure."""
        if isinstance(hint, Placed):
            if self.facts is not None and hint.digest not in self.digests:
                return
            if self.looking.locked():
                self.early.append(hint)
            if self.assumed is not None:
                self.assumed = self.assumed.assuming(hint.digest, hint.location)
        elif hint.repository in (None, self.subject.repository) and hint.digest in (None, self.subject.digest):
            self.doubted = True
        elif hint.digest in self.digests:
            # Pushed again, perhaps into another location, or gone.
            self.doubted = True
        else:
            return
        self.heard_at = trio.current_time()
        self.wake()

    def wake(self) -> None:
        """Let everybody who waits look at it again."""
        self.changed.set()
        self.changed = trio.Event()

    def answered(self, facts: Closure, began: float) -> None:
        """Take in what the database said."""
        self.began, self.facts, self.assumed = began, facts, facts
        self.digests = frozenset(blob.digest for blob in facts.blobs)
        for hint in self.early:
            self.assumed = self.assumed.assuming(hint.digest, hint.location)
        self.early.clear()
        # Others may wait for something else of it.
        self.wake()


@define(eq=False)
class Waiting:
    """Everybody who waits on this node. `run` must be running, else only the safety net wakes.

    `look` reads a closure's facts. As many wait at once as there are `places`.
    """

    _look: Look
    _hints: Hints
    places: Places
    safety_net: float = SAFETY_NET
    looks: int = 0
    """Times that the database was asked."""
    _watches: dict[Subject, _Watch] = field(factory=dict)
    _looking: trio.CapacityLimiter = field(factory=lambda: trio.CapacityLimiter(_AT_ONCE))
    _closing: bool = False

    @property
    def waiters(self) -> int:
        """How many wait at the moment."""
        return self.places.taken

    def close(self) -> None:
        """End all waits with what is known, now and from now on: the node is about to stop, and any other may go on."""
        self._closing = True
        for watch in self._watches.values():
            watch.wake()

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen to hints for ever, with one subscription for all. Ends by cancellation."""
        async with self._hints.subscribe() as subscription:
            for watch in self._watches.values():
                watch.note(Forget())
            task_status.started()
            async for hint in subscription:
                if isinstance(hint, Placed | Forget):
                    for watch in self._watches.values():
                        watch.note(hint)

    async def until(self, subject: Subject, done: Done, seconds: float, who: str) -> Closure:
        """Return the closure's facts as soon as `done` holds of them, and after `seconds` in any case.

        They are what the database said during this call, never a hint's word. `who` takes a place meanwhile. Raises TooManyWaiting,
        Vanished, LedgerUnavailable.
        """
        deadline = trio.current_time() + seconds
        async with self._watch(subject, who) as watch:
            facts = await self._fresh(watch, trio.current_time())
            while not done(facts):
                not_before = await self._woken(watch, done, deadline)
                if not_before is None:
                    return await self._fresh(watch, min(deadline, trio.current_time()))
                facts = await self._fresh(watch, not_before)
            return facts

    @asynccontextmanager
    async def _watch(self, subject: Subject, who: str) -> AsyncIterator[_Watch]:
        if not self.places.take(who):
            held, whose = self.places.working_on(who)
            bounded = self.places.refused(who)
            raise TooManyWaiting(f"{held} of {whose} wait already" if bounded else f"{self.places.taken} wait already")
        watch = self._watches.setdefault(subject, _Watch(subject))
        watch.waiters += 1
        try:
            yield watch
        finally:
            self.places.give_back(who)
            watch.waiters -= 1
            if not watch.waiters:
                del self._watches[subject]

    async def _woken(self, watch: _Watch, done: Done, deadline: float) -> float | None:
        """Wait for a reason to look; return the time after which the look must begin, None when the time is up."""
        net = watch.began + self.safety_net
        with trio.move_on_at(min(deadline, net)):
            while not self._closing:
                if watch.assumed is not None and done(watch.assumed):
                    return watch.heard_at
                if watch.doubted:
                    await trio.sleep_until(watch.began + _BETWEEN_DOUBTS)
                    return watch.heard_at
                await watch.changed.wait()
        # Everybody who waits for this closure has the same net, and so the same look.
        return net if not self._closing and trio.current_time() < deadline else None

    async def _fresh(self, watch: _Watch, not_before: float) -> Closure:
        """Return facts that were asked for at `not_before` or later; whoever waits for the same takes the same answer."""
        async with watch.looking:
            if watch.facts is not None and watch.began > not_before:
                return watch.facts
            async with self._looking:
                began = trio.current_time()
                watch.doubted = False
                watch.early.clear()
                self.looks += 1
                found = await self._look(watch.subject)
                if found is None:
                    raise Vanished(watch.subject.digest)
                watch.answered(found, began)
                return found
