"""Who collects, or deletes much at once, comes to all of it by its numbers: tests/test_circles.py says how that is seen."""

from collections.abc import Sequence

import pytest
import trio

from node.records.collect import CollectRules, collect_batch
from node.records.removal import delete_namespace
from tests.collection.held import held_transaction, wait_until_one_waits
from tests.replication.conftest import world
from tests.replication.world import World

__all__ = ["world"]

_NOW = CollectRules(grace=0, retention=0, tag_expiration=0)
_TASK = "SELECT FROM task WHERE blob_id = $1 FOR UPDATE"
_NOTE = "SELECT note_garbage('blob', '{0}', ARRAY[$1::bigint])"


async def make_candidates(world: World, kind: str, objects: Sequence[int]) -> None:
    """Let these be due, the first for the shortest time."""
    await world.database.fetch("DELETE FROM garbage")
    await world.database.fetch(
        "INSERT INTO garbage (kind, object_id, since) SELECT $1, o, now() - n * interval '1 hour' "
        "FROM unnest($2::bigint[]) WITH ORDINALITY u (o, n)",
        kind,
        list(objects),
    )


@pytest.mark.parametrize("kind", ["blob", "manifest"])
async def test_what_waits_longest_is_not_what_is_locked_first(world: World, database_uri: str, kind: str) -> None:
    """Two nodes collect beside copies, or beside each other: whatever is due first, they come to it in the order of the others."""
    first, last = [await world.blob(name, ["team/a"], ["us"]) for name in ("one", "two")]
    for name in ("one", "two"):
        await world.manifest(name, "team/a", blobs=[name])
        await world.owe(name, "ap")
    await world.database.fetch("DELETE FROM repository_manifest")
    if kind == "blob":
        await world.database.fetch("DELETE FROM manifest")
    await world.database.fetch("DELETE FROM repository_blob")
    await make_candidates(world, kind, [first, last] if kind == "blob" else sorted(world.manifests.values()))
    lock = _TASK if kind == "blob" else _NOTE
    async with trio.open_nursery() as nursery, held_transaction(database_uri) as held:
        await held.fetch("SET LOCAL lock_timeout = '200ms'")
        await held.fetch(lock, first)
        nursery.start_soon(collect_batch, world.database, kind, _NOW)
        await wait_until_one_waits(world.database)
        await held.fetch(lock, last)
        await held.fetch("ROLLBACK")


async def test_what_leaves_several_repositories_is_noted_in_one_order(world: World, database_uri: str) -> None:
    """When a namespace goes, candidates of all its repositories are made by their numbers, not one repository after another."""
    first = await world.blob("one", [], ["us"])
    last = await world.blob("two", [], ["us"])
    # The repository that was made first has the blob that was made last.
    await world.link("two", "team/a")
    await world.link("one", "team/c")
    async with trio.open_nursery() as nursery, held_transaction(database_uri) as held:
        await held.fetch("SET LOCAL lock_timeout = '200ms'")
        await held.fetch(_NOTE, first)
        nursery.start_soon(delete_namespace, world.database, "team")
        await wait_until_one_waits(world.database)
        await held.fetch(_NOTE, last)
        await held.fetch("ROLLBACK")
