"""Keys that stand for one request only: what one try was refused without the rights is not done by another that had them before."""

import json
from functools import partial
from math import inf
from time import time

import pytest
import trio

from node.auth.changes import ACCESS_CHANGED
from node.auth.held import Held
from node.auth.model import Role
from node.push.reading import OCI_MANIFEST
from node.records.accounts import set_secret
from node.records.closures import move_tags
from node.records.manifests import CompiledTags, delete_manifest, delete_tag
from node.records.permissions import Grantee, remove_permission, set_permission
from node.records.postgres import Database
from node.records.rights import RightsLapsed
from tests.auth.people import Person, bearing, token_for
from tests.auth.test_table import BLOB, CONFIG, IMAGE, filled
from tests.registry.test_once import traces
from tests.registry.world import Body, MakeWorld, Region, Reply, digest_of, image, until

NAME = "private/app"
WRITER, ADMIN = Person("writer"), Person("admin")
STALE = 3600.0
"""Nobody hears by himself what has changed."""
NEW = json.dumps(image(CONFIG, BLOB, annotations={"new": "yes"})).encode()
OLD_DIGEST = digest_of(json.dumps(IMAGE).encode())


async def put(
    region: Region, headers: dict[str, str], key: str | None = "once-1", body: bytes | Body = NEW, to: str = "v1"
) -> Reply:
    keyed = {"content-type": OCI_MANIFEST, **headers, **({} if key is None else {"idempotency-key": key})}
    return await region.ask("PUT", f"/v2/{NAME}/manifests/{to}", body, keyed)


async def delete(region: Region, headers: dict[str, str], key: str, reference: str) -> Reply:
    return await region.ask("DELETE", f"/v2/{NAME}/manifests/{reference}", headers={**headers, "idempotency-key": key})


async def tagged(region: Region) -> str | None:
    headers = {"accept": OCI_MANIFEST, **ADMIN.basic}
    reply = await region.ask("HEAD", f"/v2/{NAME}/manifests/v1", headers=headers)
    return reply.headers.get("docker-content-digest")


async def headers_of(region: Region, how: str) -> dict[str, str]:
    if how == "basic":
        return WRITER.basic
    return bearing(await token_for(region, WRITER, f"repository:{NAME}:pull,push,delete"))


async def take_away(eu: Region) -> None:
    """Take the writer's right away; of the nodes eu alone hears of it."""
    await remove_permission(eu.registry.database, NAME, Grantee("writer"))
    before = eu.registry.access.parts.changes.number  # type: ignore[union-attr]
    eu.registry.access.heard(ACCESS_CHANGED)

    async def heard() -> bool:
        return eu.registry.access.parts.changes.number > before  # type: ignore[union-attr]

    await until(heard)


async def give_back(region: Region) -> None:
    await set_permission(region.registry.database, NAME, Grantee("writer"), Role.WRITE)


@pytest.mark.parametrize("how", ["basic", "token"])
async def test_the_first_comes_late_after_a_right_was_taken(world: MakeWorld, how: str) -> None:
    """A push that stood still while its right was taken, and its repetition refused, stores nothing, also when it is given back."""
    us, eu = await filled(world, "us eu", "eu us", metadata_staleness=STALE)
    before, old = await traces(us), await tagged(us)
    headers = await headers_of(us, how)
    standing = Body(NEW, chunk=len(NEW) // 2, pause_at=len(NEW) // 2)
    found: list[Reply] = []

    async def late() -> None:
        found.append(await put(us, headers, body=standing))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(late)
        await standing.paused.wait()
        await take_away(eu)
        assert (await put(eu, headers)).status == (401 if how == "token" else 403)
        assert await us.rows("SELECT FROM idempotency_key WHERE refused") == []
        await give_back(us)
        standing.go_on.set()
    assert [reply.failure for reply in found] == [(401, "UNAUTHORIZED")]
    assert found[0].headers["www-authenticate"].endswith('error="invalid_token"')
    assert (await traces(us), await tagged(us)) == (before, old)

    async def may_again() -> bool:
        return (await put(eu, WRITER.basic, "once-2")).status == 201

    await until(may_again)
    # The refusal of the late one, which is known to be of somebody, stands for all.
    assert (await put(eu, WRITER.basic)).failure == (409, "DENIED")


@pytest.mark.parametrize("how", ["basic", "token"])
async def test_a_node_that_has_not_heard(world: MakeWorld, how: str) -> None:
    """A node that goes on with old memories does, under such a key, nothing that another node refuses by now."""
    us, eu = await filled(world, "us eu", "eu us", metadata_staleness=STALE)
    headers, old = await headers_of(us, how), await tagged(us)
    assert (await put(us, headers, "once-0", to="v2")).status == 201
    await take_away(eu)
    for reply in (
        await put(us, headers),
        await delete(us, headers, "once-2", "v1"),
        await delete(us, headers, "once-3", OLD_DIGEST),
    ):
        assert reply.failure == (401, "UNAUTHORIZED")
    assert await tagged(us) == old
    # What was done before, while there was the right to it, is no refusal.
    assert (await put(us, headers, "once-0", to="v2")).status == 201


@pytest.mark.parametrize("how", ["basic", "token"])
async def test_a_token_that_runs_out(world: MakeWorld, how: str) -> None:
    """A push that stood still for longer than its token is good, or a token would be, stores nothing."""
    us, eu = await filled(world, "us eu", "eu us")
    parts, old = us.registry.access.parts, await tagged(us)
    assert parts is not None
    # As if it had looked at the clock then, when it let the request in, and stood still since.
    us.registry.access._clock = parts.tokens._clock = lambda: time() - 2000
    headers = await headers_of(us, how)
    if how == "token":
        assert (await put(eu, headers)).failure == (401, "UNAUTHORIZED")
    assert (await put(us, headers)).failure == (401, "UNAUTHORIZED")
    assert await tagged(eu) == old
    assert (await put(eu, await headers_of(eu, how), "once-2")).status == 201


async def test_what_others_lose(world: MakeWorld) -> None:
    """What is taken from somebody else, or elsewhere, is no matter."""
    us, eu = await filled(world, "us eu", "eu us", metadata_staleness=STALE)
    headers = await headers_of(us, "token")
    await remove_permission(us.registry.database, "public/app", Grantee("writer"))
    await remove_permission(us.registry.database, "public/app", Grantee("reader"))
    assert (await put(us, headers)).status == 201
    assert (await put(eu, await headers_of(eu, "basic"), "once-2")).status == 201
    assert await tagged(us) == digest_of(NEW)


async def test_it_costs_no_round_trip(world: MakeWorld) -> None:
    """A manifest by a token and such a key costs two round trips at most, by a password that is known one more at most."""
    (us,) = await filled(world, metadata_staleness=STALE)
    for how in ("token", "basic"):
        headers = await headers_of(us, how)
        await put(us, headers, f"once-{how}-warm")
        trips, reply = await us.trips(partial(put, us, headers, f"once-{how}"))
        assert (reply.status, trips <= 2) == (201, True)


@pytest.mark.parametrize("why", ["account", "repository", None])
async def test_statements_without_rights(world: MakeWorld, why: str | None) -> None:
    """The statements that move a tag or delete say that rights have lapsed, and do nothing; with rights that hold they do it."""
    (us,) = await filled(world)
    database: Database = us.registry.database
    assert (await put(us, ADMIN.basic, None, to="v2")).status == 201
    (row,) = await us.rows("SELECT coalesce(max(number), 0) AS number FROM access_epoch")
    held = Held("writer", row["number"], inf)
    await set_secret(database, "writer" if why == "account" else "reader", None)
    await remove_permission(database, NAME if why == "repository" else "public/app", Grantee("writer"))
    for work in (
        partial(move_tags, database, NAME, digest_of(NEW), CompiledTags(("v1",), 0), held=held),
        partial(delete_tag, database, NAME, "v1", held=held),
        partial(delete_manifest, database, NAME, digest_of(NEW), held=held),
    ):
        if why is None:
            assert await work()
        else:
            with pytest.raises(RightsLapsed):
                await work()
    assert await tagged(us) == (None if why is None else OLD_DIGEST)
