"""Seeing that two transactions which come to the same rows come to them in one order: then they never wait in a circle.

Each circle would have two halves. One is held open; the other waits for it, and has not yet what the first comes to next.
"""

from collections.abc import Awaitable, Callable

import trio
from attrs import frozen

from tests.collection.held import held_transaction, wait_until_one_waits
from tests.replication.world import World

Act = Callable[[World], Awaitable[object]]

NAMESPACE = "SELECT FROM namespace WHERE name = 'team' FOR UPDATE"


@frozen
class Half:
    """What one transaction has, what another does that waits for it, and what the first comes to next."""

    has: str
    does: Act
    next: str


async def check(half: Half, world: World, uri: str) -> None:
    """Fail with LockNotAvailableError where the one that waits has what the other comes to next."""
    async with trio.open_nursery() as nursery, held_transaction(uri) as held:
        await held.fetch("SET LOCAL lock_timeout = '200ms'")
        await held.fetch(half.has)
        nursery.start_soon(half.does, world)
        await wait_until_one_waits(world.database)
        await held.fetch(half.next)
        await held.fetch("ROLLBACK")
