"""The simulation's rounds of reconciliation keep the contract that the PostgreSQL ones keep."""

from collections.abc import Iterable, Mapping, Sequence

import pytest

from node.records.locations import Changed
from property_tests.memory_ledger import Line
from property_tests.memory_rounds import MemoryRounds, ask_for_round
from property_tests.memory_truth import Truth
from replication.model import LocationState, Placement
from replication.policy import parse_policy
from tests.replication.world import LOCATIONS, digest_of
from tests.rounds_contract import RoundsContract


class MemoryWorld:
    """See `tests.rounds_contract.Bench`."""

    def __init__(self) -> None:
        self.truth = Truth(dict.fromkeys(LOCATIONS, LocationState.ACTIVE), frozenset({"us", "eu"}))
        self.blobs: dict[str, int] = {}

    def rounds(self) -> MemoryRounds:
        return MemoryRounds(Line(self.truth))

    async def blob(self, name: str, repositories: Iterable[str], placed: Mapping[str, str] | Sequence[str]) -> int:
        namespaces = [repository.partition("/")[0] for repository in repositories]
        blob = self.truth.add_blob(digest_of(name), 1000, None, {}, [], namespaces=namespaces)
        self.blobs[name] = blob.id
        for at, state in placed.items() if isinstance(placed, Mapping) else [(at, "present") for at in placed]:
            await self.place(name, at, state)
        return blob.id

    async def place(self, blob: str, at: str, state: str = "present") -> None:
        number = self.blobs[blob]
        self.truth.place(self.truth.blobs[number], Placement(at, f"{blob}.{at}", state == "suspect"))

    async def lose(self, blob: str, at: str) -> None:
        del self.truth.placements[self.blobs[blob], at]

    async def owe(self, blob: str, at: str, *, key: str | None = None, leased: bool = False) -> None:
        self.truth.owe(self.blobs[blob], at)
        task = self.truth.tasks[self.blobs[blob], at]
        task.key = key
        if leased:
            task.lease, task.lease_until = f"lease of {blob} {at}", self.truth.now() + 3600

    async def strike(self, blob: str, at: str) -> None:
        del self.truth.tasks[self.blobs[blob], at]

    async def wish(self, blob: str, at: str, seconds: float) -> None:
        self.truth.wishes[self.blobs[blob], at] = self.truth.now() + seconds

    async def policy(self, namespace: str, **rules: object) -> None:
        self.truth.policies[namespace] = parse_policy(rules, LOCATIONS)

    async def state(self, at: str, state: LocationState) -> None:
        self.truth.states[at] = state

    async def state_of(self, at: str) -> LocationState:
        return self.truth.states[at]

    async def change(self, at: str, state: LocationState) -> Changed:
        return self.truth.change(at, state)

    async def remove(self, at: str) -> Changed:
        return self.truth.remove(at)

    async def placed(self, blob: str) -> Mapping[str, str]:
        return {p.location: "suspect" if p.suspect else "present" for p in self.truth.sources(self.blobs[blob])}

    async def tasks(self, blob: str) -> set[str]:
        return {at for number, at in self.truth.tasks if number == self.blobs[blob]}

    async def dead(self) -> set[str]:
        return {dead.key for dead in self.truth.dead.values()}

    async def ask_for_round(self) -> None:
        ask_for_round(self.truth)

    async def round_done(self) -> bool:
        return self.truth.round.completed > 0

    async def pass_time(self, seconds: float) -> None:
        self.truth.skew += seconds


@pytest.fixture
def world() -> MemoryWorld:
    return MemoryWorld()


class TestMemoryRounds(RoundsContract):
    """The suite, as it is."""
