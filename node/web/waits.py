"""Connections that wait for bytes of a request, each until its time is up. One task looks after all plain ones.

A cancel scope for every head takes 15 to 20 us; all else that Trio and the kernel do for a request takes 22.
"""

from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio
from attrs import define, field

_T = TypeVar("_T")

_LEAST = 0.05
_MOST = 1.0


@define(eq=False)
class Waits:
    """Who waits on which socket, and until when. Times are Trio's. `run` must run beside them."""

    every: float
    """Seconds between looks, 1 at the most: a connection may live so much longer than it should."""
    _until: dict[trio.socket.SocketType, float] = field(factory=dict, init=False)
    _idle: set[trio.socket.SocketType | trio.CancelScope] = field(factory=set, init=False)

    async def readable(self, socket: trio.socket.SocketType, until: float, *, idle: bool) -> bool:
        """Wait until something can be read; False when that took too long, or when it is `idle` and `stop` is called.

        Raises trio.ClosedResourceError where somebody closes the socket meanwhile.
        """
        self._until[socket] = until
        if idle:
            self._idle.add(socket)
        try:
            await trio.lowlevel.wait_readable(socket)
        except trio.ClosedResourceError:
            if socket in self._until:
                raise
            return False
        finally:
            self._until.pop(socket, None)
            self._idle.discard(socket)
        return True

    async def within(self, receive: Callable[[], Awaitable[_T]], until: float, *, idle: bool) -> _T | None:
        """Receive by what is no plain socket; None when that took too long, or when it is `idle` and `stop` is called."""
        with trio.CancelScope(deadline=until) as scope:
            if idle:
                self._idle.add(scope)
            try:
                return await receive()
            finally:
                self._idle.discard(scope)
        return None

    def stop(self) -> None:
        """End the waits of those that are idle."""
        for waiting in tuple(self._idle):
            if isinstance(waiting, trio.CancelScope):
                waiting.cancel(reason="the node stops")
            else:
                self._end(waiting)

    async def run(self) -> None:
        """End waits that take too long, for ever."""
        pause = min(_MOST, max(_LEAST, self.every))
        while True:
            await trio.sleep(pause)
            now = trio.current_time()
            for socket in [socket for socket, until in self._until.items() if until <= now]:
                self._end(socket)

    def _end(self, socket: trio.socket.SocketType) -> None:
        """Wake who waits. Whose bytes have come in this very moment is no longer waiting, and goes on."""
        if self._until.pop(socket, None) is not None:
            trio.lowlevel.notify_closing(socket)
