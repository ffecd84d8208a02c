"""The crossing: deadlines that hold, cancellations that win, and complaints that do not end the program."""

import asyncio
import gc
import socket
import ssl

import pytest
import trio
import trio.testing

from engines.contract import MIB, EngineUnavailable
from engines.crossing import UNWIND_SECONDS, Bridge, Trouble, cross, open_bridge
from tests.faults import MakeFaulty

Clock = trio.testing.MockClock
"""How long a crossing takes is told by a virtual clock, which a busy machine does not hurry."""


async def sleeper(seconds: float) -> str:
    await asyncio.sleep(seconds)
    return "slept"


async def stubborn() -> str:
    """Does not let itself be cancelled for a while."""
    clock = asyncio.get_running_loop().time
    end = clock() + 100 * UNWIND_SECONDS
    while clock() < end:
        try:
            await asyncio.sleep(end - clock())
        except asyncio.CancelledError:
            continue
    return "at last"


async def test_result_and_error_come_back(bridge: Bridge) -> None:
    """A crossing returns what the function returns and raises what it raises."""

    async def fails() -> None:
        raise KeyError("inside")

    assert await cross(sleeper, 0.0, deadline=30, unavailable=EngineUnavailable) == "slept"
    with pytest.raises(KeyError, match="inside"):
        await cross(fails, deadline=30, unavailable=EngineUnavailable)


async def test_deadline_is_real(autojump_clock: Clock, bridge: Bridge) -> None:
    """A function that takes too long becomes the error that the caller named, in time."""
    began = trio.current_time()
    with pytest.raises(EngineUnavailable, match=r"no answer within 0\.1 s"):
        await cross(sleeper, 30.0, deadline=0.1, unavailable=EngineUnavailable)
    assert trio.current_time() - began == pytest.approx(0.1)


async def test_a_deadline_on_the_other_side_is_not_said_to_be_this_one(bridge: Bridge) -> None:
    """Who gave up after five seconds has not waited for four minutes, whatever the call would have had."""

    async def gives_up() -> None:
        raise TimeoutError

    with pytest.raises(EngineUnavailable, match=r"^no answer in time$"):
        await cross(gives_up, deadline=241, unavailable=EngineUnavailable)


async def test_stubborn_function_is_left_behind(autojump_clock: Clock) -> None:
    """A function that ignores its cancellation costs a bounded time more, is counted, and ends with the loop."""
    async with open_bridge() as bridge:
        began = trio.current_time()
        with pytest.raises(EngineUnavailable):
            await cross(stubborn, deadline=0.1, unavailable=EngineUnavailable)
        assert trio.current_time() - began == pytest.approx(0.1 + UNWIND_SECONDS)
        assert bridge.statistics().left_behind == 1


async def test_stubborn_function_and_cancelled_scope(autojump_clock: Clock) -> None:
    """A Trio cancellation is bounded in the same way."""
    async with open_bridge() as bridge:
        began = trio.current_time()
        with trio.move_on_after(0.1) as scope:
            await cross(stubborn, deadline=30, unavailable=EngineUnavailable)
        assert scope.cancelled_caught
        assert trio.current_time() - began == pytest.approx(0.1 + UNWIND_SECONDS)
        assert bridge.statistics().left_behind == 1


async def test_cancellation_wins_over_timeout(bridge: Bridge) -> None:
    """When the caller's scope is cancelled as well, the caller sees its cancellation."""
    with trio.move_on_after(0.05) as scope:
        await cross(sleeper, 30.0, deadline=0.05, unavailable=EngineUnavailable)
    assert scope.cancelled_caught


async def test_finished_work_is_not_lost(bridge: Bridge) -> None:
    """What a function returns in spite of its cancellation reaches the caller, who may have to close it."""

    async def opens() -> str:
        # From here, and not by a deadline: on a busy machine that might have passed before this began.
        scope.cancel()
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            return "opened"
        return "never"

    got = None
    with trio.CancelScope() as scope:
        got = await cross(opens, deadline=30, unavailable=EngineUnavailable)
        await trio.lowlevel.checkpoint()
    assert got == "opened"
    assert scope.cancelled_caught


async def test_stray_cancellation_is_unavailable(bridge: Bridge) -> None:
    """An asyncio cancellation that nobody here asked for is an error, not the end of the node."""

    async def cancels_itself() -> None:
        raise asyncio.CancelledError

    with pytest.raises(EngineUnavailable, match="cancelled itself"):
        await cross(cancels_itself, deadline=30, unavailable=EngineUnavailable)


async def test_timeout_inside_keeps_its_words(bridge: Bridge) -> None:
    """A TimeoutError of the library's own is unavailable with the library's words."""

    async def times_out() -> None:
        raise TimeoutError("pool is empty")

    with pytest.raises(EngineUnavailable, match="pool is empty"):
        await cross(times_out, deadline=30, unavailable=EngineUnavailable)


async def test_complaints_are_reported_and_survived() -> None:
    """What asyncio reports to its loop is counted and handed to the hook; the program goes on."""
    heard: list[Trouble] = []

    async def forgets() -> None:
        async def fails() -> None:
            raise ValueError("nobody listens")

        task = asyncio.get_running_loop().create_task(fails())
        await asyncio.sleep(0.01)
        del task
        # asyncio complains when the task is collected, which may be a cycle's business (Python 3.12).
        gc.collect()

    async with open_bridge(heard.append) as bridge:
        await cross(forgets, deadline=30, unavailable=EngineUnavailable)
        assert await cross(sleeper, 0.0, deadline=30, unavailable=EngineUnavailable) == "slept"
        assert bridge.statistics().troubles == 1
    assert [str(trouble.error) for trouble in heard] == ["nobody listens"]


async def test_a_connection_that_broke_is_no_complaint() -> None:
    """A library's own task that met a broken connection is no bug of ours: its request fails on its own way."""
    heard: list[Trouble] = []

    async def forgets() -> None:
        async def fails() -> None:
            raise ConnectionResetError("Cannot write to closing transport")

        task = asyncio.get_running_loop().create_task(fails())
        await asyncio.sleep(0.01)
        del task
        # asyncio complains when the task is collected, which may be a cycle's business (Python 3.12).
        gc.collect()

    async with open_bridge(heard.append) as bridge:
        await cross(forgets, deadline=30, unavailable=EngineUnavailable)
        assert await cross(sleeper, 0.0, deadline=30, unavailable=EngineUnavailable) == "slept"
        assert bridge.statistics().troubles == 0
    assert heard == []


async def test_a_connection_whose_closing_takes_long_ends_with_the_loop(faulty_store: MakeFaulty) -> None:
    """A loop that ends does not wait for the other side of a connection that is being closed, and leaves no socket open."""
    heard: list[Trouble] = []
    store = await faulty_store("us-tls")

    async def closes() -> list[asyncio.StreamWriter]:
        plain = await asyncio.open_connection("127.0.0.1", store.port)
        context = ssl.create_default_context(cafile=store.upstream.ca)
        secure = await asyncio.open_connection("127.0.0.1", store.port, ssl=context)
        store.break_("hang")
        # One waits until this has been taken, the other one for its goodbye to be answered.
        plain[1].write(bytes(64 * MIB))
        plain[1].close()
        secure[1].close()
        return [plain[1], secure[1]]

    async with open_bridge(heard.append):
        writers = await cross(closes, deadline=30, unavailable=EngineUnavailable)
        sockets = [writer.get_extra_info("socket") for writer in writers]
        assert [each.fileno() > 0 for each in sockets] == [True, True]
    assert [each.fileno() for each in sockets] == [-1, -1]
    assert heard == []


async def test_a_connection_that_nobody_closes_is_reported(faulty_store: MakeFaulty) -> None:
    """A connection that is still open when the loop ends has been forgotten: that is said, and it is closed."""
    heard: list[Trouble] = []
    store = await faulty_store("us")

    async def forgets() -> socket.socket:
        transport, _ = await asyncio.get_running_loop().create_connection(asyncio.Protocol, "127.0.0.1", store.port)
        opened: socket.socket = transport.get_extra_info("socket")
        return opened

    async with open_bridge(heard.append):
        opened = await cross(forgets, deadline=30, unavailable=EngineUnavailable)
    assert opened.fileno() == -1
    assert [trouble.message.partition(":")[0] for trouble in heard] == ["a connection was left open"]


async def test_errors_leave_the_bridge_plain() -> None:
    """An error in the bridge's block comes out as it is, not in groups."""
    with pytest.raises(KeyError):
        async with open_bridge():
            raise KeyError("plain")


async def test_no_bridge() -> None:
    """Without a bridge a crossing says what is missing."""
    with pytest.raises(RuntimeError, match="open_bridge"):
        await cross(sleeper, 0.0, deadline=30, unavailable=EngineUnavailable)


async def test_a_deadline_holds_for_who_tidies_up_in_what_is_cancelled(autojump_clock: Clock) -> None:
    """Whatever the bridge stands in has been cancelled, and a shielded crossing waits for its deadline and no longer."""
    began, errors = trio.current_time(), list[Exception]()
    with trio.CancelScope() as outer:
        async with open_bridge():
            outer.cancel()
            with trio.move_on_after(50, shield=True):
                await trio.sleep(1)
                try:
                    await cross(sleeper, 100.0, deadline=0.1, unavailable=EngineUnavailable)
                except EngineUnavailable as error:
                    errors.append(error)
    assert len(errors) == 1
    assert trio.current_time() - began == pytest.approx(1.1)
