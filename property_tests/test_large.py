# ruff: noqa: ARG002 - stores that keep nothing have no use for keys
"""Blobs beyond what S3 takes in one call: the layout of their parts at any size, and one of 5 GiB and a bit, all the way."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.contract import ObjectFacts, Part
from property_tests.memory_engine import MIB, MemoryEngine, MemoryStore
from property_tests.memory_ledger import Line, MemoryLedger
from property_tests.memory_truth import Truth
from replication.copier import Copier, CopierSettings, CopyEnd
from replication.digests import MOST_PARTS, part_layout, piece_count
from replication.model import PIECE, Blob, LocationState, Placement
from replication.parts import PartPool
from replication.reader import Reader
from tests.copies import piece_digest

GIB = 1 << 30
SIZE = 5 * GIB + 3 * MIB + 7


@given(st.integers(0, 5 << 40), st.integers(5 * MIB, 5 * GIB))
def test_every_blob_that_s3_can_hold_has_a_layout(size: int, part: int) -> None:
    """Up to 5 TiB: whole pieces in every part, none but the last under 5 MiB or any above 5 GiB, few enough, and all covered."""
    layout = part_layout(size, part)
    assert layout.count <= MOST_PARTS
    assert layout.part % PIECE == 0
    assert 5 * MIB <= layout.part <= 5 * GIB
    first, last = layout.span(1), layout.span(layout.count)
    assert first[0] == 0
    assert sum(last) == size
    if layout.count > 1:
        assert first[1] == layout.part == layout.span(2)[0]
        assert 0 < last[1] <= layout.part


class Zeros(MemoryEngine):
    """A store whose one object is `SIZE` zeros, which nobody has to keep."""

    async def read(self, key: str, start: int, length: int) -> bytes:
        assert start + length <= SIZE
        return bytes(length)


class Sink(MemoryEngine):
    """Takes parts, insists that they are what they should be, and keeps their sizes only."""

    def __init__(self, store: MemoryStore) -> None:
        super().__init__(store)
        self.sizes: dict[int, int] = {}

    async def put_part(self, key: str, upload: str, number: int, data: bytes) -> Part:
        assert data.count(0) == len(data)
        self.sizes[number] = len(data)
        return Part(number, len(data), f"etag-{number}")

    async def finish_parts(self, key: str, upload: str, parts: object) -> ObjectFacts:
        assert sorted(self.sizes) == list(range(1, len(self.sizes) + 1))
        return ObjectFacts(sum(self.sizes.values()))


@pytest.mark.long
async def test_a_blob_beyond_five_gib() -> None:
    """A blob above 5 GiB is copied in parts that S3 takes, every piece verified, with the memory of a few parts."""
    us, eu = Zeros(MemoryStore("us", Random(1))), Sink(MemoryStore("eu", Random(1)))
    zeros, tail = piece_digest(bytes(PIECE)), piece_digest(bytes(SIZE % PIECE))
    pieces = zeros * (piece_count(SIZE) - 1) + tail
    truth = Truth(dict.fromkeys(("us", "eu"), LocationState.ACTIVE))
    blob = truth.add_blob(f"sha256:{'0' * 64}", SIZE, pieces, {"us": "registry/large"}, ["eu"])
    ledger = MemoryLedger(Line(truth), "eu1", ("eu", "us"))

    def report(
        location: str, ok: bool, latency: float | None = None, reason: str | None = None, lied: bool = False
    ) -> None:
        assert ok, reason

    def suspect(blob: Blob, placement: Placement, reason: str) -> None:
        pytest.fail(reason)

    engines: dict[str, MemoryEngine] = {"us": us, "eu": eu}
    pool = PartPool(20 * MIB)
    copier = Copier(
        engines,
        Reader(engines, report, suspect),
        ledger,
        pool,
        tuple,
        CopierSettings(part_size=5 * MIB, parts_per_blob=4),
    )
    (task,) = await ledger.claim_copies("eu", "registry/", 1, 3600.0)
    copied = await copier.pay(task)
    assert copied.end is CopyEnd.PLACED, copied.error
    assert copied.fetched == SIZE == sum(eu.sizes.values())
    assert len(eu.sizes) > 1000
    assert max(eu.sizes.values()) == 5 * MIB
    assert (blob.id, "eu") in truth.placements
