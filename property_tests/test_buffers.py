"""Buffers of a stream: used again, but never under somebody who still looks at what is in them."""

from hypothesis import given
from hypothesis import strategies as st

from replication.buffers import PieceBuffers
from replication.model import PIECE


@given(st.lists(st.integers(0, 5), max_size=20))
def test_what_is_held_stays(drops: list[int]) -> None:
    """Whatever a reader holds, and whatever slices of it, keeps its bytes while others are taken."""
    buffers, held = PieceBuffers(64), dict[int, memoryview]()
    for number, drop in enumerate(drops, 1):
        view = buffers.take(64)
        view[:] = bytes([number]) * 64
        held[number] = view[10:20].toreadonly()
        held.pop(drop, None)
        del view
        assert all(bytes(kept) == bytes([owner]) * 10 for owner, kept in held.items())


def test_buffers_are_used_again() -> None:
    """A stream that holds two pieces at a time needs no third buffer, however long it is."""
    buffers, held, seen = PieceBuffers(10 * PIECE), list[memoryview](), set[int]()
    for _ in range(10):
        del held[:-1]
        held.append(buffers.take(PIECE))
        seen.add(id(held[-1].obj))
    assert len(seen) == 2
    assert {len(view) for view in held} == {PIECE}
