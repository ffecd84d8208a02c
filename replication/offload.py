"""Where hashing runs: in a worker thread, so that one blob's digest does not hold up everybody else's bytes."""

from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

import trio

T = TypeVar("T")

_SMALL = 64 * 1024
"""Hashing this many bytes takes less time than the way to a thread and back."""


class Offload(Protocol):
    """Runs a function that takes some milliseconds of CPU and no I/O. `nbytes` is how much data it goes through."""

    def __call__(self, nbytes: int, function: Callable[[], T]) -> Awaitable[T]:
        """Return what `function` returns."""
        ...


async def in_thread(nbytes: int, function: Callable[[], T]) -> T:
    """Run `function` in a thread of Trio's pool, or here when it is quick."""
    if nbytes <= _SMALL:
        return function()
    return await trio.to_thread.run_sync(function)


async def inline(nbytes: int, function: Callable[[], T]) -> T:  # noqa: ARG001 - the protocol's argument
    """Run `function` here: for virtual clocks, which do not wait for threads."""
    await trio.lowlevel.checkpoint()
    return function()
