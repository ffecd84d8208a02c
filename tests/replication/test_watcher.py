"""The watcher over stores in memory, on a virtual clock: schedules, deadlines, verdicts, and what it must not let one store do."""

from random import Random

import pytest
import trio
from trio.testing import MockClock

from property_tests.memory_engine import Faults, MemoryEngine, MemoryStore
from replication.health import HealthRules
from replication.health import line as line_of
from replication.model import LocationHealth, Placement, Verdict
from replication.sources import may_redirect
from replication.watcher import Watcher, probe_keys

MARKER = b"the right bucket"


class Bench:
    def __init__(self, nursery: trio.Nursery, *names: str, writable: bool = True) -> None:
        self.nursery = nursery
        self.stores = {name: MemoryStore(name, Random(0)) for name in names}
        for store in self.stores.values():
            store.objects["registry/_antipode/marker"] = MARKER
        self.changes: list[tuple[str, Verdict, Verdict]] = []
        engines = {name: MemoryEngine(store) for name, store in self.stores.items()}
        keys = {name: probe_keys(engine.prefix, "n1", MARKER) for name, engine in engines.items()}
        self.stood_still = False
        self.watcher = Watcher(
            engines, keys, HealthRules(), lambda _: writable, self._changed, stood_still=lambda _: self.stood_still
        )

    def _changed(self, before: LocationHealth, after: LocationHealth) -> None:
        self.changes.append((after.location, before.verdict, after.verdict))

    def verdict(self, name: str) -> Verdict:
        return self.watcher.board[name].verdict

    def calls(self, name: str, call: str) -> int:
        return sum(1 for seen, _ in self.stores[name].calls if seen == call)

    async def run(self) -> None:
        await self.nursery.start(self.watcher.run)
        await self.watcher.first_round()


async def test_before_the_first_probe_nothing_is_known(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    """Unknown is not healthy: no redirect goes there."""
    bench = Bench(nursery, "us")
    line = bench.watcher.board["us"]
    assert (line.verdict, line.probe_good) == (Verdict.UNKNOWN, False)
    assert line.fresh_until < trio.current_time()


async def test_a_good_store_is_healthy_after_one_round(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    """One good probe is enough for a start, and it vouches for one interval and one deadline."""
    bench = Bench(nursery, "us")
    began = trio.current_time()
    await bench.run()
    line = bench.watcher.board["us"]
    assert (line.verdict, line.probe_good) == (Verdict.HEALTHY, True)
    assert line.fresh_until == pytest.approx(began + 4.0)
    assert bench.changes == [("us", Verdict.UNKNOWN, Verdict.HEALTHY)]


async def test_the_board_is_one_object_until_something_changes(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    """Whoever has the board of before need not look at it again; a probe, traffic, and a probe that is overdue make another."""
    bench = Bench(nursery, "us")
    await bench.run()
    board = bench.watcher.board
    assert bench.watcher.board is board
    bench.watcher.report("us", ok=True, latency=0.5)
    assert bench.watcher.board is not board
    board = bench.watcher.board
    await trio.sleep(2.5)
    assert bench.watcher.board is not board
    bench.stores["us"].set_faults(Faults(hanging=True))
    for _ in range(40):
        await trio.sleep(0.25)
        now = trio.current_time()
        lines = {name: line_of(record, HealthRules(), now) for name, record in bench.watcher._records.items()}
        assert bench.watcher.board == lines


async def test_the_pace_is_one_probe_an_interval(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    """Nobody's load grows with how well a store answers: one read and one write every two seconds."""
    bench = Bench(nursery, "us")
    await bench.run()
    await trio.sleep(60)
    assert 29 <= bench.calls("us", "read") <= 32
    assert 29 <= bench.calls("us", "put") <= 32


async def test_where_nobody_writes_the_probe_only_reads(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    """A store that this node would not write to is not written to."""
    bench = Bench(nursery, "us", writable=False)
    await bench.run()
    await trio.sleep(10)
    assert bench.calls("us", "put") == 0
    assert bench.verdict("us") is Verdict.HEALTHY


async def test_another_bucket_under_the_name_is_refused(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    """A store whose marker is another location's is down, however well it answers."""
    bench = Bench(nursery, "us")
    bench.stores["us"].objects["registry/_antipode/marker"] = b"another bucket!!"
    await bench.run()
    await trio.sleep(10)
    assert bench.verdict("us") is Verdict.DOWN
    assert "another location" in bench.watcher.board["us"].reason


async def test_a_hanging_store_delays_only_itself(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    """The others keep their pace and their verdict; the one that hangs has one probe in flight, not one per interval."""
    bench = Bench(nursery, "us", "eu")
    await bench.run()
    bench.stores["eu"].set_faults(Faults(hanging=True))
    before = bench.calls("us", "read"), bench.calls("eu", "read")
    await trio.sleep(60)
    assert 29 <= bench.calls("us", "read") - before[0] <= 32
    assert bench.calls("eu", "read") - before[1] <= 31
    assert (bench.verdict("us"), bench.verdict("eu")) == (Verdict.HEALTHY, Verdict.DOWN)


async def test_one_bad_probe_ends_redirects_and_three_the_verdict(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    """One failure is no outage, but no client is sent there either."""
    bench = Bench(nursery, "us")
    await bench.run()
    bench.stores["us"].set_faults(Faults(down=True))
    await trio.sleep(2.1)
    line = bench.watcher.board["us"]
    assert (line.verdict, line.probe_good) == (Verdict.DEGRADED, False)
    await trio.sleep(4)
    assert bench.verdict("us") is Verdict.DOWN
    assert "out of order" in bench.watcher.board["us"].reason


async def test_a_standstill_is_nobody_s_fault(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    """A probe, and what traffic saw, fail by the node's own standstill: the probe is made again. It is no excuse for ever."""
    bench = Bench(nursery, "us")
    await bench.run()
    bench.stores["us"].set_faults(Faults(hanging=True))
    await trio.sleep(2.1)
    bench.stood_still = True
    for _ in range(3):
        bench.watcher.report("us", ok=False, reason="silent")
    bench.stores["us"].set_faults(Faults())
    await trio.sleep(2)
    bench.stood_still = False
    await trio.sleep(4)
    assert bench.changes == [("us", Verdict.UNKNOWN, Verdict.HEALTHY)]
    bench.stood_still = True
    bench.stores["us"].set_faults(Faults(hanging=True))
    await trio.sleep(30)
    assert bench.verdict("us") is Verdict.DOWN


async def test_it_comes_back_after_a_quiet_spell(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    """The first good probe after an outage is not trusted; ten quiet seconds are."""
    bench = Bench(nursery, "us")
    await bench.run()
    bench.stores["us"].set_faults(Faults(down=True))
    await trio.sleep(10)
    bench.stores["us"].set_faults(Faults())
    await trio.sleep(4)
    assert bench.verdict("us") is Verdict.DOWN
    await trio.sleep(12)
    assert bench.verdict("us") is Verdict.HEALTHY
    assert [after for _, _, after in bench.changes] == [
        *(Verdict.HEALTHY, Verdict.DEGRADED, Verdict.DOWN, Verdict.HEALTHY),
    ]


async def test_what_traffic_sees_counts(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    """Failures of live requests bring a line down before the probes do, but many at once are one."""
    bench = Bench(nursery, "us")
    await bench.run()
    for _ in range(100):
        bench.watcher.report("us", ok=False, reason="reset by peer")
    assert bench.verdict("us") is Verdict.DEGRADED
    bench.stores["us"].set_faults(Faults(down=True))
    await trio.sleep(4.5)
    assert bench.verdict("us") is Verdict.DOWN


async def test_a_report_about_a_stranger_is_ignored(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    """A location that this node does not know stays unknown to it."""
    bench = Bench(nursery, "us")
    bench.watcher.report("ap", ok=False, reason="x")
    assert set(bench.watcher.board) == {"us"}


async def test_somebody_else_s_word_brings_a_probe_forward(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    """What another node says moves the next probe and no verdict; a location that ails already keeps its pace."""
    bench = Bench(nursery, "us", "eu")
    await bench.run()
    await trio.sleep(4.6)  # a little after the probes of 4 s
    bench.stores["us"].set_faults(Faults(down=True))
    before = bench.calls("us", "read"), bench.calls("eu", "read")
    for _ in range(100):
        bench.watcher.look_now("us")
        bench.watcher.look_now("ap")
    assert bench.verdict("us") is Verdict.HEALTHY
    await trio.sleep(0.1)
    assert (bench.calls("us", "read") - before[0], bench.calls("eu", "read") - before[1]) == (1, 0)
    assert not bench.watcher.board["us"].probe_good
    for _ in range(100):
        bench.watcher.look_now("us")
    await trio.sleep(1.8)
    assert bench.calls("us", "read") - before[0] == 1


async def test_wrong_bytes_end_redirects_for_a_while(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    """After wrong bytes nobody is sent to a store, however well its probes are, until none came for a minute."""
    told: list[str] = []
    bench = Bench(nursery, "us", "eu")
    bench.watcher._lied = told.append
    await bench.run()
    copies = {name: Placement(name, "k") for name in ("us", "eu")}

    def sent(name: str) -> bool:
        return may_redirect(copies[name], bench.watcher.board, trio.current_time())

    assert sent("us")
    assert sent("eu")
    for _ in range(10):
        bench.watcher.report("us", ok=False, reason="piece 3 is wrong", lied=True)
    bench.watcher.doubt("eu")
    assert not sent("us")
    assert not sent("eu")
    assert told == ["us"]
    await trio.sleep(59)
    assert not sent("us")
    bench.watcher.report("us", ok=False, reason="piece 3 is wrong", lied=True)
    await trio.sleep(2)
    assert not sent("us")
    assert sent("eu")
    assert told == ["us", "us"]
