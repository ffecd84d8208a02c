"""The asyncio side's callbacks run in order, timers at their time, and whoever else there is has a turn."""

import asyncio
import gc
import socket
import weakref

import pytest
import trio
import trio.testing
import trio_asyncio

from engines.crossing import Bridge, cross, open_bridge
from engines.pump import AT_ONCE

Clock = trio.testing.MockClock


async def _on_the_other_side(fn: object, *args: object) -> object:
    return await cross(fn, *args, deadline=1000, unavailable=LookupError)  # type: ignore[arg-type]


async def test_callbacks_run_in_order(autojump_clock: Clock, bridge: Bridge) -> None:
    """What is scheduled first runs first, also when there is more than runs in one go."""
    ran: list[int] = []

    async def work() -> None:
        loop, done = asyncio.get_running_loop(), asyncio.Event()
        for number in range(3 * AT_ONCE):
            loop.call_soon(ran.append, number)
        loop.call_soon(done.set)
        await done.wait()

    await _on_the_other_side(work)
    assert ran == list(range(3 * AT_ONCE))


async def test_timers_come_at_their_time(autojump_clock: Clock, bridge: Bridge) -> None:
    """A timer runs when it is due, also one that is sooner than what the loop sleeps for; a cancelled one never."""
    ran: list[tuple[str, float]] = []

    async def work() -> None:
        loop = asyncio.get_running_loop()
        start = loop.time()

        def note(name: str) -> None:
            ran.append((name, round(loop.time() - start, 3)))

        for name, after in (("late", 20.0), ("soon", 5.0), ("never", 4.0)):
            handle = loop.call_later(after, note, name)
            if name == "never":
                handle.cancel()
        await asyncio.sleep(10)
        loop.call_later(1, note, "sooner")
        await asyncio.sleep(15)

    await _on_the_other_side(work)
    assert ran == [("soon", 5.0), ("sooner", 11.0), ("late", 20.0)]


async def test_cancelled_timers_are_let_go(autojump_clock: Clock, bridge: Bridge) -> None:
    """Every statement makes timers that are cancelled long before their time: they are not kept until then."""
    kept: list[weakref.ref[asyncio.TimerHandle]] = []

    async def work() -> None:
        loop = asyncio.get_running_loop()
        for _ in range(1000):
            handle = loop.call_later(500, lambda: None)
            kept.append(weakref.ref(handle))
            handle.cancel()
            await asyncio.sleep(0)

    await _on_the_other_side(work)
    gc.collect()
    assert sum(handle() is not None for handle in kept) < 200


async def test_callbacks_without_end_leave_others_their_turn(autojump_clock: Clock, bridge: Bridge) -> None:
    """Callbacks that schedule one another for ever hold up neither Trio's tasks nor a timer."""
    going = True

    async def work() -> None:
        loop = asyncio.get_running_loop()

        def again() -> None:
            if going:
                loop.call_soon(again)

        again()

    await _on_the_other_side(work)
    for _ in range(10):
        await trio.lowlevel.checkpoint()
    going = False


async def test_a_thread_wakes_the_loop(bridge: Bridge) -> None:
    """What a thread schedules runs although nothing else happens."""

    async def work() -> str:
        loop, answered = asyncio.get_running_loop(), asyncio.get_running_loop().create_future()
        await loop.run_in_executor(None, lambda: loop.call_soon_threadsafe(answered.set_result, "told"))
        return str(await answered)

    with trio.fail_after(60):
        assert await _on_the_other_side(work) == "told"


async def test_trio_functions_run_from_the_other_side(autojump_clock: Clock, bridge: Bridge) -> None:
    """A function of Trio's side that asyncio calls answers, and is cancelled with who called it."""
    ended: list[str] = []

    async def trio_flavoured() -> str:
        try:
            await trio.sleep(3)
        except trio.Cancelled:
            ended.append("cancelled")
            raise
        return "slept"

    async def work() -> str:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await trio_asyncio.trio_as_aio(trio_flavoured)()
        return str(await trio_asyncio.trio_as_aio(trio_flavoured)())

    assert await _on_the_other_side(work) == "slept"
    assert ended == ["cancelled"]


async def test_a_loop_closes_with_timers_under_way(autojump_clock: Clock) -> None:
    """A bridge closes at once whatever timers there are."""
    async with open_bridge():
        began = trio.current_time()

        async def work() -> None:
            asyncio.get_running_loop().call_later(1000, lambda: None)

        await _on_the_other_side(work)
    assert trio.current_time() - began < 10


async def test_the_loop_has_no_turn_while_it_only_waits(bridge: Bridge) -> None:
    """What a crossing makes ready runs in its caller, and what a socket makes ready in the task that waits for it."""
    turns: list[str] = []

    class Turns(trio.abc.Instrument):
        def before_task_step(self, task: trio.lowlevel.Task) -> None:
            turns.append(task.name.rpartition(".")[2])

    ours, theirs = socket.socketpair()
    for end in (ours, theirs):
        end.setblocking(False)

    async def ask() -> None:
        await trio.testing.wait_all_tasks_blocked()
        theirs.send(b"asked")

    async def wait() -> bytes:
        return await asyncio.get_running_loop().sock_recv(ours, 100)

    async def at_once() -> str:
        return "at once"

    with ours, theirs:
        await trio.testing.wait_all_tasks_blocked()
        trio.lowlevel.add_instrument(counted := Turns())
        assert await _on_the_other_side(at_once) == "at once"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            assert await _on_the_other_side(wait) == b"asked"
        trio.lowlevel.remove_instrument(counted)
    assert "_main_loop" not in turns
    assert "watch" in turns


async def test_a_callback_that_fails_fails_nobody_else(bridge: Bridge) -> None:
    """It is reported, and the crossing that made it ready goes on."""
    told: list[object] = []

    async def work() -> str:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: told.append(context["exception"]))
        try:
            loop.call_soon(lambda: 1 / 0)
            await asyncio.sleep(0)
        finally:
            loop.set_exception_handler(bridge.report)
        return "on"

    assert await _on_the_other_side(work) == "on"
    (error,) = told
    assert isinstance(error, ZeroDivisionError)
