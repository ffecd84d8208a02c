"""A few workers do numbered pieces of work: all of them once, never too many at a time, and none after one has failed."""

import trio
from hypothesis import given
from hypothesis import strategies as st

from replication.workers import each


@given(count=st.integers(0, 20), at_once=st.integers(1, 5), bad=st.none() | st.integers(0, 19))
def test_all_or_the_first_error(count: int, at_once: int, bad: int | None) -> None:
    """Everything is done once; the first error is raised as itself and nothing begins after it."""
    begun: list[int] = []
    inside = most = 0

    async def work(number: int) -> None:
        nonlocal inside, most
        begun.append(number)
        inside += 1
        most = max(most, inside)
        try:
            await trio.lowlevel.checkpoint()
            if number == bad:
                raise LookupError(number)
        finally:
            inside -= 1

    raised: list[LookupError] = []

    async def main() -> None:
        try:
            await each(range(count), at_once, work, (LookupError,))
        except LookupError as error:
            raised.append(error)

    trio.run(main)
    assert most <= at_once
    assert inside == 0
    if bad is None or bad >= count:
        assert begun == list(range(count))
        assert not raised
    else:
        assert [error.args for error in raised] == [(bad,)]
        assert begun == sorted(set(begun))
        assert max(begun) < bad + 2 * at_once
