"""What nothing references goes, when its time has come; what anything references stays."""

import json

import trio
from attrs import evolve

from node.health import warning
from node.metrics_state import State, Totals
from node.push.reading import OCI_INDEX, OCI_MANIFEST
from node.records.collect import CollectRules, collect_batch, read_pause, resume, survey
from node.records.reconcile import ask_for_round, look_at_round
from tests.collection.clock import HOUR, Later, collect_all
from tests.registry.world import Region, digest_of, image, index

TWO_WEEKS = 14 * 24.0


async def counts(region: Region) -> dict[str, int]:
    (row,) = await region.rows(
        "SELECT (SELECT count(*) FROM repository_manifest) AS manifest_links, (SELECT count(*) FROM repository_blob) AS blob_links,"
        " (SELECT count(*) FROM manifest) AS manifests, (SELECT count(*) FROM blob) AS blobs,"
        " (SELECT count(*) FROM placement) AS placements, (SELECT count(*) FROM task) AS tasks,"
        " (SELECT count(*) FROM dead_object) AS dead"
    )
    return row


async def test_a_tagged_image_stays(us: Region, rules: CollectRules, later: Later) -> None:
    """What a tag reaches is never collected, however old it is."""
    await us.push_image("a/b", "v1", b"layer")
    before = await counts(us)
    for _ in range(3):
        await later(1000)
        assert await collect_all(us.registry.database, rules) == []
    assert await counts(us) == before
    assert await us.rows("SELECT * FROM garbage") == []


async def test_a_deleted_image_goes_in_the_end(us: Region, rules: CollectRules, later: Later) -> None:
    """After its window, the grace and the rest that each level gets, nothing of an image is left but dead objects."""
    await us.push_image("a/b", "v1", b"layer", b"another")
    assert (await us.ask("DELETE", "/v2/a/b/manifests/v1")).status == 202
    database = us.registry.database
    await later(TWO_WEEKS - 1)
    assert await collect_all(database, rules) == []
    await later(2)
    assert await collect_all(database, rules) == []  # the history went now, and only now the grace begins
    await later(73)
    assert [gone.kind for gone in await collect_all(database, rules)] == ["manifest link"]
    await later(3)
    assert {gone.kind for gone in await collect_all(database, rules)} == {"manifest", "blob link"}
    await later(3)
    assert [gone.kind for gone in await collect_all(database, rules)] == ["blob"] * 3
    left = await counts(us)
    assert left.pop("dead") == 3
    assert set(left.values()) == {0}
    (soonest,) = await us.rows("SELECT min(not_before - now()) > interval '23 hours' AS kept FROM dead_object")
    assert soonest["kept"]


async def push_index(us: Region, repository: str, tag: str, *children: str, subject: str | None = None) -> str:
    """Push an index of manifests that are there already; return its digest."""
    described = [{"mediaType": OCI_MANIFEST, "digest": child, "size": 10} for child in children]
    more = {} if subject is None else {"subject": {"mediaType": OCI_MANIFEST, "digest": subject, "size": 10}}
    return await us.push_manifest(repository, tag, index(described, OCI_INDEX, **more))


async def test_what_a_reference_keeps(us: Region, rules: CollectRules, later: Later) -> None:
    """Children of an index and what refers to a manifest stay with it, untagged, and go after it, level by level."""
    database = us.registry.database
    child = await us.push_image("a/b", "child", b"layer")
    top = await push_index(us, "a/b", "top", child)
    signature = image(b"signature", subject={"mediaType": OCI_INDEX, "digest": top, "size": 10})
    await us.push_blob("a/b", b"signature")
    signed = await us.push_manifest("a/b", digest_of(json.dumps(signature).encode()), signature)
    await us.ask("DELETE", "/v2/a/b/manifests/child")
    for _ in range(4):
        await later(1000)
        assert await collect_all(database, rules) == []
    await us.ask("DELETE", "/v2/a/b/manifests/top")
    await later(TWO_WEEKS + 1)
    assert await collect_all(database, rules) == []
    await later(73)
    assert [gone.digest for gone in await collect_all(database, rules)] == [top]
    await later(3)
    went = await collect_all(database, rules)
    assert {gone.digest for gone in went if gone.kind == "manifest link"} == {child, signed}
    for _ in range(4):
        await later(3)
        await collect_all(database, rules)
    assert set(await counts(us)) - {"dead"} == {name for name, count in (await counts(us)).items() if not count}


async def test_untagged_manifests_go_when_they_were_never_tagged(us: Region, rules: CollectRules, later: Later) -> None:
    """What was pushed by digest and never used goes after the grace, which a push of the same begins anew."""
    await us.push_blob("a/b", b"config")
    manifest = image(b"config")
    reference = digest_of(json.dumps(manifest).encode())
    await us.push_manifest("a/b", reference, manifest)
    await later(71)
    await us.push_manifest("a/b", reference, manifest)
    await later(2)
    assert await collect_all(us.registry.database, rules) == []
    await later(71)
    assert [gone.digest for gone in await collect_all(us.registry.database, rules)] == [reference]


async def test_an_index_keeps_children_that_come_after_it(us: Region, rules: CollectRules, later: Later) -> None:
    """A sparse index uses its children although they were pushed later, and nothing else does."""
    us.registry.settings = evolve(us.registry.settings, sparse_index=True)
    manifest = image(b"config")
    child = digest_of(json.dumps(manifest).encode())
    await push_index(us, "a/b", "top", child)
    await us.push_blob("a/b", b"config")
    await us.push_manifest("a/b", child, manifest)
    await later(1000)
    assert await collect_all(us.registry.database, rules) == []
    await us.registry.database.fetch("DELETE FROM tag")
    await us.registry.database.fetch("DELETE FROM tag_history")
    for _ in range(5):
        await later(100)
        await collect_all(us.registry.database, rules)
    assert (await counts(us))["manifests"] == 0


async def test_another_repository_keeps_what_one_lets_go(us: Region, rules: CollectRules, later: Later) -> None:
    """A blob that two repositories link leaves the one, and its bytes stay for the other."""
    layer = await us.push_blob("c/d", b"layer")
    await us.push_image("a/b", "v1", b"layer")
    await us.ask("POST", f"/v2/a/b/blobs/uploads/?mount={layer}&from=c/d")
    await later(100)
    assert [(gone.repository, gone.digest) for gone in await collect_all(us.registry.database, rules)] == [
        ("c/d", layer)
    ]
    for _ in range(3):
        await later(100)
        assert await collect_all(us.registry.database, rules) == []
    assert (await us.ask("GET", f"/v2/a/b/blobs/{layer}")).body == b"layer"
    assert (await us.ask("HEAD", f"/v2/c/d/blobs/{layer}")).status == 404


async def test_a_head_promises_an_hour(us: Region, rules: CollectRules, later: Later) -> None:
    """HEAD answers 200 only for what stays for an hour: it begins the grace anew where less is left."""
    database = us.registry.database
    blob = await us.push_blob("a/b", b"layer")
    await later(70)
    await us.forget_everything()
    assert (await us.ask("HEAD", f"/v2/a/b/blobs/{blob}")).status == 200
    await later(1)  # 1 h is left by now, which is no longer enough for the next
    await us.forget_everything()
    trips, reply = await us.trips(lambda: us.ask("HEAD", f"/v2/a/b/blobs/{blob}"))
    assert (trips, reply.status) == (3, 200)
    trips, reply = await us.trips(lambda: us.ask("HEAD", f"/v2/a/b/blobs/{blob}"))
    assert (trips, reply.status) == (0, 200)
    await later(71)
    assert await collect_all(database, rules) == []
    await later(2)
    assert len(await collect_all(database, rules)) == 1
    await us.forget_everything()
    trips, reply = await us.trips(lambda: us.ask("HEAD", f"/v2/a/b/blobs/{blob}"))
    assert (trips, reply.failure) == (1, (404, "BLOB_UNKNOWN"))


async def test_a_head_in_the_usual_case_costs_nothing_more(us: Region, later: Later) -> None:
    """HEAD of a blob in use is one look-up, none when warm, however old the blob is."""
    await us.push_image("a/b", "v1", b"layer")
    await later(1000)
    await collect_all(us.registry.database, CollectRules(72 * HOUR, 24 * HOUR, HOUR))
    await us.forget_everything()
    for expected in (1, 0):
        trips, reply = await us.trips(lambda: us.ask("HEAD", f"/v2/a/b/blobs/{digest_of(b'layer')}"))
        assert (trips, reply.status) == (expected, 200)


async def test_what_a_head_promised_survives_the_end_of_its_last_manifest(
    us: Region, rules: CollectRules, later: Later
) -> None:
    """A blob that was in use when it was asked for stays for an hour although its manifest is collected just then."""
    await us.push_image("a/b", "v1", b"layer")
    await us.ask("DELETE", "/v2/a/b/manifests/v1")
    await us.registry.database.fetch("DELETE FROM tag_history")
    await later(73)
    await us.forget_everything()
    assert (await us.ask("HEAD", f"/v2/a/b/blobs/{digest_of(b'layer')}")).status == 200
    assert {gone.kind for gone in await collect_all(us.registry.database, rules)} == {"manifest link"}
    await later(1)
    await collect_all(us.registry.database, rules)
    assert (await us.ask("GET", f"/v2/a/b/blobs/{digest_of(b'layer')}")).body == b"layer"


async def test_a_survey_removes_nothing_and_is_right(us: Region, rules: CollectRules, later: Later) -> None:
    """A dry run names what a collection then removes."""
    for number in range(3):
        await us.push_blob("a/b", b"layer %d" % number)
    await later(100)
    await us.push_blob("a/b", b"young")
    before = await us.rows("SELECT * FROM garbage ORDER BY since, object_id")
    lines = {line.kind: line for line in await survey(us.registry.database, rules)}
    assert (lines["blob link"].waiting, lines["blob link"].due, lines["blob link"].unused) == (1, 3, 3)
    assert await us.rows("SELECT * FROM garbage ORDER BY since, object_id") == before
    assert len(await collect_all(us.registry.database, rules)) == 3
    await later(3)
    lines = {line.kind: line for line in await survey(us.registry.database, rules)}
    assert (lines["blob"].unused, lines["blob"].bytes) == (3, 3 * len(b"layer 0"))


async def test_collection_pauses_on_another_timeline(us: Region, rules: CollectRules, later: Later) -> None:
    """A database that was restored or failed over is not collected until somebody says so; health and statistics show it."""
    database = us.registry.database
    await us.push_blob("a/b", b"layer")
    await later(100)
    await resume(database)
    assert await read_pause(database) is None
    await database.fetch(
        "UPDATE bookmark SET value = jsonb_build_object('identity', '7/8/9') WHERE name = 'collection'"
    )
    reason = await read_pause(database)
    assert reason is not None
    assert "was 7/8/9" in reason
    collector = us.node.collector
    assert (await collector.collect(gentle=False)).worked == 0
    assert collector.statistics().paused == reason
    shown = warning(us.node.facts())
    assert (shown.status, shown.body(expanded=True)["data"]["services"]["garbage_collection"]) == (200, False)  # type: ignore[index]  # JSON
    batch = await collect_batch(database, "blob link", rules)
    assert (batch.paused, batch.removed) == (True, ())
    assert await resume(database)
    assert (await collector.collect(gentle=False)).removed == (("blob link", 1),)
    assert collector.statistics().paused == ""


async def test_what_a_node_keeps_in_order_shows(us: Region, later: Later) -> None:
    """A scrape says what the node collected, what it found and put right, how old the last whole round is, and a pause."""
    database, node = us.registry.database, us.node
    await us.push_blob("a/b", b"layer")
    await us.push_image("a/b", "v1", b"another")
    await database.fetch("DELETE FROM task")
    await resume(database)
    await later(100)
    await database.fetch("INSERT INTO location (name) VALUES ('far')")
    await database.fetch("INSERT INTO default_location SELECT id FROM location ON CONFLICT DO NOTHING")
    await node.collector.collect(gentle=False)
    await later(3)
    await node.collector.collect(gentle=False)
    await ask_for_round(database)
    while (await look_at_round(database)).completed_seconds is None:
        await node.reconciler.step()
    await database.fetch(
        "UPDATE bookmark SET value = jsonb_build_object('identity', '7/8/9') WHERE name = 'collection'"
    )
    await node.collector.collect(gentle=False)
    totals = Totals(database)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(totals.keep)
        with trio.fail_after(30):
            while totals.taken_at is None:  # noqa: ASYNC110 - there is no event
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    families = State(node, us.registry.memory, totals, "test").collect()
    shown = {(s.name, *s.labels.values()): s.value for family in families for s in family.samples}
    assert shown["antipode_collected_total", "blob_link"] == shown["antipode_collected_total", "blob"] == 1
    assert shown["antipode_collected_bytes_total",] == 5
    assert shown["antipode_collection_paused",] == 1
    assert shown["antipode_reconciled_blobs_total",] == 2
    assert shown["antipode_reconciled_changes_total", "owed"] == 2
    assert 0 <= shown["antipode_reconciliation_age_seconds",] < 60


async def test_a_child_that_was_deleted_by_hand_goes_before_its_index(
    us: Region, rules: CollectRules, later: Later
) -> None:
    """An index that outlives its child holds none of the child's bytes back; the child, pushed again, is used at once."""
    database = us.registry.database
    child = await us.push_image("a/b", "child", b"layer")
    await push_index(us, "a/b", "top", child)
    await us.ask("DELETE", f"/v2/a/b/manifests/{child}")
    for _ in range(4):
        await later(400)
        await collect_all(database, rules)
    assert await us.rows("SELECT * FROM blob") == []
    assert len(await us.rows("SELECT * FROM manifest")) == 1
    assert await us.push_image("a/b", "child", b"layer") == child
    await us.ask("DELETE", "/v2/a/b/manifests/child")
    for _ in range(4):
        await later(400)
        assert await collect_all(database, rules) == []
    assert len(await us.rows("SELECT * FROM manifest_child")) == 1
