"""MACs beside the pieces of blobs: there after every way to push and to copy, right, and never trusted against the bytes."""

import hashlib
import secrets
from pathlib import Path

import pytest

from engines.contract import EngineUnavailable
from node.auth.sealing import open_secret
from node.config.settings import SpoolSettings
from node.mac_keyring import MacKeyring
from node.records.audit import list_copies
from node.records.postgres import Database
from replication.macs import ENTRY, KEY_ID, MacKey
from tests.copies import pieces_of
from tests.faulty_engine import Refuse
from tests.registry.world import MIB, Body, MakeWorld, Region, digest_of

PART = 5 * MIB


async def macs_of(region: Region, data: bytes) -> bytes | None:
    """Return what the database has, checked against the bytes: pieces are right, and MACs those of these pieces."""
    (row,) = await region.rows("SELECT pieces, macs FROM blob WHERE digest = $1", digest_of(data))
    macs: bytes | None = row["macs"]
    assert row["pieces"] == pieces_of(data)
    key = region.registry.macs.current
    assert key is not None
    if macs is not None:
        made = [
            key.entry(hashlib.sha256(data[start : start + MIB]).digest(), data[start : start + MIB])
            for start in range(0, len(data), MIB)
        ]
        assert macs == key.id + b"".join(made)
    return macs


@pytest.mark.parametrize("size", [0, 1, MIB, PART + 1, 3 * PART + 12345])
@pytest.mark.parametrize("chunk", [1000, 65536, MIB])
async def test_a_blob_in_one_request(us: Region, repository: str, size: int, chunk: int) -> None:
    """POST with the digest, and POST, PATCH, PUT as clients do: every piece has its MAC."""
    for patched in (False, True):
        data = secrets.token_bytes(size)
        if patched:
            location = (await us.patch(await us.start_upload(repository), Body(data, chunk))).location
            assert (await us.put(location, digest_of(data))).status == 201
        else:
            at = f"/v2/{repository}/blobs/uploads/?digest={digest_of(data)}"
            assert (await us.ask("POST", at, Body(data, chunk))).status == 201
        assert await macs_of(us, data) is not None


@pytest.mark.parametrize(
    "sizes", [(MIB, MIB, 5), (PART, PART, 1), (100, MIB, 3 * MIB + 5, 7), (6 * MIB, 2 * MIB + 9, 4)]
)
async def test_a_blob_in_chunks(us: Region, repository: str, sizes: tuple[int, ...]) -> None:
    """Chunks of whole MiB, and small ones that are put together, have MACs as well."""
    chunks = [secrets.token_bytes(size) for size in sizes]
    location, data = await us.start_upload(repository), b"".join(chunks)
    for chunk in chunks:
        location = (await us.patch(location, chunk)).location
    assert (await us.put(location, digest_of(data))).status == 201
    assert await macs_of(us, data) is not None


async def test_a_blob_in_odd_chunks_has_macs_with_its_first_copy(world: MakeWorld, repository: str) -> None:
    """A piece of which a part had gone to the store has none, nor has what went from node to node; the copy makes them."""
    us, eu = await world("us eu", "eu us")
    odd, wandering = secrets.token_bytes(13 * MIB), secrets.token_bytes(13 * MIB)
    location = (await us.patch(await us.start_upload(repository), odd[: PART + 7])).location
    assert (await us.put(location, digest_of(odd), odd[PART + 7 :])).status == 201
    location = (await us.patch(await us.start_upload(repository), wandering)).location
    assert (await eu.put(location, digest_of(wandering))).status == 201
    for data in (odd, wandering):
        assert await macs_of(us, data) is None
    tasks = await eu.node.ledger.claim_copies("eu", eu.engines["eu"].prefix, 10, 60)
    assert len(tasks) == 2
    for task in tasks:
        assert (await eu.node.copier.pay(task)).error == ""
    for data in (odd, wandering):
        assert await macs_of(us, data) is not None
        assert (await eu.ask("GET", f"/v2/{repository}/blobs/{digest_of(data)}")).body == data


async def test_a_blob_that_was_written_again_elsewhere(world: MakeWorld, tmp_path: Path, repository: str) -> None:
    """An upload whose store dies goes on in the next one out of the spool, MACs and all."""
    us, _ = await world("us eu", "eu us", upload_spool=SpoolSettings(tmp_path, 200 * MIB))
    data = secrets.token_bytes(3 * PART + 99)
    us.engines["us"].plan("put_part", Refuse(EngineUnavailable("down")))
    location = (await us.patch(await us.start_upload(repository), data[: 12 * MIB])).location
    assert (await us.put(location, digest_of(data), data[12 * MIB :])).status == 201
    assert await macs_of(us, data) is not None


async def test_a_digest_named_late(us: Region, repository: str) -> None:
    """An upload that has to be read once more, for another algorithm, has MACs of what was read."""
    data = secrets.token_bytes(2 * MIB + 5)
    location = (await us.patch(await us.start_upload(repository), data)).location
    assert (await us.put(location, digest_of(data, "sha512"))).status == 201
    (row,) = await us.rows("SELECT macs FROM blob WHERE digest = $1", digest_of(data, "sha512"))
    assert len(row["macs"]) == KEY_ID + 3 * ENTRY


async def test_what_a_blob_had_stays(us: Region, repository: str) -> None:
    """A push at a node that makes no MACs takes none away; one at a node with a newer key replaces what nobody can use."""
    data = secrets.token_bytes(MIB + 5)
    await us.push_blob(repository, data)
    first, keys = await macs_of(us, data), us.registry.macs
    known = keys.current
    assert known is not None
    keys.take([])
    await us.push_blob("other/repo", data)
    keys.take([known])
    assert await macs_of(us, data) == first
    keys.take([MacKey(b"another.", secrets.token_bytes(32))])
    await us.push_blob("third/repo", data)
    assert await macs_of(us, data) != first


@pytest.mark.parametrize("damage", ["key", "all", "none"])
async def test_wrong_macs_cost_only_time(us: Region, repository: str, damage: str) -> None:
    """Whatever stands where MACs should, right bytes are served and the copy stays trusted."""
    data = secrets.token_bytes(6 * MIB + 5)
    digest = await us.push_blob(repository, data)
    macs = await macs_of(us, data)
    assert macs is not None
    wrong = {"key": secrets.token_bytes(8) + macs[8:], "all": macs[:8] + bytes(len(macs) - 8), "none": None}[damage]
    await us.rows("UPDATE blob SET macs = $1", wrong)
    await us.forget_everything()
    assert (await us.ask("GET", f"/v2/{repository}/blobs/{digest}")).body == data
    assert await us.rows("SELECT FROM placement WHERE state = 'suspect'") == []


async def test_whoever_hashes_gets_no_macs(us: Region, repository: str, database: Database) -> None:
    """`antipode verify` hashes: what it reads of a blob has nothing that would spare it."""
    await us.push_blob(repository, secrets.token_bytes(MIB))
    page = await list_copies(database, "us", 0, 10, 1.0)
    assert [copy.blob.macs for copy in page] == [None]
    assert all(copy.blob.pieces for copy in page)


async def test_the_key_is_made_once_and_kept_sealed(database: Database, migrated_uri: str) -> None:
    """All nodes have the same key, which the database has encrypted where there is a DATABASE_SECRET_KEY."""
    first, second = (MacKeyring(database=database, secret_key="s" * 20) for _ in range(2))
    for ring in (first, second, first):
        await ring.refresh()
    key, same = first.keys.current, second.keys.current
    assert key is not None
    assert same is not None
    assert (same.id, same.secret) == (key.id, key.secret)
    (row,) = await database.fetch("SELECT id, secret FROM mac_key")
    assert row["id"] == key.id
    assert key.secret not in row["secret"]
    assert open_secret(row["secret"], "s" * 20, key.id.hex()) == key.secret


async def test_keys_that_cannot_be_opened(database: Database) -> None:
    """Nodes with another DATABASE_SECRET_KEY, or none, make a key of their own, once, and know each other's never."""
    rings = [MacKeyring(database=database, secret_key=secret) for secret in ("s" * 20, "t" * 20, None)]
    for ring in [*rings, *rings]:
        await ring.refresh()
    ids = [ring.keys.current.id for ring in rings if ring.keys.current is not None]
    assert len(set(ids)) == 3
    assert len(await database.fetch("SELECT FROM mac_key")) == 3


async def test_of_two_keys_the_older_counts(database: Database) -> None:
    """Two nodes that start at the same moment may both make a key: both know both soon, and go on with the older."""
    ring = MacKeyring(database=database, secret_key=None)
    await ring.refresh()
    await database.fetch("INSERT INTO mac_key (id, secret) VALUES ($1, $2)", b"younger.", b"p$" + b"2" * 32)
    current = ring.keys.current
    await ring.refresh()
    assert ring.keys.current is not None
    assert current is not None
    assert ring.keys.current.id == current.id
    assert set(ring.keys._keys) == {current.id, b"younger."}
