"""Reports of one copy that reach the database at the same moment, on two connections: the second waits for the first's locks."""

from functools import partial
from uuid import UUID

import pytest
import trio

from node.records.ledger import PostgresLedger
from node.records.members import Membership
from replication.macs import PieceProofs
from replication.ports import CopyOutcome
from tests.collection.held import held_transaction, wait_until_one_waits
from tests.copies import finish_copy
from tests.replication.world import World

_MOMENT = 10.0
_MEMBER = Membership(UUID(int=1), ("us",), ("us",), "test")


@pytest.mark.parametrize("before", ["nothing", "a suspect copy"])
async def test_a_report_that_comes_twice_at_once_buries_nothing_alive(
    world: World, database_uri: str, before: str
) -> None:
    """A node that repeats a report whose answer was lost while the first one still runs is told the same, and the copy stays."""
    await world.blob("b", ["team/a"], {"us": "present"} if before == "nothing" else {"us": "present", "eu": "suspect"})
    await world.owe("b", "eu")
    ledger = PostgresLedger(database=world.database, member=_MEMBER)
    (task,) = await ledger.claim_copies("eu", "p/", 10, 30)
    outcomes: list[CopyOutcome] = []

    async def report_again() -> None:
        outcomes.append(await finish_copy(ledger, task, PieceProofs()))

    async with trio.open_nursery() as nursery, held_transaction(database_uri) as held:
        first = await finish_copy(PostgresLedger(database=held, member=_MEMBER), task, PieceProofs())
        nursery.start_soon(report_again)
        await wait_until_one_waits(world.database)
    assert [first, *outcomes] == [CopyOutcome.PLACED, CopyOutcome.PLACED]
    assert (await world.placed("b"))["eu"] == "present"
    assert await world.dead() == (set() if before == "nothing" else {"b.eu"})


async def test_a_report_that_comes_as_its_task_is_struck_is_buried(world: World, database_uri: str) -> None:
    """The other way round nothing changes: whose task another one has just struck is not placed, and its key is dead."""
    await world.blob("b", ["team/a"], ["us"])
    await world.owe("b", "eu")
    ledger = PostgresLedger(database=world.database, member=_MEMBER)
    (task,) = await ledger.claim_copies("eu", "p/", 10, 30)
    async with trio.open_nursery() as nursery, held_transaction(database_uri) as held:
        await held.fetch("DELETE FROM task")
        nursery.start_soon(partial(finish_copy, ledger, task, PieceProofs()))
        await wait_until_one_waits(world.database)
    assert set(await world.placed("b")) == {"us"}
    assert await world.dead() == {task.key}


async def test_reports_of_different_blobs_do_not_wait_for_each_other(world: World, database_uri: str) -> None:
    """What is counted when copies are reported holds nobody up: two that did, in another order each, would wait in a circle."""
    # So many that both halves touch all that is counted by a share of the blobs.
    for at in range(33):
        await world.blob(f"b{at}", ["team/a"], ["us"])
        await world.owe(f"b{at}", "eu")
    ledger = PostgresLedger(database=world.database, member=_MEMBER)
    tasks = await ledger.claim_copies("eu", "p/", 33, 30)
    half = [[(task, PieceProofs()) for task in part] for part in (tasks[:16], tasks[16:])]
    async with held_transaction(database_uri) as held:
        await PostgresLedger(database=held, member=_MEMBER).finish_copies(half[0])
        with trio.fail_after(_MOMENT):
            assert set(await ledger.finish_copies(half[1])) == {CopyOutcome.PLACED}
    rows = await world.database.fetch("SELECT sum(blobs) AS blobs, sum(bytes) AS bytes FROM sole_total")
    assert [(row["blobs"], row["bytes"]) for row in rows] == [(0, 0)]
