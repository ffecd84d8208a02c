"""One measurement of one server under load, and what several of them come to."""

import time
from collections.abc import Callable, Iterable, Sequence
from statistics import median
from typing import TypeVar

from attrs import frozen

from .clients import Samples
from .machine import cpu_seconds, reset_peak, resident_bytes
from .servers import Server
from .wire import Client, drive

T = TypeVar("T")


@frozen
class Run:
    """What one run came to; seconds and bytes."""

    seconds: float
    done: float
    """Units of work, also parts of them."""
    latencies: tuple[float, ...]
    received: int
    own_cpu: float
    server_cpu: float
    store_cpu: float
    peak: int

    @property
    def rate(self) -> float:
        """Units of work per second."""
        return self.done / self.seconds

    @property
    def cpu_each(self) -> float:
        """The server's seconds of the processor per unit of work."""
        return self.server_cpu / self.done if self.done else 0.0

    @property
    def store_each(self) -> float:
        """The store's seconds of the processor per unit of work."""
        return self.store_cpu / self.done if self.done else 0.0

    @property
    def own_share(self) -> float:
        """The generator's share of one core."""
        return self.own_cpu / self.seconds


def in_turns(everybody: Sequence[T], round_: int) -> Sequence[T]:
    """Return them in the order of a round, there and back, so that nobody always comes first, or after the same one."""
    return everybody[:: -1 if round_ % 2 else 1]


def measure(
    server: Server, store: Sequence[int], clients: Callable[[Samples], Iterable[Client]], seconds: float | None
) -> Run:
    """Let clients work for so many seconds, or to their ends, and measure. Raises LoadFailed and WrongAnswer."""
    samples, pids = Samples(), (server.pid,)
    working = list(clients(samples))
    reset_peak(server.pid)
    began, own = time.monotonic(), time.process_time()
    before, store_before = cpu_seconds(pids), cpu_seconds(store)
    drive(working, None if seconds is None else began + seconds)
    return Run(
        time.monotonic() - began,
        samples.done,
        tuple(samples.seconds),
        samples.received,
        time.process_time() - own,
        cpu_seconds(pids) - before,
        cpu_seconds(store) - store_before,
        resident_bytes(server.pid, peak=True),
    )


def quantile(values: Sequence[float], share: float) -> float:
    """Return the value below which `share` of the values are; 0 without any."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def middle(runs: Sequence[Run], of: Callable[[Run], float]) -> float:
    """Return the median over runs."""
    return median(of(run) for run in runs)


def pooled(runs: Sequence[Run], share: float) -> float:
    """Return a quantile of the latencies of all runs together."""
    return quantile([value for run in runs for value in run.latencies], share)
