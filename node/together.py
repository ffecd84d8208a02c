"""Questions that wait at the same moment are asked together: whatever came while the last ones were out goes in one statement."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

import trio
from attrs import define, field

Q = TypeVar("Q")
A = TypeVar("A")

MOST = 256
"""Questions in one statement."""
PATIENCE = 0.01
"""Seconds: several round trips to a database that is near, a tenth of one across an ocean."""


@define(eq=False)
class _Waiter(Generic[Q, A]):
    question: Q
    woken: trio.Event = field(factory=trio.Event)
    answer: list[A] = field(factory=list)
    error: Exception | None = None

    @property
    def ended(self) -> bool:
        return bool(self.answer) or self.error is not None


class Together(Generic[Q, A]):
    """`ask` takes questions and returns their answers in the same order.

    Who finds nobody asking asks at once, for all who wait, and then wakes the next; who has waited for PATIENCE asks beside what
    is out, so that a far database costs one round trip and not two. An answer is as fresh as one of one's own, because it was
    asked for afterwards. 64 callers at once take a third of the processor that a statement each takes (`scripts/bench pull`).
    """

    def __init__(self, ask: Callable[[Sequence[Q]], Awaitable[Sequence[A]]]) -> None:
        self._ask = ask
        self._waiting: list[_Waiter[Q, A]] = []
        self._out = 0

    async def get(self, question: Q) -> A:
        """Return the answer. Raises what `ask` raises."""
        mine: _Waiter[Q, A] = _Waiter(question)
        self._waiting.append(mine)
        if self._out:
            try:
                with trio.move_on_after(PATIENCE):
                    await mine.woken.wait()
                while not mine.ended and mine not in self._waiting:
                    await mine.woken.wait()
            except trio.Cancelled:
                if mine in self._waiting:
                    self._waiting.remove(mine)
                    if mine.woken.is_set():
                        self._next()  # it was our turn to ask
                raise
        if mine.error is not None:
            raise mine.error
        if not mine.answer:
            await self._ask_all(mine)
        return mine.answer[0]

    async def _ask_all(self, mine: _Waiter[Q, A]) -> None:
        """Ask for everybody who waits, this one among them; in any case somebody else is woken for those that come meanwhile."""
        self._out += 1
        self._waiting.remove(mine)
        batch, self._waiting = [mine, *self._waiting[: MOST - 1]], self._waiting[MOST - 1 :]
        for waiter in batch:
            # It may have been woken to ask itself just now.
            waiter.woken = trio.Event()
        try:
            answers = await self._ask([waiter.question for waiter in batch])
            for waiter, answer in zip(batch, answers, strict=True):
                waiter.answer.append(answer)
        except Exception as error:
            for waiter in batch:
                waiter.error = error
            raise
        except BaseException:
            # Cancelled: the others ask anew.
            batch.remove(mine)
            self._waiting[:0] = batch
            batch = []
            raise
        finally:
            self._out -= 1
            for waiter in batch:
                waiter.woken.set()
            self._next()

    def _next(self) -> None:
        """Let the first of those who wait ask."""
        if self._waiting:
            self._waiting[0].woken.set()
