"""What a refused push leaves behind: no repository that was not there before."""

import json
import secrets
from collections.abc import Awaitable, Callable

import pytest
import trio
from attrs import evolve

from node.auth.changes import ACCESS_CHANGED
from node.auth.model import Role
from node.push.reading import OCI_MANIFEST
from node.records.collect import pause, resume
from node.records.immutability import write_patterns
from node.records.manifests import ManifestFacts
from node.records.permissions import (
    Grantee,
    Granting,
    create_repository,
    remove_permission,
    set_permission,
    set_visibility,
    settle_new_repositories,
    unmake_repository,
)
from node.records.policies import write_policy
from node.records.postgres import Database
from node.records.replay import restore_manifest
from node.records.uploads import expire_uploads
from replication.policy import parse_policy
from tests.auth.people import ROLES, Person, bearing, settled, token_for
from tests.collection.held import held_transaction, wait_until_one_waits
from tests.registry.world import MakeWorld, Region, Reply, digest_of, image, until

LAYER = secrets.token_bytes(1000)
CREATOR = Person("creator")


async def repositories(us: Region) -> set[str]:
    return {row["name"] for row in await us.rows("SELECT name FROM repository")}


async def post(us: Region, repository: str, person: Person | None = None, body: bytes = LAYER) -> Reply:
    path = f"/v2/{repository}/blobs/uploads/?digest={digest_of(LAYER)}"
    return await us.ask("POST", path, body, person.basic if person else {})


async def refuse_by_crowd(us: Region) -> None:
    us.registry.settings = evolve(us.registry.settings, maximum_uploads_per_namespace=1)
    await us.rows(
        "INSERT INTO upload (id, repository_id, location_id, key, reserved_key, algorithm, expires_at, opened_in) "
        "SELECT gen_random_uuid(), r.id, l.id, 'k', 'r', 'sha256', now() + interval '1 hour', r.namespace_id "
        "FROM repository r, location l WHERE r.name = 'private/app'"
    )


async def refuse_by_quota(us: Region) -> None:
    us.node.settings = evolve(us.node.settings, default_quota=500)


async def refuse_by_policy(us: Region) -> None:
    await write_policy(us.registry.database, "private", parse_policy({"never": ["us"]}, ["us", "eu"]))


REFUSALS = {429: refuse_by_crowd, 403: refuse_by_quota, 503: refuse_by_policy}


@pytest.mark.parametrize("status", REFUSALS)
async def test_a_refused_upload_makes_no_repository(us: Region, status: int) -> None:
    """An upload that finds its namespace crowded, full, or forbidden leaves things as they were; so does a mount before it."""
    await us.push_blob("private/app", b"x" * 600)
    await us.push_blob("other/app", LAYER)
    await REFUSALS[status](us)
    assert (await post(us, "private/new")).status == status
    for source in ("other/app", "nowhere/app"):
        mount = f"mount={digest_of(b'absent')}&from={source}&digest={digest_of(LAYER)}"
        reply = await us.ask("POST", f"/v2/private/new/blobs/uploads/?{mount}", LAYER)
        assert reply.status == status
    assert await repositories(us) == {"private/app", "other/app"}
    assert (await us.ask("POST", f"/v2/fresh/new/blobs/uploads/?mount={digest_of(LAYER)}&from=other/app")).status == 201
    assert await repositories(us) == {"private/app", "other/app", "fresh/new"}


async def test_the_default_quota_counts_for_a_namespace_that_is_not_there_yet(us: Region) -> None:
    """What is announced and cannot fit is refused before its bytes are sent, and makes no namespace; what fits is taken."""
    us.node.settings = evolve(us.node.settings, default_quota=500)
    path = f"/v2/brand/new/blobs/uploads/?digest={digest_of(LAYER)}"
    refused = await us.ask("POST", path, LAYER, {"content-length": str(len(LAYER))})
    assert refused.failure == (403, "DENIED")
    assert b"holds 0 B" in refused.body
    assert await us.rows("SELECT FROM namespace WHERE name = 'brand'") == []
    assert await us.rows("SELECT FROM dead_object") == [], "no byte of it went to a store"
    data = b"x" * 500
    assert (await us.ask("POST", f"/v2/brand/new/blobs/uploads/?digest={digest_of(data)}", data)).status == 201


@pytest.mark.parametrize("status", REFUSALS)
async def test_a_refused_upload_by_somebody_makes_no_repository(world: MakeWorld, status: int) -> None:
    """With accounts, where the repository is made before the push, it goes again; the next push that is taken makes it whole."""
    (us,) = await settled(world)
    before = await repositories(us)
    creator, owner, data = ROLES["creator"], ROLES["organisation's admin"], b"x" * 600
    assert creator is not None
    assert owner is not None
    settings, limits = us.registry.settings, us.node.settings
    path = f"/v2/private/app/blobs/uploads/?digest={digest_of(data)}"
    assert (await us.ask("POST", path, data, owner.basic)).status == 201
    await REFUSALS[status](us)
    assert (await post(us, "private/new", creator)).status == status
    assert await repositories(us) == before
    us.registry.settings, us.node.settings = settings, limits
    await write_policy(us.registry.database, "private", parse_policy({}, ["us"]))
    assert (await post(us, "private/new", creator)).status == 201
    assert await us.rows(
        "SELECT a.name, p.role FROM permission p JOIN account a ON a.id = p.account_id "
        "JOIN repository r ON r.id = p.repository_id WHERE r.name = 'private/new'"
    ) == [{"name": "creator", "role": 3}]


async def test_what_else_is_refused_makes_no_repository(world: MakeWorld) -> None:
    """Wrong bytes, a manifest without its blobs, and uploads that are not there leave no repository to whoever may make some."""
    (us,) = await settled(world)
    before = await repositories(us)
    creator = ROLES["creator"]
    assert creator is not None
    assert (await post(us, "private/new", creator, b"other bytes")).failure == (400, "DIGEST_INVALID")
    headers = {**creator.basic, "content-type": OCI_MANIFEST}
    body = json.dumps(image(b"config", b"layer")).encode()
    reply = await us.ask("PUT", "/v2/private/new/manifests/v1", body, headers)
    assert reply.failure == (404, "MANIFEST_BLOB_UNKNOWN")
    upload = "/v2/private/new/blobs/uploads/00000000-0000-0000-0000-000000000000"
    for method in ("GET", "PATCH", "PUT"):
        reply = await us.ask(method, f"{upload}?digest={digest_of(LAYER)}", headers=creator.basic)
        assert reply.failure == (404, "BLOB_UPLOAD_UNKNOWN")
    assert await repositories(us) == before
    # Tokens that were given out while it was there count for what it becomes.
    assert (await us.ask("POST", "/v2/private/new/blobs/uploads/", headers=creator.basic)).status == 202
    assert await repositories(us) == {*before, "private/new"}


async def test_an_upload_that_comes_to_nothing_takes_its_repository_along(us: Region) -> None:
    """Accepted and then refused for its bytes, cancelled, or forgotten: a repository that was there only for it goes again."""
    whole = f"/v2/a/whole/blobs/uploads/?digest={digest_of(LAYER)}"
    assert (await us.ask("POST", whole, b"other bytes")).failure == (400, "DIGEST_INVALID")
    assert await repositories(us) == set()
    upload = await us.start_upload("a/put")
    assert (await us.ask("PUT", f"{upload}&digest={digest_of(LAYER)}", b"other bytes")).failure == (
        400,
        "DIGEST_INVALID",
    )
    assert await repositories(us) == set()
    assert (await us.ask("DELETE", await us.start_upload("a/cancelled"))).status == 204
    assert await repositories(us) == set()
    await us.start_upload("a/forgotten")
    await us.rows("UPDATE upload SET expires_at = now()")
    assert await expire_uploads(us.registry.database) == 1
    assert await repositories(us) == set()
    assert await us.rows("SELECT count(*) AS n FROM dead_object") != [{"n": 0}]


async def begin(us: Region, repository: str) -> str:
    """Begin an upload as the creator."""
    reply = await us.ask("POST", f"/v2/{repository}/blobs/uploads/", headers=CREATOR.basic)
    assert reply.status == 202, reply.body
    return str(reply.headers["location"])


async def finish(us: Region, upload: str, body: bytes = LAYER) -> Reply:
    return await us.ask("PUT", f"{upload}&digest={digest_of(LAYER)}", body, CREATOR.basic)


async def cancel(us: Region, upload: str) -> None:
    assert (await us.ask("DELETE", upload, headers=CREATOR.basic)).status == 204


async def forget(us: Region, _upload: str) -> None:
    await us.rows("UPDATE upload SET expires_at = now()")
    assert await expire_uploads(us.registry.database) == 1


async def send_wrong_bytes(us: Region, upload: str) -> None:
    assert (await finish(us, upload, b"other bytes")).failure == (400, "DIGEST_INVALID")


@pytest.mark.parametrize("end", [cancel, forget, send_wrong_bytes])
async def test_an_upload_of_somebody_that_comes_to_nothing_takes_its_repository_along(
    world: MakeWorld, end: Callable[[Region, str], Awaitable[None]]
) -> None:
    """With accounts, too, the last one of several does, after a while in which its client may try again."""
    (us,) = await settled(world)
    database, before = us.registry.database, await repositories(us)
    first, second = await begin(us, "private/new"), await begin(us, "private/new")
    await cancel(us, first)
    assert await settle_new_repositories(database, 0, 100) == 0
    await us.rows("UPDATE repository SET made_for_push = now() - interval '1 hour' WHERE made_for_push IS NOT NULL")
    await end(us, second)
    assert await settle_new_repositories(database, 60, 100) == 0
    assert await repositories(us) == {*before, "private/new"}
    assert await settle_new_repositories(database, 0, 100) == 1
    assert await repositories(us) == before


async def test_whoever_makes_it_again_by_a_token_has_the_same_rights(world: MakeWorld) -> None:
    """A node that has made a repository for a token makes it again for the next one, with its creator's permission."""
    (us,) = await settled(world)
    path, scope = "/v2/private/new/blobs/uploads/", "repository:private/new:pull,push"
    old = bearing(await token_for(us, CREATOR, scope))
    await cancel(us, str((await us.ask("POST", path, headers=old)).headers["location"]))
    assert await settle_new_repositories(us.registry.database, 0, 100) == 1
    us.registry.access.heard(ACCESS_CHANGED)

    async def refused() -> bool:
        return (await us.ask("GET", "/v2/private/new/tags/list", headers=old)).status == 401

    await until(refused)
    assert (await us.ask("POST", path, headers=bearing(await token_for(us, CREATOR, scope)))).status == 202
    assert await us.rows(
        "SELECT a.name, p.role FROM permission p JOIN account a ON a.id = p.account_id "
        "JOIN repository r ON r.id = p.repository_id WHERE r.name = 'private/new'"
    ) == [{"name": "creator", "role": 3}]


async def give(database: Database, role: Role = Role.READ) -> None:
    assert await set_permission(database, "private/new", Grantee("reader"), role) is Granting.DONE


async def change(database: Database) -> None:
    assert await set_permission(database, "private/new", Grantee("creator"), Role.WRITE) is Granting.DONE


async def take(database: Database) -> None:
    await give(database)
    assert await remove_permission(database, "private/new", Grantee("reader")) is Granting.DONE


async def show(database: Database) -> None:
    assert await set_visibility(database, "private/new", public=False)


async def fix(database: Database) -> None:
    assert await write_patterns(database, "private", "private/new", [("v*", "^v.*$")])


@pytest.mark.parametrize("act", [give, change, take, show, fix])
async def test_a_repository_that_somebody_did_something_to_stays(
    world: MakeWorld, act: Callable[[Database], Awaitable[None]]
) -> None:
    """A permission given, changed or taken, its visibility, or a rule for its tags: its upload comes to nothing, and it stays."""
    (us,) = await settled(world)
    upload = await begin(us, "private/new")
    await act(us.registry.database)
    await cancel(us, upload)
    assert await settle_new_repositories(us.registry.database, 0, 100) == 0
    assert not await unmake_repository(us.registry.database, "private/new")
    assert "private/new" in await repositories(us)


async def test_a_permission_given_while_the_repository_goes(world: MakeWorld, migrated_uri: str) -> None:
    """A permission that is being given when the repository is about to go keeps it."""
    (us,) = await settled(world)
    database = us.registry.database
    await cancel(us, await begin(us, "private/new"))
    async with trio.open_nursery() as nursery, held_transaction(migrated_uri) as held:
        await give(held)
        nursery.start_soon(settle_new_repositories, database, 0, 100)
        await wait_until_one_waits(database)
    assert "private/new" in await repositories(us)


async def test_a_repository_whose_upload_never_began_goes(world: MakeWorld) -> None:
    """The node died in between: the janitor takes it back; one that has something is not looked at again, even when it is empty."""
    (us,) = await settled(world)
    database = us.registry.database
    before = await repositories(us)
    for name in ("private/died", "private/pushed", "private/busy"):
        await create_repository(database, name, "library", "creator", for_push=True)
    assert (await finish(us, await begin(us, "private/pushed"))).status == 201
    upload = await begin(us, "private/busy")
    assert await settle_new_repositories(database, 60, 100) == 0
    assert await settle_new_repositories(database, 0, 100) == 2
    assert await repositories(us) == {*before, "private/pushed", "private/busy"}
    await us.rows("DELETE FROM repository_blob")
    await cancel(us, await begin(us, "private/pushed"))
    await cancel(us, upload)
    assert await settle_new_repositories(database, 0, 100) == 1
    assert await repositories(us) == {*before, "private/pushed"}


async def test_only_the_last_of_several_uploads_takes_the_repository_along(us: Region) -> None:
    """Those beside it keep it, and so does one that was finished: then it stays, however many come to nothing later."""
    first, second = await us.start_upload("a/app"), await us.start_upload("a/app")
    assert (await us.ask("DELETE", first)).status == 204
    assert await repositories(us) == {"a/app"}
    third = await us.start_upload("a/app")
    assert (await us.ask("DELETE", second)).status == 204
    assert await repositories(us) == {"a/app"}
    assert (await us.ask("DELETE", third)).status == 204
    assert await repositories(us) == set()
    first, second = await us.start_upload("a/app"), await us.start_upload("a/app")
    assert (await us.ask("PUT", f"{first}&digest={digest_of(LAYER)}", LAYER)).status == 201
    assert (await us.ask("DELETE", second)).status == 204
    assert await repositories(us) == {"a/app"}
    # One that was there before is somebody's, also when it is empty.
    await us.rows("DELETE FROM repository_blob")
    assert (await us.ask("DELETE", await us.start_upload("a/app"))).status == 204
    assert await repositories(us) == {"a/app"}


async def test_what_somebody_uses_stays(us: Region) -> None:
    """A repository with an upload, a blob or a manifest is not taken back."""
    database = us.registry.database
    await us.start_upload("a/upload")
    await us.push_blob("a/blob", LAYER)
    await us.push_image("a/image", "v1", LAYER)
    for name in ("a/upload", "a/blob", "a/image", "a/nothing"):
        assert not await unmake_repository(database, name)
    assert await repositories(us) == {"a/upload", "a/blob", "a/image"}
    await us.rows("DELETE FROM upload")
    assert await unmake_repository(database, "a/upload")
    assert await repositories(us) == {"a/blob", "a/image"}


async def test_what_was_refused_stays_while_collection_is_paused(world: MakeWorld) -> None:
    """An older database may know less of the repository than the journals, which would take it for deleted; afterwards it goes."""
    (us,) = await settled(world)
    database, creator = us.registry.database, ROLES["creator"]
    before = await repositories(us)
    await refuse_by_policy(us)
    await pause(database)
    assert (await post(us, "private/new", creator)).status == 503
    assert await settle_new_repositories(database, 0.0, 10) == 0
    assert not await unmake_repository(database, "private/new")
    assert await repositories(us) == {*before, "private/new"}
    assert await us.rows("SELECT name FROM journal_entry WHERE kind = 'repository'") == []
    assert await resume(database)
    assert await settle_new_repositories(database, 0.0, 10) == 1
    assert await repositories(us) == before


async def test_what_a_repair_brings_back_stays_while_somebody_takes_its_repository_back(
    us: Region, migrated_uri: str
) -> None:
    """Also where collection was paused only while that one waited for the repository: whoever restores something makes it anew."""
    database = us.registry.database
    assert await create_repository(database, "a/b", "library", "", for_push=True)
    async with trio.open_nursery() as nursery, held_transaction(migrated_uri) as held:
        await held.fetch("SELECT FROM repository WHERE name = 'a/b' FOR UPDATE")
        nursery.start_soon(unmake_repository, database, "a/b")
        await wait_until_one_waits(database)
        await pause(database)
        facts = ManifestFacts(digest_of(b"m"), OCI_MANIFEST, b"m", (digest_of(b"layer"),))
        nursery.start_soon(restore_manifest, database, "a/b", "library", facts, {digest_of(b"layer"): 5}, 1.0)
        await wait_until_one_waits(database, 2)
    rows = await us.rows("SELECT r.name FROM repository_manifest rm JOIN repository r ON r.id = rm.repository_id")
    assert rows == [{"name": "a/b"}]
    words = await us.rows(
        "SELECT kind, fact IS NULL AS gone FROM journal_entry WHERE kind IN ('repository', 'link') ORDER BY at, id"
    )
    assert (words[-1]["kind"], words[-1]["gone"]) == ("link", False)
