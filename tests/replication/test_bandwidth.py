"""The token bucket and the cap of fail-over, on a virtual clock."""

import trio
from trio.testing import MockClock

from replication.bandwidth import Bandwidth, FailoverCap


async def took(bandwidth: Bandwidth, nbytes: int) -> float:
    began = trio.current_time()
    await bandwidth.take(nbytes)
    return round(trio.current_time() - began, 6)


async def test_no_limit_never_waits(autojump_clock: MockClock) -> None:
    """Without a rate anything goes at once."""
    assert [await took(Bandwidth(None), 10**12) for _ in range(3)] == [0, 0, 0]


async def test_a_second_s_worth_is_free(autojump_clock: MockClock) -> None:
    """After a quiet time a burst of one second's worth goes at once; what comes next waits until it is paid for."""
    bandwidth = Bandwidth(100)
    assert await took(bandwidth, 100) == 0
    assert await took(bandwidth, 50) == 0
    assert await took(bandwidth, 50) == 0.5


async def test_the_average_is_the_rate(autojump_clock: MockClock) -> None:
    """Over a long time no more than the rate passes, whatever the pieces are."""
    bandwidth, began = Bandwidth(1000), trio.current_time()
    for nbytes in [1, 999, 3000, 10, 990] * 20:
        await bandwidth.take(nbytes)
    elapsed = trio.current_time() - began
    assert 100 - 5 <= elapsed <= 100


async def test_more_than_a_burst_is_paid_for_by_the_next(autojump_clock: MockClock) -> None:
    """A piece larger than a second's worth is not held for ever: it goes, and the next one waits."""
    bandwidth = Bandwidth(100)
    assert await took(bandwidth, 1000) == 0
    assert await took(bandwidth, 1) == 9


async def test_first_come_first_served(autojump_clock: MockClock) -> None:
    """Many at once share the rate in the order in which they came."""
    bandwidth, order = Bandwidth(100), list[int]()
    await bandwidth.take(200)

    async def one(number: int) -> None:
        await trio.sleep(number / 1000)
        await bandwidth.take(100)
        order.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(5):
            nursery.start_soon(one, number)
    assert order == [0, 1, 2, 3, 4]
    assert 4.9 <= trio.current_time() <= 5.1


async def test_a_new_rate_counts_from_now_on(autojump_clock: MockClock) -> None:
    """The rate may be replaced while others wait."""
    bandwidth = Bandwidth(100)
    await bandwidth.take(200)
    bandwidth.rate = 1000
    assert await took(bandwidth, 1000) == 1
    assert await took(bandwidth, 1) == 1


async def test_only_what_comes_from_elsewhere_is_capped(autojump_clock: MockClock) -> None:
    """The preferred store is free; every other has a bucket of its own."""
    cap, began = FailoverCap("eu", 100), trio.current_time()
    await cap.take("eu", 10**9)
    await cap.take("eu", 10**9)
    await cap.take("us", 300)
    await cap.take("ap", 300)
    assert trio.current_time() == began
    await cap.take("us", 1)
    assert round(trio.current_time() - began, 6) == 2
    cap.change(None)
    await cap.take("us", 10**9)
    assert round(trio.current_time() - began, 6) == 2
