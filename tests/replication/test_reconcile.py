"""Debt is derivable: the reconciler finds what is lost, orphaned and not required any more, and never takes the last copy."""

import pytest

from node.records import reconcile
from node.records.locations import Change, purge_removed
from replication.model import LocationState
from replication.reconciler import ReconcilerSettings, backfill
from tests.replication.world import NoHints, World
from tests.rounds_contract import Reads, RoundsContract, drainer_of, fill, trimmer_of


class TestPostgresRounds(RoundsContract):
    """The suite, as it is."""


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
    assert (await world.remove("ap")).outcome is Change.DONE
    assert await world.one("SELECT count(*) FROM upload") == 0
    assert await world.tasks("b") == set()


async def test_trimmed_bytes_outlive_presigned_urls_and_memory(world: World) -> None:
    """The object of a trimmed copy is deleted only after PRESIGN_LIFETIME and METADATA_STALENESS."""
    (began,) = await world.database.fetch("SELECT clock_timestamp() AS at")
    await world.blob("b", ["team/a"], ["us", "eu", "ap"])
    await backfill(world.rounds(), NoHints().publish, ReconcilerSettings(), trimmer=trimmer_of(world, Reads()))
    # From some moment of the round on, however long that took.
    between = "not_before - interval '1505 seconds' BETWEEN $1 AND clock_timestamp()"
    assert await world.one(f"SELECT count(*) FROM dead_object WHERE {between}", began["at"]) == 1  # noqa: S608


async def test_rows_of_a_removed_location_go_in_batches(world: World) -> None:
    """The rows of a removed location are taken away a few at a time, so that no statement takes long."""
    for n in range(3):
        await world.blob(f"b{n}", ["team/a"], ["us", "ap"])
    await world.change("ap", LocationState.DRAINING)
    await drainer_of(world, Reads()).work()
    assert (await world.remove("ap")).outcome is Change.DONE
    assert [await purge_removed(world.database, 2) for _ in range(3)] == [2, 1, 0]
    assert await world.dead() == set()


async def test_what_is_emptied_is_looked_at_in_pages(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """However few copies one statement looks at, every blob has its turn, also one in two locations at the end of a page."""
    monkeypatch.setattr(reconcile, "_LOOKED_AT", 3)
    for n in range(5):
        await world.blob(f"b{n}", ["team/a"], ["us", "eu", "ap"])
    for at in ("eu", "ap"):
        await world.change(at, LocationState.DRAINING)
    reads = Reads()
    assert await drainer_of(world, reads).work() == 5
    assert sorted(reads.done) == [f"b{n}.us" for n in range(5)]
    assert sorted(await world.rounds().note_drained()) == ["ap", "eu"]
