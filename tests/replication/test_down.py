"""The status of replication says which stores are down, as all nodes see it."""

from uuid import UUID

from node.api.debts import replication_status
from node.records.members import Membership, heartbeat
from tests.replication.world import World


async def _say(world: World, node: int, **down: float) -> None:
    member = Membership(UUID(int=node), ("us",), ("us",), "test")
    await heartbeat(world.database, member, draining=False, forget_after=60.0, down=down)


async def _down(world: World) -> dict[str, float | None]:
    document = await replication_status(world.database)
    locations = document["locations"]
    assert isinstance(locations, list)
    return {line["location"]: line["down_seconds"] for line in locations}


async def test_a_store_is_down_when_all_live_nodes_say_so(world: World) -> None:
    """One node that sees a store well is enough; the time is since the last of them saw it go."""
    assert await _down(world) == {"us": None, "eu": None, "ap": None}
    await _say(world, 1, eu=100.0, ap=5.0)
    await _say(world, 2, eu=40.0)
    said = await _down(world)
    assert (said["us"], said["ap"]) == (None, None)
    assert said["eu"] is not None
    assert 40 <= said["eu"] < 100
    await _say(world, 2)
    assert (await _down(world))["eu"] is None
