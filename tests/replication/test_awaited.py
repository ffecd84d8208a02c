"""What copies into a location wait for, as `location add --wait` says it."""

from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest
import trio

from node.commands import location
from node.commands.location import _until_copied
from node.records.awaited import list_awaited
from node.records.ledger import PostgresLedger
from node.records.members import Membership, heartbeat
from replication.health import why_down
from replication.model import LocationHealth, LocationState, Verdict
from tests.replication.world import World


async def live(world: World, **down: str) -> None:
    """Let a node live that has all locations, and sees these down for a minute, for these reasons."""
    await world.database.fetch("DELETE FROM node")
    member = Membership(uuid4(), ("us",), ("us", "eu"), "test", ("us", "eu", "ap"))
    seconds = dict.fromkeys(down, 60.0)
    await heartbeat(world.database, member, draining=False, forget_after=3600, down=seconds, why_down=down)


async def waits_for(world: World) -> list[tuple[str, int, bool, bool, str | None]]:
    return [
        (at.location, at.blobs, at.paused, at.away_for is not None, at.reason)
        for at in await list_awaited(world.database, "ap")
    ]


async def test_who_is_waited_for(world: World) -> None:
    """The destination while all nodes see it down, or it is paused; else the sources that the last tries did not reach."""
    for name in ("one", "two", "three"):
        await world.blob(name, ["team/a"], ["us"])
        await world.owe(name, "ap", failures=1)
    await world.database.fetch(
        "UPDATE task SET unreached = '{us}' WHERE blob_id = ANY($1::bigint[])", [world.blobs["one"], world.blobs["two"]]
    )
    await live(world)
    assert await waits_for(world) == [("us", 2, False, False, "it burns")]
    await live(world, us="no route")
    assert await waits_for(world) == [("us", 2, False, True, "no route")]
    await live(world, ap="connection refused", us="no route")
    assert await waits_for(world) == [("ap", 3, False, True, "connection refused")]
    await live(world)
    await world.state("ap", LocationState.PAUSED)
    assert await waits_for(world) == [("ap", 3, True, False, None)]
    await world.state("ap", LocationState.ACTIVE)
    await world.database.fetch("UPDATE task SET lease = blob_id, lease_until = now() + interval '1 minute'")
    assert await waits_for(world) == [], "they are under way"


async def test_a_node_says_why(world: World) -> None:
    """With its heartbeat, of the stores that it sees down."""
    board = {
        name: LocationHealth(name, verdict, reason=f"{name} is tired")
        for name, verdict in (("us", Verdict.HEALTHY), ("ap", Verdict.DOWN))
    }
    ledger = PostgresLedger(
        database=world.database,
        member=Membership(UUID(int=1), ("us",), ("us",), "test"),
        down=lambda: {"ap": 5.0},
        why_down=lambda: why_down(board),
    )
    await ledger.heartbeat()
    await world.blob("one", ["team/a"], ["us"])
    await world.owe("one", "ap")
    assert [at.reason for at in await list_awaited(world.database, "ap")] == ["ap is tired"]


async def test_waiting_says_for_what(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On standard error, again and again as long as it is so, and no more when it is not; it ends when nothing is owed."""
    for name in ("_LOOK_AGAIN", "_ASK_WHO_IS_AWAY", "_SAY_AGAIN"):
        monkeypatch.setattr(location, name, 0.01)
    await live(world, ap="[Errno 111] Connection refused")
    await world.blob("one", ["team/a"], ["us"])
    await world.owe("one", "ap")
    desk: Any = SimpleNamespace(database=world.database)
    done: list[bool] = []

    async def wait() -> None:
        done.append(await _until_copied(desk, "ap"))

    async def said() -> str:
        while True:
            out, err = capsys.readouterr()
            assert not out
            if err:
                return err
            await trio.sleep(0.01)

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            for _ in range(2):
                line = (await said()).splitlines()[0]
                assert line.startswith("1 blobs wait for ap, which has been away for 1m")
                assert line.endswith(": [Errno 111] Connection refused")
            await world.strike("one", "ap")
    assert done == [True]
