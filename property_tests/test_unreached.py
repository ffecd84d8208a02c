"""What a copy that failed says of the stores: those but for which it might not have failed are named, and no others."""

import pytest
from trio.testing import MockClock

from property_tests.memory_engine import Faults
from property_tests.test_within import SIZE, bench
from replication.copier import CopyEnd
from replication.model import Placement

DOWN, WRONG, GONE, OUT = "down", "wrong", "gone", "out of service"


@pytest.mark.parametrize(
    ("us", "ap", "unreached"),
    [
        (DOWN, DOWN, ("ap", "us")),
        (DOWN, WRONG, ("us",)),
        (GONE, DOWN, ("ap",)),
        (OUT, WRONG, ("us",)),
        (OUT, DOWN, ("ap", "us")),
        (WRONG, GONE, ()),
        (WRONG, WRONG, ()),
    ],
)
@pytest.mark.parametrize("pieces", [True, False], ids=["pieces", "none"])
async def test_copies_that_could_not_be_read(
    us: str, ap: str, unreached: tuple[str, ...], pieces: bool, autojump_clock: MockClock
) -> None:
    """A store that is down, or out of service, may hold a right copy; one whose copy is missing or wrong does not."""
    here = bench(pieces=pieces)
    for name, how in (("us", us), ("ap", ap)):
        store = here.stores[name]
        if how == DOWN:
            store.set_faults(Faults(down=True))
        elif how == WRONG:
            store.objects["registry/b"] = b"\0" * SIZE
        elif how == GONE:
            del store.objects["registry/b"]
    placed = tuple(Placement(name, "registry/b") for name, how in (("us", us), ("ap", ap)) if how != OUT)
    here.copier._choose = lambda _: placed
    report = await here.pay()
    assert (report.end, report.unreached) == (CopyEnd.NO_SOURCE, unreached)


async def test_a_destination_that_fails(autojump_clock: MockClock) -> None:
    """It says nothing of the sources."""
    here = bench(placed=("ap",))
    here.stores["eu"].set_faults(Faults(down=True))
    report = await here.pay()
    assert (report.end, report.unreached) == (CopyEnd.DESTINATION_FAILED, ("eu",))
