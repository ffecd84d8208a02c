"""Pieces of a blob from the store's socket to the client's in one worker thread: received, verified and sent without a task's turn.

Handing every MiB from thread to task to socket takes six turns of the scheduler, and on a busy machine each of them waits. The
thread does not wait for a slow client, and returns every few pieces: all that has a deadline, or may go wrong, is the task's.
"""

import threading
import time
from typing import Protocol

from attrs import define, field

from replication.macs import PieceCheck
from replication.model import PIECE

_PIECES = 16
FLOW_SECONDS = 0.1
"""How much one run takes on at most, so that nobody waits long for a thread, or for this one to end."""


class Sink(Protocol):
    """Where bytes go straight from the thread that received them."""

    def send(self, data: memoryview) -> int:
        """Send what can be sent at once and return how many bytes that was, 0 also when nothing can ever be sent any more."""
        ...

    def ready(self) -> bool:
        """Wait for a moment until something can be sent; return whether it can."""
        ...

    def sent(self, count: int) -> None:
        """Note that so many bytes have gone. Called by the task, after a run."""
        ...


@define(eq=False)
class Flow:
    """One run: whole pieces of a blob from `offset` on, all of it before `limit`, of which [start, stop) is sent.

    `take` belongs to the thread. After `end`, which the task calls, nothing is sent any more, and the other fields stand still.
    """

    _check: PieceCheck
    offset: int
    """Up to here everything was right, and has been sent or is `rest`."""
    _limit: int
    _start: int
    _sink: Sink
    rest: memoryview | None = field(default=None, init=False)
    """Verified bytes that the client has not taken."""
    wrong: bool = field(default=False, init=False)
    """Whether the piece at `offset` was not what it should be."""
    count: int = field(default=0, init=False)
    """Bytes that were sent."""
    _until: float = field(factory=lambda: time.monotonic() + FLOW_SECONDS, init=False)
    _left: int = field(default=_PIECES, init=False)
    _over: threading.Event = field(factory=threading.Event, init=False)
    _lock: threading.Lock = field(factory=threading.Lock, init=False)

    @staticmethod
    def fits(offset: int, limit: int) -> bool:
        """Whether there is a piece to be sent so: not the last one, which the task holds back until it knows that all went well."""
        return offset % PIECE == 0 and offset + PIECE < limit

    def take(self, data: memoryview) -> bool:
        """Verify the next piece and send it; return whether to go on."""
        right = self._check.right(self.offset // PIECE, data)
        with self._lock:
            if self._over.is_set():
                return False
            if not right:
                self.wrong = True
                return False
            rest = data[max(0, self._start - self.offset) :].toreadonly()
            self.offset += PIECE
            self.rest = rest
        while rest:
            if time.monotonic() > self._until:
                return False
            with self._lock:
                if self._over.is_set():
                    return False
                sent = self._sink.send(rest)
                self.count += sent
                self.rest = rest = rest[sent:]
            if rest and not self._sink.ready():
                return False
        self.rest = None
        self._left -= 1
        return self._left > 0 and time.monotonic() < self._until and self.fits(self.offset, self._limit)

    def end(self) -> None:
        """Let the thread do no more. Waits no longer than one call that sends at once."""
        with self._lock:
            self._over.set()
        self._sink.sent(self.count)
