"""What a request may cost: round trips to the database, which may be far away, and calls to the store.

Statements are counted where they are sent to the connection pool (`Database.statistics`), and once at the socket, to be
sure that the pool sends nothing of its own.
"""

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from urllib.parse import urlsplit, urlunsplit

import trio
from attrs import define, field

from node.push.reading import OCI_MANIFEST
from node.records.postgres import open_database
from tests.registry.world import MIB, MakeWorld, Region, digest_of, has_heard


async def calls_of(region: Region, location: str = "us") -> int:
    return len([call for call, key in region.engines[location].calls if "_antipode/" not in key])


async def test_a_pull_by_tag(world: MakeWorld, repository: str) -> None:
    """A pull by tag costs one round trip, cold or warm; a warm digest none; a warm blob's redirect none and no store call."""
    us, eu = await world("us eu", "eu us", ceph=True)
    layer = secrets.token_bytes(50_000)
    digest = await us.push_image(repository, "v1", layer)
    tag, manifest = f"/v2/{repository}/manifests/v1", f"/v2/{repository}/manifests/{digest}"
    blob = f"/v2/{repository}/blobs/{digest_of(layer)}"
    # A hint of the push that comes late makes eu ask again, and rightly so.
    await has_heard(eu, us)
    for region in (us, eu):
        await region.forget_everything()
        for expected, target in ((1, tag), (1, tag), (0, manifest), (1, blob), (0, blob)):
            before = await calls_of(region)
            trips, reply = await region.trips(partial(region.ask, "GET", target))
            assert reply.status in (200, 307)
            assert (target, trips) == (target, expected)
            assert await calls_of(region) == before


async def test_a_whole_pull(world: MakeWorld, repository: str) -> None:
    """All blobs of an image that is pulled cost one round trip together, from whichever of them on."""
    (us,) = await world("us", metadata_staleness=60.0)
    layers = [secrets.token_bytes(1000) for _ in range(5)]
    digest = await us.push_image(repository, "v1", *layers)
    other = secrets.token_bytes(1000)
    await us.push_blob(repository, other)

    async def pull() -> None:
        assert (await us.ask("GET", f"/v2/{repository}/manifests/{digest}")).status == 200
        for layer in (layers[2], *layers):
            assert (await us.ask("GET", f"/v2/{repository}/blobs/{digest_of(layer)}")).body == layer

    for expected in (2, 0):
        if expected:
            await us.forget_everything()
        trips, _ = await us.trips(pull)
        assert trips == expected
    # What the manifest does not list is looked up alone, and what the repository does not have stays unknown.
    trips, reply = await us.trips(partial(us.ask, "GET", f"/v2/{repository}/blobs/{digest_of(other)}"))
    assert (trips, reply.status) == (1, 200)


async def test_a_push(world: MakeWorld, repository: str) -> None:
    """A layer by POST, PATCH and PUT on one node costs three round trips, in one POST two; a manifest at most two."""
    (us,) = await world("us")
    data = secrets.token_bytes(1000)
    posted, location = await us.trips(partial(us.start_upload, repository))
    patched, reply = await us.trips(partial(us.patch, location, data))
    finished, reply = await us.trips(partial(us.put, reply.location, digest_of(data)))
    assert (posted, patched, finished, reply.status) == (1, 1, 1, 201)
    whole, _ = await us.trips(partial(us.push_blob, repository, secrets.token_bytes(1000)))
    assert whole == 2
    body = (
        b'{"schemaVersion": 2, "config": {"mediaType": "a/b", "size": 1000, "digest": "%s"}}' % digest_of(data).encode()
    )
    stored, _ = await us.trips(partial(us.push_manifest, repository, "v1", body, **{"content-type": OCI_MANIFEST}))
    assert stored <= 2


async def test_store_calls(world: MakeWorld, repository: str) -> None:
    """A layer up to one part costs one store call, however it is sent; a larger one two more than it has parts."""
    (us,) = await world("us")
    for size, patch, expected in (
        (0, False, 1),
        (1, True, 1),
        (5 * MIB - 1, True, 1),
        (5 * MIB, False, 1),
        (12 * MIB, True, 2 + 2),
        (16 * MIB, False, 3 + 2),
    ):
        data = secrets.token_bytes(size)
        before = await calls_of(us)
        location = await us.start_upload(repository)
        if patch:
            location = (await us.patch(location, data)).location
        assert (await us.put(location, digest_of(data), b"" if patch else data)).status == 201
        assert (size, await calls_of(us) - before) == (size, expected)


@define
class Counter:
    """A proxy before PostgreSQL that counts the times the client spoke after the server had: round trips on the wire."""

    uri: str
    port: int = 0
    flushes: int = 0
    _last: str = field(default="server")

    @asynccontextmanager
    async def open(self) -> AsyncIterator[str]:
        async with trio.open_nursery() as nursery:
            (listener,) = await nursery.start(partial(trio.serve_tcp, self._serve, 0, host="127.0.0.1"))
            self.port = listener.socket.getsockname()[1]
            parts = urlsplit(self.uri)
            account = f"{parts.username}@" if parts.username else ""
            yield urlunsplit(parts._replace(netloc=f"{account}127.0.0.1:{self.port}"))
            nursery.cancel_scope.cancel()

    async def _serve(self, client: trio.SocketStream) -> None:
        parts = urlsplit(self.uri)
        server = await trio.open_tcp_stream(parts.hostname or "", parts.port or 5432)
        async with server, trio.open_nursery() as nursery:
            nursery.start_soon(self._copy, client, server, "client", nursery.cancel_scope)
            nursery.start_soon(self._copy, server, client, "server", nursery.cancel_scope)

    async def _copy(
        self, source: trio.SocketStream, sink: trio.SocketStream, who: str, scope: trio.CancelScope
    ) -> None:
        try:
            async for chunk in source:
                if who == "client" and self._last == "server":
                    self.flushes += 1
                self._last = who
                await sink.send_all(chunk)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # one side has gone: so goes the other
        scope.cancel()


async def test_round_trips_on_the_wire(world: MakeWorld, migrated_uri: str, repository: str) -> None:
    """Once its statements are prepared, a request sends to the database exactly as often as is counted: no hidden resets."""
    (us,) = await world("us")
    digest = await us.push_image(repository, "v1")
    counter = Counter(migrated_uri)
    async with counter.open() as uri, open_database(uri, most=1) as database:
        us.registry.database = database

        async def push() -> None:
            data = secrets.token_bytes(100)
            location = (await us.patch(await us.start_upload(repository), data)).location
            assert (await us.put(location, digest_of(data))).status == 201

        async def pull() -> None:
            assert (await us.ask("GET", f"/v2/{repository}/manifests/v1")).headers["docker-content-digest"] == digest

        await push()
        await pull()
        for work, expected in ((push, 3), (pull, 1), (push, 3)):
            before = counter.flushes
            await work()
            assert counter.flushes - before == expected
