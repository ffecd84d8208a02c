"""What keeps a location that is being emptied only until another one is back, told from what nothing can move."""

from uuid import uuid4

import pytest

from node.api.locations import get_location
from node.records.held_up import HeldUp, WaitsFor, list_held_up
from node.records.locations import list_locations
from node.records.members import Membership, heartbeat
from replication.model import LocationState
from replication.plan import STALLED_AFTER
from tests.replication.world import World


async def live(world: World, *down: dict[str, float] | None) -> None:
    """Let so many nodes live, each of which sees these locations down for so many seconds; None: it does not say."""
    await world.database.fetch("DELETE FROM node")
    for word in down:
        member = Membership(uuid4(), ("us",), ("us", "eu"), "test")
        await heartbeat(world.database, member, draining=False, forget_after=3600, down=word)
        if word is None:
            await world.database.fetch("UPDATE node SET down = NULL WHERE id = $1", member.id)


async def told(world: World, at: str = "us") -> dict[str, int]:
    """Return how many blobs of a location wait for which, and see that the API says the same of it."""
    held_up = await list_held_up(world.database, at)
    document = await get_location(world.database, at)
    assert document["waiting_blobs"] == held_up.blobs
    assert document["waits_for"] == [
        {
            "location": line.location,
            "paused": line.paused,
            "away_for": pytest.approx(line.away_for, abs=60),
            "blobs": line.blobs,
        }
        if line.away_for is not None
        else {"location": line.location, "paused": line.paused, "away_for": None, "blobs": line.blobs}
        for line in held_up.waits_for
    ]
    return {line.location: line.blobs for line in held_up.waits_for}


async def stuck(world: World, at: str = "us") -> int:
    (line,) = [line for line in await list_locations(world.database) if line.name == at]
    return line.stuck_blobs


async def test_who_is_waited_for(world: World) -> None:
    """A good copy elsewhere, the one here, a destination, or one that nobody trusts: who has it is waited for while it is away."""
    for name, placed in (
        ("read it there", {"us": "present", "eu": "present"}),
        ("one of two is near", {"us": "present", "eu": "present", "ap": "present"}),
        ("only here", {"us": "present"}),
        ("only here and unlinked", {"us": "present"}),
        ("damaged", {"us": "suspect", "ap": "suspect"}),
    ):
        await world.blob(name, [] if "unlinked" in name else ["other/b"], placed)
    await world.owe("only here", "eu")
    await live(world, {"eu": 10, "ap": 20}, {"eu": 30, "ap": 5})
    assert await list_held_up(world.database, "us") == HeldUp(), "nothing is emptied"
    await world.change("us", LocationState.DRAINING)
    # The two that may be read in eu and ap, and what is owed to eu; nobody has tried the damaged one.
    assert await told(world) == {"ap": 1, "eu": 3}
    held_up = await list_held_up(world.database, "us")
    assert held_up.blobs == 3
    (ap, eu) = held_up.waits_for
    assert ap.away_for == pytest.approx(20, abs=60)
    assert ap.away_for is not None
    assert eu.away_for is not None
    assert (eu.away_for > ap.away_for, eu.paused) == (True, False), "since the last node has seen it so"
    await live(world, {"eu": 10, "ap": 20}, {"eu": 30})
    assert await told(world) == {"eu": 2}, "a node reaches ap"
    await live(world, {"eu": 10}, None)
    assert await told(world) == {"eu": 2}, "one that does not say is not asked"
    await live(world, None)
    assert await told(world) == {}
    await live(world, {"us": 10})
    assert await told(world) == {"us": 1}
    await world.owe("only here", "ap")
    await live(world, {"eu": 10})
    assert await told(world) == {"eu": 1}, "there is another way for what is only here"
    await live(world, {})
    assert await told(world) == {}
    await world.state("eu", LocationState.PAUSED)
    assert (await list_held_up(world.database, "us")).waits_for == (
        WaitsFor("eu", paused=True, away_for=None, blobs=1),
    )


async def test_a_try_that_reached_nobody_shows_nothing(world: World) -> None:
    """A blob that nobody trusts is stuck only when every copy was read; until then it waits for those that were not."""
    await world.blob("damaged", ["other/b"], {"us": "suspect", "ap": "suspect"})
    await world.owe("damaged", "eu", failures=STALLED_AFTER)
    await world.change("us", LocationState.DRAINING)
    await live(world, {})
    assert (await stuck(world), await told(world)) == (1, {})
    await world.database.fetch("UPDATE task SET unreached = '{us,ap}'")
    assert (await stuck(world), await told(world)) == (0, {"us": 1, "ap": 1})
    assert (await list_held_up(world.database, "us")).blobs == 1
    # The next try is under way.
    await world.database.fetch("UPDATE task SET lease = 'l', lease_until = now() + interval '1 minute'")
    assert (await stuck(world), await told(world)) == (0, {})
    await world.database.fetch("UPDATE task SET lease = NULL, lease_until = NULL, unreached = NULL")
    await live(world, {"eu": 10, "us": 10, "ap": 10})
    assert (await stuck(world), await told(world)) == (1, {}), "what is known to be wrong is so wherever it would go"


async def test_what_policies_let_only_a_paused_location_have(world: World) -> None:
    """It is not stuck: it goes when the pause ends."""
    await world.policy("team", never=["eu"])
    await world.blob("shut in", ["team/a"], {"us": "present"})
    await live(world, {})
    await world.change("us", LocationState.DRAINING)
    assert (await stuck(world), await told(world)) == (0, {})
    await world.state("ap", LocationState.PAUSED)
    assert (await stuck(world), await told(world)) == (0, {"ap": 1})
    await world.state("ap", LocationState.REMOVED)
    assert (await stuck(world), await told(world)) == (1, {})
