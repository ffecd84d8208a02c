"""The same question of many at the same moment is asked once, after each of them asked."""

import pytest
import trio
import trio.testing

from node.alike import Alike
from node.together import MOST


async def test_a_crowd_asks_once_or_twice(autojump_clock: object) -> None:
    """Of a crowd with one question the first asks at once, and one for all the others after them."""
    alike, asked = Alike[float](), list[float]()

    async def ask() -> float:
        asked.append(trio.current_time())
        await trio.sleep(1)
        return asked[-1]

    async def one() -> None:
        began = trio.current_time()
        assert await alike.get("digest", ask) >= began

    async with trio.open_nursery() as nursery:
        for _ in range(MOST):
            nursery.start_soon(one)
        await trio.sleep(0.5)
        nursery.start_soon(one)
    assert len(asked) <= 3
    assert not alike._asked


async def test_other_questions_are_others(autojump_clock: object) -> None:
    """Questions with other keys are asked beside one another, and one's error is nobody else's."""
    alike = Alike[str]()

    async def answer(text: str) -> str:
        await trio.sleep(1)
        if text == "bad":
            raise LookupError(text)
        return text

    async def fails() -> None:
        with pytest.raises(LookupError):
            await alike.get("bad", lambda: answer("bad"))

    async def works(text: str) -> None:
        assert await alike.get(text, lambda: answer(text)) == text

    async with trio.open_nursery() as nursery:
        nursery.start_soon(fails)
        nursery.start_soon(fails)
        nursery.start_soon(works, "a")
        nursery.start_soon(works, "b")
    assert trio.current_time() <= 2.1
    assert not alike._asked
