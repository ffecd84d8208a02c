"""What the database notes is in every location's store a moment later, and goes from there when it is not needed any more."""

import hashlib
from collections.abc import Mapping
from typing import Any

from node.audit import find_orphans
from node.journal.facts import Entry, decode, decode_manifest, last_words, read_key
from node.journal.store import read_object
from node.journal.writer import JournalSettings, JournalWriter
from node.records.journal import journal_lag, seal
from node.records.locations import set_state
from node.records.manifests import delete_manifest, delete_tag
from node.records.policies import write_policy
from node.records.removal import delete_repository
from replication.model import LocationState
from replication.policy import parse_policy
from tests.faulty_engine import Refuse, Stall
from tests.registry.world import MakeWorld, Region


def writer(region: Region, **settings: Any) -> JournalWriter:
    return JournalWriter(region.registry.database, region.engines, JournalSettings(**settings))


async def flush(region: Region, **settings: Any) -> None:
    """Bring every store's journal up to now."""
    await seal(region.registry.database)
    for location in region.engines:
        assert await writer(region, **settings).write(location)


async def objects(region: Region, location: str, kind: str) -> list[str]:
    engine = region.engines[location].inner
    keys = (await engine.list_keys(f"{engine.prefix}journal/")).keys
    return [key for key in keys if (found := read_key(engine.prefix, key)) is not None and found.kind == kind]


async def journal(region: Region, location: str, *kinds: str) -> Mapping[tuple[str, str], Entry]:
    """Return the last word about each thing in a store's journal objects of these kinds."""
    entries: list[Entry] = []
    for kind in kinds:
        for key in await objects(region, location, kind):
            entries += decode(await read_object(region.engines[location].inner, key))[1]
    return {(entry.kind, entry.name): entry for entry in last_words(entries)}


async def manifests(region: Region, location: str) -> list[str]:
    engine = region.engines[location].inner
    return list((await engine.list_keys(f"{engine.prefix}manifests/")).keys)


async def test_every_change_is_in_every_store(world: MakeWorld) -> None:
    """Manifests, tags that moved and went, copies and policies are in each store's journal, in the order in which they were."""
    (us,) = await world("us eu")
    database = us.registry.database
    await flush(us)
    first = await us.push_image("a/b", "v1", b"one")
    second = await us.push_image("a/b", "v1", b"two")
    third = await us.push_image("a/b", "gone", b"two")
    await delete_tag(database, "a/b", "gone")
    await write_policy(database, "a", parse_policy({"required": ["us"]}, {"us", "eu"}))
    await flush(us)
    for location in ("us", "eu"):
        found = await journal(us, location, "batch")
        assert found["tag", "a/b:v1"].fact == {"digest": second}
        assert found["tag", "a/b:gone"].fact is None
        assert found["namespace", "a"].fact == {"policy": {"required": ["us"]}, "tag_expiration": None}
        copies = {str(entry.fact["digest"]) for entry in found.values() if entry.kind == "copy" and entry.fact}
        assert copies == {row["digest"] for row in await us.rows("SELECT digest FROM blob")}
        held = [
            decode_manifest(await read_object(us.engines[location].inner, key)) for key in await manifests(us, location)
        ]
        assert {(one.repository, one.digest) for one in held} == {("a/b", digest) for digest in (first, second, third)}
        assert all(f"sha256:{hashlib.sha256(one.body).hexdigest()}" == one.digest for one in held)
    assert [(lag.location, lag.entries) for lag in await journal_lag(database)] == [("eu", 0), ("us", 0)]
    assert await us.rows("SELECT * FROM journal_entry WHERE batch IS NULL") == []


async def test_nothing_of_it_is_an_orphan_or_stays_for_ever(world: MakeWorld) -> None:
    """The audit knows every object of the journals; a manifest that leaves its repository takes its objects along."""
    (us,) = await world("us eu")
    database = us.registry.database
    digest = await us.push_image("a/b", "v1", b"one")
    await flush(us)
    for location, engine in us.engines.items():
        assert [one async for one in find_orphans(database, engine.inner, location, 0.0)] == []
    held = set(await manifests(us, "us"))
    assert len(held) == 1
    await delete_manifest(database, "a/b", digest)
    assert held <= {row["key"] for row in await us.rows("SELECT key FROM dead_object")}
    assert await us.rows("SELECT * FROM manifest_object") == []


async def test_a_repository_says_once_that_it_is_gone(world: MakeWorld) -> None:
    """A repository that is deleted whole is one entry, later than everything in it."""
    (us,) = await world("us eu")
    await us.push_image("a/b", "v1", b"one")
    await delete_repository(us.registry.database, "a/b")
    await flush(us)
    found = await journal(us, "us", "batch")
    gone = found["repository", "a/b"]
    assert gone.fact is None
    assert all(
        entry.at <= gone.at for (kind, name), entry in found.items() if name.startswith("a/b") and kind != "copy"
    )


async def test_a_store_that_fails_delays_no_other_and_misses_nothing(world: MakeWorld) -> None:
    """What one store does not take is written when it does, and seen as its lag until then; the other has it at once."""
    (us,) = await world("us eu")
    database = us.registry.database
    await flush(us)
    await us.push_image("a/b", "v1", b"one")
    await seal(database)
    us.engines["eu"].plan("put", Refuse(), 0)
    assert not await writer(us).write("eu")
    assert await writer(us).write("us")
    lags = {lag.location: lag for lag in await journal_lag(database)}
    assert (lags["us"].entries, lags["us"].error) == (0, None)
    assert lags["eu"].entries > 0
    assert lags["eu"].error is not None
    us.engines["eu"].plan("put", Stall(), 0)
    assert not await writer(us, step_deadline=0.1).write("eu")
    assert await writer(us).write("eu")
    assert ("tag", "a/b:v1") in await journal(us, "eu", "batch")
    assert [lag.error for lag in await journal_lag(database)] == [None, None]
    # What was begun in vain is deleted one day, and nothing else.
    known = {
        row["key"] for row in await us.rows("SELECT key FROM journal_object UNION SELECT key FROM manifest_object")
    }
    dead = {row["key"] for row in await us.rows("SELECT key FROM dead_object")}
    assert len(dead) == 2
    assert not dead & known


async def test_one_node_writes_at_a_time(world: MakeWorld) -> None:
    """While a node holds a location's lease no other writes there; one that dies is replaced, and its object dies."""
    (us,) = await world("us eu")
    database = us.registry.database
    await us.push_image("a/b", "v1", b"one")
    await seal(database)
    await database.fetch(
        "UPDATE journal_location SET lease = gen_random_uuid(), lease_until = now() + interval '1 hour'"
    )
    assert not await writer(us).write("us")
    await database.fetch(
        "INSERT INTO journal_object (location_id, key, kind, hour) SELECT id, 'journal/half', 'batch', now() FROM location"
    )
    await database.fetch("UPDATE journal_location SET lease_until = now() - interval '1 second'")
    assert await writer(us).write("us")
    assert "journal/half" in {row["key"] for row in await us.rows("SELECT key FROM dead_object")}
    assert ("tag", "a/b:v1") in await journal(us, "us", "page")


async def test_a_manifest_is_not_written_where_its_namespace_forbids_it(world: MakeWorld) -> None:
    """A policy's *never* binds the objects of manifests, also those that are there when it is made; journals name what there is."""
    (us,) = await world("us eu")
    database = us.registry.database
    await us.push_image("free/b", "v1", b"one")
    await us.push_image("bound/b", "v1", b"two")
    await flush(us)
    assert len(await manifests(us, "eu")) == 2
    await write_policy(database, "bound", parse_policy({"never": ["eu"]}, {"us", "eu"}))
    digest = await us.push_image("bound/b", "v2", b"three")
    await flush(us)
    assert len(await manifests(us, "us")) == 3
    rows = await us.rows(
        "SELECT r.name FROM manifest_object o JOIN location l ON l.id = o.location_id JOIN repository r ON r.id = o.repository_id "
        "WHERE l.name = 'eu'"
    )
    assert [row["name"] for row in rows] == ["free/b"]
    assert ("tag", "bound/b:v2") in await journal(us, "eu", "batch")
    # Not even for a moment: its bytes never were in that store.
    second = digest.removeprefix("sha256:")
    assert not [key for key in await manifests(us, "eu") if second in key]
    assert [key for key in await manifests(us, "us") if second in key]


async def test_a_snapshot_passes_by_what_is_forbidden(world: MakeWorld) -> None:
    """The manifests of a location that begins anew are those that it may have, also where forbidden ones come first."""
    (us,) = await world("us eu")
    database = us.registry.database
    await write_policy(database, "bound", parse_policy({"never": ["eu"]}, {"us", "eu"}))
    bound = [await us.push_image("bound/b", tag, tag.encode()) for tag in ("v1", "v2")]
    free = await us.push_image("free/b", "v1", b"three")
    await database.fetch("DELETE FROM journal_entry")
    await flush(us, manifests=1)
    held = " ".join(await manifests(us, "eu"))
    assert [digest.removeprefix("sha256:") in held for digest in (*bound, free)] == [False, False, True]


async def test_what_was_there_before_the_journal_is_in_its_snapshot(world: MakeWorld) -> None:
    """A location's first snapshot has all that is so, with the manifests; pages of a snapshot that was cut off are gone on from."""
    (us,) = await world("us eu")
    database = us.registry.database
    await us.push_image("a/b", "v1", b"one")
    await database.fetch("DELETE FROM journal_entry")
    await seal(database)
    us.engines["us"].plan("put", Refuse(), 4)
    assert not await writer(us, page=2).write("us")
    begun = await objects(us, "us", "page")
    assert begun
    assert await objects(us, "us", "complete") == []
    assert await writer(us, page=2).write("us")
    assert set(begun) <= set(await objects(us, "us", "page"))
    found = await journal(us, "us", "page")
    assert {("tag", "a/b:v1"), ("location", "us"), ("defaults", "")} <= set(found)
    assert len([kind for kind, _ in found if kind == "copy"]) == 2
    assert len(await manifests(us, "us")) == 1
    assert len(await objects(us, "us", "complete")) == 1


async def test_hours_become_one_object_and_old_ones_go(world: MakeWorld) -> None:
    """An hour that is over is one object; it goes when it is older than the retention and than the last snapshot."""
    (us,) = await world("us eu")
    database = us.registry.database
    await flush(us)
    for tag in ("v1", "v2"):
        await us.push_image("a/b", tag, tag.encode())
        await flush(us)
    await database.fetch(
        "UPDATE journal_object SET hour = date_trunc('hour', now()) - interval '3 hours' WHERE kind = 'batch'"
    )
    merged = set(await objects(us, "us", "batch"))
    await flush(us)
    (hour,) = await objects(us, "us", "hour")
    assert {("tag", "a/b:v1"), ("tag", "a/b:v2")} <= set(await journal(us, "us", "hour"))
    dead = {row["key"] for row in await us.rows("SELECT key FROM dead_object")}
    assert merged <= dead
    assert hour not in dead
    old = set(await objects(us, "us", "page"))
    await database.fetch("UPDATE journal_location SET snapshot_at = snapshot_at - interval '2 days'")
    await database.fetch("UPDATE journal_object SET hour = hour - interval '2 days' WHERE kind IN ('page', 'complete')")
    await flush(us, retention=3600.0)
    dead = {row["key"] for row in await us.rows("SELECT key FROM dead_object")}
    assert {hour, *old} <= dead
    assert set(await objects(us, "us", "page")) - old


async def test_a_location_that_is_not_active_holds_nothing_back(world: MakeWorld) -> None:
    """A paused location's journal rests, and begins again with a snapshot when the location is active again."""
    (us,) = await world("us eu")
    database = us.registry.database
    await flush(us)
    await set_state(database, "eu", LocationState.PAUSED)
    await us.push_image("a/b", "v1", b"one")
    await seal(database)
    assert await writer(us).write("us")
    assert not await writer(us).write("eu")
    await seal(database)
    assert await us.rows("SELECT * FROM journal_entry") == []
    await set_state(database, "eu", LocationState.ACTIVE)
    await flush(us)
    assert ("tag", "a/b:v1") in await journal(us, "eu", "page")
