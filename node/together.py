"""Questions that wait at the same moment are asked together: whatever came while the last ones were out goes in one statement."""

from collections.abc import Awaitable, Callable, Sequence
from math import inf
from typing import Generic, TypeVar

import trio
from attrs import define, field

from engines.alarms import Waiter
from engines.clock import trio_clock

Q = TypeVar("Q")
A = TypeVar("A")

MOST = 256
"""Questions in one statement."""
PATIENCE = 0.01
"""Seconds: several round trips to a database that is near, a tenth of one across an ocean."""
BUSY_PATIENCE = 0.1
"""Seconds, where the database is near: what takes longer than PATIENCE there waits for the processor, and more statements would
only make it wait longer."""
_FORGET = 1.1
"""What the best round trip is multiplied by with every statement, so that one of long ago does not count for ever."""


@define(eq=False)
class _Waiter(Waiter, Generic[Q, A]):
    """Who is woken looks what has become of its question."""

    question: Q
    asked: bool = False
    """Whether a statement that is out asks for it."""
    answer: list[A] = field(factory=list)
    error: Exception | None = None
    gone: bool = False
    """Whether its task was cancelled."""

    @property
    def ended(self) -> bool:
        return bool(self.answer) or self.error is not None


class Together(Generic[Q, A]):
    """`ask` takes questions and returns their answers in the same order.

    Who finds nobody asking asks at once, for all who wait. The first of those who wait asks when nothing is out any more, or after
    its patience beside what is out, so that a far database costs one round trip and not two; the others only wait. An answer is as
    fresh as one of one's own, because it was asked for afterwards.
    """

    def __init__(self, ask: Callable[[Sequence[Q]], Awaitable[Sequence[A]]]) -> None:
        self._ask = ask
        self._waiting: list[_Waiter[Q, A]] = []
        self._out = 0
        self._best = inf
        self._now = trio_clock()

    async def get(self, question: Q) -> A:
        """Return the answer. Raises what `ask` raises."""
        mine: _Waiter[Q, A] = _Waiter(question)
        self._waiting.append(mine)
        if self._out:
            await self._wait(mine)
        if mine.error is not None:
            raise mine.error
        if not mine.answer:
            await self._ask_all(mine)
        return mine.answer[0]

    async def _wait(self, mine: _Waiter[Q, A]) -> None:
        """Return when there is an answer, or when it is this one's turn to ask."""
        patient = True
        try:
            while not mine.ended and (mine.asked or (self._out and patient)):
                if mine.asked or self._waiting[0] is not mine:
                    await mine.park()
                    continue
                with trio.move_on_after(BUSY_PATIENCE if self._best < PATIENCE else PATIENCE) as scope:
                    await mine.park()
                patient = not scope.cancelled_caught
        except trio.Cancelled:
            mine.gone = True
            if mine in self._waiting:
                self._waiting.remove(mine)
                self._next()
            raise

    async def _ask_all(self, mine: _Waiter[Q, A]) -> None:
        """Ask for everybody who waits, this one among them; in any case somebody is woken for those that come meanwhile."""
        self._out += 1
        self._waiting.remove(mine)
        batch, self._waiting = [mine, *self._waiting[: MOST - 1]], self._waiting[MOST - 1 :]
        for waiter in batch:
            waiter.asked = True
        self._next()
        began = self._now()
        try:
            answers = await self._ask([waiter.question for waiter in batch])
            self._best = min(self._best * _FORGET, self._now() - began)
            for waiter, answer in zip(batch, answers, strict=True):
                waiter.answer.append(answer)
        except Exception as error:
            for waiter in batch:
                waiter.error = error
            raise
        except BaseException:
            # Cancelled: the others ask anew.
            batch = [waiter for waiter in batch if waiter is not mine and not waiter.gone]
            for waiter in batch:
                waiter.asked = False
            self._waiting[:0] = batch
            batch = []
            raise
        finally:
            self._out -= 1
            for waiter in batch:
                waiter.wake()
            self._next()

    def _next(self) -> None:
        """Let the first of those who wait see that it is the first, and whether anything is out."""
        if self._waiting:
            self._waiting[0].wake()
