"""What every `Ledger` promises (`replication/ports.py`). A suite for one kind subclasses `LedgerContract`; `bench` is a fixture."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Protocol

from replication.macs import PieceProofs
from replication.model import Blob, CopyTask, LocationState, Placement
from replication.plan import AHEAD_BYTES, DEMANDED, MOST_SIZE_SECONDS, PRIORITY_SECONDS, WAITED_FOR, precedence
from replication.ports import CopyOutcome, Ledger
from tests.copies import finish_copy

LEASE = 30.0


class Bench(Protocol):
    """A fresh ledger with the active locations `us`, `eu` and `ap`, and the hands to set up and look at its truth."""

    def ledger(self, node: str = "n1", preference: tuple[str, ...] = ("us", "eu", "ap")) -> Ledger:
        """Return a node's ledger, all over one truth."""
        ...

    async def push(
        self,
        digest: str,
        size: int,
        pieces: bytes | None,
        placed: Mapping[str, str],
        owed: Sequence[str],
        priority: int,
    ) -> int:
        """Commit a blob with its placements (location to key) and its debt; return its id."""
        ...

    async def drop(self, blob_id: int) -> None:
        """Collect the blob: its rows go and its objects become dead."""
        ...

    async def forget_task(self, blob_id: int, location: str) -> None:
        """Lose a task, as if it had never been there."""
        ...

    async def owe(self, blob_id: int, location: str) -> None:
        """Make a task, due now."""
        ...

    async def bury(self, location: str, key: str) -> None:
        """Make this object a dead one, due now."""
        ...

    async def set_state(self, location: str, state: LocationState) -> None:
        """Set what the operators want of a location."""
        ...

    async def placements(self, blob_id: int) -> frozenset[Placement]:
        """Return the blob's placements."""
        ...

    async def pieces(self, blob_id: int) -> bytes | None:
        """Return the blob's pieces."""
        ...

    async def owed(self, blob_id: int) -> Mapping[str, str]:
        """Return the open tasks of a blob: destination to the last error ("" if none)."""
        ...

    async def dead(self) -> frozenset[tuple[str, str]]:
        """Return all dead objects as (location, key), due or not."""
        ...

    async def pass_time(self, seconds: float) -> None:
        """Let this much time go by."""
        ...


class LedgerContract:
    """The suite. `bench` is a fixture of the subclass's module."""

    async def push(
        self,
        bench: Bench,
        name: str = "blob",
        *,
        size: int = 1000,
        pieces: bytes | None = b"p" * 16,
        owed: Sequence[str] = ("eu",),
        priority: int = 0,
    ) -> Blob:
        digest = f"sha256:{hashlib.sha256(name.encode()).hexdigest()}"
        blob_id = await bench.push(digest, size, pieces, {"us": f"r/{name}.1"}, owed, priority)
        return Blob(blob_id, digest, size, pieces)

    async def claim(self, ledger: Ledger, location: str = "eu", most: int = 10) -> Sequence[CopyTask]:
        return await ledger.claim_copies(location, "r/", most, LEASE)

    async def test_a_claim_tells_all_that_a_copy_needs(self, bench: Bench) -> None:
        """A claimed task carries the blob, its placements and a fresh key under the prefix and the digest."""
        blob = await self.push(bench)
        (task,) = await self.claim(bench.ledger())
        assert task.blob == blob
        assert task.destination == "eu"
        assert task.placements == (Placement("us", "r/blob.1"),)
        digits = blob.digest.removeprefix("sha256:")
        assert task.key.startswith(f"r/sha256/{digits[:2]}/{digits}.")
        assert (task.upload, task.attempts) == (None, 0)
        assert task.age >= 0

    async def test_a_claim_says_whether_it_is_the_first(self, bench: Bench) -> None:
        """Whoever claims a task for the first time knows that nothing can be under its key, also not something half begun."""
        await self.push(bench)
        ledger = bench.ledger()
        (first,) = await self.claim(ledger)
        assert not first.claimed_before
        await ledger.hand_back([first.lease])
        (second,) = await self.claim(ledger)
        assert second.claimed_before
        assert second.key == first.key

    async def test_a_claim_is_exclusive(self, bench: Bench) -> None:
        """What one node has leased no other node gets."""
        await self.push(bench)
        assert len(await self.claim(bench.ledger("n1"))) == 1
        assert await self.claim(bench.ledger("n2")) == []

    async def test_claims_keep_to_location_and_number(self, bench: Bench) -> None:
        """A claim takes at most what it asked for, and only for its location."""
        for number in range(3):
            await self.push(bench, f"b{number}", owed=["eu", "ap"])
        ledger = bench.ledger()
        tasks = await self.claim(ledger, "ap", most=2)
        assert [task.destination for task in tasks] == ["ap", "ap"]
        assert len(await self.claim(ledger, "ap")) == 1
        assert len(await self.claim(ledger, "eu")) == 3

    async def test_small_ones_are_claimed_ahead(self, bench: Bench) -> None:
        """Beyond what it asked for a claim takes tasks ahead, in their order, as long as these have few bytes together."""
        blobs = [
            await self.push(bench, f"b{at}", size=size, pieces=None)
            for at, size in enumerate((1, 2, AHEAD_BYTES, AHEAD_BYTES + 1))
        ]
        ids, ledger = [blob.id for blob in blobs], bench.ledger()
        assert [t.blob.id for t in await ledger.claim_copies("eu", "r/", 1, LEASE, 10)] == ids[:2]
        # What does not fit is nobody's: the next claim gets it.
        assert [t.blob.id for t in await ledger.claim_copies("eu", "r/", 0, LEASE, 10)] == ids[2:3]
        assert await ledger.claim_copies("eu", "r/", 0, LEASE, 10) == []
        tasks = await ledger.claim_copies("eu", "r/", 1, LEASE, 10)
        assert [t.blob.id for t in tasks] == ids[3:]
        await ledger.hand_back([task.lease for task in tasks])
        assert len(await ledger.claim_copies("eu", "r/", 0, LEASE, 1)) == 0

    async def test_a_claim_tells_the_place_in_the_queue(self, bench: Bench) -> None:
        """Tasks of two claims can be put into their order."""
        await self.push(bench, "ordinary", size=10)
        ledger = bench.ledger()
        (ordinary,) = await self.claim(ledger)
        await self.push(bench, "urgent", size=1 << 30, pieces=None, priority=1)
        (urgent,) = await self.claim(ledger)
        assert urgent.place < ordinary.place

    async def test_small_goes_before_large(self, bench: Bench) -> None:
        """Of tasks that arose together the smaller blob goes first."""
        large = await self.push(bench, "large", size=1 << 30, pieces=None)
        small = await self.push(bench, "small", size=10)
        assert [t.blob.id for t in await self.claim(bench.ledger())] == [small.id, large.id]

    async def test_priority_goes_first(self, bench: Bench) -> None:
        """What a client waits for goes before ordinary work, though it came later and is larger."""
        ordinary = await self.push(bench, "ordinary", size=10)
        urgent = await self.push(bench, "urgent", size=1 << 30, pieces=None, priority=1)
        assert [t.blob.id for t in await self.claim(bench.ledger())] == [urgent.id, ordinary.id]

    async def test_nothing_starves(self, bench: Bench) -> None:
        """A large ordinary task is overtaken only by what arose within a bounded time after it."""
        large = await self.push(bench, "large", size=1 << 40, pieces=None)
        await bench.pass_time(MOST_SIZE_SECONDS + PRIORITY_SECONDS + 1)
        await self.push(bench, "urgent", size=1, priority=1)
        assert (await self.claim(bench.ledger(), most=1))[0].blob.id == large.id

    async def test_the_order_is_that_of_the_pure_function(self, bench: Bench) -> None:
        """Tasks of all ages, sizes and priorities are claimed in the order of `plan.precedence`."""
        expected: dict[int, float] = {}
        clock = 0.0
        for number, (priority, size, later) in enumerate(
            [(0, 1 << 40, 0.0), (0, 10, 100.0), (WAITED_FOR, 1 << 30, 30.0), (2, 1 << 28, 90_000.0), (0, 1 << 20, 5.0),
             (DEMANDED, 1 << 35, 3.0), (WAITED_FOR, 5, 70_000.0), (1, 1 << 31, 40_000.0)]
        ):  # fmt: skip
            await bench.pass_time(later)
            clock += later
            blob = await self.push(bench, f"b{number}", size=size, pieces=None, priority=priority)
            expected[blob.id] = precedence(clock, priority, size)
        claimed = [task.blob.id for task in await self.claim(bench.ledger())]
        assert claimed == sorted(expected, key=expected.__getitem__)

    async def test_raising_lets_a_task_go_first(self, bench: Bench) -> None:
        """A task whose priority is raised overtakes ordinary ones; a lower priority changes nothing; without a task: False."""
        small = await self.push(bench, "small", size=10)
        waited = await self.push(bench, "waited", size=1 << 30, pieces=None)
        ledger = bench.ledger()
        assert await ledger.raise_priority(waited.id, "eu", WAITED_FOR)
        assert await ledger.raise_priority(waited.id, "eu", 1)
        assert not await ledger.raise_priority(waited.id, "us", WAITED_FOR)
        assert [t.blob.id for t in await self.claim(ledger)] == [waited.id, small.id]

    async def test_one_task_can_be_claimed_by_name(self, bench: Bench) -> None:
        """The task of one blob can be leased, also in a back-off, by one node at a time; where nothing is owed there is none."""
        other, blob = await self.push(bench, "other"), await self.push(bench, "blob")
        ledger = bench.ledger("n1")
        task = await ledger.claim_copy(blob.id, "eu", "r/", LEASE)
        assert task is not None
        assert (task.blob, task.destination, task.placements) == (blob, "eu", (Placement("us", "r/blob.1"),))
        assert await bench.ledger("n2").claim_copy(blob.id, "eu", "r/", LEASE) is None
        assert await ledger.claim_copy(blob.id, "us", "r/", LEASE) is None
        assert [t.blob.id for t in await self.claim(bench.ledger("n2"))] == [other.id]
        await ledger.fail_copy(task, "no", 300.0)
        again = await bench.ledger("n2").claim_copy(blob.id, "eu", "r/", LEASE)
        assert again is not None
        assert (again.key, again.attempts) == (task.key, 1)
        assert await finish_copy(bench.ledger("n2"), again, PieceProofs()) is CopyOutcome.PLACED
        assert await ledger.claim_copy(blob.id, "eu", "r/", LEASE) is None

    async def test_an_expired_lease_is_due_again(self, bench: Bench) -> None:
        """When a lease runs out another node gets the task, under the same key and another lease."""
        await self.push(bench)
        (first,) = await self.claim(bench.ledger("n1"))
        await bench.pass_time(LEASE + 1)
        (second,) = await self.claim(bench.ledger("n2"))
        assert second.key == first.key
        assert second.lease != first.lease

    async def test_a_renewed_lease_stays(self, bench: Bench) -> None:
        """A renewed lease is not due when the first one would have run out."""
        await self.push(bench)
        ledger = bench.ledger()
        (task,) = await self.claim(ledger)
        await bench.pass_time(LEASE * 0.7)
        assert await ledger.renew([task.lease], LEASE) == {task.lease}
        await bench.pass_time(LEASE * 0.7)
        assert await self.claim(bench.ledger("n2")) == []

    async def test_renewing_tells_which_leases_are_lost(self, bench: Bench) -> None:
        """Renew returns only the leases that are still ours."""
        await self.push(bench, "a")
        ledger = bench.ledger("n1")
        (lost,) = await self.claim(ledger)
        await bench.pass_time(LEASE + 1)
        await self.claim(bench.ledger("n2"))
        await self.push(bench, "b")
        (kept,) = await self.claim(ledger)
        assert await ledger.renew([lost.lease, kept.lease, "made-up"], LEASE) == {kept.lease}
        assert await ledger.renew([], LEASE) == frozenset()

    async def test_noted_parts_are_found_by_the_next_try(self, bench: Bench) -> None:
        """The multi-part id that was noted comes back with the next claim; a lost lease notes nothing."""
        await self.push(bench)
        (task,) = await self.claim(bench.ledger("n1"))
        assert await bench.ledger("n1").note_parts(task, "upload-1")
        await bench.pass_time(LEASE + 1)
        (again,) = await self.claim(bench.ledger("n2"))
        assert again.upload == "upload-1"
        assert not await bench.ledger("n1").note_parts(task, "upload-2")

    async def test_a_task_gets_a_new_key_and_its_old_one_is_dead(self, bench: Bench) -> None:
        """What still lands under the old key is deleted later, and is nobody's copy; the next try goes on with the new key."""
        blob = await self.push(bench)
        (task,) = await self.claim(bench.ledger())
        await bench.ledger().note_parts(task, "unverified")
        key = await bench.ledger().change_key(task)
        assert key is not None
        assert key != task.key
        assert key.rpartition(".")[0] == task.key.rpartition(".")[0]
        assert await bench.dead() == {("eu", task.key)}
        assert await bench.ledger().claim_dead("eu", 10, LEASE) == []
        await bench.pass_time(LEASE + 1)
        (again,) = await self.claim(bench.ledger("n2"))
        assert (again.key, again.upload) == (key, None)
        assert await bench.ledger().change_key(task) is None
        assert await finish_copy(bench.ledger(), task, PieceProofs()) is CopyOutcome.SUPERSEDED
        assert await finish_copy(bench.ledger("n2"), again, PieceProofs()) is CopyOutcome.PLACED
        assert Placement("eu", key) in await bench.placements(blob.id)
        assert await bench.dead() == {("eu", task.key)}

    async def test_a_finished_copy_is_a_placement_and_no_debt(self, bench: Bench) -> None:
        """Finishing records the placement and pays the debt at once."""
        blob = await self.push(bench)
        ledger = bench.ledger()
        (task,) = await self.claim(ledger)
        assert await finish_copy(ledger, task, PieceProofs()) is CopyOutcome.PLACED
        assert await bench.placements(blob.id) == {Placement("us", "r/blob.1"), Placement("eu", task.key)}
        assert await bench.owed(blob.id) == {}
        assert await bench.pieces(blob.id) == blob.pieces
        await bench.pass_time(LEASE + 1)
        assert await self.claim(ledger) == []

    async def test_many_finish_at_once_and_each_has_its_own_end(self, bench: Bench) -> None:
        """Copies that are told together end as they would alone, in the order in which they were told."""
        names = ("good", "collected", "learnt", "struck", "twice")
        blobs = {name: await self.push(bench, name, pieces=None, owed=["eu", "ap"]) for name in names}
        ledger = bench.ledger()
        tasks = {task.blob.id: task for task in await self.claim(ledger)}
        others = {task.blob.id: task for task in await self.claim(ledger, "ap")}
        good, collected, learnt, struck, twice = (tasks[blobs[name].id] for name in names)
        assert await finish_copy(ledger, twice, PieceProofs()) is CopyOutcome.PLACED
        await bench.drop(blobs["collected"].id)
        await bench.forget_task(blobs["struck"].id, "eu")
        outcomes = await ledger.finish_copies(
            [
                (good, PieceProofs()),
                (collected, PieceProofs()),
                (learnt, PieceProofs(b"q" * 16)),
                (struck, PieceProofs()),
                (twice, PieceProofs()),
                (others[good.blob.id], PieceProofs()),
            ]
        )
        placed, superseded = CopyOutcome.PLACED, CopyOutcome.SUPERSEDED
        assert list(outcomes) == [placed, superseded, placed, superseded, placed, placed]
        assert await bench.placements(blobs["good"].id) == {
            Placement("us", "r/good.1"), Placement("eu", good.key), Placement("ap", others[good.blob.id].key),
        }  # fmt: skip
        assert await bench.owed(blobs["good"].id) == {}
        assert await bench.owed(blobs["learnt"].id) == {"ap": ""}
        assert await bench.pieces(blobs["learnt"].id) == b"q" * 16
        assert await bench.pieces(blobs["good"].id) is None
        dead = await bench.dead()
        assert {("eu", collected.key), ("eu", struck.key)} <= dead
        assert not {("eu", good.key), ("eu", learnt.key), ("eu", twice.key)} & dead

    async def test_one_place_told_twice_together_is_once(self, bench: Bench) -> None:
        """Two reports of one copy in one go succeed, and kill nothing."""
        await self.push(bench)
        ledger = bench.ledger()
        (task,) = await self.claim(ledger)
        assert list(await ledger.finish_copies([(task, PieceProofs()), (task, PieceProofs())])) == 2 * [
            CopyOutcome.PLACED
        ]
        assert await ledger.finish_copies([]) == []
        assert await bench.dead() == frozenset()

    async def test_finishing_twice_is_once(self, bench: Bench) -> None:
        """A report that is repeated, because its answer was lost, succeeds and kills nothing."""
        await self.push(bench)
        ledger = bench.ledger()
        (task,) = await self.claim(ledger)
        assert await finish_copy(ledger, task, PieceProofs()) is CopyOutcome.PLACED
        assert await finish_copy(ledger, task, PieceProofs()) is CopyOutcome.PLACED
        assert await bench.dead() == frozenset()

    async def test_two_holders_of_one_task_kill_nothing(self, bench: Bench) -> None:
        """When a lease ran out and both holders finish under the task's one key, that key is placed and never dead."""
        blob = await self.push(bench)
        (first,) = await self.claim(bench.ledger("n1"))
        await bench.pass_time(LEASE + 1)
        (second,) = await self.claim(bench.ledger("n2"))
        await finish_copy(bench.ledger("n1"), first, PieceProofs())
        assert await finish_copy(bench.ledger("n2"), second, PieceProofs()) is CopyOutcome.PLACED
        assert Placement("eu", first.key) in await bench.placements(blob.id)
        assert await bench.dead() == frozenset()

    async def test_a_late_finish_outlives_the_next_holder(self, bench: Bench) -> None:
        """A holder whose lease ran out finishes; the next one dies. The key stays placed and never becomes a dead object."""
        blob = await self.push(bench)
        (first,) = await self.claim(bench.ledger("n1"))
        await bench.pass_time(LEASE + 1)
        await self.claim(bench.ledger("n2"))
        assert await finish_copy(bench.ledger("n1"), first, PieceProofs()) is CopyOutcome.PLACED
        await bench.pass_time(LEASE + 1)
        assert await self.claim(bench.ledger("n3")) == []
        assert Placement("eu", first.key) in await bench.placements(blob.id)
        assert await bench.dead() == frozenset()

    async def test_a_late_copy_of_a_struck_task_pays_no_other(self, bench: Bench) -> None:
        """A copy whose task was struck meanwhile is dead; the task that was owed anew since then stays, as it is not paid."""
        blob = await self.push(bench)
        (late,) = await self.claim(bench.ledger())
        await bench.forget_task(blob.id, "eu")
        await bench.owe(blob.id, "eu")
        assert await finish_copy(bench.ledger(), late, PieceProofs()) is CopyOutcome.SUPERSEDED
        assert await bench.dead() == {("eu", late.key)}
        assert await bench.owed(blob.id) == {"eu": ""}

    async def test_pieces_are_recorded_once(self, bench: Bench) -> None:
        """Pieces that a copy computed are kept for a blob that had none."""
        blob = await self.push(bench, pieces=None)
        ledger = bench.ledger()
        (task,) = await self.claim(ledger)
        await finish_copy(ledger, task, PieceProofs(b"q" * 16))
        assert await bench.pieces(blob.id) == b"q" * 16

    async def test_macs_are_recorded(self, bench: Bench) -> None:
        """MACs that a copy made stand beside the pieces; a copy that made none takes none away."""
        await self.push(bench, owed=["eu", "ap"])
        ledger = bench.ledger()
        (task,) = await self.claim(ledger)
        assert task.blob.macs is None
        for macs in (b"i" * 8 + b"m" * 32, None):
            assert await finish_copy(ledger, task, PieceProofs(macs=macs)) is CopyOutcome.PLACED
        (task,) = await self.claim(ledger, "ap")
        assert task.blob.macs == b"i" * 8 + b"m" * 32
        assert task.blob.pieces is not None

    async def test_a_copy_of_a_collected_blob_is_dead(self, bench: Bench) -> None:
        """A copy that ends after its blob was collected becomes a dead object."""
        blob = await self.push(bench)
        ledger = bench.ledger()
        (task,) = await self.claim(ledger)
        await bench.drop(blob.id)
        assert await finish_copy(ledger, task, PieceProofs()) is CopyOutcome.SUPERSEDED
        assert ("eu", task.key) in await bench.dead()

    async def test_a_failed_copy_waits_and_shows_why(self, bench: Bench) -> None:
        """A task that failed is due again after its back-off, with one attempt more, and its error can be seen."""
        blob = await self.push(bench)
        ledger = bench.ledger()
        (task,) = await self.claim(ledger)
        await ledger.fail_copy(task, "the store is on fire", 60.0)
        assert await bench.owed(blob.id) == {"eu": "the store is on fire"}
        assert await self.claim(ledger) == []
        await bench.pass_time(61)
        (again,) = await self.claim(ledger)
        assert (again.attempts, again.key) == (1, task.key)

    async def test_a_lost_lease_fails_nothing(self, bench: Bench) -> None:
        """Failing or handing back under a lost lease does not touch the other node's claim."""
        blob = await self.push(bench)
        (task,) = await self.claim(bench.ledger("n1"))
        await bench.pass_time(LEASE + 1)
        (other,) = await self.claim(bench.ledger("n2"))
        await bench.ledger("n1").fail_copy(task, "too late", 0.0)
        await bench.ledger("n1").hand_back([task.lease])
        assert await self.claim(bench.ledger("n3")) == []
        assert await bench.owed(blob.id) == {"eu": ""}
        assert await bench.ledger("n2").renew([other.lease], LEASE) == {other.lease}

    async def test_handing_back_counts_no_attempt(self, bench: Bench) -> None:
        """A task that is handed back is due at once and unharmed."""
        await self.push(bench)
        ledger = bench.ledger()
        (task,) = await self.claim(ledger)
        await ledger.hand_back([task.lease])
        (again,) = await self.claim(bench.ledger("n2"))
        assert (again.attempts, again.key) == (0, task.key)

    async def test_what_is_handed_back_waits_for_nothing(self, bench: Bench) -> None:
        """A task that was claimed by name out of its back-off is due at once when it is handed back."""
        blob = await self.push(bench)
        ledger = bench.ledger()
        (task,) = await self.claim(ledger)
        await ledger.fail_copy(task, "no", 300.0)
        named = await ledger.claim_copy(blob.id, "eu", "r/", LEASE)
        assert named is not None
        await ledger.hand_back([named.lease])
        assert len(await self.claim(ledger)) == 1

    async def test_a_suspect_copy_is_owed_again(self, bench: Bench) -> None:
        """Marking a copy suspect shows it so and makes its location's debt due at once."""
        blob = await self.push(bench)
        ledger = bench.ledger()
        (task,) = await self.claim(ledger)
        await finish_copy(ledger, task, PieceProofs())
        await ledger.mark_suspect(blob.id, "eu", task.key, "piece 3 is wrong")
        assert Placement("eu", task.key, suspect=True) in await bench.placements(blob.id)
        (heal,) = await self.claim(ledger)
        assert heal.key != task.key
        assert Placement("eu", task.key, suspect=True) in heal.placements

    async def test_a_repeated_report_clears_no_suspicion(self, bench: Bench) -> None:
        """A copy whose report is repeated, because its answer was lost, stays suspect and owed if it was found bad in between."""
        blob = await self.push(bench)
        ledger = bench.ledger()
        (task,) = await self.claim(ledger)
        await finish_copy(ledger, task, PieceProofs())
        await ledger.mark_suspect(blob.id, "eu", task.key, "piece 3 is wrong")
        assert await finish_copy(ledger, task, PieceProofs()) is CopyOutcome.PLACED
        assert Placement("eu", task.key, suspect=True) in await bench.placements(blob.id)
        assert await bench.owed(blob.id) == {"eu": ""}
        assert await bench.dead() == frozenset()

    async def test_a_healed_copy_replaces_the_suspect_one(self, bench: Bench) -> None:
        """The copy that heals takes the suspect one's place, whose object is dead then."""
        blob = await self.push(bench)
        ledger = bench.ledger()
        (task,) = await self.claim(ledger)
        await finish_copy(ledger, task, PieceProofs())
        await ledger.mark_suspect(blob.id, "eu", task.key, "missing")
        (heal,) = await self.claim(ledger)
        assert await finish_copy(ledger, heal, PieceProofs()) is CopyOutcome.PLACED
        assert Placement("eu", heal.key) in await bench.placements(blob.id)
        assert await bench.dead() == {("eu", task.key)}

    async def test_suspicion_of_another_key_is_ignored(self, bench: Bench) -> None:
        """A report about a copy that was replaced meanwhile changes nothing."""
        blob = await self.push(bench, owed=[])
        await bench.ledger().mark_suspect(blob.id, "us", "r/another-key", "missing")
        assert await bench.placements(blob.id) == {Placement("us", "r/blob.1")}
        assert await bench.owed(blob.id) == {}

    async def test_next_due_tells_how_long_to_wait(self, bench: Bench) -> None:
        """Nothing owed: None. Something due: 0. Something leased or put off: until then."""
        ledger = bench.ledger()
        assert await ledger.next_due(["eu", "ap"]) is None
        await self.push(bench)
        assert await ledger.next_due(["eu", "ap"]) == 0
        assert await ledger.next_due(["ap"]) is None
        (task,) = await self.claim(ledger)
        assert 0 < (await ledger.next_due(["eu"]) or 0) <= LEASE
        await ledger.fail_copy(task, "no", 300.0)
        assert LEASE < (await ledger.next_due(["eu"]) or 0) <= 300
        await bench.bury("eu", "r/old")
        assert await ledger.next_due(["eu"]) == 0

    async def test_dead_objects_are_leased_and_finished(self, bench: Bench) -> None:
        """A dead object is claimed by one node at a time, comes back when the lease runs out, and goes when it is finished."""
        await bench.bury("eu", "r/old")
        assert await bench.ledger().claim_dead("us", 10, LEASE) == []
        (dead,) = await bench.ledger("n1").claim_dead("eu", 10, LEASE)
        assert (dead.location, dead.key, dead.attempts) == ("eu", "r/old", 0)
        assert await bench.ledger("n2").claim_dead("eu", 10, LEASE) == []
        await bench.pass_time(LEASE + 1)
        (again,) = await bench.ledger("n2").claim_dead("eu", 10, LEASE)
        await bench.ledger("n2").finish_dead([again.id])
        assert await bench.dead() == frozenset()

    async def test_a_failed_delete_is_retried(self, bench: Bench) -> None:
        """A delete that failed is due again after its back-off, with one attempt more."""
        await bench.bury("eu", "r/old")
        ledger = bench.ledger()
        (dead,) = await ledger.claim_dead("eu", 10, LEASE)
        await ledger.fail_dead([dead.id], "store down", 90.0)
        await bench.pass_time(LEASE + 1)
        assert await ledger.claim_dead("eu", 10, LEASE) == []
        await bench.pass_time(60)
        (again,) = await ledger.claim_dead("eu", 10, LEASE)
        assert again.attempts == 1

    async def test_a_heartbeat_shows_the_cluster(self, bench: Bench) -> None:
        """A heartbeat returns the other nodes with their preference and silence, and the locations' states."""
        await bench.ledger("n1", ("us", "eu", "ap")).heartbeat()
        await bench.pass_time(5)
        await bench.set_state("ap", LocationState.PAUSED)
        view = await bench.ledger("n2", ("eu", "us", "ap")).heartbeat()
        (other,) = view.nodes
        assert other.id
        assert other.preference == ("us", "eu", "ap")
        assert 4.5 <= other.silent_for <= 30
        assert view.states == {
            "us": LocationState.ACTIVE,
            "eu": LocationState.ACTIVE,
            "ap": LocationState.PAUSED,
        }
