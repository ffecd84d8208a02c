"""A copy is given up only while another one was just read and was right: whatever rots, the last right copy never goes."""

import hashlib
from random import Random

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from property_tests.memory_engine import MIB, Faults, MemoryEngine, MemoryStore
from property_tests.memory_hints import MemoryHints
from property_tests.memory_ledger import Line, MemoryLedger
from property_tests.memory_rounds import MemoryRounds
from property_tests.memory_truth import Truth
from replication.bandwidth import Bandwidth
from replication.model import Blob, LocationState, Placement
from replication.offload import inline
from replication.parts import PartPool
from replication.policy import Policy
from replication.proof import Proof, Prover
from replication.reader import Reader
from replication.reconciler import ReconcilerSettings, backfill
from replication.suspects import Suspects
from replication.trimmer import Trimmer, TrimSettings
from tests.copies import pieces_of

LOCATIONS = ("us", "eu", "ap", "sa")


class Bench:
    """One blob in stores of which some are not well, and a node that trims."""

    def __init__(self, size: int = 2 * MIB + 5, *, pieces: bool = True) -> None:
        self.data = Random(size).randbytes(size)
        self.truth = Truth(dict.fromkeys(LOCATIONS, LocationState.ACTIVE))
        self.stores = {name: MemoryStore(name, Random(0)) for name in LOCATIONS}
        self.hints = MemoryHints(Random(0))
        self.suspects = Suspects(MemoryLedger(Line(self.truth), "n1", LOCATIONS), self.hints)
        self.pool = PartPool(4 * MIB)
        self.reads = 0
        engines = {name: MemoryEngine(store) for name, store in self.stores.items()}
        reader = Reader(engines, lambda *_, **__: None, self.suspects.note, offload=inline)
        self.prover = Prover(reader, self.pool, {}, lambda: MIB, lambda: 2)
        self.rounds = MemoryRounds(Line(self.truth))
        self.trimmer = Trimmer(
            self.rounds, self.hints.publish, self._prove, tuple, frozenset, TrimSettings(lease_seconds=1.0)
        )
        self.blob = self.truth.add_blob(
            f"sha256:{hashlib.sha256(self.data).hexdigest()}", size, pieces_of(self.data) if pieces else None, {}, []
        )

    async def _prove(self, blob: Blob, placement: Placement) -> Proof:
        self.reads += 1
        return await self.prover.prove(blob, placement)

    def place(self, at: str, kind: str) -> None:
        """Record a copy that is right, rotten, missing, known to be bad, or distrusted though it is right."""
        placement = Placement(at, f"b.{at}", kind in ("suspect", "doubted"))
        self.truth.place(self.blob, placement)
        if kind in ("right", "doubted"):
            self.stores[at].objects[placement.key] = self.data
        elif kind != "missing":
            self.stores[at].objects[placement.key] = self.data[:-1] + bytes([self.data[-1] ^ 1])

    def right(self) -> set[str]:
        """Return where right bytes are on record."""
        return {
            p.location
            for p in self.truth.sources(self.blob.id)
            if self.stores[p.location].objects.get(p.key) == self.data
        }

    async def round(self) -> None:
        """Do a whole round, and let what was found bad be written down."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.suspects.run)
            await backfill(self.rounds, self.hints.publish, ReconcilerSettings(), trimmer=self.trimmer)
            await trio.sleep(2)
            nursery.cancel_scope.cancel()


KINDS = st.sampled_from(["right", "rotten", "missing", "suspect", "doubted", None])
STATES = st.sampled_from([LocationState.ACTIVE] * 4 + [LocationState.PAUSED, LocationState.DRAINING])


@settings(max_examples=200, deadline=None)
@given(
    st.tuples(*[KINDS] * 4),
    st.sets(st.sampled_from(LOCATIONS), min_size=1, max_size=3),
    st.sets(st.sampled_from(LOCATIONS), max_size=1),
    st.tuples(*[STATES] * 4),
    st.booleans(),
)
def test_the_last_right_copy_never_goes(
    kinds: tuple[str | None, ...],
    required: set[str],
    never: set[str],
    states: tuple[LocationState, ...],
    pieces: bool,
) -> None:
    """Whatever a policy asks for and whatever has rotted: where there was a right copy, there is one after many rounds."""

    async def scenario() -> None:
        bench = Bench(pieces=pieces)
        bench.truth.policies["team"] = Policy(frozenset(required - never) or None, frozenset(never))
        bench.truth.states.update(zip(LOCATIONS, states, strict=True))
        for at, kind in zip(LOCATIONS, kinds, strict=True):
            if kind is not None:
                bench.place(at, kind)
        before = bench.right()
        for _ in range(4):
            await bench.round()
            assert bool(bench.right()) == bool(before)

    trio.run(scenario, clock=MockClock(autojump_threshold=0))


@pytest.mark.parametrize("pieces", [True, False])
@pytest.mark.parametrize("size", [0, 1000, MIB, 3 * MIB + 17])
async def test_a_spare_copy_goes_after_one_read(autojump_clock: MockClock, size: int, pieces: bool) -> None:
    """One required copy is read to its end, once; then all spare ones go."""
    bench = Bench(size, pieces=pieces)
    bench.truth.policies["team"] = Policy(frozenset({"us", "eu"}))
    for at in LOCATIONS:
        bench.place(at, "right")
    await bench.round()
    assert bench.right() == {"us", "eu"}
    assert bench.reads == bench.trimmer.totals.right == 1
    assert bench.trimmer.totals.read_bytes == size
    assert bench.pool.statistics().held == 0


@pytest.mark.parametrize("kind", ["rotten", "missing"])
async def test_a_spare_copy_heals_what_rotted(autojump_clock: MockClock, kind: str) -> None:
    """The copy that was to stay is bad: it is suspect and owed, the spare one is there for it, and goes when that is healed."""
    bench = Bench()
    bench.truth.policies["team"] = Policy(frozenset({"us"}))
    bench.place("us", kind)
    bench.place("eu", "right")
    await bench.round()
    assert bench.truth.placements[bench.blob.id, "us"].suspect
    assert (bench.blob.id, "us") in bench.truth.tasks
    await bench.round()
    assert bench.right() == {"eu"}
    bench.place("us", "right")
    del bench.truth.tasks[bench.blob.id, "us"]
    await bench.round()
    assert bench.right() == {"us"}


async def test_a_store_that_does_not_answer_vouches_for_nothing(autojump_clock: MockClock) -> None:
    """While no copy that stays can be read the spare one stays, and nothing is called bad; the blob has its turn again later."""
    bench = Bench()
    bench.truth.policies["team"] = Policy(frozenset({"us"}))
    for at in ("us", "eu"):
        bench.place(at, "right")
    bench.stores["us"].set_faults(Faults(down=True))
    await bench.round()
    assert bench.trimmer.totals.unread == 1
    assert bench.right() == {"us", "eu"}
    assert not bench.truth.suspicions
    bench.stores["us"].set_faults(Faults())
    await bench.round()
    assert bench.right() == {"us"}


async def test_a_read_is_bounded_as_copies_are(autojump_clock: MockClock) -> None:
    """The bytes come out of the location's bandwidth, with and without pieces."""
    for pieces in (True, False):
        bench = Bench(8 * MIB, pieces=pieces)
        bench.place("us", "right")
        engines = {name: MemoryEngine(store) for name, store in bench.stores.items()}
        reader = Reader(engines, lambda *_, **__: None, bench.suspects.note, offload=inline)
        slow = Prover(reader, bench.pool, {"us": Bandwidth(MIB)}, lambda: MIB, lambda: 2)
        began = trio.current_time()
        assert await slow.prove(bench.blob, Placement("us", "b.us")) is Proof.RIGHT
        assert trio.current_time() - began >= 6


async def test_nothing_is_read_while_the_database_is_away(autojump_clock: MockClock) -> None:
    """An outage of the database is waited for; what was offered and lost is offered again by the next round."""
    bench = Bench()
    bench.truth.policies["team"] = Policy(frozenset({"us"}))
    for at in ("us", "eu"):
        bench.place(at, "right")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.trimmer.run)
        page = await bench.rounds.find_candidates(0, None, 10, replicate=True)
        bench.truth.unavailable_rate = 1.0
        bench.trimmer.offer(page.candidates[0])
        await trio.sleep(10)
        assert bench.reads == 0
        bench.truth.unavailable_rate = 0.0
        bench.trimmer.offer(page.candidates[0])
        await trio.sleep(40)
        assert bench.right() == {"us"}
        nursery.cancel_scope.cancel()
