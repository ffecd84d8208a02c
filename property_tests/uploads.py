"""Uploads of the simulated cluster: the nodes' real push plane, and clients that send a blob in any requests to any nodes."""

import hashlib
import re
from collections.abc import Awaitable, Callable
from functools import partial
from random import Random
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import trio
from attrs import define, field

from engines.contract import EngineError
from node.answers import Answer, BodyStalled, ClientGone, Request
from node.errors import DIGEST_INVALID, RANGE_INVALID, RegistryError
from node.push.uploads import Uploads
from node.registry import Registry
from property_tests.memory_engine import MIB
from property_tests.memory_uploads import MAX_AGE
from replication.model import Blob
from replication.offload import inline
from replication.parts import PartPool
from replication.patience import Patience
from replication.ports import LedgerUnavailable
from replication.spool import Spool
from replication.upload_spool import UploadSpool

if TYPE_CHECKING:
    from property_tests.cluster import Node

SPOOL = 4 * MIB
"""Room for uploads on a node's disk: less than some blobs have."""
_NO_ANSWER = (EngineError, LedgerUnavailable, ClientGone, BodyStalled, trio.TooSlowError)


class _GaveUp(Exception):
    """A client has been patient enough."""


@define(eq=False)
class PushPlane:
    """A node's, with its memory and its spool; all ends with the node."""

    uploads: Uploads
    spool: UploadSpool
    scopes: set[trio.CancelScope] = field(factory=set)
    """Of the requests that are served now."""

    def crash(self) -> None:
        """End all requests without an answer."""
        for scope in self.scopes:
            scope.cancel()

    async def serve(self, request: Callable[[Uploads], Awaitable[Answer]]) -> Answer | None:
        """Return the answer to a request; None if the node died with it. Raises what ends a connection, and RegistryError."""
        with trio.CancelScope() as scope:
            self.scopes.add(scope)
            try:
                return await request(self.uploads)
            finally:
                self.scopes.discard(scope)
        return None


def push_plane(node: "Node", pool: PartPool, patience: Patience) -> PushPlane:
    """Return the push plane of a node."""
    truth = node.world.truth
    spool = UploadSpool(Spool(None, SPOOL, inline))
    settings = SimpleNamespace(
        maximum_layer_size=1 << 40,
        part_size=MIB,
        upload_max_age=MAX_AGE,
        library_namespace="library",
        replicate=True,
        preference=node.preference,
        maximum_uploads_per_namespace=0,
        default_quota=0,
    )
    registry = SimpleNamespace(
        settings=settings,
        current=lambda: settings,
        database=node.line,
        engines=node.engines,
        watcher=node.watcher,
        pool=pool,
        patience=patience,
        upload_spool=spool,
        macs=node.reader.macs,
        states=lambda: node.scheduler.cluster.states if node.scheduler.cluster is not None else truth.states,
        instance=f"{node.name}-{truth.serial()}",
        tell=node.world.hints.publish,
    )
    return PushPlane(Uploads(cast("Registry", registry)), spool)


@define
class _Body:
    """A request body that comes in pieces, at its own pace, and perhaps breaks off."""

    data: bytes
    random: Random
    ends_at: int | None
    """Where the client goes away; None: it does not."""
    sent: int = 0

    async def receive(self) -> bytes:
        await trio.sleep(self.random.choice([0.0, 0.001, 0.2]))
        size = self.random.choice([1000, 100_000, MIB])
        if self.ends_at is not None and self.sent >= self.ends_at:
            raise ClientGone
        data = self.data[self.sent : self.sent + size]
        self.sent += len(data)
        return data


@define
class Client:
    """Pushes one blob into a repository of `namespace`, each request to the node that `pick` returns."""

    pick: Callable[[], "Node"]
    random: Random
    namespace: str
    data: bytes
    patience: int = 12
    """Requests without progress until it gives up."""
    steps: tuple[int, ...] = (0, 1000, MIB, 2 * MIB + 7)
    """Bytes of a request."""
    path: str = ""
    _state: str | None = None
    _failures: int = 0

    @property
    def digest(self) -> str:
        return f"sha256:{hashlib.sha256(self.data).hexdigest()}"

    @property
    def repository(self) -> str:
        return f"{self.namespace}/app"

    async def push(self) -> Blob | None:
        """Return the blob when the registry has acknowledged it; None when the client gave up."""
        try:
            return await self._push()
        except _GaveUp:
            return None

    async def _push(self) -> Blob:
        while True:
            if self.random.random() < 0.2:
                if (
                    await self._ask(
                        lambda uploads: uploads.post(self._request("POST", 0, len(self.data)), self.repository)
                    )
                    == 201
                ):
                    return self._found()
                continue
            self.path = ""
            begun = await self._ask(lambda uploads: uploads.post(Request("POST", ""), self.repository))
            if begun == 202 and await self._send():
                return self._found()

    async def _send(self) -> bool:
        """Send the blob to an upload that is begun; False: it is gone, and must be begun again."""
        offset = 0
        while True:
            end, last = self._next(offset)
            status = await self._ask(partial(self._write, offset, end, last))
            if status == 201:
                return True
            if status == 202 and not last:
                offset = end
                continue
            if status is not None:
                await trio.sleep(self.random.uniform(0, 2))
            # Whatever became of it: the registry knows how far it is.
            told = await self._where()
            if told is None:
                return False
            if told > len(self.data):
                raise AssertionError(f"{told} bytes of {len(self.data)} were taken in")
            offset = told

    def _next(self, offset: int) -> tuple[int, bool]:
        """Return where the next request ends, and whether it is the PUT."""
        end = min(len(self.data), offset + self.random.choice(self.steps))
        return end, end == len(self.data) and self.random.random() < 0.6

    def _write(self, begin: int, end: int, last: bool, uploads: Uploads) -> Awaitable[Answer]:
        request = self._request("PUT" if last else "PATCH", begin, end)
        write = uploads.put if last else uploads.patch
        return write(request, self.repository, self.path)

    def _request(self, method: str, begin: int, end: int) -> Request:
        query = {} if method == "PATCH" else {"digest": (self.digest,)}
        if self._state is not None and method != "POST" and self.random.random() < 0.8:
            query["_state"] = (self._state,)
        headers = {"user-agent": self.random.choice(["docker/27", "containers/5", "containerd/2"])}
        if method != "POST" and end > begin and self.random.random() < 0.9:
            headers["content-range"] = f"{begin}-{end - 1}"
        gone = self.random.randrange(end - begin + 1) if self.random.random() < 0.1 else None
        return Request(method, "", query, headers, _Body(self.data[begin:end], self.random, gone))

    async def _where(self) -> int | None:
        """Return how far the upload is; None: it is gone, or nobody can say."""
        while True:
            status = await self._ask(lambda uploads: uploads.get(Request("GET", ""), self.repository, self.path))
            if status == 204:
                return self._range
            if status is not None:
                return None

    _range: int = 0

    async def _ask(self, request: Callable[[Uploads], Awaitable[Answer]]) -> int | None:
        """Return an answer's status, None where there was none. Raises _GaveUp."""
        node = self.pick()
        answer: Answer | None = None
        try:
            answer = await node.plane.serve(request)
        except RegistryError as error:
            answer = error.answer()
            if error.code is DIGEST_INVALID:
                raise AssertionError(f"bytes were spoilt on their way in: {error.detail}") from error
            if error.code is not RANGE_INVALID:
                await self._was_refused()
        except _NO_ANSWER:
            pass
        if answer is None:
            await self._was_refused()
            return None
        headers = dict(answer.headers)
        if answer.status in (202, 204):
            found = re.fullmatch(r"/v2/[^?]*/blobs/uploads/([^?]*)(?:\?_state=(.*))?", headers["location"])
            assert found is not None
            self.path, self._state = found[1], found[2]
            end = int(headers["range"].partition("-")[2])
            self._range = end + 1 if end else self._stored(node)
        return answer.status

    def _stored(self, node: "Node") -> int:
        """Return how far an upload is whose range is said to be 0-0, which is one byte or none."""
        row = next((row for upload, row in node.world.truth.uploads.items() if str(upload) == self.path), None)
        return row.state.offset if row is not None else 0

    async def _was_refused(self) -> None:
        self._failures += 1
        if self._failures > self.patience:
            raise _GaveUp
        await trio.sleep(self.random.uniform(0.1, 3))

    def _found(self) -> Blob:
        truth = self.pick().world.truth
        found = [b for b in truth.blobs.values() if b.digest == self.digest and self.namespace in truth.links[b.id]]
        if not found:
            raise AssertionError(f"{self.digest} was acknowledged and is not there")
        return found[0]
