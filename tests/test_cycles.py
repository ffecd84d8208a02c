"""The collector of cycles leaves alone what stays."""

import gc
from collections.abc import Iterator
from weakref import ref

import pytest

from node.cycles import spare_the_collector


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    threshold = gc.get_threshold()
    yield
    gc.set_threshold(*threshold)
    gc.unfreeze()


class Knot:
    """Refers to itself."""

    def __init__(self) -> None:
        self.itself = self


def test_what_is_there_is_not_looked_at_again() -> None:
    """What exists when a node is up is exempt, and what is garbage by then is gone, not kept for ever."""
    gone = ref(Knot())
    stays = Knot()
    spare_the_collector()
    assert gone() is None
    assert not any(found is stays for found in gc.get_objects())
    assert gc.get_freeze_count() > 0


def test_new_cycles_still_go() -> None:
    """The collector works on, if less often."""
    spare_the_collector()
    knots = [ref(Knot()) for _ in range(30_000)]
    assert sum(knot() is not None for knot in knots) < 10_000
