"""The database is lost, or comes back older: what the stores' journals know comes back, whole or from where a backup ends."""

from collections.abc import Mapping
from functools import partial

import pytest

from node.audit import AuditSettings, verify_location
from node.findings import Finding
from node.journal import reader
from node.journal.reader import list_journals
from node.journal.replay import replay
from node.push.reading import OCI_INDEX, OCI_MANIFEST
from node.records.accounts import create_user
from node.records.collect import read_pause
from node.records.journal import seal
from node.records.locations import Change, note_drained, remove_location, set_state
from node.records.manifests import delete_manifest, delete_tag
from node.records.permissions import is_public, set_visibility
from node.records.policies import read_policy, write_policy
from node.records.postgres import Database
from node.records.quotas import write_quota
from node.records.removal import delete_repository
from node.rescue import NOT_KNOWN, NotEmpty, RescueReport, rescue
from replication.model import LocationState
from replication.policy import parse_policy
from tests.collection.held import held_transaction
from tests.collection.test_races import second
from tests.collection.test_repair import copy_everything
from tests.faulty_engine import Refuse
from tests.recovery.test_journal import flush, writer
from tests.registry.world import MakeWorld, Region, digest_of, index


async def lose_the_database(us: Region) -> None:
    """Empty every table, as in a new database."""
    database = us.registry.database
    rows = await us.rows(
        "SELECT string_agg(quote_ident(tablename), ', ') AS names FROM pg_tables "
        "WHERE schemaname = 'public' AND tablename <> 'schema_version'"
    )
    await database.fetch(f"TRUNCATE {rows[0]['names']} RESTART IDENTITY CASCADE")
    await us.forget_everything()


async def run(us: Region, *locations: str) -> tuple[RescueReport, list[Finding]]:
    """Rescue as the command does, from all stores or some."""
    findings: list[Finding] = []
    engines = {name: engine for name, engine in us.engines.items() if not locations or name in locations}
    report = await rescue(us.registry.database, engines, ("us", "eu"), "library", findings.append)
    await us.forget_everything()
    return report, findings


async def pull(us: Region, name: str, reference: str) -> tuple[str, bytes, list[bytes]]:
    """Return digest, manifest and blobs of an image."""
    manifest = await us.ask("GET", f"/v2/{name}/manifests/{reference}")
    assert manifest.status == 200, manifest
    document = manifest.json
    blobs = []
    for one in [document["config"], *document["layers"]]:
        reply = await us.ask("GET", f"/v2/{name}/blobs/{one['digest']}")
        assert reply.status == 200, reply
        assert digest_of(reply.body) == one["digest"]
        blobs.append(reply.body)
    return manifest.headers["docker-content-digest"], manifest.body, blobs


async def tags(us: Region) -> Mapping[tuple[str, str], str]:
    rows = await us.rows(
        "SELECT r.name AS repository, t.name, m.digest FROM tag t JOIN repository r ON r.id = t.repository_id "
        "JOIN manifest m ON m.id = t.manifest_id"
    )
    return {(row["repository"], row["name"]): row["digest"] for row in rows}


async def test_a_lost_registry_is_rebuilt_from_its_stores(world: MakeWorld) -> None:
    """Every image pulls with the same bytes, tags point where they did last, and what was deleted stays so."""
    (us,) = await world("us eu", proxy_storage=True)
    database = us.registry.database
    await us.push_image("a/b", "v1", b"one")
    await flush(us)
    await us.push_image("a/b", "v1", b"two")
    await us.push_image("single", "latest", b"three")
    await us.push_image("a/gone", "v1", b"four")
    deleted = await us.push_image("a/b", "deleted", b"five")
    child = await us.push_image("a/c", "child", b"six")
    named = {"mediaType": OCI_MANIFEST, "digest": child, "size": 1}
    await us.push_manifest("a/c", "many", index([named], OCI_INDEX))
    await us.push_image("a/c", "signature", b"seven", subject=named)
    await delete_repository(database, "a/gone")
    await delete_manifest(database, "a/b", deleted)
    await delete_tag(database, "a/c", "child")
    await write_policy(database, "a", parse_policy({"required": ["us"], "durability": "local"}, {"us", "eu"}))
    await copy_everything(us)
    await flush(us)
    before, images = await tags(us), {}
    for name, tag in (("a/b", "v1"), ("single", "latest"), ("a/c", "signature"), ("a/c", child)):
        images[name, tag] = await pull(us, name, tag)

    await lose_the_database(us)
    report, findings = await run(us)
    assert (report.unreachable, report.lost, report.adopted, report.replayed.missing) == ((), 0, 0, 0), findings
    assert await tags(us) == before
    for (name, tag), image in images.items():
        assert await pull(us, name, tag) == image
    assert (await us.ask("GET", "/v2/a/gone/manifests/v1")).status == 404
    assert (await us.ask("GET", f"/v2/a/b/manifests/{deleted}")).status == 404
    assert (await us.ask("GET", f"/v2/a/c/referrers/{child}")).json["manifests"] != []
    assert (await read_policy(database, "a")).policy == parse_policy(
        {"required": ["us"], "durability": "local"}, {"us", "eu"}
    )
    assert await read_pause(database) is None
    # Nothing that the writer left is unknown, and the next journal begins with a snapshot.
    # Objects that waited to be deleted are nobody's now.
    assert {finding.kind for finding in findings} <= {"unknown"}, findings
    await flush(us)
    again, _ = await run_again(us)
    assert again == await tags(us)


async def run_again(us: Region) -> tuple[Mapping[tuple[str, str], str], RescueReport]:
    await lose_the_database(us)
    report, _ = await run(us)
    return await tags(us), report


async def test_a_store_that_goes_away_is_not_asked_for_every_manifest(world: MakeWorld) -> None:
    """After some that it did not give it is passed over: there may be thousands, each of which would be waited for."""
    (us,) = await world("us eu", proxy_storage=True)
    for n in range(30):
        await us.push_image("a/b", f"v{n}", b"layer")
    await copy_everything(us)
    await flush(us)
    known = await tags(us)
    await lose_the_database(us)
    us.engines["eu"].plan("list_keys", Refuse(), where="manifests/sha256")
    report, findings = await run(us)
    assert report.unreachable == ("eu",)
    assert await tags(us) == known
    # As many as are looked for at once may be under way when that is found.
    assert len([finding for finding in findings if finding.kind == "unreachable"]) <= 5 + 8
    us.engines["eu"].clear()
    assert (await run(us))[0].unreachable == ()


async def test_one_store_is_enough_for_what_it_holds(world: MakeWorld) -> None:
    """With one store gone for good all names come back, blobs that it held too, and what only the lost one had is named."""
    (us,) = await world("us eu", proxy_storage=True)
    await us.push_image("a/b", "v1", b"one")
    await copy_everything(us)
    only = await us.push_blob("a/b", b"only in us")
    await us.push_image("a/b", "v2", b"only in us")
    await flush(us)
    image = await pull(us, "a/b", "v1")
    await lose_the_database(us)
    report, findings = await run(us, "eu")
    assert await pull(us, "a/b", "v1") == image
    assert {tag for _, tag in await tags(us)} == {"v1", "v2"}
    lost = {finding.what: finding.text for finding in findings if finding.kind == "lost"}
    assert lost[only] == "needed by a/b:v2"
    assert report.lost == len(lost)


async def test_a_rescue_goes_on_where_it_was_cut_off(world: MakeWorld) -> None:
    """A store that is away is looked at when the rescue is repeated; until then nothing is collected."""
    (us,) = await world("us eu", proxy_storage=True)
    await us.push_image("a/b", "v1", b"one")
    await flush(us)
    image = await pull(us, "a/b", "v1")
    await lose_the_database(us)
    us.engines["us"].plan_all(Refuse())
    report, _ = await run(us)
    assert report.unreachable == ("us",)
    assert report.lost == 2
    assert await read_pause(us.registry.database) is not None
    us.engines["us"].clear()
    report, _ = await run(us)
    assert (report.unreachable, report.lost) == ((), 0)
    assert await pull(us, "a/b", "v1") == image
    assert await read_pause(us.registry.database) is None
    with pytest.raises(NotEmpty, match="holds a registry"):
        await run(us)


async def test_a_store_that_does_not_give_its_journal_leaves_the_rescue_unfinished(
    world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be read now is not lost: nothing is buried, collected or journalled anew until the rescue was repeated."""
    monkeypatch.setattr(reader, "_PAUSE", 0.001)
    (us,) = await world("us eu", proxy_storage=True)
    database = us.registry.database
    await us.push_image("a/b", "v1", b"one")
    await copy_everything(us)
    await database.fetch("DELETE FROM journal_entry")
    await flush(us)
    image = await pull(us, "a/b", "v1")
    await lose_the_database(us)
    for engine in us.engines.values():
        engine.plan("read", Refuse(), where="/page.")
    report, _ = await run(us)
    assert report.unreachable == ("eu", "us")
    assert await read_pause(database) is not None
    assert await us.rows("SELECT * FROM dead_object") == []
    for engine in us.engines.values():
        engine.clear()
        engine.plan("read", Refuse(), 0, where="journal/")
    report, findings = await run(us)
    assert (report.unreachable, report.lost, report.replayed.missing) == ((), 0, 0), findings
    assert await pull(us, "a/b", "v1") == image
    assert await read_pause(database) is None


async def test_a_page_that_is_damaged_is_made_up_for_by_another_snapshot(world: MakeWorld) -> None:
    """A snapshot of which a page is not what it was counts as far as it can be read, and another store's counts as well."""
    (us,) = await world("us eu", proxy_storage=True)
    database = us.registry.database
    for n in range(3):
        await us.push_image("a/b", f"v{n}", f"layer {n}".encode())
    await copy_everything(us)
    await database.fetch("DELETE FROM journal_entry")
    await flush(us, page=2)
    images = [await pull(us, "a/b", f"v{n}") for n in range(3)]
    listing = await list_journals(us.engines, lambda _: None)
    newest = listing.newest_first()[0][0]
    for key, said in listing.keys[newest].items():
        if said.kind == "page":
            await us.engines[newest].inner.put(key, b"rotten")
    await lose_the_database(us)
    report, findings = await run(us)
    assert (report.lost, report.replayed.missing, report.unreachable) == (0, 0, ()), findings
    assert {finding.kind for finding in findings} == {"damaged"}
    assert [await pull(us, "a/b", f"v{n}") for n in range(3)] == images


async def test_what_was_pushed_while_it_was_deleted_is_there(
    world: MakeWorld, migrated_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A manifest that came again by a statement which had waited for its delete is in the snapshot, whatever its time says."""
    (us,) = await world("us eu", proxy_storage=True)
    digest = await us.push_image("a/b", "v1", b"one")
    await copy_everything(us)
    image = await pull(us, "a/b", "v1")
    async with held_transaction(migrated_uri) as held:
        await held.fetch("SELECT FROM repository_manifest FOR UPDATE")
        await second(
            us.registry.database,
            partial(_delete_and_commit, held, digest),
            partial(us.push_manifest, "a/b", "v1", image[1], **{"content-type": OCI_MANIFEST}),
        )
        await held.fetch("BEGIN")
    await flush(us)
    # As if the snapshot had been made long after.
    monkeypatch.setattr(reader, "_OVERLAP", -5.0)
    await lose_the_database(us)
    report, findings = await run(us)
    assert (report.lost, report.replayed.missing, report.replayed.tags_without) == (0, 0, 0), findings
    assert await pull(us, "a/b", "v1") == image


async def _delete_and_commit(held: Database, digest: str) -> None:
    assert await delete_manifest(held, "a/b", digest)
    await held.fetch("COMMIT")


async def test_what_the_journals_do_not_know_yet_is_found_by_its_digest(world: MakeWorld) -> None:
    """An upload whose place was never written is adopted by its bytes; a manifest without a word in the journal comes back."""
    (us,) = await world("us eu", proxy_storage=True)
    await us.push_image("a/b", "v1", b"one")
    digest = await us.push_image("a/b", "v2", b"two")
    await flush(us)
    image = await pull(us, "a/b", digest)
    engine = us.engines["us"].inner
    # As if the node had died between the manifests and the journal, and before the copies were noted.
    for location in us.engines:
        store = us.engines[location].inner
        for key in (await store.list_keys(f"{store.prefix}journal/")).keys:
            await store.delete(key)
    await lose_the_database(us)
    report, findings = await run(us)
    assert report.replayed.untagged == 2
    assert report.adopted == 4
    assert (report.lost, report.unverified) == (0, 0)
    assert await pull(us, "a/b", digest) == image
    assert {finding.kind for finding in findings} == {"untagged", "adopted"}
    assert await engine.head((await us.rows("SELECT key FROM placement LIMIT 1"))[0]["key"])


async def test_an_image_that_no_journal_knows_comes_back_to_each_of_its_repositories(world: MakeWorld) -> None:
    """Repositories that have the same manifest have an object each: one that is there hides no other, and buries none."""
    (us,) = await world("us eu", proxy_storage=True)
    await us.push_image("a/b", "v1", b"one")
    await flush(us)
    journals = await list_journals(us.engines, lambda _: None)
    digest = await us.push_image("c/d", "v1", b"one")
    await us.push_image("e/f", "v1", b"one")
    await flush(us)
    image = await pull(us, "a/b", digest)
    # As if the database had died between the manifests and the journal.
    for location, later in (await list_journals(us.engines, lambda _: None)).keys.items():
        for key in later.keys() - journals.keys[location].keys():
            await us.engines[location].inner.delete(key)
    await lose_the_database(us)
    report, findings = await run(us)
    assert (report.lost, report.replayed.untagged) == (0, 2), findings
    for name in ("a/b", "c/d", "e/f"):
        assert await pull(us, name, digest) == image
    buried = await us.rows("SELECT key FROM dead_object WHERE key LIKE '%/manifests/%'")
    assert buried == []


async def test_what_left_after_the_backup_leaves_again(world: MakeWorld) -> None:
    """A manifest that an older database links, and that the journals know to have left since, goes; one that came again stays."""
    (us,) = await world("us eu", proxy_storage=True)
    database = us.registry.database
    gone = await us.push_image("a/b", "v1", b"one")
    again = await us.push_image("a/b", "v2", b"two")
    await flush(us)
    link = "SELECT rm.* FROM repository_manifest rm JOIN manifest m ON m.id = rm.manifest_id WHERE m.digest = $1"
    (older,) = await us.rows(link, gone)
    for digest in (gone, again):
        await delete_manifest(database, "a/b", digest)
    await flush(us)
    await us.push_image("a/b", "v2", b"two")
    # As in a backup: the link is there, and nothing says that it has been deleted.
    await database.fetch("INSERT INTO repository_manifest VALUES ($1, $2, $3, $4)", *older.values())
    await database.fetch("DELETE FROM journal_entry")
    replayed = await replay(database, us.engines, "library", lambda _: None)
    assert (replayed.unlinked, replayed.missing) == (1, 0)
    await us.forget_everything()
    assert (await us.ask("GET", f"/v2/a/b/manifests/{gone}")).status == 404
    assert (await us.ask("GET", f"/v2/a/b/manifests/{again}")).status == 200


async def test_a_copy_that_was_only_seen_is_unverified_until_it_is_read(world: MakeWorld) -> None:
    """A rescue reads no copies: they are listed, and the audit that reads them strikes them off or finds them wrong."""
    (us,) = await world("us eu", proxy_storage=True)
    database = us.registry.database
    await us.push_image("a/b", "v1", b"one")
    await flush(us)
    (row,) = await us.rows("SELECT p.key FROM placement p JOIN blob b ON b.id = p.blob_id WHERE b.size = 3")
    engine = us.engines["us"].inner
    await engine.delete(row["key"])
    await engine.put(row["key"], b"bad")
    await lose_the_database(us)
    report, _ = await run(us)
    assert (report.unverified, report.lost) == (2, 0)
    audit = await verify_location(database, us.engines["us"], "us", AuditSettings(), us.node.ledger.mark_suspect)
    assert audit.bad == 1
    assert [row["key"] for row in await us.rows("SELECT key FROM unverified_copy")] == [row["key"]]


async def test_what_no_store_holds_is_named(world: MakeWorld) -> None:
    """Visibility, quotas, immutable tags, webhooks and accounts do not come back, and the report names each of them."""
    (us,) = await world("us eu", proxy_storage=True)
    database = us.registry.database
    await us.push_image("a/b", "v1", b"one")
    assert await set_visibility(database, "a/b", public=True)
    assert await create_user(database, "alice", "no hash", superuser=False)
    await write_quota(database, "a", reject=1 << 30, warn=None)
    await flush(us)
    await lose_the_database(us)
    await run(us)
    assert await tags(us) != {}
    assert await is_public(database, "a/b") is False
    assert (await us.rows("SELECT quota_reject FROM namespace WHERE name = 'a'")) == [{"quota_reject": None}]
    assert await us.rows("SELECT name FROM account") == []
    said = "; ".join(NOT_KNOWN)
    for kind in (
        "accounts",
        "permissions",
        "default permissions",
        "comes back private",
        "quotas",
        "immutable",
        "webhooks",
        "audit log",
        "application tokens",
    ):
        assert kind in said


async def test_nodes_must_not_run(world: MakeWorld, database: Database) -> None:
    """A rescue refuses while a node lives on the database: it would have marked the stores anew."""
    (us,) = await world("us eu")
    await lose_the_database(us)
    await us.node.ledger.heartbeat()
    with pytest.raises(NotEmpty, match="stop them"):
        await run(us)


async def test_a_location_is_not_drained_by_copies_that_were_only_seen(world: MakeWorld) -> None:
    """What a rescue took from the journals was made some time ago, and nobody has read it since: it proves nothing."""
    (us,) = await world("us eu", proxy_storage=True)
    database = us.registry.database
    await us.push_image("a/b", "v1", b"one")
    await copy_everything(us)
    await set_state(database, "eu", LocationState.DRAINING)
    await seal(database)
    assert await writer(us).write("us")
    await lose_the_database(us)
    report, findings = await run(us)
    assert (report.lost, report.unverified) == (0, 4), findings
    assert await note_drained(database) == []
    assert (await remove_location(database, "eu")).outcome is Change.ONLY_COPIES
    audit = await verify_location(database, us.engines["us"], "us", AuditSettings(), us.node.ledger.mark_suspect)
    assert audit.findings == ()
    assert await note_drained(database) == ["eu"]


async def test_a_push_replaces_a_copy_that_was_only_seen(world: MakeWorld) -> None:
    """Bytes that have just come are not thrown away for some that nobody has read since a rescue."""
    (us,) = await world("us", proxy_storage=True)
    database = us.registry.database
    await us.push_image("a/b", "v1", b"one")
    await flush(us)
    (row,) = await us.rows("SELECT p.key FROM placement p JOIN blob b ON b.id = p.blob_id WHERE b.size = 3")
    engine = us.engines["us"].inner
    await engine.put(row["key"], b"bad")
    await lose_the_database(us)
    report, _ = await run(us)
    assert report.unverified == 2
    digest = await us.push_blob("a/b", b"one")
    await us.forget_everything()
    assert (await us.ask("GET", f"/v2/a/b/blobs/{digest}")).body == b"one"
    assert len(await us.rows("SELECT * FROM unverified_copy")) == 1
    assert row["key"] in {dead["key"] for dead in await us.rows("SELECT key FROM dead_object")}
    audit = await verify_location(database, us.engines["us"], "us", AuditSettings(), us.node.ledger.mark_suspect)
    assert audit.bad == 0
