"""A statement that a cut network holds back and delivers minutes later: nobody waits for it any more, so it must do nothing."""

import secrets
from collections.abc import AsyncIterator
from urllib.parse import urlsplit, urlunsplit

import pytest
import trio

from tests.collection.held import held_transaction
from tests.faults import FaultProxy
from tests.registry.world import MakeWorld, Region, digest_of, until


@pytest.fixture
async def cut(migrated_uri: str) -> AsyncIterator[tuple[FaultProxy, str]]:
    """A proxy before the database, and the URI by way of it. While it hangs it keeps what it is given, and delivers it later."""
    parts = urlsplit(migrated_uri)
    async with trio.open_nursery() as nursery:
        proxy = FaultProxy(parts.hostname or "", parts.port or 5432)
        await nursery.start(proxy.serve)
        user = f"{parts.username}@" if parts.username else ""
        yield proxy, urlunsplit(parts._replace(netloc=f"{user}127.0.0.1:{proxy.port}"))
        nursery.cancel_scope.cancel()


async def delivered(proxy: FaultProxy, pid: int, eu: Region) -> None:
    """Mend the line, and wait until the database has done all that it was sent on the connection of this process."""
    proxy.mend()

    async def gone() -> bool:
        return not await eu.rows("SELECT FROM pg_stat_activity WHERE pid = $1", pid)

    await until(gone, 30)


async def test_a_late_push_moves_no_tag_back(world: MakeWorld, cut: tuple[FaultProxy, str], repository: str) -> None:
    """A push that was answered 503 because of a cut commits at no later time, and so undoes nothing that came after it."""
    proxy, uri = cut
    (us,) = await world("us eu", database_uri=uri, patience=5.0)
    (eu,) = await world("eu us")
    first, second, third = [
        await eu.push_image(repository, tag, secrets.token_bytes(100)) for tag in ("first", "second", "third")
    ]
    bodies = {
        digest: (await eu.ask("GET", f"/v2/{repository}/manifests/{digest}")).body for digest in (first, second, third)
    }
    await us.push_manifest(repository, "latest", bodies[first])
    (row,) = await us.rows("SELECT pg_backend_pid() AS pid")
    proxy.break_("hang")
    headers = {"content-type": "application/vnd.oci.image.manifest.v1+json"}
    refused = await us.ask("PUT", f"/v2/{repository}/manifests/latest", bodies[second], headers)
    assert refused.failure == (503, "UNAVAILABLE")
    await eu.push_manifest(repository, "latest", bodies[third])
    await delivered(proxy, row["pid"], eu)
    assert (await eu.ask("GET", f"/v2/{repository}/manifests/latest")).headers["docker-content-digest"] == third


async def test_a_late_delete_takes_nothing_away(world: MakeWorld, cut: tuple[FaultProxy, str], repository: str) -> None:
    """A tag that was pushed again after its delete had been answered 503 stays."""
    proxy, uri = cut
    (us,) = await world("us eu", database_uri=uri, patience=5.0)
    (eu,) = await world("eu us")
    digest = await eu.push_image(repository, "latest", b"layer")
    # A statement that was never sent before is not sent whole at once.
    assert (await us.ask("DELETE", f"/v2/{repository}/manifests/none")).status == 404
    body = (await eu.ask("GET", f"/v2/{repository}/manifests/{digest}")).body
    (row,) = await us.rows("SELECT pg_backend_pid() AS pid")
    proxy.break_("hang")
    refused = await us.ask("DELETE", f"/v2/{repository}/manifests/latest")
    assert refused.failure == (503, "UNAVAILABLE")
    await eu.push_manifest(repository, "latest", body)
    await delivered(proxy, row["pid"], eu)
    assert (await eu.ask("GET", f"/v2/{repository}/manifests/latest")).status == 200


async def test_a_commit_that_takes_too_long(
    world: MakeWorld, migrated_uri: str, repository: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A blob whose commit is not done within the time that it has is a 503, as any other that the database had no time for."""
    (us,) = await world("us")
    data = secrets.token_bytes(1000)
    await us.push_blob(repository, data)
    location = await us.start_upload(repository)
    monkeypatch.setattr("node.push.uploads._COMMIT_SECONDS", 0.3)
    async with held_transaction(migrated_uri) as held:
        await held.fetch("SELECT FROM blob FOR UPDATE")
        assert (await us.put(location, digest_of(data), data)).failure == (503, "UNAVAILABLE")
    monkeypatch.undo()
    assert (await us.put(location, digest_of(data), data)).status == 201
