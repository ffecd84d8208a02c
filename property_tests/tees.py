"""The tees of a node of the simulated cluster."""

from collections.abc import Awaitable
from typing import TYPE_CHECKING

import trio

from property_tests.memory_engine import MIB
from replication.model import Blob, Placement
from replication.offload import inline
from replication.sources import may_tee
from replication.spool import Spool
from replication.tees import Tees

if TYPE_CHECKING:
    from property_tests.cluster import Node


def tees_of(node: "Node") -> Tees:
    """Return what brings blobs that are pulled to a node's preferred store on the way, with room for a few pieces of them all."""
    world, preferred = node.world, node.preference[0]
    spool = Spool(None, 3 * MIB, inline)
    world.spools.append(spool)

    def worth(blob: Blob, sources: tuple[Placement, ...]) -> bool:
        state = world.truth.states.get(preferred)
        return may_tee(blob, sources, preferred, state, node.watcher.board, least=1000, most=spool.most)

    async def pace(_location: str, _nbytes: int) -> None:
        await trio.lowlevel.checkpoint()

    def copy(blob: Blob) -> Awaitable[object]:
        return node.scheduler.pay_at_once(blob.id, preferred)

    return Tees(node.reader, spool, worth, copy, pace, node.pool.hold, offload=inline)
