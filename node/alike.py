"""The same question of many at the same moment is asked once: a crowd that pulls a new image wants one row of the database."""

from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Generic, TypeVar

from attrs import define, field

from node.together import Together

A = TypeVar("A")

_Ask = Callable[[], Awaitable[A]]


@define(eq=False)
class _Question(Generic[A]):
    together: Together[_Ask[A], A]
    askers: int = 0


@define(eq=False)
class Alike(Generic[A]):
    """Questions by key: two with the same key have the same answer. As fresh as `Together`, which does the waiting."""

    _asked: dict[Hashable, _Question[A]] = field(factory=dict, init=False)

    async def get(self, key: Hashable, ask: _Ask[A]) -> A:
        """Return what `ask` returns, or another one with this key that begins to ask after this call. Raises what it raises."""
        question = self._asked.get(key)
        if question is None:
            question = self._asked[key] = _Question(Together(_once))
        question.askers += 1
        try:
            return await question.together.get(ask)
        finally:
            question.askers -= 1
            if not question.askers:
                del self._asked[key]


async def _once(asked: Sequence[_Ask[A]]) -> Sequence[A]:
    return [await asked[0]()] * len(asked)
