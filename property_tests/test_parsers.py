"""What faces the network takes any bytes: an answer, or one of the errors that it promises, and nothing else."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from property_tests.parsers import SEEDS, TARGETS


def test_every_target_has_seeds() -> None:
    """A fuzzer without a beginning finds its way to nothing but the first error."""
    assert set(SEEDS) == set(TARGETS)


@pytest.mark.parametrize("name", TARGETS)
def test_seeds(name: str) -> None:
    """What is right, and what is almost so."""
    for seed in SEEDS[name]:
        TARGETS[name](seed)


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=100)
@given(data=st.data())
def test_any_bytes(name: str, data: st.DataObject) -> None:
    """Any bytes, and what is right with a part of it replaced, repeated or left out."""
    seed = data.draw(st.sampled_from(SEEDS[name]))
    start = data.draw(st.integers(0, len(seed)))
    end = data.draw(st.integers(start, len(seed)))
    pieces = st.one_of(st.binary(max_size=12), st.sampled_from(SEEDS[name]), st.just(seed[start:end] * 2))
    TARGETS[name](data.draw(st.one_of(st.binary(max_size=80), st.just(seed[:start]) if end else st.just(b""))))
    TARGETS[name](seed[:start] + data.draw(pieces) + seed[end:])
