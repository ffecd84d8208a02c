"""Numbered pieces of work, a few at once, until all are done or one has failed."""

from collections.abc import Awaitable, Callable, Iterable

import trio


async def each(
    numbers: Iterable[int],
    at_once: int,
    work: Callable[[int], Awaitable[None]],
    failing: tuple[type[Exception], ...],
) -> None:
    """Do `work` for every number, `at_once` of them at a time, in their order.

    The first error of the `failing` kinds ends the others and is raised, as itself and not in a group.
    """
    left = iter(numbers)
    failures: list[Exception] = []

    async def worker(scope: trio.CancelScope) -> None:
        for number in left:
            try:
                await work(number)
            except failing as error:
                failures.append(error)
                scope.cancel()
                return

    async with trio.open_nursery() as nursery:
        for _ in range(at_once):
            nursery.start_soon(worker, nursery.cancel_scope)
    if failures:
        raise failures[0]
