"""Gates bound how many requests of one kind work at once, and say when to come back."""

import pytest
import trio
import trio.testing

from node.errors import RegistryError
from node.gates import Gate


async def _hold(gate: Gate, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
    async with gate.enter():
        task_status.started()
        await trio.sleep_forever()


async def test_a_full_gate_makes_the_next_wait_and_then_sends_it_away(autojump_clock: object) -> None:
    """After its patience a request is refused with 429 and told when to come back."""
    gate = Gate("pulls", 1, patience=5.0)
    async with trio.open_nursery() as nursery:
        await nursery.start(_hold, gate)
        began = trio.current_time()
        with pytest.raises(RegistryError) as refused:
            async with gate.enter():
                pass
        assert trio.current_time() - began == pytest.approx(5.0)
        assert refused.value.code.status == 429
        assert ("retry-after", "5") in refused.value.headers
        nursery.cancel_scope.cancel()
    assert gate.statistics().inside == 0
    assert gate.statistics().refused == 1


async def test_who_waits_gets_in_when_somebody_leaves(autojump_clock: object) -> None:
    """A place that becomes free goes to the one who waited longest."""
    gate = Gate("pulls", 1, patience=5.0)
    order: list[int] = []

    async def visit(number: int) -> None:
        async with gate.enter():
            order.append(number)
            await trio.sleep(1)

    async with trio.open_nursery() as nursery:
        for number in range(2):
            nursery.start_soon(visit, number)
            await trio.testing.wait_all_tasks_blocked()
    assert order == [0, 1]


async def test_a_long_queue_is_cut_short_at_once(autojump_clock: object) -> None:
    """No more than the gate's own size may wait: the rest is refused without waiting."""
    gate = Gate("pulls", 1, patience=5.0)
    async with trio.open_nursery() as nursery:
        await nursery.start(_hold, gate)
        nursery.start_soon(_hold, gate)
        await trio.testing.wait_all_tasks_blocked()
        began = trio.current_time()
        with pytest.raises(RegistryError):
            async with gate.enter():
                pass
        assert trio.current_time() == began
        nursery.cancel_scope.cancel()


async def test_a_cancelled_wait_leaves_nothing_behind() -> None:
    """A client that leaves while it waits takes no place."""
    gate = Gate("pulls", 1, patience=5.0)
    async with gate.enter():
        with trio.move_on_after(0):
            async with gate.enter():
                pass
        assert gate.statistics().inside == 1
        assert gate.statistics().waiting == 0
    assert gate.statistics().inside == 0


async def test_who_is_cancelled_at_the_gate_takes_no_place() -> None:
    """A request that is cancelled as it comes in leaves the gate as empty as it was."""
    gate = Gate("pulls", 1, 1.0)
    with trio.CancelScope() as scope:
        scope.cancel()
        async with gate.enter():
            pass
    assert scope.cancelled_caught
    assert gate.statistics().inside == 0
