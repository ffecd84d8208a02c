"""The one crossing from Trio to asyncio: how trio-native modules call an asyncio-only library. Knows no library.

A Trio deadline is only advice on the other side: what it cancels there may go on for as long as it likes. So a crossing has
its own task there, which is cancelled when the time is up, and on this side it waits a bounded time more for the other side to
unwind, then leaves it behind (it stays a task of the loop, is counted, and ends with it).

One crossing per unit of work: acquire, use and release a resource inside one asyncio-flavoured function.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any, TypeVar, TypeVarTuple

import trio
import trio_asyncio
from attrs import define, field, frozen

from engines.alarms import Alarms, Waiter
from engines.pump import Pump, install

logger = logging.getLogger(__name__)

UNWIND_SECONDS = 1.0
"""How long the other side may take to unwind after a deadline or a cancellation before it is left behind."""

Result = TypeVar("Result")
Arguments = TypeVarTuple("Arguments")


@frozen
class Trouble:
    """Something that asyncio reported to its loop because no caller was there to hear it."""

    message: str
    error: BaseException | None = None


@frozen
class BridgeStatistics:
    """Counters since the bridge was opened: reports to the loop, and crossings that did not unwind in time."""

    troubles: int
    left_behind: int


@define(eq=False)
class Bridge:
    """An open asyncio loop on top of this Trio program. Made by `open_bridge`."""

    _loop: asyncio.AbstractEventLoop
    _pump: Pump
    alarms: Alarms
    """Of crossings."""
    _on_trouble: Callable[[Trouble], None] | None = None
    _troubles: int = field(default=0, init=False)
    _left_behind: int = field(default=0, init=False)

    def statistics(self) -> BridgeStatistics:
        """Return the counters as they are now."""
        return BridgeStatistics(self._troubles, self._left_behind)

    def start(
        self, ended: Callable[[], None], fn: Callable[[*Arguments], Awaitable[Result]], *args: *Arguments
    ) -> "asyncio.Task[Result]":
        """Start an asyncio-flavoured function as a task of the loop. For `cross`, which waits for it.

        It calls `ended` at its end, unless it is cancelled before its first step.
        """

        async def run() -> Result:
            try:
                return await fn(*args)
            finally:
                # The loop would call it one turn later.
                ended()

        return self._pump.start(lambda: asyncio.Task(run(), loop=self._loop))

    def leave_behind(self, task: "asyncio.Task[Any]", name: str) -> None:
        """Count and log a task that nobody waits for any more, and take its outcome when it ends after all."""
        self._left_behind += 1
        logger.warning("%s did not end within %s s of being cancelled: left behind", name, UNWIND_SECONDS)

        def take(ended: "asyncio.Task[Any]") -> None:
            if not ended.cancelled() and (error := ended.exception()) is not None:
                logger.warning("%s, left behind, ended with %r", name, error)

        task.add_done_callback(take)

    def report(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Take what asyncio reports to its loop: count it, log it, and go on. The default would end the whole program."""
        trouble = Trouble(str(context.get("message", "unhandled error in the loop")), context.get("exception"))
        if isinstance(trouble.error, ConnectionError):
            # A library's own task met a connection that broke (aiohttp 3.14 does when a request's head cannot be sent any more).
            # Whoever made the request learns of it on their own way: a store that is away is no bug.
            logger.warning("asyncio: %s: %r", trouble.message, trouble.error)
            return
        self._troubles += 1
        logger.error("asyncio: %s", trouble.message, exc_info=trouble.error)
        if self._on_trouble is not None:
            self._on_trouble(trouble)


_bridge: ContextVar[Bridge] = ContextVar("bridge")


@asynccontextmanager
async def open_bridge(on_trouble: Callable[[Trouble], None] | None = None) -> AsyncIterator[Bridge]:
    """Open the loop that every `cross` in this task and its descendants uses; close it on exit.

    `on_trouble` is called, after the log line, with everything that asyncio reports to its loop (tests let it fail them). It
    must not raise. Open it before everything that crosses: a task started outside cannot cross.
    """
    failure: Exception | None = None
    async with trio_asyncio.open_loop() as loop, trio.open_nursery() as nursery:
        bridge = Bridge(loop, install(loop), Alarms(), on_trouble)
        looking = trio.CancelScope(shield=True)
        nursery.start_soon(_look_after, bridge.alarms, looking)
        loop.set_exception_handler(bridge.report)
        # It asks of every callback whether it is a coroutine function, as asyncio does in debug mode only: 4 % of a push.
        loop._check_callback = lambda *_: None  # noqa: SLF001
        _cut_at_the_end(bridge, loop)
        token = _bridge.set(bridge)
        try:
            yield bridge
        except Exception as error:  # noqa: BLE001 -- raised again below, outside the loop's nurseries
            failure = error
        finally:
            _bridge.reset(token)
            looking.cancel(reason="the bridge closes")
    if failure is not None:
        # Not from within: the loop's two nurseries would wrap it in two exception groups.
        raise failure


async def _look_after(alarms: Alarms, scope: trio.CancelScope) -> None:
    """Look after deadlines until the scope is cancelled, whatever else is: who tidies up in a shield of their own crosses, too."""
    with scope:
        await alarms.run()


def _cut_at_the_end(bridge: Bridge, loop: Any) -> None:
    """Let the loop cut the connections that are left when its tasks have ended, and report those that nobody has closed.

    To close one takes time where its other side has yet to take what was sent, or to agree to the end of TLS. A loop that ends
    forgets it meanwhile, and its socket stays open until the collector comes by.
    """
    end = loop._main_loop_exit  # noqa: SLF001  # there is no public place for it, and the version is pinned

    async def cut_and_end() -> None:
        for transport in tuple(loop._transports.values()):  # noqa: SLF001
            # Under TLS it is the connection above that is closed first.
            above = getattr(transport.get_protocol(), "_app_transport", None)
            if not transport.is_closing() and (above is None or not above.is_closing()):
                bridge.report(loop, {"message": f"a connection was left open: {transport!r}"})
            transport.abort()
        await end()

    loop._main_loop_exit = cut_and_end  # noqa: SLF001


async def cross(
    fn: Callable[[*Arguments], Awaitable[Result]],
    *args: *Arguments,
    deadline: float,
    unavailable: Callable[[str], Exception],
) -> Result:
    """Run an asyncio-flavoured function in one crossing and return what it returns.

    `deadline` is in seconds and real: `fn` is cancelled on its own side, and this call returns at most UNWIND_SECONDS later
    whatever `fn` does. The same bound holds when the caller's Trio scope is cancelled. When `fn` has returned although it
    was cancelled, its result is returned, so that nothing it opened is lost; the scope's cancellation comes at the next
    checkpoint.

    Raises what `fn` raises; `unavailable(reason)` for a TimeoutError (this deadline or one inside `fn`) and for an asyncio
    cancellation that did not come from here; RuntimeError where no bridge is open. A cancelled Trio scope goes before these.
    """
    bridge = _bridge.get(None)
    if bridge is None:
        raise RuntimeError("no bridge is open in this task: it must descend from the one that entered open_bridge()")
    await trio.lowlevel.checkpoint_if_cancelled()
    waiter = Waiter()
    task = bridge.start(waiter.wake, fn, *args)
    try:
        if task.done():
            # It had nothing to wait for. Who crosses passes through the scheduler all the same.
            await trio.lowlevel.cancel_shielded_checkpoint()
        else:
            await bridge.alarms.wait(waiter, deadline)
    except trio.Cancelled:
        if not await _unwound(task):
            bridge.leave_behind(task, _name_of(fn))
            raise
        if task.cancelled() or task.exception() is not None:
            raise
        return task.result()
    overdue = not task.done()
    if overdue and not await _unwound(task):
        bridge.leave_behind(task, _name_of(fn))
        await trio.lowlevel.checkpoint_if_cancelled()
        raise unavailable(_late(deadline))
    try:
        return task.result()
    except TimeoutError as error:
        await trio.lowlevel.checkpoint_if_cancelled()
        raise unavailable(str(error) or (_late(deadline) if overdue else "no answer in time")) from error
    except asyncio.CancelledError as error:
        await trio.lowlevel.checkpoint_if_cancelled()
        raise unavailable(_late(deadline) if overdue else "the call cancelled itself") from error


def _name_of(fn: Callable[..., object]) -> str:
    return getattr(fn, "__qualname__", repr(fn))


def _late(deadline: float) -> str:
    return f"no answer within {deadline:g} s"


async def _unwound(task: "asyncio.Task[Any]") -> bool:
    """Cancel the task and wait a bounded time for its end; say whether it ended."""
    ended = trio.Event()
    task.add_done_callback(lambda _: ended.set())
    task.cancel()
    with trio.move_on_after(UNWIND_SECONDS, shield=True):
        await ended.wait()
    return task.done()
