"""What clients see of a part that fails: one fault that the seed chooses in every run, all of them with --long.

The seed is printed; ANTIPODE_NEMESIS_SEED=<seed> repeats a run.
"""

import os
import random
import shutil

import pytest

from tests.nemesis.faults import FAULTS, Turn, schedule
from tests.nemesis.ground import open_ground
from tests.nemesis.table import table
from tests.nemesis.trial import prepare, try_fault
from tests.services import Store

needs_haproxy = pytest.mark.skipif(shutil.which("haproxy") is None, reason="no haproxy (Debian package)")


def seed() -> int:
    return int(os.environ.get("ANTIPODE_NEMESIS_SEED") or random.randrange(10**6))


async def run(stores: dict[str, Store], turns: list[Turn], number: int) -> None:
    """Try every turn on one registry; fail with all that was not allowed."""
    print(f"ANTIPODE_NEMESIS_SEED={number}: {', '.join(turn.fault.name for turn in turns)}")
    results = []
    async with open_ground(stores) as ground:
        await prepare(ground)
        for place, turn in enumerate(turns):
            results.append(await try_fault(ground, turn.fault, turn.seconds, number, f"trial{place}"))
    print(table(results))
    wrong = [f"{result.fault.name}: {text}" for result in results for text in result.wrong]
    assert not wrong, "\n".join(wrong)


@needs_haproxy
async def test_clients_do_not_notice_faults(s3_stores: dict[str, Store]) -> None:
    """Whatever fails: no acknowledged push is lost, no byte is wrong, no tag goes back, and only what must shows."""
    number = seed()
    await run(s3_stores, schedule(number, 1), number)


@pytest.mark.long
@needs_haproxy
async def test_clients_notice_no_fault_of_any_kind(s3_stores: dict[str, Store]) -> None:
    """The same for every fault there is, one after the other on one registry, in an order that the seed decides."""
    number = seed()
    turns = schedule(number, len(FAULTS))
    await run(s3_stores, turns, number)


def test_a_seed_is_a_schedule() -> None:
    """The same seed stands for the same faults, and another for others."""
    assert schedule(1, 4) == schedule(1, 4)
    assert schedule(1, 4) != schedule(2, 4)
    assert {turn.fault.name for turn in schedule(3, len(FAULTS))} == set(FAULTS)
