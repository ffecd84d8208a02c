"""Hints in memory, between simulated nodes; loses them at a seeded rate."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random

import trio

from replication.ports import Forget, Hint, HintSource, Wake


class _Subscription:
    def __init__(self, hints: trio.MemoryReceiveChannel[Hint]) -> None:
        self._hints = hints

    def __aiter__(self) -> HintSource:
        return self

    async def __anext__(self) -> Hint:
        try:
            return await self._hints.receive()
        except trio.EndOfChannel:
            raise StopAsyncIteration from None


class MemoryHints:
    """One bus for all nodes. `loss` is the probability that one subscriber misses one hint."""

    def __init__(self, random: Random | None = None, loss: float = 0.0) -> None:
        self._random = random or Random(0)
        self.loss = loss
        self._subscribers: list[trio.MemorySendChannel[Hint]] = []

    def publish(self, *hints: Hint) -> None:
        for subscriber in self._subscribers:
            for hint in hints:
                if self._random.random() >= self.loss:
                    try:
                        subscriber.send_nowait(hint)
                    except trio.WouldBlock:
                        break

    @asynccontextmanager
    async def subscribe(self) -> AsyncIterator[HintSource]:
        send, receive = trio.open_memory_channel[Hint](1000)
        send.send_nowait(Forget())
        send.send_nowait(Wake())
        self._subscribers.append(send)
        try:
            async with send, receive:
                yield _Subscription(receive)
        finally:
            self._subscribers.remove(send)
