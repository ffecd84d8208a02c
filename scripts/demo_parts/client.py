"""A registry client over httpx: push an image, pull it and compare every byte, ask which store a blob comes from."""

import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import httpx
import trio
from attrs import define, field

from .image import INDEX_TYPE, MANIFEST_TYPE, Blob, Image, Manifest

LOCATION_HEADER = "antipode-location"
_CHUNK = 256 * 1024
_SECONDS = 20.0
# What docker and podman do, too.
_AT_ONCE = 3

Moved = Callable[[Blob, int], None]
"""Called with a blob and the number of its bytes that moved since the last call."""


class DemoFailure(Exception):
    """Something was not as promised; the message is for the user."""


@define(eq=False)
class Pulled:
    """What a pull found: which store each blob came from, by digest, and how many bytes were compared."""

    stores: dict[str, str] = field(factory=dict)
    nbytes: int = 0


@define(eq=False)
class Client:
    """Speaks to one node. Every failure is a `DemoFailure` that says what was asked."""

    url: str
    """`http://host:port`."""
    repository: str
    http: httpx.AsyncClient

    async def push(self, image: Image, tag: str, moved: Moved, done: Callable[[Blob], None]) -> None:
        """Push blobs, then manifests, then the index under `tag`, as docker does."""
        await _each(image.blobs, lambda blob: self._push_blob(blob, moved, done))
        for manifest in image.manifests:
            await self._put_manifest(manifest, manifest.digest)
        await self._put_manifest(image.index, tag)

    async def pull(self, image: Image, tag: str, moved: Moved, done: Callable[[Blob, str], None]) -> Pulled:
        """Pull everything that `tag` names, compare each byte with `image`, and return what was found."""
        pulled = Pulled()
        await self._compare_manifest(image.index, tag, pulled)
        for manifest in image.manifests:
            await self._compare_manifest(manifest, manifest.digest, pulled)

        async def one(blob: Blob) -> None:
            store = await self._compare_blob(blob, moved)
            pulled.stores[blob.digest] = store
            pulled.nbytes += blob.size
            done(blob, store)

        await _each(image.blobs, one)
        return pulled

    async def store_of(self, blob: Blob) -> str:
        """Return the name of the store that this node takes the blob from now: it asks for the first byte."""
        async with self._request(
            "GET", self._path("blobs", blob.digest), (200, 206, 307), headers={"range": "bytes=0-0"}
        ) as answer:
            return _store(answer)

    async def health(self) -> tuple[int, dict[str, bool]]:
        """Return the status of /health/endtoend and what it says of each part."""
        async with self._request("GET", "/health/endtoend", (200, 503)) as answer:
            services = json.loads(await answer.aread())["data"]["services"]
            return answer.status_code, services

    async def _push_blob(self, blob: Blob, moved: Moved, done: Callable[[Blob], None]) -> None:
        async with self._request("POST", self._path("blobs", "uploads/"), (202,)) as answer:
            location = answer.headers["location"]
        async with self._request(
            "PATCH",
            location,
            (202,),
            content=_send(blob, moved),
            headers={"content-type": "application/octet-stream", "content-length": str(blob.size)},
        ) as answer:
            location = answer.headers["location"]
        joint = "&" if "?" in location else "?"
        async with self._request("PUT", f"{location}{joint}digest={blob.digest}", (201,)):
            done(blob)

    async def _put_manifest(self, manifest: Manifest, reference: str) -> None:
        async with self._request(
            "PUT",
            self._path("manifests", reference),
            (201,),
            content=manifest.data,
            headers={"content-type": manifest.media_type},
        ):
            pass

    async def _compare_manifest(self, manifest: Manifest, reference: str, pulled: Pulled) -> None:
        path = self._path("manifests", reference)
        async with self._request("GET", path, (200,), headers={"accept": f"{INDEX_TYPE}, {MANIFEST_TYPE}"}) as answer:
            if await answer.aread() != manifest.data:
                raise DemoFailure(f"GET {self.url}{path}: other bytes than were pushed")
        pulled.nbytes += len(manifest.data)

    async def _compare_blob(self, blob: Blob, moved: Moved) -> str:
        path = self._path("blobs", blob.digest)
        digest, offset = hashlib.sha256(), 0
        async with self._request("GET", path, (200, 307)) as answer:
            store = _store(answer)
            if answer.status_code == 307:
                raise DemoFailure(f"GET {self.url}{path}: a redirect, which a local store cannot have")
            with blob.path.open("rb") as original:
                async for chunk in answer.aiter_raw(_CHUNK):
                    if original.read(len(chunk)) != chunk:
                        raise DemoFailure(f"GET {self.url}{path}: other bytes than were pushed, after byte {offset}")
                    digest.update(chunk)
                    offset += len(chunk)
                    moved(blob, len(chunk))
        if offset != blob.size or f"sha256:{digest.hexdigest()}" != blob.digest:
            raise DemoFailure(f"GET {self.url}{path}: {offset} bytes of {blob.size}, or the wrong digest")
        return store

    def _path(self, kind: str, name: str) -> str:
        return f"/v2/{self.repository}/{kind}/{name}"

    @asynccontextmanager
    async def _request(
        self,
        method: str,
        path: str,
        expected: tuple[int, ...],
        *,
        content: bytes | AsyncIterator[bytes] | None = None,
        headers: dict[str, str] | None = None,
    ) -> AsyncIterator[httpx.Response]:
        url = str(httpx.URL(self.url).join(path))
        try:
            async with self.http.stream(method, url, content=content, headers=headers) as answer:
                if answer.status_code not in expected:
                    body = (await answer.aread()).decode(errors="replace")[:500]
                    raise DemoFailure(f"{method} {url}: {answer.status_code}, not {expected[0]}: {body}")
                yield answer
        except httpx.HTTPError as error:
            raise DemoFailure(f"{method} {url}: {type(error).__name__}: {error}") from error


@asynccontextmanager
async def http_client() -> AsyncIterator[httpx.AsyncClient]:
    """Open connections for `Client`: no proxies, no redirects, every wait with a deadline."""
    async with httpx.AsyncClient(trust_env=False, timeout=_SECONDS) as http:
        yield http


def _store(answer: httpx.Response) -> str:
    return str(answer.headers.get(LOCATION_HEADER, "a store that it does not name"))


async def _send(blob: Blob, moved: Moved) -> AsyncIterator[bytes]:
    with blob.path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            yield chunk
            moved(blob, len(chunk))


async def _each(blobs: tuple[Blob, ...], work: Callable[[Blob], Awaitable[None]]) -> None:
    """Run `work` for every blob, a few at once."""
    limit = trio.CapacityLimiter(_AT_ONCE)

    async def one(blob: Blob) -> None:
        async with limit:
            await work(blob)

    async with trio.open_nursery() as nursery:
        for blob in blobs:
            nursery.start_soon(one, blob)
