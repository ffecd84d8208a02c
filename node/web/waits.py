"""Connections that wait for bytes of a request, each until its time is up. One task looks after all plain ones.

A cancel scope for every head takes 15 to 20 us; all else that Trio and the kernel do for a request takes 22.
"""

import select
import socket as sockets
from collections.abc import Awaitable, Callable
from math import inf
from typing import Protocol, TypeVar

import trio
from attrs import Factory, define, field

_T = TypeVar("_T")
Socket = sockets.socket

HEAD_SECONDS = 10.0
"""From a head's first byte to its last."""

LAST_REQUEST = 2.0
"""Seconds that a connection may be idle while the node stops: since it was accepted, or since its last answer.

Whoever has been told nothing may be sending its next request now, and nobody sends a POST again. So a connection on which one may
come is kept for as long as one is likely to. A balancer that gives up its idle connections sooner never uses one that we close.
"""

_LEAST = 0.05
_MOST = 1.0


class Numbered(Protocol):
    """A socket, of whatever library."""

    def fileno(self) -> int:
        """Return its number, -1 when it is closed."""
        ...


@define(eq=False)
class Waits:
    """Who waits on which socket, and until when. Times are Trio's. `run` must run beside `readable`."""

    every: float
    """Seconds between looks, 1 at the most: a connection may live so much longer than it should."""
    last_request: float = LAST_REQUEST
    _until: dict[Socket, float] = field(factory=dict, init=False)
    _idle: dict[Socket | trio.CancelScope, float] = field(factory=dict, init=False)
    """Since when they are."""
    stopping: bool = field(default=False, init=False)
    """Whether `stop` was called."""
    _stop: trio.Event = field(default=Factory(trio.Event), init=False)

    async def readable(self, socket: Socket, until: float, *, idle: float | None) -> bool:
        """Wait until something can be read; False when that took too long, by `until` or, when it is `idle` since then, by a stop.

        Raises trio.ClosedResourceError where somebody closes the socket meanwhile (`close`).
        """
        if idle is not None:
            self._idle[socket] = idle
            if self.stopping:
                until = min(until, idle + self.last_request)
        self._until[socket] = until
        try:
            await trio.lowlevel.wait_readable(socket)
        except trio.ClosedResourceError:
            if socket in self._until:
                raise
            return False
        finally:
            self._until.pop(socket, None)
            self._idle.pop(socket, None)
        return True

    async def within(self, receive: Callable[[], Awaitable[_T]], until: float, *, idle: float | None) -> _T | None:
        """Receive by what is no plain socket; None when that took too long, as `readable`."""
        with trio.CancelScope(deadline=until) as scope:
            if idle is not None:
                self._begin(scope, idle)
            try:
                return await receive()
            finally:
                self.end(scope)
        return None

    def begin(self, scope: trio.CancelScope) -> None:
        """Have a stop end what waits in this scope, which is idle from now on."""
        self._begin(scope, trio.current_time())

    def end(self, scope: trio.CancelScope) -> None:
        """Say that what waits in this scope is no longer idle."""
        self._idle.pop(scope, None)

    def stop(self) -> None:
        """End the waits of those that are idle, each when it has been so for `last_request`; they are no longer from now on."""
        self.stopping = True
        self._stop.set()
        for waiting, since in self._idle.items():
            until = since + self.last_request
            if isinstance(waiting, trio.CancelScope):
                waiting.deadline = min(waiting.deadline, until)
            elif waiting in self._until:
                self._until[waiting] = min(self._until[waiting], until)

    async def run(self) -> None:
        """End waits that take too long, for ever."""
        pause = min(_MOST, max(_LEAST, self.every))
        while True:
            if self.stopping:
                # A node that stops waits for these.
                first = min(self._until.values(), default=inf) - trio.current_time()
                await trio.sleep(min(pause, max(_LEAST, first)))
            else:
                with trio.move_on_after(pause):
                    await self._stop.wait()
            now = trio.current_time()
            for socket in [socket for socket, until in self._until.items() if until <= now]:
                self._end(socket)

    def _begin(self, scope: trio.CancelScope, since: float) -> None:
        self._idle[scope] = since
        if self.stopping:
            scope.deadline = min(scope.deadline, since + self.last_request)

    def _end(self, socket: Socket) -> None:
        """Wake who waits. Whose bytes have come in this very moment is no longer waiting, and goes on."""
        if self._until.pop(socket, None) is not None:
            trio.lowlevel.notify_closing(socket)


def close(socket: Socket) -> None:
    """Close a socket, and end with trio.ClosedResourceError what waits for it. It may be closed already."""
    if socket.fileno() >= 0:
        trio.lowlevel.notify_closing(socket)
        socket.close()


def has_bytes(socket: Numbered) -> bool:
    """Tell whether the kernel has something of the other side that nobody has read yet."""
    if socket.fileno() < 0:
        return False
    look = select.poll()
    look.register(socket.fileno(), select.POLLIN)
    return bool(look.poll(0))
