"""After a restore: the records and the stores are compared in both directions, and collection goes on."""

from collections.abc import Mapping

import pytest

from engines.contract import Engine
from node.records.collect import CollectRules, read_pause
from node.repair import Finding, RepairReport, repair
from replication.macs import PieceProofs
from tests.collection.clock import Later, collect_all
from tests.copies import finish_copy
from tests.faulty_engine import Refuse
from tests.registry.world import MakeWorld, Region


async def run(us: Region) -> tuple[RepairReport, list[Finding]]:
    """Repair as the command does."""
    findings: list[Finding] = []
    engines: Mapping[str, Engine] = us.engines
    report = await repair(us.registry.database, engines, us.node.ledger.mark_suspect, findings.append)
    return report, findings


async def copy_everything(us: Region) -> None:
    """Pay all debt towards eu."""
    while tasks := await us.node.ledger.claim_copies("eu", us.engines["eu"].prefix, 10, 60.0):
        for task in tasks:
            source = next(copy for copy in task.placements if copy.location == "us")
            data = await us.engines["us"].inner.read(source.key, 0, task.blob.size)
            await us.engines["eu"].inner.put(task.key, data)
            await finish_copy(us.node.ledger, task, PieceProofs())


async def test_nothing_to_repair(world: MakeWorld) -> None:
    """Where records and stores agree nothing is found and nothing changed, and collection goes on."""
    (us,) = await world("us eu")
    await us.push_image("a/b", "v1", b"layer")
    await copy_everything(us)
    database = us.registry.database
    await database.fetch(
        "INSERT INTO bookmark (name, value) VALUES ('collection', jsonb_build_object('identity', '7/8/9')) "
        "ON CONFLICT (name) DO UPDATE SET value = excluded.value"
    )
    before = await us.rows("SELECT * FROM placement ORDER BY blob_id, location_id")
    assert await read_pause(database) is not None
    report, findings = await run(us)
    assert (report, findings) == (RepairReport(copies=4), [])
    assert await us.rows("SELECT * FROM placement ORDER BY blob_id, location_id") == before
    assert await read_pause(database) is None


async def test_a_copy_that_is_gone_is_healed_from_another(world: MakeWorld) -> None:
    """A copy whose object is not there is distrusted, and owed again; its blob is not lost."""
    (us,) = await world("us eu")
    blob = await us.push_blob("a/b", b"layer")
    await copy_everything(us)
    (row,) = await us.rows("SELECT p.key FROM placement p JOIN location l ON l.id = p.location_id WHERE l.name = 'eu'")
    await us.engines["eu"].inner.delete(row["key"])
    report, findings = await run(us)
    assert (report.copies, report.gone, report.lost, report.complete) == (2, 1, 0, True)
    assert [(finding.kind, finding.location, finding.what) for finding in findings] == [("gone", "eu", blob)]
    await copy_everything(us)
    report, findings = await run(us)
    assert (report.gone, report.lost, findings) == (0, 0, [])
    assert len(await us.rows("SELECT * FROM placement WHERE state = 'present'")) == 2


async def test_what_is_lost_is_named_and_can_be_pushed_again(world: MakeWorld) -> None:
    """A blob without any object is named with its tags, unknown to clients afterwards, and heals by a push."""
    (us,) = await world("us eu")
    await us.push_image("a/b", "v1", b"layer")
    (row,) = await us.rows("SELECT p.key, b.digest FROM placement p JOIN blob b ON b.id = p.blob_id WHERE b.size = 5")
    await us.engines["us"].inner.delete(row["key"])
    report, findings = await run(us)
    assert (report.gone, report.lost, report.complete) == (1, 1, True)
    (lost,) = [finding for finding in findings if finding.kind == "lost"]
    assert (lost.what, lost.text) == (row["digest"], "needed by a/b:v1")
    await us.forget_everything()
    assert (await us.ask("HEAD", f"/v2/a/b/blobs/{row['digest']}")).status == 404
    await us.push_blob("a/b", b"layer")
    await us.forget_everything()
    assert (await us.ask("GET", f"/v2/a/b/blobs/{row['digest']}")).body == b"layer"


@pytest.mark.parametrize("named", [True, False])
async def test_an_unknown_object_is_adopted_where_its_digest_proves_it(world: MakeWorld, named: bool) -> None:
    """Bytes of a blob that lacks a copy become one, whatever their key says; other bytes are only listed; all of them stay."""
    (us,) = await world("us eu")
    blob = await us.push_blob("a/b", b"layer")
    (row,) = await us.rows("SELECT key FROM placement")
    engine = us.engines["us"].inner
    await engine.delete(row["key"])
    hexdigest = blob.removeprefix("sha256:")
    good = f"{engine.prefix}sha256/{hexdigest[:2]}/{hexdigest}.0123" if named else f"{engine.prefix}uploads/some.0123"
    liar = f"{engine.prefix}sha256/{hexdigest[:2]}/{hexdigest}.0000"
    stranger = f"{engine.prefix}uploads/stranger.1"
    await engine.put(good, b"layer")
    await engine.put(liar, b"LAYER")
    await engine.put(stranger, b"nobody's")
    report, findings = await run(us)
    assert (report.adopted, report.unknown, report.lost) == (1, 2, 0)
    assert [row["key"] for row in await us.rows("SELECT key FROM placement WHERE state = 'present'")] == [good]
    assert {finding.what for finding in findings if finding.kind == "unknown"} == {liar, stranger}
    assert {good, liar, stranger} <= await us.contents("us")
    dead = {row["key"] for row in await us.rows("SELECT key FROM dead_object")}
    assert not dead & {good, liar, stranger}
    await us.forget_everything()
    assert (await us.ask("GET", f"/v2/a/b/blobs/{blob}")).body == b"layer"


async def test_a_store_that_cannot_be_asked_proves_nothing(world: MakeWorld) -> None:
    """A store that fails, or is another one, loses no copy in the records; collection stays paused."""
    (us,) = await world("us eu")
    await us.push_blob("a/b", b"layer")
    database = us.registry.database
    await database.fetch(
        "INSERT INTO bookmark (name, value) VALUES ('collection', jsonb_build_object('identity', '7/8/9')) "
        "ON CONFLICT (name) DO UPDATE SET value = excluded.value"
    )
    before = await us.rows("SELECT * FROM placement")
    marker = next(
        key for key in (await us.engines["us"].inner.list_keys(us.engines["us"].prefix)).keys if "marker" in key
    )
    held = await us.engines["us"].inner.read(marker, 0, 36)
    await us.engines["us"].inner.put(marker, b"another bucket's")
    report, findings = await run(us)
    assert report.unreachable == ("us",)
    assert "marker of another location" in findings[0].what
    await us.engines["us"].inner.put(marker, held)
    us.engines["us"].plan("head", Refuse())
    report, _ = await run(us)
    assert report.unreachable == ("us",)
    assert await us.rows("SELECT * FROM placement") == before
    assert await read_pause(database) is not None


async def test_bytes_of_collected_blobs_are_found_by_a_restored_database(
    world: MakeWorld, rules: CollectRules, later: Later
) -> None:
    """A database from before a collection finds every copy that it names, as long as the retention lasts."""
    (us,) = await world("us eu")
    blob = await us.push_blob("a/b", b"layer")
    database = us.registry.database
    # What a backup would hold: the rows as they are now.
    tables = ("blob", "repository_blob", "placement")
    backup = {table: await us.rows(f"SELECT to_jsonb(t)::text AS row FROM {table} t") for table in tables}  # noqa: S608  # our names
    for _ in range(2):
        await later(100)
        await collect_all(database, rules)
    assert await us.rows("SELECT * FROM blob") == []
    await database.fetch("DELETE FROM dead_object")
    for table in tables:
        overriding = "OVERRIDING SYSTEM VALUE" if table == "blob" else ""
        for line in backup[table]:
            await database.fetch(
                f"INSERT INTO {table} {overriding} SELECT * FROM jsonb_populate_record(NULL::{table}, $1::jsonb)",  # noqa: S608
                line["row"],
            )
    report, findings = await run(us)
    assert (report.gone, report.lost, findings) == (0, 0, [])
    await us.forget_everything()
    assert (await us.ask("GET", f"/v2/a/b/blobs/{blob}")).body == b"layer"


async def test_no_copy_is_trimmed_before_the_repair(world: MakeWorld) -> None:
    """While the records may name copies that are gone, one that policy does not require stays."""
    (us,) = await world("us eu")
    await us.push_blob("a/b", b"layer")
    await copy_everything(us)
    database = us.registry.database
    trim = "SELECT settle_blob(id, blob_facts(id), '{}', '{}', '{us}', 600) AS outcome FROM blob"
    await database.fetch(
        "INSERT INTO bookmark (name, value) VALUES ('collection', jsonb_build_object('identity', '7/8/9')) "
        "ON CONFLICT (name) DO UPDATE SET value = excluded.value"
    )
    await database.fetch(trim)
    assert len(await us.rows("SELECT * FROM placement")) == 2
    await run(us)
    await database.fetch(trim)
    assert len(await us.rows("SELECT * FROM placement")) == 1
