"""How slow a client may be in a body: silence has its own deadline, this one ends a client that trickles for ever."""

from typing import Protocol

import trio

MINIMUM_RATE = 4096.0
"""Bytes per second. A client that is slower than this on the whole is given up when its patience is used up."""

SILENCES = 10
"""So many times the longest silence a client may keep the node waiting beyond what its bytes excuse."""

PATIENCE = 300.0
"""Seconds that a client may keep an answer waiting beyond what its bytes excuse. That it takes nothing at all is for
TCP_USER_TIMEOUT to find, which is much sooner."""

_SLICE = 256 * 1024
"""Bytes that are sent at once: what a slow client is measured by."""


class Sink(Protocol):
    """What takes bytes."""

    async def send_all(self, data: memoryview) -> None:
        """Send everything."""
        ...


class Pace:
    """The patience that one body is met with. Every wait uses it up, and every byte gives a little back, up to where it began.

    Only waits for the client count, not those that the node is to blame for.
    """

    def __init__(self, seconds: float, rate: float = MINIMUM_RATE) -> None:
        """Begin with `seconds`; `rate` bytes give a second back."""
        self._most = self._left = seconds
        self._rate = rate

    def allowance(self, count: int = 0) -> float:
        """Return how many seconds the next wait may take, for `count` bytes if it is known how many."""
        return max(0.0, self._left) + count / self._rate

    def waited(self, seconds: float, count: int) -> None:
        """Note a wait and the bytes that it brought."""
        self._left = min(self._most, self._left - seconds + count / self._rate)


async def send_paced(sink: Sink, data: bytes | bytearray | memoryview, pace: Pace) -> bool:
    """Send everything. False: the client takes it too slowly, and nothing more can be sent on this connection.

    Raises what the sink raises.
    """
    for start in range(0, len(data), _SLICE):
        part = memoryview(data)[start : start + _SLICE]
        began = trio.current_time()
        with trio.move_on_after(pace.allowance(len(part))) as scope:
            await sink.send_all(part)
        if scope.cancelled_caught:
            return False
        pace.waited(trio.current_time() - began, len(part))
    return True
