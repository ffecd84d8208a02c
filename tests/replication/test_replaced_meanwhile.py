"""An object that loses its place to another one is deleted in the end, also where it was distrusted at that very moment."""

from collections.abc import Awaitable, Callable
from functools import partial
from uuid import UUID

import pytest
import trio

from node.records.blobs import commit_blob
from node.records.ledger import PostgresLedger
from node.records.members import Membership
from node.records.postgres import Database
from node.records.repair import adopt_object
from replication.macs import PieceProofs
from tests.collection.held import held_transaction, wait_until_one_waits
from tests.copies import finish_copy
from tests.replication.world import World, digest_of

_UPLOAD = UUID(int=7)


def _ledger(database: Database) -> PostgresLedger:
    return PostgresLedger(database=database, member=Membership(UUID(int=1), ("us",), ("us",), "test"))


async def _commit(world: World) -> Callable[[], Awaitable[object]]:
    await world.database.fetch(
        "INSERT INTO upload (id, repository_id, location_id, key, reserved_key, algorithm, expires_at) "
        "SELECT $1, r.id, l.id, 'new.us', 'new.tail', 'sha256', now() + interval '1 hour' FROM repository r, location l "
        "WHERE l.name = 'us'",
        _UPLOAD,
    )
    return partial(
        commit_blob,
        world.database,
        "team/a",
        _UPLOAD,
        1,
        digest=digest_of("layer"),
        size=1000,
        pieces=None,
        key="new.us",
        leftovers=(),
        replicate=True,
    )


async def _finish(world: World) -> Callable[[], Awaitable[object]]:
    await world.lose("layer", "us")
    await world.owe("layer", "us")
    ledger = _ledger(world.database)
    (task,) = await ledger.claim_copies("us", "", 1, 60.0)
    await world.place("layer", "us")
    return partial(finish_copy, ledger, task, PieceProofs())


async def _adopt(world: World) -> Callable[[], Awaitable[object]]:
    return partial(adopt_object, world.database, world.blobs["layer"], "us", "found.us")


@pytest.mark.parametrize("prepare", [_commit, _finish, _adopt])
async def test_what_is_replaced_as_it_is_distrusted_is_deleted(
    world: World, database_uri: str, prepare: Callable[[World], Awaitable[Callable[[], Awaitable[object]]]]
) -> None:
    """A copy that turns out bad while its blob comes again there gives way, and its object is no orphan."""
    blob = await world.blob("layer", ["team/a"], ["us", "eu"])
    replace = await prepare(world)
    gone = {row["key"] for row in await world.database.fetch("SELECT key FROM dead_object")}
    async with trio.open_nursery() as nursery, held_transaction(database_uri) as held:
        await _ledger(held).mark_suspect(blob, "us", "layer.us", "wrong bytes")
        nursery.start_soon(replace)
        await wait_until_one_waits(world.database)
        await held.fetch("COMMIT")
    assert (await world.placed("layer"))["us"] == "present"
    (row,) = await world.database.fetch(
        "SELECT key FROM placement p JOIN location l ON l.id = location_id WHERE name = 'us'"
    )
    assert row["key"] != "layer.us"
    assert await world.dead() - gone == {"layer.us"}
