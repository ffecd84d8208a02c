"""Questions that wait at the same moment are asked together, and nobody's end or error is another's."""

from collections.abc import Sequence

import pytest
import trio
import trio.testing
from attrs import define, field
from hypothesis import given
from hypothesis import strategies as st

from node.together import BUSY_PATIENCE, MOST, PATIENCE, Together


@define
class Oracle:
    """Answers after a while, and keeps what it was asked."""

    asked: list[list[int]] = field(factory=list)
    fails: set[int] = field(factory=set)
    seconds: float = 1.0

    async def ask(self, questions: Sequence[int]) -> Sequence[int]:
        self.asked.append(list(questions))
        await trio.sleep(self.seconds)
        if self.fails & set(questions):
            raise LookupError
        return [question * 10 for question in questions]


async def test_what_comes_meanwhile_goes_together(autojump_clock: trio.testing.MockClock) -> None:
    """The first is asked alone and at once; what comes while it is out is one question, asked when it is answered."""
    oracle = Oracle()
    together, got = Together(oracle.ask), dict[int, int]()

    async def one(number: int) -> None:
        got[number] = await together.get(number)

    async with trio.open_nursery() as nursery:
        for number in range(5):
            nursery.start_soon(one, number)
    assert sorted(len(asked) for asked in oracle.asked) in ([1, 4], [5])
    assert got == {number: number * 10 for number in range(5)}
    assert trio.current_time() <= 2


async def test_one_statement_has_a_limit(autojump_clock: trio.testing.MockClock) -> None:
    """A crowd is asked for in several statements."""
    oracle = Oracle()
    together, got = Together(oracle.ask), dict[int, int]()

    async def one(number: int) -> None:
        got[number] = await together.get(number)

    async with trio.open_nursery() as nursery:
        for number in range(2 * MOST):
            nursery.start_soon(one, number)
    assert got == {number: number * 10 for number in range(2 * MOST)}
    assert max(len(asked) for asked in oracle.asked) <= MOST
    assert sorted(number for asked in oracle.asked for number in asked) == list(range(2 * MOST))


@given(st.lists(st.tuples(st.floats(0, 4), st.none() | st.floats(0, 4), st.booleans()), min_size=1, max_size=8))
def test_every_caller_ends_as_alone(callers: list[tuple[float, float | None, bool]]) -> None:
    """Whoever comes when, is cancelled when, or fails: each caller gets its own answer, its batch's error, or its cancellation."""

    async def main() -> None:
        oracle = Oracle(fails={number for number, (_, _, fails) in enumerate(callers) if fails})
        together, ends = Together(oracle.ask), dict[int, object]()

        async def one(number: int, comes: float, stays: float | None) -> None:
            await trio.sleep(comes)
            with trio.CancelScope() as scope:
                if stays is not None:
                    scope.deadline = trio.current_time() + stays
                try:
                    ends[number] = await together.get(number)
                except LookupError as error:
                    ends[number] = error
            if scope.cancelled_caught:
                ends[number] = "cancelled"

        with trio.fail_after(1000):
            async with trio.open_nursery() as nursery:
                for number, (comes, stays, _) in enumerate(callers):
                    nursery.start_soon(one, number, comes, stays)
        for number, (_, stays, fails) in enumerate(callers):
            if ends[number] == "cancelled":
                assert stays is not None
            elif isinstance(ends[number], LookupError):
                assert any(number in asked and oracle.fails & set(asked) for asked in oracle.asked)
            else:
                assert ends[number] == number * 10
                assert not fails
        # Nobody is left behind: the next one is answered.
        oracle.fails.clear()
        with trio.fail_after(10):
            assert await together.get(7) == 70

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


async def test_a_slow_statement_holds_nobody_up(autojump_clock: trio.testing.MockClock) -> None:
    """Whoever has waited a moment for a statement that is out asks beside it: from far away a look-up takes one round trip."""
    together, took = Together(Oracle().ask), list[float]()

    async def one(number: int) -> None:
        await trio.sleep(number / 10)
        began = trio.current_time()
        await together.get(number)
        took.append(trio.current_time() - began)

    async with trio.open_nursery() as nursery:
        for number in range(8):
            nursery.start_soon(one, number)
    assert max(took) <= 1 + PATIENCE + 0.001


async def test_a_database_that_is_near_and_busy_gets_no_more_statements(autojump_clock: trio.testing.MockClock) -> None:
    """Where round trips were short and one takes longer, the next takes all who come; a stuck one holds nobody up for long."""
    oracle = Oracle(seconds=0.001)
    together, took = Together(oracle.ask), list[float]()

    async def one(number: int) -> None:
        await trio.sleep(number / 100)
        began = trio.current_time()
        await together.get(number)
        took.append(trio.current_time() - began)

    await together.get(0)
    oracle.seconds = 0.9 * BUSY_PATIENCE
    async with trio.open_nursery() as nursery:
        for number in range(8):
            nursery.start_soon(one, number)
    assert oracle.asked[1:] == [[0], [1, 2, 3, 4, 5, 6, 7]]
    oracle.seconds = 1.0
    async with trio.open_nursery() as nursery:
        for number in range(2):
            nursery.start_soon(one, number)
    assert max(took) <= 1 + BUSY_PATIENCE + 0.001


async def test_who_left_asks_for_nobody(autojump_clock: trio.testing.MockClock) -> None:
    """When a statement is cancelled with its asker, those who were in it ask anew, whoever of them has left meanwhile."""
    oracle = Oracle()
    together, got = Together(oracle.ask), dict[int, int]()

    async def one(number: int, comes: float, stays: float) -> None:
        await trio.sleep(comes)
        with trio.move_on_after(stays):
            got[number] = await together.get(number)

    async with trio.open_nursery() as nursery:
        # The second asks for the third and the fourth, who wait when the first is answered; then the third leaves, and the second.
        for number, comes, stays in ((1, 0, 9), (2, 0.995, 0.8), (3, 0.996, 0.5), (4, 0.997, 9)):
            nursery.start_soon(one, number, comes, stays)
    assert got == {1: 10, 4: 40}
    assert oracle.asked == [[1], [2, 3, 4], [4]]


async def test_an_error_is_everybodys(autojump_clock: trio.testing.MockClock) -> None:
    """What fails for one statement is told to all who waited for it."""
    together = Together(Oracle(fails={3}).ask)
    with pytest.raises(LookupError):
        await together.get(3)
