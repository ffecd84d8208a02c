"""Who makes way at the edge: the oldest of whoever has most, whatever came and went before."""

from hypothesis import given
from hypothesis import strategies as st

from node.web.eldest import Eldest

STEPS = st.lists(st.one_of(st.sampled_from("abcd"), st.integers(0, 30), st.none()), max_size=200)


@given(STEPS)
def test_the_oldest_of_whoever_has_most_goes(steps: list[str | int | None]) -> None:
    """As many as came and did not go are there; nobody goes of whom there are fewer than of somebody else."""
    eldest, there = Eldest[int](), dict[int, str]()
    for number, step in enumerate(steps):
        if isinstance(step, str):
            eldest.add(number, step)
            there[number] = step
        elif step is not None:
            eldest.discard(step)
            there.pop(step, None)
        elif there:
            gone = eldest.pop()
            owners = list(there.values())
            assert owners.count(there[gone]) == max(map(owners.count, owners))
            assert gone == min(thing for thing, who in there.items() if who == there[gone])
            del there[gone]
        assert len(eldest) == len(there)
        assert all(thing in eldest for thing in there)
        assert list(eldest) == sorted(there)
