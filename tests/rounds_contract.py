"""What every `Rounds` promises (`replication/rounds.py`), and the reconciler over it. A suite subclasses `RoundsContract`.

`world` is a fixture of the subclass's module: a fresh registry with the active locations `us`, `eu` and `ap`; `us` and `eu` are
the default ones.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import trio
from attrs import define, field

from node.hint_hub import Hub
from node.records.locations import Change, Changed
from replication.drainer import Drainer, DrainSettings, DrainTotals
from replication.model import Blob, LocationState, Placement
from replication.ports import Placed, Publish, Wake
from replication.proof import Proof
from replication.reconciler import Findings, Reconciler, ReconcilerSettings, backfill, settle_page
from replication.rounds import Rounds
from replication.trimmer import Trimmer, TrimSettings, TrimTotals
from tests.replication.world import NoHints, digest_of

SETTINGS = ReconcilerSettings()


class Bench(Protocol):
    """The hands to set up a registry and to look at it. Blobs are called by names of the test's own."""

    def rounds(self) -> Rounds:
        """Return the rounds over this registry."""
        ...

    async def blob(self, name: str, repositories: Iterable[str], placed: Mapping[str, str] | Sequence[str]) -> int:
        """Make a blob, link it, and place it under `{name}.{location}`: locations, or location to state."""
        ...

    async def place(self, blob: str, at: str, state: str = "present") -> None:
        """Record a copy under `{blob}.{at}`."""
        ...

    async def lose(self, blob: str, at: str) -> None:
        """Forget a copy, as if it had never been there."""
        ...

    async def owe(self, blob: str, at: str, *, key: str | None = None, leased: bool = False) -> None:
        """Make a task."""
        ...

    async def strike(self, blob: str, at: str) -> None:
        """Forget a task, as if it had never been there."""
        ...

    async def wish(self, blob: str, at: str, seconds: float) -> None:
        """Ask for a copy once, for so long."""
        ...

    async def policy(self, namespace: str, **rules: object) -> None:
        """Give a namespace a policy."""
        ...

    async def state(self, at: str, state: LocationState) -> None:
        """Set a location's state, whatever it was."""
        ...

    async def state_of(self, at: str) -> LocationState:
        """Return a location's state."""
        ...

    async def change(self, at: str, state: LocationState) -> Changed:
        """Change a location's state as an operator does."""
        ...

    async def remove(self, at: str) -> Changed:
        """Take a location out as an operator does."""
        ...

    async def placed(self, blob: str) -> Mapping[str, str]:
        """Return location to state of a blob's copies."""
        ...

    async def tasks(self, blob: str) -> set[str]:
        """Return where a blob is owed."""
        ...

    async def dead(self) -> set[str]:
        """Return the keys of all dead objects."""
        ...

    async def ask_for_round(self) -> None:
        """Let the nodes hurry."""
        ...

    async def round_done(self) -> bool:
        """Return whether a round has ever ended."""
        ...

    async def pass_time(self, seconds: float) -> None:
        """Let this much time go by."""
        ...


async def fill(world: Bench, *, replicate: bool = True, down: frozenset[str] = frozenset()) -> Findings:
    """Do a whole round now; every copy that is read is right."""
    settings = ReconcilerSettings(page=3, replicate=replicate)
    trimmer = trimmer_of(world, Reads(), down=down)
    return await backfill(world.rounds(), NoHints().publish, settings, down=down, trimmer=trimmer)


@define(eq=False)
class Reads:
    """Answers of reading copies, by key; what has none is right. `done` are the keys that were read."""

    answers: Mapping[str, Proof] = field(factory=dict)
    done: list[str] = field(factory=list)

    async def prove(self, _blob: Blob, placement: Placement) -> Proof:
        self.done.append(placement.key)
        return self.answers.get(placement.key, Proof.RIGHT)


def trimmer_of(
    world: Bench, reads: Reads, *, down: frozenset[str] = frozenset(), publish: Publish | None = None
) -> Trimmer:
    """Return a trimmer over the rounds of `world`."""
    return Trimmer(world.rounds(), publish or NoHints().publish, reads.prove, tuple, lambda: down, TrimSettings())


def drainer_of(world: Bench, reads: Reads, *, down: frozenset[str] = frozenset()) -> Drainer:
    """Return a drainer over the rounds of `world`."""
    return Drainer(world.rounds(), reads.prove, tuple, lambda: down, DrainSettings(batch=2))


def reconciler_of(world: Bench, settings: ReconcilerSettings) -> Reconciler:
    """Return one node's reconciler, which nobody runs."""
    reads = Reads()
    return Reconciler(world.rounds(), Hub("test"), settings, trimmer_of(world, reads), drainer_of(world, reads))


class RoundsContract:
    """The suite."""

    async def test_a_lost_task_is_found_and_a_second_run_finds_nothing(self, world: Bench) -> None:
        """What is required, not present and not scheduled is scheduled; doing it again changes nothing."""
        for n in range(8):
            await world.blob(f"b{n}", ["team/a"], ["us"])
        assert await fill(world) == Findings(blobs=8, owed=8)
        assert all([await world.tasks(f"b{n}") == {"eu"} for n in range(8)])
        assert await fill(world) == Findings(blobs=8)

    async def test_an_orphaned_task_is_removed_and_its_key_buried(self, world: Bench) -> None:
        """A task that nothing requires goes unless somebody works on it; what it may have written becomes a dead object."""
        await world.blob("idle", ["team/a"], ["us", "eu"])
        await world.owe("idle", "ap", key="half")
        await world.blob("busy", ["team/a"], ["us", "eu"])
        await world.owe("busy", "ap", key="running", leased=True)
        assert (await fill(world)).struck == 1
        assert await world.tasks("idle") == set()
        assert await world.tasks("busy") == {"ap"}
        assert await world.dead() == {"half"}

    async def test_a_task_that_is_paid_is_removed_and_its_copy_stays(self, world: Bench) -> None:
        """A task whose blob has arrived under its very key is removed without burying the key."""
        await world.blob("b", ["team/a"], ["us", "eu"])
        await world.owe("b", "eu", key="b.eu")
        assert (await fill(world)).struck == 1
        assert await world.dead() == set()

    async def test_a_failover_copy_is_trimmed_once_the_debt_is_paid(self, world: Bench) -> None:
        """A copy where nothing is required goes when everything that is required is there, not before; readers are told."""
        await world.blob("unpaid", ["team/a"], ["us", "ap"])
        await world.blob("paid", ["team/a"], ["us", "eu", "ap"])
        hints = NoHints()
        trimmer = trimmer_of(world, Reads(), publish=hints.publish)
        found = await backfill(world.rounds(), hints.publish, SETTINGS, trimmer=trimmer)
        assert (found.owed, found.spare, found.trimmed) == (1, 1, 1)
        assert set(await world.placed("unpaid")) == {"us", "ap"}
        assert set(await world.placed("paid")) == {"us", "eu"}
        assert await world.dead() == {"paid.ap"}
        assert Placed(digest_of("paid"), "ap") in hints.sent
        assert Wake(("eu",)) in hints.sent

    async def test_nothing_is_trimmed_without_replication(self, world: Bench) -> None:
        """With FEATURE_STORAGE_REPLICATION off one copy is enough, and no copy or task is taken away."""
        await world.blob("b", ["team/a"], ["ap"])
        await world.blob("c", ["team/a"], ["us", "eu", "ap"])
        await world.owe("b", "us")
        assert await fill(world, replicate=False) == Findings(blobs=2)

    async def test_never_is_obeyed_by_copies_that_are_there(self, world: Bench) -> None:
        """Where all say never a copy goes as soon as another is good; with the last copy a new home is owed first."""
        await world.policy("team", required=["us"], never=["eu"])
        await world.blob("two", ["team/a"], ["us", "eu"])
        await world.blob("one", ["team/a"], ["eu"])
        await world.blob("shared", ["team/a", "other/b"], ["us", "eu"])
        found = await fill(world)
        assert (found.owed, found.trimmed) == (1, 1)
        assert set(await world.placed("two")) == {"us"}
        assert set(await world.placed("one")) == {"eu"}
        assert await world.tasks("one") == {"us"}
        assert set(await world.placed("shared")) == {"us", "eu"}
        await world.place("one", "us")
        assert (await fill(world)).trimmed == 1
        assert set(await world.placed("one")) == {"us"}

    async def test_the_last_readable_copy_stays(self, world: Bench) -> None:
        """A copy is not trimmed when what would be left is suspect, paused or seen down."""
        await world.policy("team", required=["eu"])
        await world.blob("b", ["team/a"], ["us", "eu"])
        await world.blob("bad", ["team/a"], {"us": "present", "eu": "suspect"})
        assert (await fill(world, down=frozenset({"eu"}))).trimmed == 0
        await world.state("eu", LocationState.PAUSED)
        assert (await fill(world)).trimmed == 0
        await world.state("eu", LocationState.ACTIVE)
        assert (await fill(world)).trimmed == 1
        assert set(await world.placed("bad")) == {"us", "eu"}
        assert await world.tasks("bad") == {"eu"}

    async def test_two_spare_copies_do_not_trim_each_other(self, world: Bench) -> None:
        """Where the required location is paused, one of two spare copies stays."""
        await world.policy("team", required=["ap"])
        await world.blob("b", ["team/a"], ["us", "eu", "ap"])
        await world.state("ap", LocationState.PAUSED)
        await fill(world)
        assert len(set(await world.placed("b")) - {"ap"}) == 1

    async def test_what_is_linked_nowhere_is_left_to_the_collector(self, world: Bench) -> None:
        """A blob that no repository has is neither copied nor trimmed."""
        await world.blob("b", [], ["us", "ap"])
        assert await fill(world) == Findings(blobs=1)
        assert set(await world.placed("b")) == {"us", "ap"}

    async def test_a_blob_in_use_is_left_to_the_next_round(self, world: Bench) -> None:
        """A decision on facts that have changed since is not applied."""
        await world.blob("b", ["team/a"], ["us"])
        page = await world.rounds().find_candidates(0, None, 10, replicate=True)
        await world.policy("team", required=["us"])
        assert await settle_page(world.rounds(), NoHints().publish, page, SETTINGS, frozenset(), None) == Findings(
            blobs=1, busy=1
        )
        assert await world.tasks("b") == set()

    async def test_a_copy_goes_only_after_one_that_stays_was_read(self, world: Bench) -> None:
        """One copy that is required is read, once, before a spare one goes, however many go."""
        await world.policy("team", required=["eu"])
        await world.blob("b", ["team/a"], ["us", "eu", "ap"])
        reads = Reads()
        trimmer = trimmer_of(world, reads)
        found = await backfill(world.rounds(), NoHints().publish, SETTINGS, trimmer=trimmer)
        assert (found.spare, found.trimmed) == (2, 2)
        assert reads.done == ["b.eu"]
        assert trimmer.totals == TrimTotals(trimmed=2, right=1, read_bytes=1000)
        assert await world.dead() == {"b.us", "b.ap"}

    async def test_a_spare_copy_stays_where_the_other_is_not_good(self, world: Bench) -> None:
        """Where what is required was read and is wrong the spare copy stays; where it could not be read the next one is asked."""
        for name in ("wrong", "silent", "half"):
            await world.blob(name, ["team/a"], ["us", "eu", "ap"])
        answers = {
            "wrong.us": Proof.WRONG,
            "silent.us": Proof.UNREAD,
            "silent.eu": Proof.UNREAD,
            "half.us": Proof.UNREAD,
        }
        trimmer = trimmer_of(world, Reads(answers))
        found = await backfill(world.rounds(), NoHints().publish, SETTINGS, trimmer=trimmer)
        assert (found.spare, found.trimmed) == (3, 1)
        assert await world.dead() == {"half.ap"}
        assert trimmer.totals == TrimTotals(trimmed=1, right=1, wrong=1, unread=1, read_bytes=1000)

    async def test_a_trim_is_not_applied_when_something_changed_while_it_was_read(self, world: Bench) -> None:
        """What is decided on the blob as it was before the read does not count after a change."""
        await world.blob("b", ["team/a"], ["us", "eu", "ap"])

        async def prove(_blob: Blob, _placement: Placement) -> Proof:
            await world.policy("team", required=["us", "eu", "ap"])
            return Proof.RIGHT

        trimmer = Trimmer(world.rounds(), NoHints().publish, prove, tuple, frozenset, TrimSettings())
        found = await backfill(world.rounds(), NoHints().publish, SETTINGS, trimmer=trimmer)
        assert (found.spare, found.trimmed) == (1, 0)
        assert set(await world.placed("b")) == {"us", "eu", "ap"}

    async def test_one_node_reads_what_a_trim_needs(self, world: Bench) -> None:
        """A blob that a node has taken for a trim is nobody else's until it is given back or its time is over."""
        await world.blob("b", ["team/a"], ["us", "eu", "ap"])
        (candidate,) = (await world.rounds().find_candidates(0, None, 10, replicate=True)).candidates
        (spare,) = await world.rounds().claim_trims([candidate.blob_id], 100)
        assert spare.candidate == candidate
        assert {copy.key for copy in spare.placements} == {"b.us", "b.eu", "b.ap"}
        reads = Reads()
        other = trimmer_of(world, reads)
        other.offer(candidate)
        assert await other.work() == 0
        assert reads.done == []
        await world.pass_time(101)
        other.offer(candidate)
        assert await other.work() == 1
        assert len(await world.rounds().claim_trims([candidate.blob_id], 100)) == 1
        await world.rounds().finish_trims([candidate.blob_id])
        assert len(await world.rounds().claim_trims([candidate.blob_id, 123456], 100)) == 1

    async def test_a_draining_location_moves_its_only_copies_and_is_drained_by_itself(self, world: Bench) -> None:
        """Draining owes what is only there to another location; when nothing is, it is drained, and can be removed."""
        await world.policy("team", required=["ap"])
        await world.blob("sole", ["team/a"], ["ap"])
        await world.blob("safe", ["team/a"], ["us", "ap"])
        assert (await world.remove("ap")).outcome is Change.REFUSED
        await world.pass_time(1)
        assert (await world.change("ap", LocationState.DRAINING)).outcome is Change.DONE
        await world.pass_time(1)
        found = await fill(world)
        assert (found.owed, found.moving) == (1, 1)
        assert await world.tasks("sole") == {"us"}
        assert await world.rounds().note_drained() == []
        refused = await world.remove("ap")
        assert (refused.outcome, refused.blobs) == (Change.ONLY_COPIES, 2)
        assert await world.state_of("ap") is LocationState.DRAINING
        await world.place("sole", "us")
        await world.strike("sole", "us")
        assert await world.rounds().note_drained() == []
        reads = Reads()
        assert await drainer_of(world, reads).work() == 1
        assert reads.done == ["safe.us"]
        assert await world.rounds().note_drained() == ["ap"]
        await world.lose("sole", "us")
        assert await world.rounds().note_drained() == []
        assert await world.state_of("ap") is LocationState.DRAINING
        await world.place("sole", "us")
        assert (await world.remove("ap")).outcome is Change.DONE
        assert await world.rounds().purge_removed() > 0
        assert await world.rounds().purge_removed() == 0
        assert await world.placed("sole") == await world.placed("safe") == {"us": "present"}
        assert await world.dead() == set()
        assert (await world.remove("ap")).outcome is Change.DONE

    async def test_a_drain_reads_one_copy_of_each_blob(self, world: Bench) -> None:
        """Each blob is read once, where it stays; what is wrong or silent is not counted, and another copy is asked."""
        await world.blob("sole", ["team/a"], ["ap"])
        for name in ("right", "wrong", "silent", "lost"):
            await world.blob(name, ["team/a"], ["us", "ap"] if name == "lost" else ["us", "eu", "ap"])
        await world.pass_time(1)
        await world.change("ap", LocationState.DRAINING)
        answers = {"wrong.us": Proof.WRONG, "silent.us": Proof.UNREAD, "lost.us": Proof.WRONG}
        reads = Reads(answers)
        drainer = drainer_of(world, reads)
        assert await drainer.work() == 3
        assert sorted(reads.done) == ["lost.us", "right.us", "silent.eu", "silent.us", "wrong.eu", "wrong.us"]
        assert drainer.totals == DrainTotals(right=3, wrong=2, unread=1, read_bytes=3000)
        assert (await world.remove("ap")).blobs == 2
        # It goes on where it was: what is on record is not read again, by any node.
        again = Reads()
        assert await drainer_of(world, again).work() == 1
        assert again.done == ["lost.us"]
        # A read counts for the very object, and for this time.
        await world.lose("right", "us")
        await world.lose("right", "eu")
        assert (await world.remove("ap")).blobs == 2
        await world.change("ap", LocationState.ACTIVE)
        await world.pass_time(1)
        await world.change("ap", LocationState.DRAINING)
        assert (await world.remove("ap")).blobs == 5

    async def test_one_node_reads_what_a_drain_needs(self, world: Bench) -> None:
        """A blob that a node reads is nobody else's until it is given back or its time is over; a store that is down is let be."""
        await world.blob("b", ["team/a"], ["us", "ap"])
        await world.pass_time(1)
        await world.change("ap", LocationState.DRAINING)
        (item,) = (await world.rounds().claim_unproven(0, 10, 100.0, 1)).items
        assert item.blob.digest == digest_of("b")
        assert item.leaving == {"ap"}
        reads = Reads()
        assert await drainer_of(world, reads).work() == 0
        await world.pass_time(1000)
        assert await drainer_of(world, reads).work() == 0
        await world.pass_time(101)
        assert await drainer_of(world, reads, down=frozenset({"us"})).work() == 0
        assert reads.done == []
        assert await drainer_of(world, reads).work() == 1
        assert (await world.rounds().claim_unproven(0, 10, 100.0, 1)).items == ()

    async def test_two_that_are_emptied_vouch_for_each_other_one_after_the_other(self, world: Bench) -> None:
        """Where a blob may be nowhere else, one of two that are being emptied can go, and the other cannot any more."""
        await world.policy("team", required=["us", "eu"], never=["ap"])
        await world.blob("b", ["team/a"], ["us", "eu"])
        await world.pass_time(1)
        for at in ("us", "eu"):
            await world.change(at, LocationState.DRAINING)
        reads = Reads()
        assert await drainer_of(world, reads).work() == 2
        assert sorted(await world.rounds().note_drained()) == ["eu", "us"]
        assert (await world.remove("us")).outcome is Change.DONE
        while await world.rounds().purge_removed():
            pass
        refused = await world.remove("eu")
        assert (refused.outcome, refused.blobs) == (Change.ONLY_COPIES, 1)
        assert await world.rounds().note_drained() == []
        assert await world.state_of("eu") is LocationState.DRAINING

    async def test_a_drain_works_without_replication_too(self, world: Bench) -> None:
        """An operator who drains a location asks for the copies, whatever FEATURE_STORAGE_REPLICATION says."""
        await world.blob("b", ["team/a"], ["ap"])
        await world.state("ap", LocationState.DRAINING)
        assert (await fill(world, replicate=False)).moving == 1
        assert await world.tasks("b") == {"us"}

    async def test_what_nobody_trusts_is_moved_or_healed_where_it_stays(self, world: Bench) -> None:
        """A blob with no good copy at all is owed, too: elsewhere if it must not stay where it is, otherwise right there."""
        await world.policy("team", required=["ap"])
        await world.policy("strict", required=["ap"], never=["eu"])
        await world.blob("leaving", ["team/a"], {"ap": "suspect"})
        await world.blob("staying", ["team/a"], {"ap": "suspect", "eu": "suspect"})
        await world.blob("forbidden", ["strict/a"], {"eu": "suspect"})
        await world.owe("leaving", "ap")
        await world.state("ap", LocationState.DRAINING)
        found = await fill(world)
        assert (found.owed, found.moving, found.trimmed, found.struck) == (3, 2, 0, 0)
        assert await world.tasks("leaving") == {"us", "ap"}
        assert await world.tasks("staying") == {"eu"}
        assert await world.tasks("forbidden") == {"us"}
        assert await fill(world) == Findings(blobs=3)
        await world.place("leaving", "us")
        await world.strike("leaving", "us")
        found = await fill(world)
        assert (found.struck, found.trimmed) == (1, 1)
        assert await world.placed("leaving") == {"us": "present"}
        assert (await world.remove("ap")).blobs == 1

    async def test_one_active_location_always_remains(self, world: Bench) -> None:
        """The last active location can be neither paused nor drained."""
        assert (await world.change("us", LocationState.PAUSED)).outcome is Change.DONE
        assert (await world.change("eu", LocationState.DRAINING)).outcome is Change.DONE
        assert (await world.change("ap", LocationState.PAUSED)).outcome is Change.REFUSED
        assert (await world.change("nowhere", LocationState.PAUSED)).outcome is Change.UNKNOWN

    async def test_several_nodes_do_a_round_together(self, world: Bench) -> None:
        """Every page of a round is done once, by whichever node is free; who asks for a round makes them hurry."""
        for n in range(40):
            await world.blob(f"b{n}", ["team/a"], ["us"])
        await world.ask_for_round()
        settings = ReconcilerSettings(page=4, poll=0.01, shortest_rest=0.01, between_rounds=3600)
        nodes = [reconciler_of(world, settings) for _ in range(3)]
        with trio.fail_after(30):
            while not await world.round_done():
                async with trio.open_nursery() as nursery:
                    for node in nodes:
                        nursery.start_soon(node.step)
        assert sum(node.totals.blobs for node in nodes) == 40
        assert sum(node.totals.owed for node in nodes) == 40
        assert min(node.totals.blobs for node in nodes) > 0

    async def test_a_page_of_a_node_that_died_is_done_by_another(self, world: Bench) -> None:
        """A round is not over before every page is done: one whose node went away is taken over when its lease has run out."""
        for n in range(4):
            await world.blob(f"b{n}", ["team/a"], ["us"])
        settings = ReconcilerSettings(page=2, between_rounds=3600)
        node = reconciler_of(world, settings)
        await node.step()
        await world.rounds().claim_page(2, 3600)
        for _ in range(4):
            await node.step()
        assert node.totals.blobs == 2
        assert not await world.round_done()
        await world.pass_time(61)
        for _ in range(2):
            await node.step()
        assert node.totals.blobs == 4
        assert await world.round_done()

    async def test_a_pause_moves_nothing(self, world: Bench) -> None:
        """While a location is paused nothing is copied elsewhere instead, and what it is owed stays owed."""
        await world.policy("team", required=["ap"])
        await world.blob("there", ["team/a"], ["ap"])
        await world.blob("owed", ["team/a"], ["us"])
        await world.owe("owed", "ap")
        assert (await world.change("ap", LocationState.PAUSED)).outcome is Change.DONE
        assert await fill(world) == Findings(blobs=2)
        assert await world.tasks("there") == set()
        assert await world.tasks("owed") == {"ap"}

    async def test_a_wish_counts_until_its_time_is_over(self, world: Bench) -> None:
        """A copy that was asked for once is required until then, and trimmed like any other afterwards; a *never* outweighs it."""
        await world.policy("strict", required=["us"], never=["ap"])
        await world.blob("b", ["team/a"], ["us", "eu"])
        await world.blob("forbidden", ["strict/a"], ["us"])
        await world.wish("b", "ap", 100)
        await world.wish("forbidden", "ap", 100)
        assert (await fill(world)).owed == 1
        assert await world.tasks("b") == {"ap"}
        await world.strike("b", "ap")
        await world.place("b", "ap")
        assert await fill(world) == Findings(blobs=2)
        await world.pass_time(101)
        assert (await fill(world)).trimmed == 1
        assert set(await world.placed("b")) == {"us", "eu"}

    async def test_a_removed_location_comes_back_when_its_rows_are_gone(self, world: Bench) -> None:
        """What was removed can be made active again, with nothing in it, once the rows of its copies have been taken away."""
        await world.policy("team", required=["us", "ap"])
        await world.blob("b", ["team/a"], ["us", "ap"])
        await world.change("ap", LocationState.DRAINING)
        await drainer_of(world, Reads()).work()
        assert (await world.remove("ap")).outcome is Change.DONE
        assert (await world.change("ap", LocationState.ACTIVE)).outcome is Change.REFUSED
        while await world.rounds().purge_removed():
            pass
        assert (await world.change("ap", LocationState.ACTIVE)).outcome is Change.DONE
        assert (await fill(world)).owed == 1
        assert await world.tasks("b") == {"ap"}
