"""Debt is derivable: the reconciler finds what is lost, orphaned and not required any more, and never takes the last copy."""

import trio

from node.hint_hub import Hub
from node.reconciler import Findings, Reconciler, ReconcilerSettings, backfill, settle_page
from node.records.locations import Change, note_drained, purge_removed, remove_location, set_state
from node.records.reconcile import ask_for_round, find_candidates, look_at_round
from replication.model import LocationState
from replication.ports import Placed, Wake
from tests.replication.world import NoHints, World, digest_of

SETTINGS = ReconcilerSettings()


async def fill(world: World, *, replicate: bool = True, down: frozenset[str] = frozenset()) -> Findings:
    settings = ReconcilerSettings(page=3, replicate=replicate)
    return await backfill(world.database, NoHints().publish, settings, down=down)


async def test_a_lost_task_is_found_and_a_second_run_finds_nothing(world: World) -> None:
    """What is required, not present and not scheduled is scheduled; doing it again changes nothing."""
    for n in range(8):
        await world.blob(f"b{n}", ["team/a"], ["us"])
    assert await fill(world) == Findings(blobs=8, owed=8)
    assert all([await world.tasks(f"b{n}") == {"eu"} for n in range(8)])
    assert await fill(world) == Findings(blobs=8)


async def test_an_orphaned_task_is_removed_and_its_key_buried(world: World) -> None:
    """A task that nothing requires goes unless somebody works on it; what it may have written becomes a dead object."""
    await world.blob("idle", ["team/a"], ["us", "eu"])
    await world.owe("idle", "ap", key="half")
    await world.blob("busy", ["team/a"], ["us", "eu"])
    await world.owe("busy", "ap", key="running", leased=True)
    assert (await fill(world)).struck == 1
    assert await world.tasks("idle") == set()
    assert await world.tasks("busy") == {"ap"}
    assert await world.dead() == {"half"}


async def test_a_task_that_is_paid_is_removed_and_its_copy_stays(world: World) -> None:
    """A task whose blob has arrived under its very key is removed without burying the key."""
    await world.blob("b", ["team/a"], ["us", "eu"])
    await world.owe("b", "eu", key="b.eu")
    assert (await fill(world)).struck == 1
    assert await world.dead() == set()


async def test_a_failover_copy_is_trimmed_once_the_debt_is_paid(world: World) -> None:
    """A copy where nothing is required goes when everything that is required is there, not before; readers are told."""
    await world.blob("unpaid", ["team/a"], ["us", "ap"])
    await world.blob("paid", ["team/a"], ["us", "eu", "ap"])
    hints = NoHints()
    found = await backfill(world.database, hints.publish, SETTINGS)
    assert (found.owed, found.trimmed) == (1, 1)
    assert set(await world.placed("unpaid")) == {"us", "ap"}
    assert set(await world.placed("paid")) == {"us", "eu"}
    assert await world.dead() == {"paid.ap"}
    assert Placed(digest_of("paid"), "ap") in hints.sent
    assert Wake(("eu",)) in hints.sent


async def test_trimmed_bytes_outlive_presigned_urls_and_memory(world: World) -> None:
    """The object of a trimmed copy is deleted only after PRESIGN_LIFETIME and METADATA_STALENESS."""
    await world.blob("b", ["team/a"], ["us", "eu", "ap"])
    await backfill(world.database, NoHints().publish, ReconcilerSettings(keep=605))
    left = await world.one("SELECT extract(epoch FROM not_before - now())::int FROM dead_object")
    assert 595 <= left <= 605


async def test_nothing_is_trimmed_without_replication(world: World) -> None:
    """With FEATURE_STORAGE_REPLICATION off one copy is enough, and no copy or task is taken away."""
    await world.blob("b", ["team/a"], ["ap"])
    await world.blob("c", ["team/a"], ["us", "eu", "ap"])
    await world.owe("b", "us")
    assert await fill(world, replicate=False) == Findings(blobs=2)


async def test_never_is_obeyed_by_copies_that_are_there(world: World) -> None:
    """Where every namespace says never the copy goes as soon as another is good; with the last copy a new home is owed first."""
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


async def test_never_binds_wishes_and_tags(world: World) -> None:
    """A wish or a tag rule does not bring a blob to where all its namespaces say never."""
    await world.policy("team", required=["us"], never=["ap"])
    await world.policy("other", required=["us"], tags=[{"pattern": "v*", "locations": ["ap"]}])
    await world.blob("base", ["other/b"], ["us"])
    await world.blob("signature", ["team/a"], ["us"])
    await world.manifest("image", "other/b", blobs=["base"], tag="v1")
    await world.manifest("signed", "team/a", blobs=["signature"], subject="image")
    await world.blob("wish", ["team/a"], ["us"])
    await world.database.fetch(
        "INSERT INTO wanted SELECT $1, id, now() + interval '1 hour' FROM location WHERE name = 'ap'",
        world.blobs["wish"],
    )
    found = await fill(world)
    assert found.tags == 1
    assert await world.tasks("base") == {"ap"}
    assert await world.tasks("signature") == await world.tasks("wish") == set()


async def test_the_last_readable_copy_stays(world: World) -> None:
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


async def test_two_spare_copies_do_not_trim_each_other(world: World) -> None:
    """Where the required location is paused, one of two spare copies stays."""
    await world.policy("team", required=["ap"])
    await world.blob("b", ["team/a"], ["us", "eu", "ap"])
    await world.state("ap", LocationState.PAUSED)
    await fill(world)
    assert len(set(await world.placed("b")) - {"ap"}) == 1


async def test_what_is_linked_nowhere_is_left_to_the_collector(world: World) -> None:
    """A blob that no repository has is neither copied nor trimmed."""
    await world.blob("b", [], ["us", "ap"])
    assert await fill(world) == Findings(blobs=1)
    assert set(await world.placed("b")) == {"us", "ap"}


async def test_a_blob_in_use_is_left_to_the_next_round(world: World) -> None:
    """A decision on facts that have changed since is not applied."""
    await world.blob("b", ["team/a"], ["us", "eu", "ap"])
    page = await find_candidates(world.database, 0, None, 10, replicate=True)
    await world.policy("team", required=["us", "eu", "ap"])
    assert await settle_page(world.database, NoHints().publish, page, SETTINGS, frozenset()) == Findings(
        blobs=1, busy=1
    )
    assert set(await world.placed("b")) == {"us", "eu", "ap"}


async def test_a_draining_location_moves_its_only_copies_and_is_drained_by_itself(world: World) -> None:
    """Draining owes what is only there to another location; when nothing is, it is drained, and only then it can be removed."""
    await world.policy("team", required=["ap"])
    await world.blob("sole", ["team/a"], ["ap"])
    await world.blob("safe", ["team/a"], ["us", "ap"])
    assert (await remove_location(world.database, "ap")).outcome is Change.REFUSED
    assert (await set_state(world.database, "ap", LocationState.DRAINING)).outcome is Change.DONE
    found = await fill(world)
    assert (found.owed, found.moving) == (1, 1)
    assert await world.tasks("sole") == {"us"}
    assert await note_drained(world.database) == []
    refused = await remove_location(world.database, "ap")
    assert (refused.outcome, refused.blobs) == (Change.ONLY_COPIES, 1)
    assert (await world.one("SELECT count(*) FROM location WHERE state = 'draining'")) == 1
    await world.place("sole", "us")
    await world.database.fetch("DELETE FROM task")
    assert await note_drained(world.database) == ["ap"]
    await world.database.fetch("DELETE FROM placement WHERE key = 'sole.us'")
    assert await note_drained(world.database) == []
    assert (await world.one("SELECT count(*) FROM location WHERE state = 'draining'")) == 1
    await world.place("sole", "us")
    assert (await remove_location(world.database, "ap")).outcome is Change.DONE
    assert await purge_removed(world.database, 1) == 1
    assert await purge_removed(world.database) == 1
    assert await world.placed("sole") == await world.placed("safe") == {"us": "present"}
    assert await world.dead() == set()
    assert (await remove_location(world.database, "ap")).outcome is Change.DONE


async def test_a_drain_works_without_replication_too(world: World) -> None:
    """An operator who drains a location asks for the copies, whatever FEATURE_STORAGE_REPLICATION says."""
    await world.blob("b", ["team/a"], ["ap"])
    await world.state("ap", LocationState.DRAINING)
    assert (await fill(world, replicate=False)).moving == 1
    assert await world.tasks("b") == {"us"}


async def test_removal_ends_uploads_and_copies(world: World) -> None:
    """After a removal neither an upload nor a copy that was under way can place a blob there."""
    repository = await world.repository("team/a")
    await world.database.fetch(
        "INSERT INTO upload (id, repository_id, location_id, key, reserved_key, algorithm, expires_at) "
        "SELECT gen_random_uuid(), $1, id, 'k', 'r', 'sha256', now() + interval '1 hour' FROM location WHERE name = 'ap'",
        repository,
    )
    await world.blob("b", ["team/a"], ["us"])
    await world.owe("b", "ap", key="late", leased=True)
    await world.state("ap", LocationState.DRAINING)
    assert (await remove_location(world.database, "ap")).outcome is Change.DONE
    assert await world.one("SELECT count(*) FROM upload") == 0
    assert await world.tasks("b") == set()


async def test_one_active_location_always_remains(world: World) -> None:
    """The last active location can be neither paused nor drained."""
    assert (await set_state(world.database, "us", LocationState.PAUSED)).outcome is Change.DONE
    assert (await set_state(world.database, "eu", LocationState.DRAINING)).outcome is Change.DONE
    assert (await set_state(world.database, "ap", LocationState.PAUSED)).outcome is Change.REFUSED
    assert (await set_state(world.database, "nowhere", LocationState.PAUSED)).outcome is Change.UNKNOWN


async def test_several_nodes_do_a_round_together(world: World) -> None:
    """Every page of a round is done once, by whichever node is free; asking for a round makes them hurry through a whole one."""
    for n in range(40):
        await world.blob(f"b{n}", ["team/a"], ["us"])
    await ask_for_round(world.database)
    settings = ReconcilerSettings(page=4, poll=0.01, shortest_rest=0.01, between_rounds=3600)
    nodes = [Reconciler(world.database, Hub("test"), settings, frozenset) for _ in range(3)]
    with trio.fail_after(30):
        while (await look_at_round(world.database)).completed_seconds is None:
            async with trio.open_nursery() as nursery:
                for node in nodes:
                    nursery.start_soon(node.step)
    assert sum(node.totals.blobs for node in nodes) == 40
    assert sum(node.totals.owed for node in nodes) == 40
    assert min(node.totals.blobs for node in nodes) > 0


async def test_a_page_of_a_node_that_died_is_done_by_another(world: World) -> None:
    """A round is not over before every page is done: one whose node went away is taken over when its lease has run out."""
    for n in range(4):
        await world.blob(f"b{n}", ["team/a"], ["us"])
    settings = ReconcilerSettings(page=2, between_rounds=3600)
    node = Reconciler(world.database, Hub("test"), settings, frozenset)
    await node.step()
    await world.one("SELECT last_blob FROM claim_reconciliation(2, 60, 3600)")
    for _ in range(4):
        await node.step()
    assert node.totals.blobs == 2
    assert (await look_at_round(world.database)).completed_seconds is None
    await world.database.fetch("UPDATE reconcile_page SET lease_until = now() - interval '1 second'")
    for _ in range(2):
        await node.step()
    assert node.totals.blobs == 4
    assert (await look_at_round(world.database)).completed_seconds is not None
