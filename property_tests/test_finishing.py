"""Finished copies told together: each has its own end, none waits long, and a cancelled one takes no other with it."""

from collections.abc import Sequence
from random import Random

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from replication.finishing import LINGER, MOST, Finishing
from replication.macs import PieceProofs
from replication.model import Blob, CopyTask
from replication.ports import CopyOutcome, LedgerUnavailable


def task(number: int, destination: str = "eu") -> CopyTask:
    return CopyTask(Blob(number, f"sha256:{number:064}", 1, None), destination, f"k/{number}", (), f"lease-{number}")


class Told:
    """A ledger of which only finishing is asked: odd blobs are superseded, and some answers are lost."""

    def __init__(self, random: Random, lost: float = 0.0) -> None:
        self.random = random
        self.lost = lost
        self.reports: list[list[int]] = []

    async def finish_copies(self, finished: Sequence[tuple[CopyTask, PieceProofs]]) -> Sequence[CopyOutcome]:
        places = [(task.blob.id, task.destination) for task, _ in finished]
        assert len(set(places)) == len(places)
        self.reports.append([task.blob.id for task, _ in finished])
        await trio.sleep(self.random.random() / 10)
        if self.random.random() < self.lost:
            raise LedgerUnavailable("no answer")
        return [CopyOutcome.SUPERSEDED if task.blob.id % 2 else CopyOutcome.PLACED for task, _ in finished]


@given(
    st.lists(st.tuples(st.integers(0, 5), st.floats(0, 0.3), st.none() | st.floats(0, 0.2)), max_size=30),
    st.sampled_from([0.0, 0.4]),
    st.booleans(),
    st.integers(0, 99),
)
def test_each_has_its_own_end(
    copies: list[tuple[int, float, float | None]], lost: float, more: bool, seed: int
) -> None:
    """Copies that end at any time, some of one place, some cancelled, with answers lost: all end, with what became of them."""
    ledger, ended = Told(Random(seed), lost), 0

    async def end(finishing: Finishing, number: int, at: float, patience: float | None) -> None:
        nonlocal ended
        await trio.sleep(at)
        with trio.move_on_after(trio.current_time() if patience is None else patience) as scope:
            scope.deadline = float("inf") if patience is None else trio.current_time() + patience
            while True:
                try:
                    outcome = await finishing.finish(task(number), PieceProofs())
                except LedgerUnavailable:
                    continue
                assert outcome is (CopyOutcome.SUPERSEDED if number % 2 else CopyOutcome.PLACED)
                assert any(number in report for report in ledger.reports)
                break
        ended += 1

    async def main() -> None:
        finishing = Finishing(ledger, lambda: more)  # type: ignore[arg-type] # nothing else is asked of it
        async with trio.open_nursery() as nursery:
            for number, at, patience in copies:
                nursery.start_soon(end, finishing, number, at, patience)

    trio.run(main, clock=MockClock(autojump_threshold=0))
    assert ended == len(copies)


async def test_what_ends_in_one_moment_is_told_together(autojump_clock: MockClock) -> None:
    """While more copies are under way, those that end within the moment share a report; the last one does not wait for it."""
    ledger, under_way = Told(Random(1)), 10
    finishing = Finishing(ledger, lambda: under_way > 0)  # type: ignore[arg-type]

    async def end(number: int) -> None:
        nonlocal under_way
        await trio.sleep(number * LINGER / 20)
        under_way -= 1
        finishing.look()
        await finishing.finish(task(number), PieceProofs())

    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        for number in range(10):
            nursery.start_soon(end, number)
    assert ledger.reports == [list(range(10))]
    assert trio.current_time() - began < LINGER / 2 + 0.1


async def test_nobody_waits_when_nothing_else_is_under_way(autojump_clock: MockClock) -> None:
    """A copy that is alone is told at once."""
    ledger = Told(Random(1))
    began = trio.current_time()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ledger.random, "random", lambda: 0.0)
        await Finishing(ledger, lambda: False).finish(task(1), PieceProofs())  # type: ignore[arg-type]
    assert trio.current_time() == began


async def test_a_report_has_its_bounds(autojump_clock: MockClock) -> None:
    """Ever so many copies that end at once are told in several reports."""
    ledger = Told(Random(1))
    finishing = Finishing(ledger, lambda: True)  # type: ignore[arg-type]
    async with trio.open_nursery() as nursery:
        for number in range(2 * MOST + 1):
            nursery.start_soon(finishing.finish, task(number), PieceProofs())
    assert sorted(len(report) for report in ledger.reports) == [1, MOST, MOST]
