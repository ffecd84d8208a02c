"""Gates bound how many requests of one kind work at once, let the others wait while that is of use, and say when to come back."""

from contextlib import suppress

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from node.errors import RegistryError
from node.gates import Gate
from node.queueing import WINDOW, Movement


def gate_of(limit: int, *, queue: int = 1000, patience: float = 40.0) -> Gate:
    return Gate("pulls", limit, queue, patience)


async def _hold(gate: Gate, who: str = "one", *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
    async with gate.enter(who):
        task_status.started()
        await trio.sleep_forever()


async def _refused(gate: Gate, who: str = "one") -> int:
    """Ask to come in, be refused, and return after how many seconds one may come again."""
    with pytest.raises(RegistryError) as refused:
        async with gate.enter(who):
            pass
    assert refused.value.code.status == 429
    return int(dict(refused.value.headers)["retry-after"])


async def test_a_queue_that_stands_still_is_sent_away(autojump_clock: object) -> None:
    """When nobody has left for a quarter of its patience a request is refused with 429 and told when to come back."""
    gate = gate_of(1)
    async with trio.open_nursery() as nursery:
        await nursery.start(_hold, gate)
        began = trio.current_time()
        assert await _refused(gate) == 40
        assert trio.current_time() - began == pytest.approx(10.0)
        nursery.cancel_scope.cancel()
    assert gate.statistics().inside == 0
    assert gate.statistics().refused == 1


async def test_who_waits_gets_in_when_somebody_leaves(autojump_clock: object) -> None:
    """A place that becomes free goes to the one who waited longest."""
    gate = gate_of(1)
    order: list[int] = []

    async def visit(number: int) -> None:
        async with gate.enter("one"):
            order.append(number)
            await trio.sleep(1)

    async with trio.open_nursery() as nursery:
        for number in range(5):
            nursery.start_soon(visit, number)
            await trio.testing.wait_all_tasks_blocked()
    assert order == [0, 1, 2, 3, 4]


async def test_a_crowd_is_served_in_order(autojump_clock: object) -> None:
    """A thousand at once of whom thirty are served in a second all get in, the first ones first, within the patience."""
    gate = gate_of(60, queue=1000)
    order: list[int] = []

    async def visit(number: int) -> None:
        async with gate.enter(str(number)):
            order.append(number)
            await trio.sleep(2)

    async with trio.open_nursery() as nursery:
        for number in range(1000):
            nursery.start_soon(visit, number)
            await trio.testing.wait_all_tasks_blocked()
    # Those who come in at the same moment run in any order.
    assert [number // 60 for number in order] == [place // 60 for place in range(1000)]
    assert gate.statistics().refused == 0
    assert trio.current_time() <= 40


async def test_who_would_wait_too_long_is_told_at_once(autojump_clock: object) -> None:
    """Nobody waits behind a queue that will not have moved on within the patience; Retry-After says how much longer it takes."""
    gate = gate_of(2, queue=1000)

    async def visit() -> None:
        try:
            async with gate.enter("one"):
                await trio.sleep(0.99)
        except RegistryError:
            late.append(trio.current_time() - began)

    late: list[float] = []
    async with trio.open_nursery() as nursery:
        began = trio.current_time()
        for _ in range(130):
            nursery.start_soon(visit)
        await trio.sleep(10.5)
        asked = trio.current_time()
        assert 10 <= await _refused(gate) <= 16
        assert trio.current_time() == asked
    # Those who came before anything was known waited, and the last of them in vain.
    assert len(late) == 130 - 2 * 41
    assert late == pytest.approx([40.0] * len(late))


async def test_a_long_queue_is_cut_short_at_once(autojump_clock: object) -> None:
    """No more than so many may wait: the rest is refused without waiting."""
    gate = gate_of(1, queue=1)
    async with trio.open_nursery() as nursery:
        await nursery.start(_hold, gate)
        nursery.start_soon(_hold, gate)
        await trio.testing.wait_all_tasks_blocked()
        began = trio.current_time()
        await _refused(gate)
        assert trio.current_time() == began
        assert gate.statistics().waiting == 1
        nursery.cancel_scope.cancel()
    assert gate.statistics().waiting == 0


async def test_a_cancelled_wait_leaves_nothing_behind() -> None:
    """A client that leaves while it waits takes no place."""
    gate = gate_of(1)
    async with gate.enter("one"):
        with trio.move_on_after(0):
            async with gate.enter("one"):
                pass
        assert gate.statistics().inside == 1
        assert gate.statistics().waiting == 0
    assert gate.statistics().inside == 0


async def test_a_place_given_to_who_leaves_goes_to_the_next(autojump_clock: object) -> None:
    """A client that is gone in the moment in which its turn comes passes it on."""
    gate, came = gate_of(1), trio.Event()

    async def visit() -> None:
        async with gate.enter("one"):
            came.set()

    async with trio.open_nursery() as nursery:
        async with gate.enter("one"):
            leaving = await nursery.start(_cancellable, gate)
            nursery.start_soon(visit)
            await trio.testing.wait_all_tasks_blocked()
        leaving.cancel()
        with trio.fail_after(1):
            await came.wait()
    assert gate.statistics().inside == 0


async def _cancellable(gate: Gate, task_status: trio.TaskStatus[trio.CancelScope]) -> None:
    with trio.CancelScope() as scope:
        task_status.started(scope)
        async with gate.enter("one"):
            await trio.sleep_forever()


async def test_who_is_cancelled_at_the_gate_takes_no_place() -> None:
    """A request that is cancelled as it comes in leaves the gate as empty as it was."""
    gate = gate_of(1)
    with trio.CancelScope() as scope:
        scope.cancel()
        async with gate.enter("one"):
            pass
    assert scope.cancelled_caught
    assert gate.statistics().inside == 0


@given(st.lists(st.floats(0, 60), max_size=50), st.integers(0, 1000))
def test_a_queue_is_as_long_as_it_was_quick(leaving: list[float], ahead: int) -> None:
    """What is expected is never negative, grows with who is ahead, and is nothing before there is anything to go by."""
    movement = Movement(0.0)
    assert movement.expected(ahead, WINDOW / 2 - 0.1) == 0
    for now in sorted(leaving):
        movement.left(now)
    now = max(leaving, default=0.0) + WINDOW / 2
    expected = movement.expected(ahead, now)
    assert 0 <= expected <= movement.expected(ahead + 1, now)
    if leaving and max(leaving) < WINDOW / 2:
        assert expected == pytest.approx((ahead + 1) * now / len(leaving))


async def test_others_find_room_beside_one(autojump_clock: object) -> None:
    """Who fills a gate and the queue before it, and never leaves, keeps nobody else out: they come in at once."""
    gate = gate_of(64)

    async def stay() -> None:
        with suppress(RegistryError):
            await _hold(gate, "greedy")

    async with trio.open_nursery() as nursery:
        for _ in range(500):
            nursery.start_soon(stay)
        await trio.testing.wait_all_tasks_blocked()
        assert (gate.statistics().inside, gate.statistics().waiting) == (48, 452)
        began = trio.current_time()
        async with gate.enter("another"):
            assert trio.current_time() == began
        # Nobody came in from the queue: it stood still, though others came and went.
        assert await _refused(gate, "greedy") == 40
        nursery.cancel_scope.cancel()
    statistics = gate.statistics()
    assert (statistics.inside, statistics.waiting, statistics.bounded) == (0, 0, statistics.refused)
    assert statistics.refused > 0


async def test_others_find_room_beside_an_owner_s_robots(autojump_clock: object) -> None:
    """However many robots of one owner come, another account gets in at once; a robot that is refused is told why."""
    gate = gate_of(64)

    async def stay(who: str) -> None:
        with suppress(RegistryError):
            await _hold(gate, who)

    async with trio.open_nursery() as nursery:
        for number in range(8):
            for _ in range(64):
                nursery.start_soon(stay, f"team+{number}")
        await trio.testing.wait_all_tasks_blocked()
        assert gate.statistics().inside == 60
        began = trio.current_time()
        async with gate.enter("alice"), gate.enter("other+robot"):
            assert trio.current_time() == began
        with pytest.raises(RegistryError) as refused:
            async with gate.enter("team+8"):
                pass
        assert "60 pulls of team and its robots" in str(refused.value.detail)
        nursery.cancel_scope.cancel()
    assert gate.statistics().inside == 0


async def test_a_robot_waits_for_its_owner_s_others(autojump_clock: object) -> None:
    """A robot that waits because its owner's others fill their part comes in when one of these leaves, and before newer ones."""
    gate = gate_of(16)
    async with trio.open_nursery() as nursery, trio.open_nursery() as others:
        for number in range(3):
            for _ in range(16):
                if gate.places.open_to(f"team+{number}"):
                    await others.start(_hold, gate, f"team+{number}")
        assert gate.statistics().inside == 15
        came = trio.Event()

        async def wait() -> None:
            async with gate.enter("team+3"):
                came.set()

        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        assert not came.is_set()
        others.cancel_scope.cancel()
        with trio.fail_after(1):
            await came.wait()
    assert gate.statistics().inside == 0


async def test_who_waits_takes_turns(autojump_clock: object) -> None:
    """Before a full gate one request of somebody's does not wait behind a hundred of somebody else's."""
    gate, order = gate_of(2), list[str]()

    async def visit(who: str) -> None:
        async with gate.enter(who):
            order.append(who)
            await trio.sleep(1)

    async with trio.open_nursery() as nursery:
        for who in ("many",) * 20 + ("few",) * 2 + ("one",):
            nursery.start_soon(visit, who)
            await trio.testing.wait_all_tasks_blocked()
    # Those who come in at the same moment run in any order.
    rounds = [sorted(order[at : at + 2]) for at in range(0, 8, 2)]
    assert rounds == [["many", "many"], ["few", "many"], ["many", "one"], ["few", "many"]]
    assert gate.statistics().refused == 0


async def test_a_queue_of_others_is_no_measure(autojump_clock: object) -> None:
    """Where somebody waits who has their share and the gate fills up then, its pace is measured from that moment."""
    gate = gate_of(4, patience=40.0)
    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(_hold, gate, "greedy")
        await trio.testing.wait_all_tasks_blocked()
        await trio.sleep(9)
        assert (gate.statistics().inside, gate.statistics().waiting) == (3, 1)

        async def visit(who: str) -> None:
            async with gate.enter(who):
                await trio.sleep(5)

        nursery.start_soon(visit, "first")
        await trio.testing.wait_all_tasks_blocked()
        began = trio.current_time()
        async with gate.enter("second"):
            assert trio.current_time() - began == pytest.approx(5)
        nursery.cancel_scope.cancel()


@given(
    st.integers(1, 6), st.integers(0, 6), st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 4)), max_size=25)
)
def test_a_gate_is_empty_at_the_end(limit: int, queue: int, visits: list[tuple[str, int]]) -> None:
    """However many come, wait, are refused and leave, nobody has more than their share inside, and nothing is left behind."""

    async def run() -> None:
        gate = gate_of(limit, queue=queue, patience=8.0)

        async def visit(who: str, seconds: int) -> None:
            with trio.move_on_after(3 * seconds):
                with suppress(RegistryError):
                    async with gate.enter(who):
                        assert gate.places.taken <= limit
                        assert gate.places.held_by(who) <= gate.places.share.most
                        await trio.sleep(seconds)

        async with trio.open_nursery() as nursery:
            for who, seconds in visits:
                nursery.start_soon(visit, who, seconds)
                await trio.sleep(0.5)
        assert (gate.statistics().inside, gate.statistics().waiting) == (0, 0)
        assert gate._lines == {}
        assert gate._movement is None
        assert gate.places._held == {} == gate._queue._held

    trio.run(run, clock=trio.testing.MockClock(autojump_threshold=0))
