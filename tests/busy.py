"""How busy the machine is that tests run on: what bounds of time are measured against where other tests take the processor."""

import hashlib
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

_WORK = 0.02
"""Seconds of the processor."""
_BLOCK = bytes(1 << 18)


def slowness() -> float:
    """Return how many times as long as on an idle machine a piece of work takes here just now; never less than 1.

    It is the time of that work over the processor's time for it: what is slow by itself does not make it more.
    """
    began, used = time.perf_counter(), time.thread_time()
    while time.thread_time() - used < _WORK:
        hashlib.sha256(_BLOCK).digest()
    return max(1.0, (time.perf_counter() - began) / (time.thread_time() - used))


@contextmanager
def measured() -> Iterator[list[float]]:
    """Measure the slowness again and again, in a thread, while the block runs; yield what has been found so far."""
    found, over = [slowness()], threading.Event()

    def look() -> None:
        while not over.wait(1.0):
            found.append(slowness())

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()
