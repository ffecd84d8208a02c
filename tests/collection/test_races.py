"""Who comes too late is told so: collection against pushes, mounts, manifests, copies and other collectors, in both orders.

Every race is made certain: one side holds its locks in an open transaction while the other is under way.
"""

import json
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

import trio

from node.collector import Collector
from node.push.reading import read_manifest
from node.records.blobs import mount_blob
from node.records.collect import CollectRules, collect_batch
from node.records.manifests import CompiledTags, commit_manifest
from node.records.postgres import Database
from replication.macs import PieceProofs
from replication.ports import CopyOutcome, Forget, Hint
from replication.sweeper import Sweeper
from tests.collection.clock import Later, collect_all
from tests.collection.held import held_transaction, wait_until_one_waits
from tests.copies import finish_copy
from tests.registry.world import MakeWorld, Region, Reply, digest_of, image

T = TypeVar("T")


async def second(database: Database, hold: Callable[[], Awaitable[Any]], wait: Callable[[], Awaitable[T]]) -> T:
    """Start `wait`; when it waits for a lock, let `hold` finish; return what `wait` returned."""
    results: list[T] = []

    async def run() -> None:
        results.append(await wait())

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            await wait_until_one_waits(database)
            await hold()
    return results[0]


async def manifest_put(region: Region, name: str, *blobs: bytes) -> Reply:
    manifest = image(*blobs)
    return await region.ask("PUT", f"/v2/{name}/manifests/v1", _json(manifest), {"content-type": manifest["mediaType"]})


def _json(document: Any) -> bytes:
    return json.dumps(document).encode()


async def test_a_manifest_that_comes_first_keeps_its_blobs(
    us: Region, rules: CollectRules, later: Later, migrated_uri: str
) -> None:
    """While a manifest is being committed, the links that it names are left alone, and are used afterwards."""
    config = await us.push_blob("a/b", b"config")
    await later(100)
    body = _json(image(b"config"))
    facts = read_manifest(body, None, digest_of(body))
    async with held_transaction(migrated_uri) as held:
        committed = await commit_manifest(held, "a/b", "library", facts, CompiledTags(("v1",)), sparse=False)
        assert committed.missing == ()
        batch = await collect_batch(us.registry.database, "blob link", rules)
        assert (batch.removed, batch.kept, batch.busy) == ((), 0, 1)
    assert await collect_all(us.registry.database, rules) == []
    assert (await us.ask("GET", f"/v2/a/b/blobs/{config}")).body == b"config"


async def test_a_manifest_that_comes_late_is_told_what_to_upload(
    us: Region, rules: CollectRules, later: Later, migrated_uri: str
) -> None:
    """A manifest whose blob is being collected waits, and then names the blob as missing."""
    config = await us.push_blob("a/b", b"config")
    await later(100)
    async with held_transaction(migrated_uri) as held:
        assert len((await collect_batch(held, "blob link", rules)).removed) == 1

        async def commit() -> None:
            await held.fetch("COMMIT")

        reply = await second(us.registry.database, commit, partial(manifest_put, us, "a/b", b"config"))
    assert reply.failure == (404, "MANIFEST_BLOB_UNKNOWN")
    assert config in str(reply.detail)
    await us.push_blob("a/b", b"config")
    assert (await manifest_put(us, "a/b", b"config")).status == 201


async def test_a_manifest_that_is_being_collected_is_stored_anew(
    us: Region, rules: CollectRules, later: Later, migrated_uri: str
) -> None:
    """A PUT of the very manifest whose row goes at that moment makes a new row."""
    digest = await us.push_image("a/b", "v1", b"layer")
    await us.ask("DELETE", f"/v2/a/b/manifests/{digest}")
    await us.registry.database.fetch("DELETE FROM tag_history")
    await later(100)
    async with held_transaction(migrated_uri) as held:
        assert [gone.digest for gone in (await collect_batch(held, "manifest", rules)).removed] == [digest]

        async def commit() -> None:
            await held.fetch("COMMIT")

        config = b'{"architecture": "amd64", "os": "linux", "tag": "v1"}'
        reply = await second(us.registry.database, commit, partial(manifest_put, us, "a/b", config, b"layer"))
    assert (reply.status, reply.headers["docker-content-digest"]) == (201, digest)
    assert (await us.ask("GET", "/v2/a/b/manifests/v1")).status == 200
    await later(1000)
    assert await collect_all(us.registry.database, rules) == []


async def test_a_mount_that_comes_late_uploads(
    us: Region, rules: CollectRules, later: Later, migrated_uri: str
) -> None:
    """A mount of a blob that is being collected waits, and then begins an upload."""
    digest = await us.push_blob("a/b", b"layer")
    await later(100)
    assert [gone.kind for gone in (await collect_batch(us.registry.database, "blob link", rules)).removed] == [
        "blob link"
    ]
    await later(100)
    async with held_transaction(migrated_uri) as held:
        assert len((await collect_batch(held, "blob", rules)).removed) == 1

        async def commit() -> None:
            await held.fetch("COMMIT")

        async def push() -> str:
            return await us.push_blob("c/d", b"layer")

        assert await second(us.registry.database, commit, push) == digest
    mounted = await us.ask("POST", f"/v2/e/f/blobs/uploads/?mount={digest}&from=a/b")
    assert mounted.status == 202
    assert (await us.ask("GET", f"/v2/c/d/blobs/{digest}")).body == b"layer"


async def test_a_mount_that_comes_first_keeps_the_blob(
    us: Region, rules: CollectRules, later: Later, migrated_uri: str
) -> None:
    """A mount keeps the blob although the link that it came from goes at the same time."""
    digest = await us.push_blob("a/b", b"layer")
    await later(100)
    database = us.registry.database
    async with held_transaction(migrated_uri) as held:
        assert await mount_blob(held, "c/d", "library", "a/b", digest, replicate=True) is not None
        assert len((await collect_batch(database, "blob link", rules)).removed) == 1
        await database.fetch("UPDATE garbage SET since = since - interval '100 hours'")
        assert (await collect_batch(database, "blob", rules)).busy == 1
    await collect_all(database, rules)
    assert (await us.ask("GET", f"/v2/c/d/blobs/{digest}")).body == b"layer"


async def test_a_mount_onto_a_link_that_is_being_collected_makes_it_anew(
    us: Region, rules: CollectRules, later: Later, migrated_uri: str
) -> None:
    """A 201 is never answered for a link that is about to go: it is made again, with a whole grace."""
    digest = await us.push_blob("a/b", b"layer")
    await later(100)
    await us.push_blob("c/d", b"layer")
    database = us.registry.database
    async with held_transaction(migrated_uri) as held:
        assert [gone.repository for gone in (await collect_batch(held, "blob link", rules)).removed] == ["a/b"]

        async def commit() -> None:
            await held.fetch("COMMIT")

        async def mount() -> Reply:
            return await us.ask("POST", f"/v2/a/b/blobs/uploads/?mount={digest}&from=c/d")

        assert (await second(database, commit, mount)).status == 201
    await later(71)
    await collect_all(database, rules)
    assert (await us.ask("GET", f"/v2/a/b/blobs/{digest}")).body == b"layer"


async def test_a_head_that_comes_late_says_unknown(
    us: Region, rules: CollectRules, later: Later, migrated_uri: str
) -> None:
    """HEAD of a blob whose link is being collected waits for the truth, and then it is 404."""
    digest = await us.push_blob("a/b", b"layer")
    await later(100)
    async with held_transaction(migrated_uri) as held:
        assert len((await collect_batch(held, "blob link", rules)).removed) == 1

        async def commit() -> None:
            await held.fetch("COMMIT")

        async def head() -> Reply:
            return await us.ask("HEAD", f"/v2/a/b/blobs/{digest}")

        assert (await second(us.registry.database, commit, head)).failure == (404, "BLOB_UNKNOWN")


async def test_a_copy_that_ends_after_its_blob_was_collected_is_a_dead_object(
    world: MakeWorld, rules: CollectRules, later: Later, migrated_uri: str
) -> None:
    """A copy under way whose blob goes is superseded, and its object is never forgotten."""
    (us,) = await world("us eu")
    await us.push_blob("a/b", b"layer")
    ledger, database = us.node.ledger, us.registry.database
    (task,) = await ledger.claim_copies("eu", "x/", 10, 1000.0)
    await later(100)
    assert len((await collect_batch(database, "blob link", rules)).removed) == 1
    await later(100)
    async with held_transaction(migrated_uri) as held:
        assert len((await collect_batch(held, "blob", rules)).removed) == 1

        async def commit() -> None:
            await held.fetch("COMMIT")

        assert (
            await second(database, commit, partial(finish_copy, ledger, task, PieceProofs())) is CopyOutcome.SUPERSEDED
        )
    dead = await us.rows("SELECT l.name, d.key FROM dead_object d JOIN location l ON l.id = d.location_id ORDER BY 1")
    assert [row["name"] for row in dead] == ["eu", "us"]
    assert dead[0]["key"] == task.key


async def test_a_copy_that_ends_first_goes_with_its_blob(
    world: MakeWorld, rules: CollectRules, later: Later, migrated_uri: str
) -> None:
    """While a copy is being recorded its blob is left alone; then both copies become dead objects together."""
    (us,) = await world("us eu")
    await us.push_blob("a/b", b"layer")
    ledger, database = us.node.ledger, us.registry.database
    (task,) = await ledger.claim_copies("eu", "x/", 10, 1000.0)
    await later(100)
    await collect_batch(database, "blob link", rules)
    await later(100)
    async with held_transaction(migrated_uri) as held:
        placing = type(ledger)(database=held, member=us.node.ledger._member)
        assert await finish_copy(placing, task, PieceProofs()) is CopyOutcome.PLACED
        assert (await collect_batch(database, "blob", rules)).busy == 1
    assert [gone.kind for gone in await collect_all(database, rules)] == ["blob"]
    assert len(await us.rows("SELECT * FROM dead_object")) == 2
    assert await us.rows("SELECT * FROM sole_copy") == []


async def test_debt_that_is_noted_too_late_is_not_an_error(
    us: Region, rules: CollectRules, later: Later, migrated_uri: str
) -> None:
    """A statement that would refer to a blob which is being collected looks again and finds nothing to refer to."""
    await us.push_blob("a/b", b"layer")
    await later(100)
    database = us.registry.database
    await collect_batch(database, "blob link", rules)
    await later(100)
    async with held_transaction(migrated_uri) as held:
        assert len((await collect_batch(held, "blob", rules)).removed) == 1

        async def commit() -> None:
            await held.fetch("COMMIT")

        owe = "INSERT INTO task (blob_id, location_id, size) SELECT b.id, l.id, b.size FROM blob b, location l RETURNING blob_id"
        assert await second(database, commit, partial(database.fetch, owe)) == []


async def test_the_same_bytes_again_outlive_the_deletion_of_the_old_ones(
    world: MakeWorld, rules: CollectRules, later: Later
) -> None:
    """What is pushed again while its old object waits to be deleted has a key of its own, on a real store too."""
    (us,) = await world("us", ceph=True)
    layer = b"layer" * 1000
    digest = await us.push_blob("a/b", layer)
    await later(100)
    assert [gone.kind for gone in await collect_all(us.registry.database, rules)] == ["blob link"]
    await later(100)
    assert [gone.kind for gone in await collect_all(us.registry.database, rules)] == ["blob"]
    assert await us.push_blob("a/b", layer) == digest
    assert len(await us.contents("us")) == 2
    await later(100)
    swept = await Sweeper(us.engines, us.node.ledger, lambda: 0.0).sweep("us")
    assert (swept.deleted, swept.failed) == (1, 0)
    (left,) = await us.contents("us")
    assert [row["key"] for row in await us.rows("SELECT key FROM placement")] == [left]
    reply = await us.ask("GET", f"/v2/a/b/blobs/{digest}")
    assert reply.status == 307 or reply.body == layer
    assert await us.engines["us"].inner.read(left, 0, len(layer)) == layer


async def test_collectors_share_the_work(us: Region, rules: CollectRules, later: Later) -> None:
    """Several collectors at once take everything away, each thing once, and tell every node to forget the links."""
    for number in range(30):
        await us.push_blob(f"a/b{number % 3}", b"layer %d" % number)
    await later(200)
    sent: list[Hint] = []

    def publish(*hints: Hint) -> None:
        sent.extend(hints)

    collectors = [Collector(us.registry.database, publish, rules) for _ in range(4)]
    for hours in (0, 100):
        await later(hours)
        async with trio.open_nursery() as nursery:
            for collector in collectors:
                nursery.start_soon(partial(collector.collect, gentle=False))
    totals = [dict(collector.statistics().collected.removed) for collector in collectors]
    assert sum(total.get("blob link", 0) for total in totals) == 30
    assert sum(total.get("blob", 0) for total in totals) == 30
    assert await us.rows("SELECT * FROM garbage") == []
    assert len(await us.rows("SELECT * FROM dead_object")) == 30
    assert len({hint for hint in sent if isinstance(hint, Forget)}) == 30
