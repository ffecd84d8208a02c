"""Audit: every copy is read and hashed again from its own store; what the database does not know is found."""

import hashlib
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID

import pytest

from engines import parse_engine
from engines.contract import Engine
from node.audit import AuditReport, AuditSettings, find_orphans, verify_location
from node.records.ledger import PostgresLedger
from node.records.members import Membership
from tests.copies import pieces_of
from tests.replication.world import World

MIB = 1 << 20


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Engine]:
    """A folder as the store of `us`."""
    async with parse_engine("LocalStorage", {"storage_path": str(tmp_path / "us")}).open() as engine:
        yield engine


async def _put(world: World, engine: Engine, name: str, data: bytes, *, pieces: bool = True, there: bool = True) -> str:
    """Make a blob of these bytes with a copy in us; return its key."""
    key = f"sha256/{name}"
    blob = await world.blob(name, ["team/a"], [], size=len(data))
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    await world.database.fetch(
        "UPDATE blob SET digest = $2, pieces = $3 WHERE id = $1", blob, digest, pieces_of(data) if pieces else None
    )
    await world.database.fetch("INSERT INTO placement (blob_id, location_id, key) VALUES ($1, 1, $2)", blob, key)
    if there:
        await engine.put(key, data)
    return key


async def _verify(world: World, engine: Engine, settings: AuditSettings | None = None) -> AuditReport:
    ledger = PostgresLedger(database=world.database, member=Membership(UUID(int=1), ("us",), ("us",), "test"))
    return await verify_location(world.database, engine, "us", settings or AuditSettings(), ledger.mark_suspect)


def _spoil(tmp_path: Path, key: str, at: int, data: bytes = b"!") -> None:
    with (tmp_path / "us" / key).open("r+b") as file:
        file.seek(at)
        file.write(data)


async def test_wrong_and_missing_copies_are_found_and_made_suspect(world: World, store: Engine, tmp_path: Path) -> None:
    """A flipped byte, a wrong length and a missing object are found, marked suspect and owed anew; good copies are left alone."""
    good = [await _put(world, store, f"good{n}", os.urandom(n * 700_000), pieces=n % 2 == 0) for n in range(4)]
    flipped = await _put(world, store, "flipped", os.urandom(3 * MIB))
    _spoil(tmp_path, flipped, 2 * MIB + 5)
    unpieced = await _put(world, store, "unpieced", os.urandom(2 * MIB), pieces=False)
    _spoil(tmp_path, unpieced, 7)
    longer = await _put(world, store, "longer", b"abc")
    _spoil(tmp_path, longer, 3)
    missing = await _put(world, store, "missing", b"gone", there=False)
    await world.place("longer", "eu")
    report = await _verify(world, store)
    assert report.copies == 8
    assert {finding.key for finding in report.findings if finding.bad} == {flipped, unpieced, longer, missing}
    assert report.bad == 4
    assert {f.key: f.other_copies for f in report.findings}[longer] == 1
    for name in ("flipped", "unpieced", "longer", "missing"):
        assert (await world.placed(name))["us"] == "suspect"
        assert await world.tasks(name) == {"us"}
    assert all([await world.placed(f"good{n}") == {"us": "present"} for n in range(len(good))])


async def test_a_suspect_copy_that_is_right_is_trusted_again(world: World, store: Engine) -> None:
    """A copy that was suspect and is read to its end without a fault is good again."""
    await _put(world, store, "b", os.urandom(MIB + 1))
    await world.database.fetch("UPDATE placement SET state = 'suspect'")
    report = await _verify(world, store)
    assert (report.healed, report.bad) == (1, 0)
    assert await world.placed("b") == {"us": "present"}


async def test_a_store_that_does_not_answer_proves_nothing(world: World, tmp_path: Path) -> None:
    """A copy that could not be read is reported as such and not distrusted."""
    async with parse_engine("LocalStorage", {"storage_path": str(tmp_path / "us")}).open() as engine:
        await _put(world, engine, "b", b"bytes")
        (tmp_path / "us").rename(tmp_path / "away")
        report = await _verify(world, engine)
    assert report.bad == 0
    assert len(report.findings) == 1
    assert await world.placed("b") == {"us": "present"}


async def test_a_store_that_is_away_is_not_asked_for_every_copy(world: World, tmp_path: Path) -> None:
    """An audit ends, and says why, when a store gives none of many copies in a row, nor its marker."""
    async with parse_engine("LocalStorage", {"storage_path": str(tmp_path / "us")}).open() as engine:
        for n in range(60):
            await _put(world, engine, f"b{n}", str(n).encode())
        (tmp_path / "us").rename(tmp_path / "away")
        report = await _verify(world, engine)
        assert "us" in report.stopped
        assert (report.bad, 16 <= report.copies < 30) == (0, True)
        assert len(report.findings) == report.copies


async def test_a_sample_reads_some(world: World, store: Engine) -> None:
    """A sample reads about its share of the copies, and none twice."""
    for n in range(60):
        await _put(world, store, f"b{n}", str(n).encode())
    report = await _verify(world, store, AuditSettings(fraction=0.5))
    assert 5 < report.copies < 55


async def test_orphans_are_what_no_row_knows(world: World, store: Engine, tmp_path: Path) -> None:
    """Objects of copies, uploads, tasks, dead objects and our own markers are known; everything else is listed with its age."""
    await _put(world, store, "placed", b"1")
    await world.blob("b", ["team/a"], ["eu"])
    await world.owe("b", "us", key="sha256/task")
    await world.database.fetch("INSERT INTO dead_object (location_id, key) VALUES (1, 'sha256/dead')")
    await world.database.fetch(
        "INSERT INTO upload (id, repository_id, location_id, key, reserved_key, tail_key, tail_size, algorithm, expires_at) "
        "SELECT gen_random_uuid(), id, 1, 'uploads/k', 'uploads/r', 'uploads/t', 1, 'sha256', now() FROM repository LIMIT 1"
    )
    known = ["sha256/task", "sha256/dead", "uploads/k", "uploads/r", "uploads/t", "_antipode/marker"]
    for key in (*known, "sha256/old", "sha256/new"):
        await store.put(key, b"xy")
    os.utime(tmp_path / "us/sha256/old", (time.time() - 90_000,) * 2)
    found = {orphan.key: orphan async for orphan in find_orphans(world.database, store, "us", time.time())}
    assert set(found) == {"sha256/old", "sha256/new"}
    assert found["sha256/old"].old
    assert not found["sha256/new"].old
    assert found["sha256/old"].size == 2
