"""The simulation's ledger keeps the contract that the PostgreSQL one keeps."""

from collections.abc import Mapping, Sequence

import pytest

from property_tests.memory_ledger import Line, MemoryLedger
from property_tests.memory_truth import Truth
from replication.model import LocationState, Placement
from tests.ledger_contract import LedgerContract


class MemoryBench:
    """See `tests.ledger_contract.Bench`."""

    def __init__(self) -> None:
        self.truth = Truth(dict.fromkeys(("us", "eu", "ap"), LocationState.ACTIVE))
        self._ledgers: dict[str, MemoryLedger] = {}

    def ledger(self, node: str = "n1", preference: tuple[str, ...] = ("us", "eu", "ap")) -> MemoryLedger:
        return self._ledgers.setdefault(node, MemoryLedger(Line(self.truth), node, preference))

    async def push(
        self,
        digest: str,
        size: int,
        pieces: bytes | None,
        placed: Mapping[str, str],
        owed: Sequence[str],
        priority: int,
    ) -> int:
        return self.truth.add_blob(digest, size, pieces, placed, owed, priority).id

    async def drop(self, blob_id: int) -> None:
        self.truth.drop_blob(blob_id)

    async def forget_task(self, blob_id: int, location: str) -> None:
        del self.truth.tasks[blob_id, location]

    async def owe(self, blob_id: int, location: str) -> None:
        self.truth.owe(blob_id, location)

    async def bury(self, location: str, key: str) -> None:
        self.truth.bury(location, key)

    async def set_state(self, location: str, state: LocationState) -> None:
        self.truth.states[location] = state

    async def placements(self, blob_id: int) -> frozenset[Placement]:
        return frozenset(self.truth.sources(blob_id))

    async def pieces(self, blob_id: int) -> bytes | None:
        return self.truth.blobs[blob_id].pieces

    async def owed(self, blob_id: int) -> Mapping[str, str]:
        return {task.destination: task.error for task in self.truth.tasks.values() if task.blob == blob_id}

    async def dead(self) -> frozenset[tuple[str, str]]:
        return frozenset((dead.location, dead.key) for dead in self.truth.dead.values())

    async def pass_time(self, seconds: float) -> None:
        self.truth.skew += seconds


@pytest.fixture
def bench() -> MemoryBench:
    return MemoryBench()


class TestMemoryLedger(LedgerContract):
    """The suite, as it is."""
