"""Reads that failed because this process stood still, answered once more: their clients are still there, and so is the database."""

from collections.abc import Awaitable, Callable

import trio

from node.answers import Answer, Request
from node.records.postgres import DatabaseUnavailable
from replication.standstill import Standstill

Handler = Callable[[Request], Awaitable[Answer]]


def answering_again(answer: Handler, standstill: Standstill) -> Handler:
    """Return `answer`, which asks a second time where the database did not answer a GET or HEAD before this process stood still.

    Nothing that writes: it may have been done, and somebody else may have changed it since.
    """

    async def again(request: Request) -> Answer:
        began = trio.current_time()
        try:
            return await answer(request)
        except DatabaseUnavailable:
            if request.method not in ("GET", "HEAD") or not standstill.since(began):
                raise
        return await answer(request)

    return again
