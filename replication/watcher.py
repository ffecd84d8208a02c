"""The watcher: probes every location on its own schedule, takes in what live traffic saw, and keeps the board."""

from collections.abc import Callable, Mapping
from math import inf

import trio
from attrs import define, field, frozen

from engines.contract import Engine, EngineError
from replication.drill import rehearsed
from replication.health import HealthRules, Record, doubted, line, new_record, probed, settled_until, witnessed
from replication.model import Board, Drill, LocationHealth, Verdict

Changed = Callable[[LocationHealth, LocationHealth], None]
"""Called with a location's line before and after its verdict changed. Must not wait."""

Heard = Callable[[str, bool], None]
"""Called with a location and whether its latest probe was good. Must not wait."""

_MOST_MARKER = 4096
_AFTERWARDS = 1.0
"""Seconds after a standstill in which what traffic waited for too long says nothing."""


@frozen
class ProbeKeys:
    """What to read, and where to write, when a location is probed."""

    marker: str
    """The key of an object that is there as long as the location is the right one."""
    scratch: str
    """The key of a small object that the probe overwrites; this node's own."""
    expected: bytes | None = field(default=None, repr=False)
    """What the marker holds, so that another bucket under an old name is noticed; None accepts anything."""


def probe_keys(prefix: str, node_id: str, expected: bytes | None = None) -> ProbeKeys:
    """Return the usual probe keys under an engine's `prefix`."""
    return ProbeKeys(f"{prefix}_antipode/marker", f"{prefix}_antipode/probe.{node_id}", expected)


@define(eq=False)
class _Probe:
    """A probe in flight: seconds to the marker's bytes and what is wrong, once it has ended in time."""

    scope: trio.CancelScope = field(factory=trio.CancelScope)
    ended: trio.Event = field(factory=trio.Event)
    answer: tuple[float, str | None] | None = None


class Watcher:
    """Knows how every location is. One per node; run `run` in a nursery.

    `writable` says whether this node would write to a location now, and so whether the probe must write too. A store that hangs
    delays only its own line: every location has its own loop, at most one probe in flight, and each probe a deadline.
    """

    def __init__(
        self,
        engines: Mapping[str, Engine],
        keys: Mapping[str, ProbeKeys],
        rules: HealthRules,
        writable: Callable[[str], bool],
        changed: Changed | None = None,
        heard: Heard | None = None,
        lied: Callable[[str], None] | None = None,
        drilled: Callable[[], Mapping[str, Drill]] = dict,
        stood_still: Callable[[float], bool] = lambda _: False,
    ) -> None:
        """`lied` is told of a location that traffic got wrong bytes from; `drilled` says which are to look down.

        `stood_still` says whether this process did at any moment since one of Trio's clock: then nobody is to blame for being late.
        """
        self._engines = dict(engines)
        self._keys = keys
        self._rules = rules
        self._writable = writable
        self._changed = changed
        self._heard = heard
        self._lied = lied
        self._drilled = drilled
        self._stood_still = stood_still
        self._asked: dict[str, trio.Event] = {name: trio.Event() for name in engines}
        self._records: dict[str, Record] = {name: new_record(name, 0.0) for name in engines}
        self._looked: dict[str, trio.Event] = {name: trio.Event() for name in engines}
        self._last: Board = {}
        self._last_until = -inf
        """Until then nothing changes in `_last` but by a new record."""

    @property
    def board(self) -> Board:
        """Return every location's line as of this moment, down where a drill says so. Costs no I/O.

        It is the same object for as long as nothing has changed but the time.
        """
        return self.board_at(trio.current_time())

    def board_at(self, now: float) -> Board:
        """Return `board` to whoever has just looked at the clock."""
        measured, drilled = self.measured_at(now), self._drilled()
        return rehearsed(measured, drilled, now) if drilled else measured

    @property
    def measured(self) -> Board:
        """Return every location's line as it is, drill or not, as `board` does."""
        return self.measured_at(trio.current_time())

    def measured_at(self, now: float) -> Board:
        """Return `measured` to whoever has just looked at the clock."""
        if now > self._last_until:
            self._last = {name: line(record, self._rules, now) for name, record in self._records.items()}
            self._last_until = min((settled_until(record, now) for record in self._records.values()), default=inf)
        return self._last

    def report(
        self, location: str, ok: bool, latency: float | None = None, reason: str | None = None, lied: bool = False
    ) -> None:
        """Take in what live traffic saw at `location`: `latency` is seconds to the first byte, `reason` says what failed."""
        record = self._records.get(location)
        if record is not None:
            now = trio.current_time()
            if not lied and self._stood_still(now - _AFTERWARDS):
                return
            self._replace(
                witnessed(record, self._rules, now=now, ok=ok, latency=latency, reason=reason or "", lied=lied)
            )
            # A spoilt store lies often; the others need to hear of it before they trust it again.
            if lied and self._lied is not None and record.health.doubted_until < now + self._rules.doubt / 2:
                self._lied(location)

    def doubt(self, location: str) -> None:
        """Take in that another node got wrong bytes from `location`."""
        record = self._records.get(location)
        if record is not None:
            self._replace(doubted(record, self._rules, trio.current_time()))

    def look_now(self, location: str) -> None:
        """Probe `location` at once instead of at its next turn, unless it is known to ail: somebody else says that it does.

        A hint moves a probe and never a verdict. Probes keep a quarter of their interval at least.
        """
        record = self._records.get(location)
        if record is not None and record.health.verdict in (Verdict.HEALTHY, Verdict.UNKNOWN):
            self._asked[location].set()

    async def first_round(self) -> None:
        """Wait until every location was probed once, well or not: at most the probe deadline after `run` has started."""
        for event in self._looked.values():
            await event.wait()

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Probe for ever. Ends by cancellation."""
        now = trio.current_time()
        self._records = {name: new_record(name, now) for name in self._engines}
        self._last_until = -inf
        async with trio.open_nursery() as nursery:
            for name in self._engines:
                nursery.start_soon(self._watch, name)
            task_status.started()

    async def _watch(self, name: str) -> None:
        excused = False
        async with trio.open_nursery() as nursery:
            while True:
                began = trio.current_time()
                probe = _Probe()
                nursery.start_soon(self._run_probe, name, probe)
                with trio.move_on_after(self._rules.deadline):
                    await probe.ended.wait()
                late = self._stood_still(began)
                if late and not excused and (probe.answer is None or probe.answer[1] is not None):
                    # Once: a node that is held up all the time must still find out.
                    excused = True
                    probe.scope.cancel()
                    with trio.move_on_after(self._rules.interval):
                        await probe.ended.wait()
                    continue
                excused = False
                if probe.answer is None:
                    await self._give_up(name, began, probe)
                else:
                    latency, reason = probe.answer
                    told = None if late else latency
                    self._probed(name, began, ok=reason is None, latency=told, reason=reason or "")
                await trio.sleep_until(max(began + self._rules.interval / 4, trio.current_time()))
                with trio.move_on_at(began + self._rules.interval):
                    await self._asked[name].wait()
                self._asked[name] = trio.Event()

    async def _run_probe(self, name: str, probe: _Probe) -> None:
        with probe.scope:
            probe.answer = await self._probe(name)
        probe.ended.set()

    async def _give_up(self, name: str, began: float, probe: _Probe) -> None:
        """Cancel a late probe. As long as its engine ignores that, every interval counts as one more failure."""
        probe.scope.cancel()
        while True:
            self._probed(name, began, ok=False, reason=f"no answer to a probe for {trio.current_time() - began:.1f} s")
            with trio.move_on_after(self._rules.interval):
                await probe.ended.wait()
            if probe.ended.is_set():
                return

    async def _probe(self, name: str) -> tuple[float, str | None]:
        """Return the seconds to the marker's bytes, and what is wrong, if anything."""
        engine, keys = self._engines[name], self._keys[name]
        began = trio.current_time()
        latency = 0.0
        try:
            if keys.expected is None:
                async with engine.open(keys.marker) as reader:
                    await reader.receive(_MOST_MARKER)
            elif await engine.read(keys.marker, 0, len(keys.expected)) != keys.expected:
                return 0.0, "the marker object is another location's"
            latency = trio.current_time() - began
            if self._writable(name):
                await engine.put(keys.scratch, b"probe\n")
        except EngineError as error:
            return latency, f"{type(error).__name__}: {error}"
        return latency, None

    def _probed(self, name: str, began: float, *, ok: bool, latency: float | None = None, reason: str = "") -> None:
        now = trio.current_time()
        record = self._records[name]
        self._replace(
            probed(record, self._rules, began=began, now=now, ok=ok, latency=latency if ok else None, reason=reason)
        )
        self._looked[name].set()
        if self._heard is not None:
            self._heard(name, ok)

    def _replace(self, record: Record) -> None:
        name = record.health.location
        before, self._records[name] = self._records[name].health, record
        self._last_until = -inf
        if self._changed is not None and before.verdict is not record.health.verdict:
            self._changed(before, record.health)
