"""An account and a repository in its namespace, one of which is made while the other goes: none is left without the other."""

import trio

from node.records.accounts import Deletion, create_user, delete_account, find_account
from node.records.permissions import create_repository
from tests.collection.held import held_transaction, wait_until_one_waits
from tests.replication.conftest import world
from tests.replication.world import World

__all__ = ["world"]


async def test_an_account_stays_whose_first_repository_is_being_made(world: World, database_uri: str) -> None:
    """Who deletes an account while somebody pushes into its namespace is told that it is in use."""
    assert await create_user(world.database, "ann", None)
    outcomes: list[Deletion] = []

    async def delete() -> None:
        outcomes.append(await delete_account(world.database, "ann"))

    async with trio.open_nursery() as nursery, held_transaction(database_uri) as held:
        assert await create_repository(held, "ann/a", "library", "ann")
        nursery.start_soon(delete)
        await wait_until_one_waits(world.database)
    assert outcomes == [Deletion.IN_USE]
    assert await find_account(world.database, "ann") is not None


async def test_nothing_is_made_in_the_namespace_of_an_account_that_is_being_deleted(
    world: World, database_uri: str
) -> None:
    """Whoever pushes there makes no repository, which would be nobody's."""
    assert await create_user(world.database, "ann", None)
    made: list[bool] = []

    async def make() -> None:
        made.append(await create_repository(world.database, "ann/a", "library", "ann"))

    async with trio.open_nursery() as nursery, held_transaction(database_uri) as held:
        assert await delete_account(held, "ann") is Deletion.DONE
        nursery.start_soon(make)
        await wait_until_one_waits(world.database)
    assert made == [False]
    assert await world.database.fetch("SELECT FROM repository") == []
    # A namespace that no account has is anybody's who may make repositories there.
    assert await create_repository(world.database, "free/a", "library", "ben")
