"""Questions that wait at the same moment are asked together, and nobody's end or error is another's."""

from collections.abc import Sequence

import pytest
import trio
import trio.testing
from attrs import define, field
from hypothesis import given
from hypothesis import strategies as st

from node.together import MOST, PATIENCE, Together


@define
class Oracle:
    """Answers after a second, and keeps what it was asked."""

    asked: list[list[int]] = field(factory=list)
    fails: set[int] = field(factory=set)

    async def ask(self, questions: Sequence[int]) -> Sequence[int]:
        self.asked.append(list(questions))
        await trio.sleep(1)
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


async def test_an_error_is_everybodys(autojump_clock: trio.testing.MockClock) -> None:
    """What fails for one statement is told to all who waited for it."""
    together = Together(Oracle(fails={3}).ask)
    with pytest.raises(LookupError):
        await together.get(3)
