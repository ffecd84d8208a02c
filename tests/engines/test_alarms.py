"""Deadlines that one task looks after: each wait ends at its own, or when it is woken, and leaves nothing behind."""

import random

import pytest
import trio
import trio.testing

from engines.alarms import Alarms, Waiter


async def test_each_ends_at_its_own_deadline(nursery: trio.Nursery, autojump_clock: trio.testing.MockClock) -> None:
    """In whatever order they begin, and however long the others have."""
    alarms, began, ended = Alarms(), trio.current_time(), dict[float, float]()
    nursery.start_soon(alarms.run)

    async def wait(seconds: float) -> None:
        await alarms.wait(Waiter(), seconds)
        ended[seconds] = trio.current_time() - began

    lengths = [float(length) for length in range(1, 200)]
    random.Random(1).shuffle(lengths)
    async with trio.open_nursery() as waits:
        for length in lengths:
            waits.start_soon(wait, length)
    assert {length: round(took, 6) for length, took in ended.items()} == {length: length for length in lengths}


async def test_a_sooner_one_may_come_later(nursery: trio.Nursery, autojump_clock: trio.testing.MockClock) -> None:
    """The task sleeps until the first of those that it knows; another one may be due before that."""
    alarms, ended = Alarms(), list[tuple[str, float]]()
    nursery.start_soon(alarms.run)

    async def wait(name: str, after: float, seconds: float) -> None:
        await trio.sleep(after)
        await alarms.wait(Waiter(), seconds)
        ended.append((name, trio.current_time()))

    async with trio.open_nursery() as waits:
        for name, after, seconds in (("long", 0.0, 100.0), ("short", 10.0, 5.0), ("middle", 20.0, 30.0)):
            waits.start_soon(wait, name, after, seconds)
    assert ended == [("short", 15.0), ("middle", 50.0), ("long", 100.0)]


async def test_who_is_woken_or_cancelled_is_forgotten(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    """Nobody is woken twice, and a deadline that has no wait any more wakes nobody."""
    alarms, waiter = Alarms(), Waiter()
    nursery.start_soon(alarms.run)
    async with trio.open_nursery() as waits:
        waits.start_soon(alarms.wait, waiter, 50.0)
        await trio.sleep(1.0)
        waiter.wake()
        waiter.wake()
    assert trio.current_time() == 1.0
    with trio.move_on_after(1.0) as scope:
        await alarms.wait(waiter, 50.0)
    assert scope.cancelled_caught
    waiter.wake()
    await trio.sleep(100.0)
    assert not alarms._until
    with pytest.raises(trio.TooSlowError):
        with trio.fail_after(10.0):
            await alarms.wait(waiter, 11.0)
