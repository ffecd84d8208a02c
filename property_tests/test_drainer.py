"""A location goes only when each of its blobs has a proven copy elsewhere: whatever rots, the last right copy never goes along."""

import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from node.records.locations import Change
from property_tests.memory_engine import Faults
from property_tests.test_trimmer import KINDS, LOCATIONS, Bench
from replication.drainer import Drainer, DrainSettings, enough, to_read
from replication.model import Blob, LocationState, Placement
from replication.policy import Policy
from replication.rounds import Unproven

_AT = st.sampled_from(LOCATIONS)


class Emptied(Bench):
    """One blob in stores of which some are being emptied, and a node that reads for that."""

    def __init__(self, *, pieces: bool = True) -> None:
        super().__init__(pieces=pieces)
        self.drainer = Drainer(self.rounds, self._prove, tuple, frozenset, DrainSettings(lease_seconds=1.0, rest=5.0))

    def copy(self) -> None:
        """Pay what is owed, out of a copy that is right, as a copier does."""
        source = next(iter(sorted(self.left())), None)
        for blob, at in sorted(self.truth.tasks):
            if source is not None and self.truth.states[at] is LocationState.ACTIVE:
                del self.truth.tasks[blob, at]
                self.place(at, "right")

    def left(self) -> set[str]:
        """Return where right bytes are on record that are not to go."""
        return {at for at in self.right() if self.truth.states[at] is not LocationState.REMOVED}

    async def step(self) -> None:
        """Do a round, read for what is being emptied, and let what was found bad be written down."""
        await self.round()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.suspects.run)
            await self.drainer.work()
            await trio.sleep(2)
            nursery.cancel_scope.cancel()
        await self.rounds.note_drained()


@settings(max_examples=200, deadline=None)
@given(
    st.tuples(*[KINDS] * 4),
    st.sets(_AT, min_size=1, max_size=3),
    st.lists(_AT, min_size=1, max_size=3, unique=True),
    st.booleans(),
)
def test_the_last_right_copy_never_goes_with_a_location(
    kinds: tuple[str | None, ...], required: set[str], emptied: list[str], pieces: bool
) -> None:
    """Whatever has rotted: where there was a right copy there is one, however many locations are removed as soon as they can be."""

    async def scenario() -> None:
        bench = Emptied(pieces=pieces)
        bench.truth.policies["team"] = Policy(frozenset(required))
        for at, kind in zip(LOCATIONS, kinds, strict=True):
            if kind is not None:
                bench.place(at, kind)
        before = bool(bench.right())
        await trio.sleep(1)
        for at in emptied:
            bench.truth.change(at, LocationState.DRAINING)
        for _ in range(6):
            await bench.step()
            for at in emptied:
                bench.truth.remove(at)
                assert bool(bench.left()) == before
            bench.copy()
            bench.truth.purge_removed()
        # Where a copy can be made, all of them go in the end.
        if before:
            assert {bench.truth.states[at] for at in emptied} == {LocationState.REMOVED}

    trio.run(scenario, clock=MockClock(autojump_threshold=0))


@given(st.sets(_AT), st.sets(_AT, min_size=1), st.sets(_AT), st.sets(_AT))
def test_what_is_read_is_enough(copies: set[str], leaving: set[str], suspect: set[str], down: set[str]) -> None:
    """All that may be read together vouches for everything that it can, what stays goes first, and nothing is read for nothing."""
    placements = tuple(Placement(at, f"b.{at}", at in suspect) for at in sorted(copies))
    blob = Blob(1, "sha256:0", 1, None)
    order = [
        copy.location for copy in to_read(Unproven(blob, placements, frozenset(leaving)), placements, frozenset(down))
    ]
    usable = copies - suspect - down
    for at in leaving:
        assert enough(order, [at]) == bool(usable - {at})
    assert not set(order) & (suspect | down)
    assert order == sorted(order, key=lambda at: at in leaving)
    assert all(leaving - {at} for at in order)


async def test_a_drain_goes_on_when_the_store_is_back(autojump_clock: MockClock) -> None:
    """While no copy elsewhere can be read the location stays, and nothing is called bad; then it is drained by itself."""
    bench = Emptied()
    bench.truth.policies["team"] = Policy(frozenset({"us"}))
    for at in ("us", "eu"):
        bench.place(at, "right")
    bench.stores["us"].set_faults(Faults(down=True))
    await trio.sleep(1)
    bench.truth.change("eu", LocationState.DRAINING)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.drainer.run)
        await trio.sleep(30)
        assert bench.truth.remove("eu").outcome is Change.ONLY_COPIES
        assert bench.drainer.totals.unread > 1
        assert not bench.truth.suspicions
        bench.truth.unavailable_rate = 1.0
        bench.stores["us"].set_faults(Faults())
        await trio.sleep(30)
        assert bench.drainer.totals.right == 0
        bench.truth.unavailable_rate = 0.0
        await trio.sleep(60)
        assert bench.truth.note_drained() == ["eu"]
        assert bench.drainer.totals.right == 1
        nursery.cancel_scope.cancel()


async def test_a_copy_that_rotted_is_healed_before_the_other_goes(autojump_clock: MockClock) -> None:
    """The copy elsewhere is bad: it is suspect and owed, and the location waits for the good one, which needs no further read."""
    bench = Emptied()
    bench.truth.policies["team"] = Policy(frozenset({"us"}))
    bench.place("us", "rotten")
    bench.place("eu", "right")
    await trio.sleep(1)
    bench.truth.change("eu", LocationState.DRAINING)
    await bench.step()
    assert bench.truth.placements[bench.blob.id, "us"].suspect
    assert bench.truth.remove("eu").outcome is Change.ONLY_COPIES
    bench.copy()
    reads = bench.reads
    assert bench.truth.note_drained() == ["eu"]
    assert bench.truth.remove("eu").outcome is Change.DONE
    assert bench.left() == {"us"}
    assert bench.reads == reads
