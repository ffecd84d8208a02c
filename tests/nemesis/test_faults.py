"""What clients see of a part that fails: one fault that the seed chooses in every run; all of them, and pairs, with --long.

The seed is printed; ANTIPODE_NEMESIS_SEED=<seed> repeats a run. In CI it is the code that chooses: what was judged once is judged
alike the next time.
"""

import os
import random
import subprocess

import pytest

from tests.balancers import needs_haproxy
from tests.nemesis.faults import FAULTS, Turn, schedule, schedule_pairs, turn_of
from tests.nemesis.ground import open_ground
from tests.nemesis.table import table
from tests.nemesis.trial import prepare, try_turn
from tests.services import Store, repository_root

_PAIRS = 8


def seed() -> int:
    if given := os.environ.get("ANTIPODE_NEMESIS_SEED"):
        return int(given)
    if os.environ.get("CI") == "true":
        words = ["git", "-C", str(repository_root()), "rev-parse", "HEAD^{tree}"]
        asked = subprocess.run(words, check=False, capture_output=True, text=True)
        if asked.returncode == 0:
            return int(asked.stdout, 16) % 10**6
    return random.randrange(10**6)


async def run(stores: dict[str, Store], turns: list[Turn], number: int) -> None:
    """Try every turn on one registry; fail with all that was not allowed."""
    print(f"ANTIPODE_NEMESIS_SEED={number}: {', '.join(turn.name for turn in turns)}")
    results = []
    async with open_ground(stores) as ground:
        await prepare(ground)
        for place, turn in enumerate(turns):
            results.append(await try_turn(ground, turn, number, f"trial{place}"))
    print(table(results))
    wrong = [f"{result.name}: {text}" for result in results for text in result.wrong]
    assert not wrong, "\n".join(wrong)


@needs_haproxy
async def test_clients_do_not_notice_faults(s3_stores: dict[str, Store]) -> None:
    """Whatever fails: no acknowledged push is lost, no byte is wrong, no tag goes back, and only what must shows."""
    number = seed()
    # A thousand pulls at once take more than tens of seconds: they are tried with the rest.
    short = [name for name, fault in FAULTS.items() if fault.reach != "load"]
    await run(s3_stores, schedule(number, 1, short), number)


@pytest.mark.long
@needs_haproxy
async def test_clients_notice_no_fault_of_any_kind(s3_stores: dict[str, Store]) -> None:
    """The same for every fault there is, one after the other on one registry, in an order that the seed decides."""
    number = seed()
    await run(s3_stores, schedule(number, len(FAULTS)), number)


@pytest.mark.long
@needs_haproxy
async def test_clients_notice_no_two_faults(s3_stores: dict[str, Store]) -> None:
    """The same for pairs of faults in different kinds of parts, at once and one straight after the other."""
    number = seed()
    await run(s3_stores, schedule_pairs(number, _PAIRS), number)


def test_a_seed_is_a_schedule() -> None:
    """The same seed stands for the same faults, and another for others."""
    assert schedule(1, 4) == schedule(1, 4)
    assert schedule(1, 4) != schedule(2, 4)
    assert {turn.name for turn in schedule(3, len(FAULTS))} == set(FAULTS)
    assert schedule_pairs(1, 4) == schedule_pairs(1, 4)
    assert schedule_pairs(1, 4) != schedule_pairs(2, 4)


def test_a_turn_can_be_written() -> None:
    """What a run prints can be given to the command, and two faults that leave nothing are refused."""
    for turn in schedule_pairs(5, 20):
        assert turn_of(turn.name, turn.seconds) == turn
    with pytest.raises(ValueError, match="unknown: the moon"):
        turn_of("the moon + Redis hung", 1)
    with pytest.raises(ValueError, match="two faults of a store"):
        turn_of("us store hung > eu store slow", 1)
