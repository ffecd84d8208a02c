"""A database that is older than its stores: what it believes to be abandoned may have become a blob since the backup."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import trio

from engines.contract import Engine
from node.journal import reader
from node.journal import writer as journal_writer
from node.journal.store import read_object
from node.records.collect import read_pause
from node.records.journal import journal_lag, seal
from node.records.members import enrol_locations
from node.records.permissions import settle_new_repositories
from node.records.replay_turn import Overtaken
from node.records.uploads import expire_uploads
from node.repair import RepairReport, repair
from replication.sweeper import Sweeper
from replication.watcher import probe_keys
from tests.collection.clock import HOUR, pass_time
from tests.collection.test_repair import run
from tests.faulty_engine import FaultyEngine, Hold, Refuse
from tests.recovery.test_journal import flush, objects, writer
from tests.recovery.test_rescue import lose_the_database, pull
from tests.recovery.test_rescue import run as rescued
from tests.registry.world import MakeWorld, Region, digest_of, image

_TABLES = ("location", "default_location", "namespace", "repository", "upload", "bookmark")
_CONFIG = b'{"architecture": "amd64", "os": "linux"}'

Backup = Mapping[str, Sequence[Mapping[str, Any]]]


async def back_up(us: Region) -> Backup:
    """Return the rows of a registry that holds nothing but uploads."""
    return {table: await us.rows(f"SELECT to_jsonb(t)::text AS row FROM {table} t") for table in _TABLES}  # noqa: S608  # our names


async def restore(us: Region, backup: Backup, *, noticed: bool = True) -> None:
    """Let the database be as it was, on another server: collection pauses by itself, unless that is not `noticed`."""
    await lose_the_database(us)
    database = us.registry.database
    for table in _TABLES:
        identity = "" if table in ("default_location", "upload", "bookmark") else "OVERRIDING SYSTEM VALUE"
        for line in backup[table]:
            await database.fetch(
                f"INSERT INTO {table} {identity} SELECT * FROM jsonb_populate_record(NULL::{table}, $1::jsonb)",  # noqa: S608
                line["row"],
            )
    await database.fetch("DELETE FROM journal_entry")
    if noticed:
        await database.fetch(
            "INSERT INTO bookmark (name, value) VALUES ('collection', jsonb_build_object('identity', '7/8/9')) "
            "ON CONFLICT (name) DO UPDATE SET value = excluded.value"
        )
    assert (await read_pause(database) is not None) is noticed


async def sweep(us: Region) -> int:
    """Delete what the database wants deleted; return how much that was."""
    await us.registry.database.fetch("UPDATE dead_object SET not_before = now()")
    sweeper = Sweeper(us.engines, us.node.ledger, lambda: 0.5)
    return sum([(await sweeper.sweep(location)).deleted for location in us.engines])


async def test_an_upload_that_was_open_in_the_backup_may_be_a_blob_by_now(world: MakeWorld) -> None:
    """Nobody expires it, with its repository, before the repair; what a client cancels is there all the same afterwards."""
    (us,) = await world("us eu", proxy_storage=True)
    database, layer = us.registry.database, b"layer"
    await flush(us)
    location = await us.start_upload("a/b")
    backup = await back_up(us)
    assert (await us.put(location, digest_of(layer), layer)).status == 201
    await us.push_blob("a/b", _CONFIG)
    await us.push_manifest("a/b", "v1", image(_CONFIG, layer))
    await flush(us)
    pushed = await pull(us, "a/b", "v1")

    for cancelled in (False, True):
        await restore(us, backup)
        if cancelled:
            assert (await us.ask("DELETE", location)).status == 204
        await pass_time(database, 72 * HOUR)
        assert await expire_uploads(database) == 0
        assert await settle_new_repositories(database, 0.0, 10) == 0
        assert await sweep(us) == 0
        assert await us.node.ledger.next_due(["us"]) is None
        report, findings = await run(us)
        assert (report.lost, report.complete) == (0, True), findings
        await us.forget_everything()
        assert await pull(us, "a/b", "v1") == pushed
        await sweep(us)
        assert await pull(us, "a/b", "v1") == pushed


async def test_a_repair_that_another_one_overtakes_lets_nothing_go_on(world: MakeWorld) -> None:
    """What both stage is in one table, and the later one has it: the earlier one ends without a word of what it did not see."""
    (us,) = await world("us eu", proxy_storage=True)
    database = us.registry.database
    await flush(us)
    backup = await back_up(us)
    await us.push_image("a/b", "v1", b"layer")
    await flush(us)
    pushed = await pull(us, "a/b", "v1")
    await restore(us, backup)
    reports: list[RepairReport] = []
    overtaken = trio.Event()

    async def repair_until(hold: Hold) -> None:
        engines = {name: FaultyEngine(engine.inner) for name, engine in us.engines.items()}
        # Where copies are looked for: what the journals say is staged by then.
        engines["us"].plan("list_keys", hold, call=1)
        try:
            reports.append(await repair(database, engines, us.node.ledger.mark_suspect, lambda _: None))
        except Overtaken:
            overtaken.set()

    earlier, later = Hold(), Hold()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(repair_until, earlier)
        await earlier.reached.wait()
        nursery.start_soon(repair_until, later)
        await later.reached.wait()
        earlier.go_on.set()
        with trio.fail_after(20):
            await overtaken.wait()
        assert await read_pause(database) is not None
        later.go_on.set()
    assert [report.complete for report in reports] == [True]
    assert await read_pause(database) is None
    await us.forget_everything()
    assert await pull(us, "a/b", "v1") == pushed


async def test_a_push_that_is_refused_meanwhile_deletes_no_repository(world: MakeWorld) -> None:
    """A repository that it made and takes back may be one that the journals know: it stays, and gets what they have."""
    (us,) = await world("us eu", proxy_storage=True)
    await flush(us)
    backup = await back_up(us)
    await us.push_image("a/b", "v1", b"layer")
    await flush(us)
    pushed = await pull(us, "a/b", "v1")
    await restore(us, backup)
    location = await us.start_upload("a/b")
    assert (await us.ask("DELETE", location)).status == 204
    await run(us)
    await us.forget_everything()
    assert await pull(us, "a/b", "v1") == pushed


@pytest.mark.parametrize("noticed", [True, False])
async def test_a_journal_that_a_store_does_not_give_keeps_collection_paused(
    world: MakeWorld, monkeypatch: pytest.MonkeyPatch, noticed: bool
) -> None:
    """What is only in that journal may still use what looks like garbage: the repair is to be repeated."""
    monkeypatch.setattr(reader, "_PAUSE", 0.001)
    (us,) = await world("us eu", proxy_storage=True)
    database = us.registry.database
    await flush(us)
    backup = await back_up(us)
    await us.push_image("a/b", "v1", b"layer")
    await flush(us)
    pushed = await pull(us, "a/b", "v1")
    await restore(us, backup, noticed=noticed)
    us.engines["us"].plan("read", Refuse(), where="journal/")
    us.engines["eu"].plan("list_keys", Refuse(), where="journal/")
    report, _ = await run(us)
    assert report.unreachable == ("eu", "us")
    assert await read_pause(database) is not None
    for engine in us.engines.values():
        engine.clear()
    report, _ = await run(us)
    assert report.complete
    await us.forget_everything()
    assert await pull(us, "a/b", "v1") == pushed


async def test_a_store_that_is_away_is_not_asked_for_every_journal_object(
    world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After some that it did not give it is passed over: there may be thousands, each of which would be waited for."""
    monkeypatch.setattr(reader, "_PAUSE", 0.001)
    (us,) = await world("us eu", proxy_storage=True)
    await flush(us)
    for n in range(12):
        await us.push_image("a/b", f"v{n}", f"layer {n}".encode())
        await seal(us.registry.database)
        await writer(us).write("us")
    us.engines["us"].plan("read", Refuse(), where="journal/")
    us.engines["us"].calls.clear()
    report, findings = await run(us)
    assert report.unreachable == ("us",)
    asked = [key for operation, key in us.engines["us"].calls if operation == "read" and "journal/" in key]
    assert len(set(asked)) == 5
    assert len([finding for finding in findings if finding.kind == "unreachable"]) == 5
    us.engines["us"].clear()
    report, _ = await run(us)
    assert report.complete


async def test_a_location_that_came_after_the_backup_is_known_by_its_marker(world: MakeWorld) -> None:
    """A node that started meanwhile gave it another one: its store is the location's all the same, and what it holds comes back."""
    us, eu = await world("us eu", "eu us", proxy_storage=True)
    database = us.registry.database
    await flush(us)
    backup = await back_up(us)
    await eu.push_image("a/b", "v1", b"only in eu")
    await flush(us)
    pushed = await pull(us, "a/b", "v1")
    for known in (True, False):
        await restore(us, backup)
        await database.fetch("UPDATE location SET marker = gen_random_uuid() WHERE name = 'eu'")
        await database.fetch("DELETE FROM journal_entry")
        if not known:
            engine = us.engines["eu"].inner
            await engine.put(probe_keys(engine.prefix, "-").marker, b"another bucket's")
        report, findings = await run(us)
        assert report.unreachable == (() if known else ("eu",)), findings
        if known:
            await us.forget_everything()
            assert await pull(us, "a/b", "v1") == pushed


@pytest.mark.parametrize("older", [False, True])
async def test_a_node_on_an_empty_database_does_not_overwrite_what_the_stores_know(
    world: MakeWorld, monkeypatch: pytest.MonkeyPatch, older: bool
) -> None:
    """Started by mistake, with the database gone, it writes no journal into stores that bear other markers than its own.

    One of the last release does; a rescue does not believe it.
    """
    (us,) = await world("us eu", proxy_storage=True)
    database = us.registry.database
    await us.push_image("a/b", "v1", b"one")
    await database.fetch("DELETE FROM journal_entry")
    await flush(us)
    for engine in us.engines.values():
        await _make_old(engine.inner)
    pushed = await pull(us, "a/b", "v1")
    before = {location: await objects(us, location, "complete") for location in us.engines}
    await lose_the_database(us)
    await enrol_locations(database, ["us", "eu"], ["us", "eu"])
    await seal(database)
    if older:
        with monkeypatch.context() as of_the_last_release:
            of_the_last_release.setattr(journal_writer, "check_marker", _believe)
            for location in us.engines:
                assert await writer(us).write(location)
    else:
        for location in us.engines:
            assert not await writer(us).write(location)
            assert await objects(us, location, "complete") == before[location]
        assert ["marker" in str(lag.error) for lag in await journal_lag(database)] == [True, True]
    report, findings = await rescued(us)
    assert (report.unreachable, report.lost, report.replayed.missing) == ((), 0, 0), findings
    assert await pull(us, "a/b", "v1") == pushed


async def _make_old(engine: Engine) -> None:
    """Let a store's journal be from long ago."""
    for key in (await engine.list_keys(f"{engine.prefix}journal/snapshot-")).keys:
        folder = key.split("/")[-2]
        await engine.put(key.replace(folder, "snapshot-20260101T000000"), await read_object(engine, key))
        await engine.delete(key)


async def _believe(_engine: Engine, _marker: str) -> None:
    pass
