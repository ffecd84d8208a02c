"""Rights that are taken away while a push is under way: no tag moves by them afterwards, with an Idempotency-Key or without one."""

import json
from functools import partial

import pytest
import trio

from node.auth.changes import ACCESS_CHANGED
from node.auth.model import Role
from node.push.reading import OCI_MANIFEST
from node.records.permissions import Grantee, remove_permission, set_permission
from tests.api.conftest import MakeWaiters, beside
from tests.api.test_durability import CONFIG, LAYER, asked, put, tagged
from tests.auth.people import ACCOUNTS, Person, bearing, settle, token_for
from tests.registry.world import Body, Region, digest_of, image, until

NAME = "private/app"
BODY = json.dumps(image(CONFIG, LAYER)).encode()
WRITER, ADMIN = Person("writer"), Person("admin")


async def prepared(region: Region, how: str) -> dict[str, str]:
    """Push the image's blobs; return the headers of a request that may push its manifest."""
    await settle(region.registry.database)
    for blob in (CONFIG, LAYER):
        target = f"/v2/{NAME}/blobs/uploads/?digest={digest_of(blob)}"
        assert (await region.ask("POST", target, blob, WRITER.basic)).status == 201
    return WRITER.basic if how == "basic" else bearing(await token_for(region, WRITER, f"repository:{NAME}:pull,push"))


async def take_away(region: Region) -> None:
    changes = region.registry.access.parts.changes  # type: ignore[union-attr]
    before = changes.number
    await remove_permission(region.registry.database, NAME, Grantee("writer"))
    region.registry.access.heard(ACCESS_CHANGED)

    async def heard() -> bool:
        return changes.number > before

    await until(heard)


@pytest.mark.parametrize("how", ["basic", "token"])
async def test_while_copies_are_waited_for(make_waiters: MakeWaiters, nursery: trio.Nursery, how: str) -> None:
    """A push whose right goes while it waits for its copies moves no tag."""
    waiters = await make_waiters(**ACCOUNTS)
    headers = await prepared(waiters.us, how)
    push = beside(nursery, partial(put, waiters.us, BODY, name=NAME, antipode_durability="all", **headers))
    await asked(waiters.us, BODY)
    await take_away(waiters.us)
    await waiters.copy()
    assert (await push.get()).failure == (401, "UNAUTHORIZED")
    assert await tagged(waiters.us, name=NAME) is None


@pytest.mark.parametrize("how", ["basic", "token"])
@pytest.mark.parametrize("again", [False, True], ids=["gone", "given back"])
async def test_while_the_manifest_comes(
    make_waiters: MakeWaiters, nursery: trio.Nursery, how: str, again: bool
) -> None:
    """A push whose right goes while its manifest is on its way stores nothing, and can be repeated when the right is back."""
    us = (await make_waiters(**ACCOUNTS)).us
    headers = {"content-type": OCI_MANIFEST, **await prepared(us, how)}
    slow = Body(BODY, chunk=50, pause_at=100)
    push = beside(nursery, partial(us.ask, "PUT", f"/v2/{NAME}/manifests/v1", slow, headers))
    await slow.paused.wait()
    await take_away(us)
    if again:
        await set_permission(us.registry.database, NAME, Grantee("writer"), Role.WRITE)
    slow.go_on.set()
    assert (await push.get()).failure == (401, "UNAUTHORIZED")
    assert await us.rows("SELECT FROM manifest") == []
    if again:
        fresh = bearing(await token_for(us, WRITER, f"repository:{NAME}:pull,push"))
        assert (await put(us, BODY, name=NAME, **fresh)).status == 201
