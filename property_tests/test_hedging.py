"""Hedged reads on a virtual clock: a slow beginning costs little, the bytes are right, and extra reads stay within their share."""

from random import Random

import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from property_tests.memory_engine import Faults
from property_tests.test_reader import SIZE, Bench
from replication.hedging import HedgeRules, Hedging, hedge_after, may_hedge
from replication.reader import Reader

RULES = HedgeRules(share=0.05)


class HedgedBench(Bench):
    """Three stores with one blob; latencies as a node would have measured them."""

    def __init__(self, rules: HedgeRules = RULES, reads: int = 1000) -> None:
        super().__init__(SIZE)
        self.slowness: dict[str, float] = {}
        self.hedging = Hedging(rules, lambda _: 0.002)
        self.hedging.reads = reads
        self.reader = Reader(self.engines, self.report, self.suspect, hedging=self.hedging)

    def report(
        self, location: str, ok: bool, latency: float | None = None, reason: str | None = None, lied: bool = False
    ) -> None:
        super().report(location, ok, latency, reason, lied)
        self.slowness[location] = latency or 0.0

    async def timed(self) -> float:
        began = trio.current_time()
        assert await self.read() == self.data
        return trio.current_time() - began


@given(st.floats(0, 100) | st.none(), st.floats(0.1, 60))
def test_the_threshold(latency: float | None, stall: float) -> None:
    """A source has several times its latency, never less than what nobody notices, never more than half of its silence."""
    seconds = hedge_after(latency, stall, RULES)
    assert 0 < seconds <= stall / 2
    assert seconds >= min(RULES.least, stall / 2)
    assert seconds >= min(RULES.times * (latency or 0.0), stall / 2)


@given(st.lists(st.booleans(), max_size=500), st.sampled_from([0.0, 0.01, 0.05, 0.5, 1.0]))
def test_the_share_is_kept(slow: list[bool], share: float) -> None:
    """Whatever comes, extra reads are at most their share of the reads so far; without a share there are none."""
    hedging = Hedging(HedgeRules(share=share))
    for is_slow in slow:
        if hedging.begin() and is_slow:
            hedging.take()
        assert hedging.hedges <= share * hedging.reads
        assert not may_hedge(0, hedging.hedges, hedging.rules)


async def test_a_slow_beginning_is_hedged(autojump_clock: MockClock) -> None:
    """The second source goes on after the threshold, what the first one is worth is told, and nobody is called ill."""
    bench = HedgedBench()
    bench.stores["us"].set_faults(Faults(latency=3.0))
    assert await bench.timed() < 0.5
    assert (bench.hedging.hedges, bench.hedging.won) == (1, 1)
    assert bench.slowness["us"] >= 0.3
    assert [ok for _, ok in bench.reported].count(False) == 0
    assert bench.suspects == []


async def test_a_quick_source_is_left_alone(autojump_clock: MockClock) -> None:
    """Nobody else is asked while the first source is as quick as ever, however long the rest takes."""
    bench = HedgedBench()
    bench.stores["us"].set_faults(Faults(bytes_per_second=2e6))
    await bench.timed()
    assert (bench.hedging.hedges, bench.opened("eu")) == (0, 0)


async def test_the_first_may_win_after_all(autojump_clock: MockClock) -> None:
    """A second source that is slower still changes nothing."""
    bench = HedgedBench()
    bench.stores["us"].set_faults(Faults(latency=0.5))
    bench.stores["eu"].set_faults(Faults(latency=2.0))
    await bench.timed()
    assert (bench.hedging.hedges, bench.hedging.won, bench.opened("eu")) == (1, 0, 1)


async def test_without_a_share_nothing_is_hedged(autojump_clock: MockClock) -> None:
    """Off means off, and a node that has read little yet has nothing to spare."""
    for rules, reads in ((HedgeRules(), 1000), (RULES, 0)):
        bench = HedgedBench(rules, reads)
        bench.stores["us"].set_faults(Faults(latency=0.7))
        await bench.timed()
        assert (bench.hedging.hedges, bench.opened("eu")) == (0, 0)


async def test_whatever_goes_wrong_the_bytes_are_right(autojump_clock: MockClock) -> None:
    """Slow, failing, lying and hanging sources beside one good one: every read is right or there is no good source at all."""
    random = Random(7)
    for _ in range(60):
        bench = HedgedBench(HedgeRules(share=1.0))
        for name in ("us", "eu"):
            bench.stores[name].random = Random(random.random())
            bench.stores[name].set_faults(
                random.choice(
                    [
                        Faults(latency=random.choice([0.1, 0.4, 2.0])),
                        Faults(hanging=True),
                        Faults(down=True),
                        Faults(fail_rate=0.5, latency=0.4),
                        Faults(wrong_rate=0.5, latency=0.4),
                    ]
                )
            )
        await bench.timed()
