"""Transactions that come to the same rows come to them in one order: then they wait for each other, and never in a circle."""

from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID, uuid4

import pytest
import trio

from node.auth.memberships import Bound
from node.auth.model import Role
from node.records.accounts import delete_account
from node.records.audit import clear_suspicion
from node.records.auditlog import Line
from node.records.blobs import commit_blob, mount_blob, unlink_blob
from node.records.closures import ask_for_copies, move_tags
from node.records.collect import CollectRules, collect_batch, expire_history
from node.records.history import relink_closure
from node.records.immutability import write_patterns
from node.records.ledger import PostgresLedger
from node.records.locations import note_drained, purge_removed
from node.records.manifests import CompiledTags, ManifestFacts, commit_manifest, delete_manifest, delete_tag
from node.records.members import Membership, default_locations, enrol_locations
from node.records.permissions import Grantee, set_permission
from node.records.postgres import Database
from node.records.removal import delete_repository
from node.records.repair import adopt_object
from node.records.replay import forget_gone_copies
from node.records.team_sync import Step, bind_team, take_steps
from node.records.teams import delete_team
from node.records.unstored import note_manifests
from node.records.uploads import Choice, begin_upload, cancel_upload, expire_uploads
from node.records.webhooks import redeliver
from replication.model import LocationState
from replication.upload_state import UploadState
from tests.circles import NAMESPACE, Half, check
from tests.collection.held import held_transaction, wait_until_one_waits
from tests.replication.conftest import world
from tests.replication.world import World, digest_of

__all__ = ["world"]

_UPLOAD = UUID(int=7)
_NOW = CollectRules(grace=0, retention=0, tag_expiration=0)


def ledger(database: Database) -> PostgresLedger:
    return PostgresLedger(database=database, member=Membership(UUID(int=1), ("us",), ("us",), "test"))


async def commit(world: World) -> object:
    return await commit_blob(
        world.database,
        "team/a",
        _UPLOAD,
        1,
        digest=digest_of("new"),
        size=1,
        pieces=None,
        key="new.us",
        leftovers=(),
        replicate=True,
    )


async def put(world: World) -> object:
    facts = ManifestFacts(digest_of("manifest m1"), "x", b"x", (digest_of("b1"),))
    return await commit_manifest(world.database, "team/a", "library", facts, CompiledTags(("t",)), sparse=False)


async def mount(world: World, to: str = "team/a") -> object:
    return await mount_blob(world.database, to, "library", "other/b", digest_of("b3"), replicate=True)


async def step(world: World) -> object:
    row = await world.database.fetch_row(
        "SELECT t.id AS team, a.id AS account FROM team t, account a WHERE a.name = 'ann'"
    )
    assert row is not None
    steps = [Step(Bound(row["team"], "team", "crew", "crew"), row["account"], True, Line("team"))]
    return await take_steps(world.database, "ldap", steps)


async def forget(world: World) -> object:
    await world.database.fetch("INSERT INTO journal_fact (kind, name, at, seq) VALUES ('copy', 'us b1.us', 1, 1)")
    return await forget_gone_copies(world.database)


_REPOSITORY = "SELECT FROM repository WHERE name = 'team/a' FOR UPDATE"
_B1 = "(SELECT id FROM blob WHERE size = 1001)"
_BLOB = f"SELECT FROM blob WHERE id = {_B1} FOR UPDATE"
_COPY = f"SELECT FROM placement WHERE blob_id = {_B1} FOR UPDATE"
_LINKS = "SELECT FROM repository_blob FOR UPDATE"
_TAG = "SELECT FROM tag FOR UPDATE"
_TASKS = "SELECT FROM task t WHERE t.blob_id {} (SELECT min(blob_id) FROM task) FOR UPDATE"
_OBJECTS = "SELECT FROM manifest_object WHERE manifest_id {} (SELECT min(manifest_id) FROM manifest_object) FOR UPDATE"
_EMPTIED = "SELECT FROM location WHERE name = '{}' FOR NO KEY UPDATE"
_TEAM = "SELECT FROM team FOR UPDATE"
_SYNC = "SELECT FROM team_sync FOR UPDATE"
_GIVEN = "SELECT FROM permission FOR UPDATE"
_TOLD = "SELECT FROM delivery WHERE id {} (SELECT min(id) FROM delivery) FOR UPDATE"

HALVES = {
    "a repository is deleted while an upload ends": Half(_REPOSITORY, commit, "SELECT FROM upload FOR UPDATE"),
    "a namespace is deleted while an upload ends": Half(NAMESPACE, commit, _REPOSITORY),
    "a namespace is deleted while a blob is mounted": Half(NAMESPACE, mount, _REPOSITORY),
    "a namespace is deleted while a blob is unlinked": Half(
        NAMESPACE, lambda w: unlink_blob(w.database, "team/a", digest_of("b2")), _LINKS
    ),
    "a namespace is deleted while an image is linked again": Half(
        NAMESPACE,
        lambda w: relink_closure(w.database, "team/a", digest_of("manifest m1"), {}, replicate=True),
        _REPOSITORY,
    ),
    "a repository is deleted while an upload is cancelled": Half(
        _REPOSITORY, lambda w: cancel_upload(w.database, "team/a", _UPLOAD), "SELECT FROM upload FOR UPDATE"
    ),
    "a repository is deleted while a manifest is pushed": Half(_REPOSITORY, put, _LINKS),
    "a repository is deleted while a tag is deleted": Half(
        _REPOSITORY, lambda w: delete_tag(w.database, "team/a", "t"), _TAG
    ),
    "a repository is deleted while a tag moves": Half(
        _REPOSITORY,
        lambda w: move_tags(w.database, "team/a", digest_of("manifest m2"), CompiledTags(("t",))),
        _TAG,
    ),
    "a repository is deleted while a manifest is deleted": Half(
        _REPOSITORY, lambda w: delete_manifest(w.database, "team/a", digest_of("manifest m1")), _TAG
    ),
    "a manifest is deleted while it is pushed again": Half("SELECT FROM repository_manifest FOR UPDATE", put, _TAG),
    "a blob is collected while its copy is distrusted": Half(
        _BLOB, lambda w: ledger(w.database).mark_suspect(w.blobs["b1"], "us", "b1.us", "bad"), _COPY
    ),
    "a blob is collected while its copy is trusted again": Half(
        _BLOB.replace("1001", "1004"),
        lambda w: clear_suspicion(w.database, w.blobs["b4"], "us", "b4.us"),
        _COPY.replace("1001", "1004"),
    ),
    "a blob is collected while its copy is replaced": Half(
        _BLOB.replace("1001", "1004").replace("UPDATE", "NO KEY UPDATE"),
        lambda w: adopt_object(w.database, w.blobs["b4"], "us", "other"),
        _COPY.replace("1001", "1004"),
    ),
    "a blob is collected while copies of it are asked for": Half(
        _BLOB,
        lambda w: ask_for_copies(w.database, "team/a", digest_of("manifest m1"), locations=["eu", "ap"], keep={}),
        _TASKS.format("<>"),
    ),
    "copies are finished while their leases are renewed": Half(
        _TASKS.format("="),
        lambda w: ledger(w.database).renew(["lease of b2 ap", "lease of b1 ap"], 9),
        _TASKS.format("<>"),
    ),
    "copies are finished while they are handed back": Half(
        _TASKS.format("="),
        lambda w: ledger(w.database).hand_back(["lease of b2 ap", "lease of b1 ap"]),
        _TASKS.format("<>"),
    ),
    "manifests go while a store has just got them": Half(
        _OBJECTS.format("="), lambda w: note_manifests(w.database, "us", ["k2", "k1"]), _OBJECTS.format("<>")
    ),
    "locations change while they are drained": Half(
        _EMPTIED.format("us"), lambda w: note_drained(w.database), _EMPTIED.format("eu")
    ),
    "a namespace is deleted while a copy is forgotten": Half(NAMESPACE, forget, _REPOSITORY),
    "a repository is deleted while a copy in it is forgotten": Half(_REPOSITORY, forget, _LINKS),
    "a blob is collected while its copy is forgotten": Half(_BLOB, forget, _COPY),
    "a blob is linked twice at once": Half(
        "INSERT INTO repository_blob (repository_id, blob_id) SELECT r.id, b.id FROM repository r, blob b "
        "WHERE r.name = 'team/a' AND b.size = 1003",
        mount,
        "INSERT INTO task (blob_id, location_id, size) SELECT b.id, l.id, 1 FROM blob b, location l "
        "WHERE b.size = 1003 AND l.name = 'us'",
    ),
    "a repository is deleted while somebody may do less there": Half(
        _REPOSITORY,
        lambda w: set_permission(w.database, "team/a", Grantee("ann"), Role.READ),
        _GIVEN,
    ),
    "a repository is deleted while its tags become mutable": Half(
        _REPOSITORY,
        lambda w: write_patterns(w.database, "team", "team/a", []),
        "SELECT FROM immutable_pattern FOR UPDATE",
    ),
    "a repository is deleted while a team of it is": Half(
        _REPOSITORY, lambda w: delete_team(w.database, "team", "crew"), _GIVEN
    ),
    "a repository is deleted while somebody's account is": Half(
        _REPOSITORY, lambda w: delete_account(w.database, "ann"), _GIVEN
    ),
    "a team is deleted while people come into it": Half(_TEAM, step, _SYNC),
    "a team is deleted while another group decides it": Half(
        _TEAM, lambda w: bind_team(w.database, "team", "crew", "ldap", "others"), _SYNC
    ),
    "events are forgotten while they are told again": Half(
        _TOLD.format("="), lambda w: redeliver(w.database, None, "hook", None), _TOLD.format("<>")
    ),
}


@pytest.fixture
async def full(world: World) -> World:
    """Two images in a repository that a push made, with an upload, copies under way, a copy in doubt, and all that is said of them.

    Rows are as a table has them after a while: the later ones first.
    """
    for number, placed in (("2", {"us": "present"}), ("1", {"us": "present"}), ("4", {"us": "suspect"})):
        await world.blob(f"b{number}", ["team/a"], placed, 1000 + int(number))
    await world.blob("b3", ["other/b"], ["ap"], 1003)
    await world.manifest("m1", "team/a", blobs=["b1"], tag="t")
    await world.manifest("m2", "team/a", blobs=["b1"])
    # The first blob has the lower number, and its task comes second.
    for name in sorted(("b1", "b2"), key=lambda name: -world.blobs[name]):
        await world.owe(name, "ap", leased=True)
    for sql in (
        "UPDATE repository SET made_for_push = now()",
        (
            "INSERT INTO manifest_object (location_id, repository_id, manifest_id, key) "
            "SELECT l.id, rm.repository_id, rm.manifest_id, "
            "'k' || row_number() OVER (ORDER BY rm.manifest_id DESC) FROM location l, repository_manifest rm WHERE l.name = 'us' "
            "ORDER BY rm.manifest_id DESC"
        ),
        "INSERT INTO webhook (name, url, secret, events) VALUES ('hook', 'x', '', '{}')",
        (
            "INSERT INTO delivery (webhook_id, event_id, kind, subject, data, dead_at) OVERRIDING SYSTEM VALUE "
            "SELECT id, gen_random_uuid(), 'x', 'x', '{}', now() FROM webhook, generate_series(1, 2)"
        ),
        "UPDATE delivery SET attempts = 1 WHERE id = (SELECT min(id) FROM delivery)",
        # Which way the planner takes is its own affair.
        "DROP INDEX delivery_page, delivery_due",
        "INSERT INTO account (name, kind) VALUES ('ann', 'user'), ('team', 'organization')",
        "INSERT INTO team (organization_id, name) SELECT id, 'crew' FROM account WHERE name = 'team'",
        "INSERT INTO team_member (team_id, account_id) SELECT t.id, a.id FROM team t, account a WHERE a.name = 'ann'",
        "INSERT INTO team_sync (team_id, service, group_name) SELECT id, 'ldap', 'crew' FROM team",
        (
            "INSERT INTO permission (repository_id, account_id, role) SELECT r.id, a.id, 3 FROM repository r, account a "
            "WHERE r.name = 'team/a' AND a.name = 'ann'"
        ),
        (
            "INSERT INTO permission (repository_id, team_id, role) SELECT r.id, t.id, 3 FROM repository r, team t "
            "WHERE r.name = 'team/a'"
        ),
        (
            "INSERT INTO immutable_pattern (namespace_id, repository_id, pattern, expression) "
            "SELECT namespace_id, id, 'v*', '^v' FROM repository WHERE name = 'team/a'"
        ),
        "UPDATE repository SET made_for_push = now()",
        "DELETE FROM default_location",
        "INSERT INTO default_location SELECT id FROM location WHERE name IN ('us', 'eu') ORDER BY id DESC",
        "UPDATE location SET emptying_since = now() WHERE name = 'us'",
    ):
        await world.database.fetch(sql)
    choice = Choice("us", UploadState("new.us", "new.us.tail", "sha256"))
    assert await begin_upload(world.database, "team/a", "library", _UPLOAD, [choice], 3600.0)
    return world


@pytest.mark.parametrize("circle", HALVES)
async def test_who_waits_has_not_what_the_other_comes_to_next(full: World, database_uri: str, circle: str) -> None:
    """No two transactions wait for each other."""
    half = HALVES[circle]
    if "drained" in circle:
        for at in ("eu", "us"):
            await full.state(at, LocationState.DRAINING)
        await full.database.fetch("DELETE FROM placement")
    await check(half, full, database_uri)


async def dead_node(world: World) -> object:
    return await ledger(world.database).heartbeat()


async def collect(world: World) -> object:
    return (await collect_batch(world.database, "manifest link", _NOW)).removed


ASIDE = {
    "a repository's manifests are deleted and collected": (
        (
            "SELECT note_garbage('blob link', array_agg(r.id), array_agg(b.id)) FROM "
            "(SELECT id FROM repository WHERE name = 'team/a' FOR NO KEY UPDATE) r, blob b"
        ),
        collect,
        (),
    ),
    "uploads expire in a repository that is being deleted": (_REPOSITORY, lambda w: expire_uploads(w.database), 0),
    "history ends in a repository where a manifest is deleted": (
        _REPOSITORY,
        lambda w: expire_history(w.database, _NOW),
        0,
    ),
    "copies of a removed location go while their blobs are collected": (
        "SELECT FROM blob FOR UPDATE",
        lambda w: purge_removed(w.database),
        0,
    ),
    "nodes that both were silent for long forget each other": ("SELECT FROM node FOR UPDATE", dead_node, None),
}


@pytest.mark.parametrize("circle", ASIDE)
async def test_what_somebody_has_is_left_to_the_next_look(full: World, database_uri: str, circle: str) -> None:
    """Who cleans up waits for nobody."""
    has, does, expected = ASIDE[circle]
    for sql in (
        "DELETE FROM tag",
        "UPDATE upload SET expires_at = now() - interval '1 minute'",
        "UPDATE garbage SET since = now() - interval '1 hour'",
        "DELETE FROM task",
        (
            "INSERT INTO node (id, preference, defaults, version, seen_at) "
            "VALUES (gen_random_uuid(), '{}', '{}', 'test', now() - interval '9 days')"
        ),
    ):
        await full.database.fetch(sql)
    if "removed location" in circle:
        await full.state("us", LocationState.REMOVED)
        await full.database.fetch("DELETE FROM manifest_object")
    async with held_transaction(database_uri) as held:
        await held.fetch(has)
        with trio.fail_after(4):
            found: Any = await does(full)
        if expected is not None:
            assert found == expected


@pytest.mark.parametrize(("table", "forget"), [("upload", expire_uploads), ("tag_history", expire_history)])
async def test_what_is_left_to_the_next_look_is_not_held(
    full: World, database_uri: str, table: str, forget: Callable[..., Awaitable[int]]
) -> None:
    """Who passes over what somebody has does not keep that from what goes with it."""
    await full.database.fetch("DELETE FROM tag")
    await full.database.fetch("UPDATE upload SET expires_at = now() - interval '1 minute'")
    rules = () if forget is expire_uploads else (_NOW,)
    async with held_transaction(database_uri) as held, held_transaction(database_uri) as janitor:
        await held.fetch("SET LOCAL lock_timeout = '200ms'")
        await held.fetch(_REPOSITORY)
        assert await forget(janitor, *rules) == 0
        assert await held.fetch(f"SELECT FROM {table} FOR UPDATE")


async def test_sums_of_a_namespace_wait_for_nobody(full: World, database_uri: str) -> None:
    """However many push into a namespace and delete from it at once, none waits for the others' sums, and their sum is right."""
    async with held_transaction(database_uri) as held:
        assert await held.fetch("SELECT FROM namespace_usage FOR UPDATE")
        with trio.fail_after(4):
            assert await delete_repository(full.database, "team/a")
            await mount(full, "team/new")
    rows = await full.database.fetch(
        "SELECT n.name, sum(u.blobs)::int AS blobs, sum(u.bytes)::int AS bytes FROM namespace_usage u "
        "JOIN namespace n ON n.id = u.namespace_id GROUP BY 1 ORDER BY 1"
    )
    assert [tuple(row.values()) for row in rows] == [("other", 1, 1003), ("team", 1, 1003)]


async def test_who_finds_a_namespace_just_made_holds_nobody_up_in_it(world: World, database_uri: str) -> None:
    """The first uploads into a namespace come together: one makes it, and the others change nothing of it that others refer to."""
    choice = Choice("us", UploadState("k", "k.tail", "sha256"))

    async def begin() -> None:
        await begin_upload(world.database, "fresh/image", "library", uuid4(), [choice], 3600.0)

    async with (
        trio.open_nursery() as nursery,
        held_transaction(database_uri) as maker,
        held_transaction(database_uri) as rival,
    ):
        namespace = await maker.fetch_row("INSERT INTO namespace (name) VALUES ('fresh') RETURNING id")
        nursery.start_soon(begin)
        await wait_until_one_waits(world.database)
        # Somebody who found the namespace is about to refer to it with the same repository.
        await rival.fetch("SET LOCAL session_replication_role = replica")
        await rival.fetch("INSERT INTO repository (namespace_id, name) VALUES ($1, 'fresh/image')", namespace["id"])
        await maker.fetch("COMMIT")
        await wait_until_one_waits(world.database)
        await rival.fetch("SET LOCAL lock_timeout = '200ms'")
        await rival.fetch("SELECT FROM namespace WHERE name = 'fresh' FOR KEY SHARE")
        await rival.fetch("ROLLBACK")


async def test_two_nodes_may_name_their_locations_in_another_order(world: World, database_uri: str) -> None:
    """Nodes that start at once on a new database, each with its own location first, wait for each other and not in a circle."""
    async with trio.open_nursery() as nursery, held_transaction(database_uri) as held:
        await held.fetch("SET LOCAL lock_timeout = '200ms'")
        await enrol_locations(held, ["new 1"], [])
        nursery.start_soon(enrol_locations, world.database, ["new 2", "new 1"], [])
        await wait_until_one_waits(world.database)
        await enrol_locations(held, ["new 2"], [])


async def test_two_nodes_with_different_default_lists_agree_on_the_first(world: World, database_uri: str) -> None:
    """Of nodes that start at once on a new database, whose files differ, the first one's list counts, and no mixture of them."""
    database = world.database
    await database.fetch("DELETE FROM agreed_default")
    await database.fetch("DELETE FROM default_location")
    async with trio.open_nursery() as nursery, held_transaction(database_uri) as held:
        await enrol_locations(held, ["us", "eu", "new 1"], ["us", "new 1"])
        nursery.start_soon(enrol_locations, database, ["eu", "ap", "new 2"], ["ap", "new 2"])
        await wait_until_one_waits(database)
    assert await default_locations(database) == ("us", "new 1")
    (agreed,) = await database.fetch("SELECT names FROM agreed_default")
    assert agreed["names"] == ["us", "new 1"]
    assert "new 2" in await enrol_locations(database, [], [])


async def test_who_finds_no_default_list_makes_one_of_all_that_it_names(world: World, database_uri: str) -> None:
    """Also of locations that another node, which has no list, has enrolled at that moment."""
    database = world.database
    await database.fetch("DELETE FROM default_location")
    async with trio.open_nursery() as nursery, held_transaction(database_uri) as held:
        await enrol_locations(held, ["new 1"], [])
        nursery.start_soon(enrol_locations, database, ["new 1", "new 2"], ["new 1", "new 2"])
        await wait_until_one_waits(database)
    assert await default_locations(database) == ("new 1", "new 2")
