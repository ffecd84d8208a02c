"""The token that a command of the operator's signs itself: it opens one repository, and outlives what a drill rehearses."""

from contextlib import aclosing

import httpx
import pytest

from node.auth import own_token
from node.auth.keyring import Keyring
from node.auth.own_token import OwnToken
from node.auth.tokens import BadToken
from node.records.postgres import DatabaseUnavailable
from tests.auth.people import settled
from tests.auth.test_revocation import away
from tests.registry.world import MakeWorld, Region, digest_of

BLOB = b"a blob"


def of(region: Region, repository: str) -> OwnToken:
    return OwnToken(region.registry.database, region.registry.settings, repository)


async def shown(token: OwnToken) -> dict[str, str]:
    """Return the header of a request."""
    async with aclosing(token.async_auth_flow(httpx.Request("GET", "http://registry.test/v2/"))) as flow:
        request = await anext(flow)
    return {"authorization": request.headers["authorization"]}


async def push(region: Region, repository: str, headers: dict[str, str]) -> int:
    target = f"/v2/{repository}/blobs/uploads/?digest={digest_of(BLOB)}"
    return (await region.ask("POST", target, BLOB, headers=headers)).status


async def test_it_opens_one_repository(world: MakeWorld) -> None:
    """It pulls from and pushes to the one that it is for, on any node, and to no other; it deletes nothing and lists nothing."""
    us, eu = await settled(world, "us eu", "eu us")
    headers = await shown(of(us, "private/app"))
    assert [await push(region, "private/app", headers) for region in (us, eu)] == [201, 201]
    target = f"/v2/private/app/blobs/{digest_of(BLOB)}"
    assert (await eu.ask("GET", target, headers=headers)).status in (200, 307)
    assert (await eu.ask("DELETE", target, headers=headers)).status == 401
    assert await push(us, "public/app", headers) == 401
    assert (await us.ask("GET", "/v2/_catalog", headers=headers)).status == 401


async def test_it_is_renewed_also_without_the_database(world: MakeWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new token is signed before the old one ends, with the keys in memory while the database is away; the first one needs it."""
    monkeypatch.setattr(own_token, "_LIFETIME", 1.0)
    (us,) = await settled(world)
    token, late = of(us, "private/app"), of(us, "private/app")
    first = await shown(token)
    monkeypatch.setattr(token, "_renew_at", float("-inf"))
    away(monkeypatch, us)
    assert await shown(token) not in (first, {})
    with pytest.raises(DatabaseUnavailable):
        await shown(late)


async def test_without_a_key_there_is_none(world: MakeWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no key signs the command hears it, and shows nobody an empty token."""
    (us,) = await settled(world)
    token = of(us, "private/app")

    async def nothing(_keyring: Keyring) -> None:
        """Find no keys."""

    monkeypatch.setattr(Keyring, "refresh", nothing)
    with pytest.raises(BadToken, match="no signing key"):
        await shown(token)
