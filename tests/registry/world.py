"""Regions of one registry inside the test's process: real parts over real PostgreSQL and real stores, asked without HTTP.

async def test_x(world: MakeWorld) -> None:
    us, eu = await world("us eu", "eu us")               two nodes on folders, one database, hints between them
    answer = await us.ask("GET", "/v2/a/b/tags/list")    what the edge would be given, errors answered as it does
    us.engines["eu"].plan("put_part", Refuse())          every store can be broken to the byte
"""

import hashlib
import json
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from typing import Any, Protocol
from urllib.parse import parse_qsl, unquote, urlsplit

import trio
import trio.testing
from attrs import define, field, frozen

from node.answers import Answer, ClientGone, EmptyBody, Request, RequestBody, Stream
from node.push.reading import OCI_MANIFEST
from node.registry import Registry
from node.routes import Routes
from node.running import Node
from node.web.failures import answer_to
from replication.ports import Wake
from tests.faulty_engine import FaultyEngine

MIB = 1 << 20
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
EMPTY = "application/vnd.oci.empty.v1+json"


def digest_of(data: bytes, algorithm: str = "sha256") -> str:
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"


async def until(condition: Callable[[], Awaitable[bool]], seconds: float = 30.0) -> None:
    """Wait until something that only asking can tell is so."""
    deadline = trio.current_time() + seconds
    while not await condition():
        assert trio.current_time() < deadline, f"not so within {seconds} s: {condition.__name__}"
        await trio.sleep(0.01)


@define
class Body:
    """A request body that comes in chunks; `gone` ends it as a client does that vanishes. `paused` holds it before the rest."""

    data: bytes
    chunk: int = 65536
    gone: bool = False
    pause_at: int | None = None
    paused: trio.Event = field(factory=trio.Event)
    go_on: trio.Event = field(factory=trio.Event)
    _at: int = 0

    async def receive(self) -> bytes:
        await trio.lowlevel.checkpoint()
        if self.pause_at is not None and self._at >= self.pause_at:
            self.paused.set()
            await self.go_on.wait()
        if self._at >= len(self.data) and self.gone:
            raise ClientGone
        data = self.data[self._at : self._at + self.chunk]
        self._at += len(data)
        return data


@frozen
class Reply:
    """An answer as a client sees it."""

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)
    outcome: str = ""
    length: int | None = None

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The code of the one error in the body."""
        (error,) = self.json["errors"]
        assert set(error) <= {"code", "message", "detail"}
        return str(error["code"])

    @property
    def detail(self) -> Any:
        return self.json["errors"][0]["detail"]

    @property
    def location(self) -> str:
        return self.headers["location"]

    @property
    def failure(self) -> tuple[int, str]:
        """Status and code."""
        return self.status, self.code


@define(eq=False)
class Region:
    """One node, without its HTTP edge."""

    node: Node
    registry: Registry
    engines: Mapping[str, FaultyEngine]
    routes: Routes = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.routes = Routes(self.registry)

    async def ask(
        self,
        method: str,
        target: str,
        body: bytes | RequestBody = b"",
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        """Ask as the edge would, and read a streamed body to its end. Raises what ends a connection without an answer."""
        parts = urlsplit(target)
        query: dict[str, tuple[str, ...]] = {}
        for name, value in parse_qsl(parts.query, keep_blank_values=True):
            query[name] = (*query.get(name, ()), value)
        arriving = (Body(body) if body else EmptyBody()) if isinstance(body, bytes) else body
        request = Request(method, unquote(parts.path), query, dict(headers or {}), arriving)
        try:
            lasting = self.routes.at_once(request)
            answer = await self.routes.answer(request) if lasting is None else lasting.answer
        except ClientGone:
            raise
        except Exception as error:  # noqa: BLE001  # as the edge does; what is no answer is raised again
            answer = _known(error)
        return await _reply(answer)

    async def start_upload(self, name: str, query: str = "") -> str:
        reply = await self.ask("POST", f"/v2/{name}/blobs/uploads/{query}")
        assert reply.status == 202, reply
        return reply.location

    async def patch(self, location: str, data: bytes | RequestBody, start: int | None = None) -> Reply:
        """PATCH; with `start` the Content-Range says that the bytes go on from there."""
        headers = {}
        if start is not None:
            assert isinstance(data, bytes)
            headers["content-range"] = f"{start}-{start + len(data) - 1}"
        return await self.ask("PATCH", location, data, headers)

    async def put(self, location: str, digest: str, data: bytes | RequestBody = b"", **headers: str) -> Reply:
        joint = "&" if "?" in location else "?"
        return await self.ask("PUT", f"{location}{joint}digest={digest}", data, headers)

    async def push_blob(self, name: str, data: bytes, algorithm: str = "sha256") -> str:
        digest = digest_of(data, algorithm)
        reply = await self.ask("POST", f"/v2/{name}/blobs/uploads/?digest={digest}", data)
        assert reply.status == 201, reply
        return digest

    async def push_manifest(
        self, name: str, reference: str, manifest: Mapping[str, Any] | bytes, **headers: str
    ) -> str:
        data = manifest if isinstance(manifest, bytes) else json.dumps(manifest).encode()
        headers.setdefault("content-type", OCI_MANIFEST if isinstance(manifest, bytes) else manifest["mediaType"])
        reply = await self.ask("PUT", f"/v2/{name}/manifests/{reference}", data, headers)
        assert reply.status == 201, reply
        return reply.headers["docker-content-digest"]

    async def push_image(self, name: str, tag: str, *layers: bytes, **more: Any) -> str:
        """Push an image with these layers; return its manifest's digest."""
        config = b'{"architecture": "amd64", "os": "linux", "tag": "%s"}' % tag.encode()
        for blob in (config, *layers):
            await self.push_blob(name, blob)
        return await self.push_manifest(name, tag, image(config, *layers, **more))

    async def rows(self, sql: str, *args: object) -> list[dict[str, Any]]:
        """Look into the truth."""
        return [dict(row) for row in await self.registry.database.fetch(sql, *args)]

    async def trips(self, work: Callable[[], Any]) -> tuple[int, Any]:
        """Return how many statements `work` sent to the database, and what it returned."""
        before = self.registry.database.statistics().trips
        result = await work()
        return self.registry.database.statistics().trips - before, result

    async def forget_everything(self) -> None:
        """Be as a node that was just started: no cache, no session."""
        memory = type(self.registry.memory)(self.registry.memory.freshness)
        self.registry.memory = memory
        self.routes = Routes(self.registry)

    async def unaccounted(self, location: str) -> set[str]:
        """Return keys of objects and open multi-part writes in a store that no row of the database accounts for."""
        engine = self.engines[location].inner
        found = {open_parts.key for open_parts in await engine.list_open_parts(engine.prefix)}
        after = None
        while True:
            page = await engine.list_keys(engine.prefix, after)
            found.update(page.keys)
            if (after := page.after) is None:
                break
        known = await self.rows(
            """
            SELECT key FROM placement UNION SELECT key FROM dead_object UNION SELECT key FROM task WHERE key IS NOT NULL
            UNION SELECT unnest(ARRAY[key, reserved_key, tail_key]) FROM upload
            """
        )
        return {key for key in found - {row["key"] for row in known} if "_antipode/" not in key}

    async def contents(self, location: str) -> set[str]:
        """Return the keys of all objects and open multi-part writes of ours in a store, markers and probes left out."""
        engine = self.engines[location].inner
        page = await engine.list_keys(engine.prefix)
        opened = await engine.list_open_parts(engine.prefix)
        return {key for key in (*page.keys, *(parts.key for parts in opened)) if "_antipode/" not in key}


async def has_heard(region: Region, of: Region) -> None:
    """Wait until every hint that a region has published so far has reached another one."""
    marker = Wake((secrets.token_hex(8),))
    async with region.registry.hints.subscribe() as subscription:
        of.registry.hints.publish(marker)
        with trio.fail_after(30):
            async for hint in subscription:
                if hint == marker:
                    break
    # Whoever else listens there has it as well, and takes it in before anything else is asked.
    await trio.testing.wait_all_tasks_blocked()


class MakeWorld(Protocol):
    """Assemble one region per preference (`"us eu"`) over one database. `ceph` takes the real gateways instead of folders.

    `patience`: seconds that a statement may take.
    """

    async def __call__(
        self, *preferences: str, ceph: bool = False, patience: float = ..., **settings: Any
    ) -> list[Region]: ...


def _known(error: Exception) -> Answer:
    """Return what the edge answers; a bug is none of its answers here."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    answer = answer_to(error, "")
    if answer.status == 500:
        raise error
    return answer


async def _reply(answer: Answer) -> Reply:
    headers = dict(answer.headers)
    if isinstance(answer.body, bytes):
        return Reply(answer.status, headers, answer.body, answer.outcome, answer.length)
    try:
        body = b"".join([chunk async for chunk in _chunks(answer.body)])
    except Exception as error:  # noqa: BLE001  # likewise
        refused = _known(error)
        assert isinstance(refused.body, bytes)
        return Reply(refused.status, dict(refused.headers), refused.body, refused.outcome)
    assert len(body) == answer.body.length
    return Reply(answer.status, headers, body, answer.outcome, answer.length)


async def _chunks(stream: Stream) -> AsyncIterator[bytes]:
    async with stream.open() as chunks:
        async for chunk in chunks:
            yield bytes(chunk)


def descriptor(data: bytes, media_type: str, **more: Any) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digest_of(data), "size": len(data), **more}


def image(config: bytes, *layers: bytes, media_type: str = OCI_MANIFEST, **more: Any) -> dict[str, Any]:
    return {
        "schemaVersion": 2,
        "mediaType": media_type,
        "config": descriptor(config, CONFIG),
        "layers": [descriptor(layer, LAYER) for layer in layers],
        **more,
    }


def index(children: Iterable[Mapping[str, Any]], media_type: str, **more: Any) -> dict[str, Any]:
    return {"schemaVersion": 2, "mediaType": media_type, "manifests": list(children), **more}
