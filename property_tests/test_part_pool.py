"""The pool of part buffers: never more than its total, nobody locked out, and everything comes back."""

from itertools import permutations
from random import Random

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from replication.parts import PartPool, Share, is_safe

HOLDERS = st.lists(
    st.tuples(st.integers(0, 12), st.integers(0, 12)).map(lambda pair: (min(pair), max(pair))), max_size=5
)


def slowly_safe(total: int, holders: list[tuple[int, int]]) -> bool:
    """Try every order."""
    for order in permutations(holders):
        free = total - sum(held for held, _ in holders)
        for held, claim in order:
            if free < claim - held:
                break
            free += held
        else:
            if free >= 0:
                return True
    return False


@given(st.integers(0, 30), HOLDERS)
def test_safe_is_what_some_order_shows(total: int, holders: list[tuple[int, int]]) -> None:
    """A state is safe exactly if in some order everybody can get the claim and give it back."""
    assert is_safe(total, holders) == slowly_safe(total, holders)


WORK = st.lists(
    st.tuples(st.integers(1, 40), st.lists(st.integers(1, 15), max_size=6), st.sampled_from(["end", "cancel"])),
    min_size=1,
    max_size=12,
)


@given(st.integers(10, 40), WORK, st.integers(0, 100))
def test_everybody_ends(total: int, work: list[tuple[int, list[int], str]], seed: int) -> None:
    """Tasks that grow, give back, end or are cut off at any time all come to an end; the pool never gives more than it has."""
    random = Random(seed)
    ended = 0

    async def use(pool: PartPool, share: Share, sizes: list[int]) -> None:
        for size in sizes:
            # As a writer does: when its claim is used up, some of it is sent and given back.
            while share.held + min(size, share.claim) > share.claim:
                share.shrink(share.held)
            await share.grow(min(size, share.claim))
            assert pool.statistics().held <= total
            await trio.sleep(random.random())
            if random.random() < 0.3:
                share.shrink(random.randint(0, share.held))

    async def holder(pool: PartPool, claim: int, sizes: list[int], fate: str) -> None:
        nonlocal ended
        with trio.move_on_after(random.random() * 5 if fate == "cancel" else float("inf")):
            async with pool.open(claim) as share:
                await use(pool, share, sizes)
        ended += 1

    async def main() -> None:
        pool = PartPool(total)
        with trio.fail_after(10_000):
            async with trio.open_nursery() as nursery:
                for claim, sizes, fate in work:
                    nursery.start_soon(holder, pool, claim, sizes, fate)
        facts = pool.statistics()
        assert (facts.held, facts.holders, facts.waiting) == (0, 0, 0)

    trio.run(main, clock=MockClock(autojump_threshold=0))
    assert ended == len(work)


async def test_many_slow_holders_lock_nobody_out() -> None:
    """Uploads that hold a little each and want more all get it, one after the other."""
    pool, order = PartPool(25), []
    ready = trio.Event()

    async def slow(number: int) -> None:
        async with pool.open(20) as share:
            await share.grow(1)
            await ready.wait()
            await share.grow(19)
            order.append(number)
            share.shrink(20)

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            for number in range(6):
                nursery.start_soon(slow, number)
            await wait_all_tasks_blocked()
            assert pool.statistics().held == 6
            ready.set()
    assert sorted(order) == list(range(6))


async def test_newcomers_in_order() -> None:
    """Whoever begins waits for those who came before, so that the many small never starve a large one."""
    pool, order = PartPool(10), []
    first = trio.Event()

    async def hold(name: str, nbytes: int, until: trio.Event | None = None) -> None:
        async with pool.hold(nbytes):
            order.append(name)
            if until is not None:
                await until.wait()

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            for name, nbytes, until in (("first", 6, first), ("large", 10, None), ("small", 1, None)):
                nursery.start_soon(hold, name, nbytes, until)
                await wait_all_tasks_blocked()
            assert order == ["first"]
            first.set()
    assert order == ["first", "large", "small"]


async def test_beyond_the_claim() -> None:
    """A share never grows beyond its claim, and a claim is never more than the pool."""
    pool = PartPool(10)
    async with pool.open(50) as share:
        assert share.claim == 10
        with pytest.raises(ValueError, match="cannot grow"):
            await share.grow(11)
        assert pool.statistics().held == 0
