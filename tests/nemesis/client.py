"""Registry clients as the real ones are: which requests they send, and what they repeat when one fails.

`DOCKER` (moby's distribution code): every layer five times with 5, 10, 15, 20 s between; manifests once.
`PODMAN` (containers/common's retry, podman 4.3): the whole command three times more, a second apart; what is there is skipped.
`BARE`: nothing is repeated and no connection is used twice, so that every failure is seen.

All keep to Go's transport otherwise: a GET or HEAD whose kept connection turns out closed is sent once more.
"""

import hashlib
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from typing import TypeVar
from urllib.parse import urljoin

import httpx
import trio
from attrs import define, field, frozen

from tests.nemesis.ground import NO_TLS
from tests.nemesis.history import Failure, Operation, RequestFailed, WrongBytes
from tests.nemesis.images import MANIFEST_TYPE, Image, digest_of, parts_of
from tests.sending import send_pieces

T = TypeVar("T")

_CHUNK = 64 * 1024
_PATIENCE = httpx.Timeout(connect=10, read=60, write=60, pool=60)
"""Longer than anything may take: a request that hangs shows as a failure and as the worst latency."""


@frozen
class Habits:
    """What a client repeats. Seconds between the tries; their number is that of the delays plus one."""

    name: str
    blob_delays: tuple[float, ...] = ()
    command_delays: tuple[float, ...] = ()

    @property
    def retries(self) -> bool:
        return bool(self.blob_delays or self.command_delays)


DOCKER = Habits("docker", blob_delays=(5, 10, 15, 20))
PODMAN = Habits("podman", command_delays=(1, 1, 1))
BARE = Habits("bare")


@define(eq=False)
class Client:
    """One client of a door. `operation` receives every request that fails."""

    habits: Habits
    url: str
    looked_at: set[tuple[str, str]] = field(factory=set)
    """Every blob that a node streamed, with the location that it began to read it from."""
    _http: httpx.AsyncClient = field(init=False)
    _moved: float = field(default=0.0, init=False)

    def __attrs_post_init__(self) -> None:
        limits = httpx.Limits(max_keepalive_connections=20 if self.habits.retries else 0)
        self._http = httpx.AsyncClient(trust_env=False, verify=NO_TLS, timeout=_PATIENCE, limits=limits)

    async def close(self) -> None:
        await self._http.aclose()

    async def pull(self, operation: Operation, repository: str, reference: str) -> bytes | None:
        """Pull an image, check every byte, and return its manifest; None if there is no such tag.

        Raises RequestFailed, WrongBytes.
        """

        async def command() -> bytes | None:
            manifest = await self.look(operation, repository, reference)
            for digest, size in parts_of(manifest) if manifest is not None else ():
                await repeat(self.habits.blob_delays, partial(self._blob, operation, repository, digest, size))
            return manifest

        return await repeat(self.habits.command_delays, command)

    async def look(self, operation: Operation, repository: str, reference: str) -> bytes | None:
        """Get a manifest; None if there is none. Raises RequestFailed, WrongBytes."""
        path = f"/v2/{repository}/manifests/{reference}"
        answer = await self._send(operation, "GET", path, headers={"accept": MANIFEST_TYPE}, good=(200, 404))
        if answer.status_code == 404:
            return None
        named = answer.headers["docker-content-digest"]
        if digest_of(answer.content) != named or (":" in reference and named != reference):
            raise WrongBytes(f"{path}: {named} is {digest_of(answer.content)}")
        return answer.content

    async def push(self, operation: Operation, image: Image, tag: str, doors: Sequence[str] = ()) -> None:
        """Push an image; with `doors` every blob in several requests, each through the next of them. Raises RequestFailed."""

        async def command() -> None:
            for digest, data in image.blobs.items():
                await repeat(
                    self.habits.blob_delays,
                    partial(self._upload, operation, image.repository, digest, data, doors or (self.url,)),
                )
            path = f"/v2/{image.repository}/manifests/{tag}"
            headers = {"content-type": MANIFEST_TYPE}
            answer = await self._send(operation, "PUT", path, headers=headers, content=image.manifest, good=(201,))
            if answer.headers["docker-content-digest"] != image.digest:
                raise WrongBytes(f"PUT {path}: {answer.headers['docker-content-digest']}")

        await repeat(self.habits.command_delays, command)

    async def delete(self, operation: Operation, repository: str, tag: str) -> None:
        """Delete a tag; that it is gone already counts as well. Raises RequestFailed."""

        async def command() -> None:
            await self._send(operation, "DELETE", f"/v2/{repository}/manifests/{tag}", good=(202, 404))

        await repeat(self.habits.command_delays, command)

    async def _upload(
        self, operation: Operation, repository: str, digest: str, data: bytes, doors: Sequence[str]
    ) -> None:
        base = f"/v2/{repository}/blobs"
        there = await self._send(operation, "HEAD", f"{base}/{digest}", good=(200, 404))
        if there.status_code == 200:
            return
        answer = await self._send(operation, "POST", f"{base}/uploads/", good=(202,))
        size = len(data) if len(doors) == 1 else max(64 * 1024, len(data) // 4)
        for place, start in enumerate(range(0, len(data), size)):
            chunk = data[start : start + size]
            headers = {"content-type": "application/octet-stream", "content-length": str(len(chunk))}
            if len(doors) > 1:
                headers["content-range"] = f"{start}-{start + len(chunk) - 1}"
            url = urljoin(doors[place % len(doors)], answer.headers["location"])
            answer = await self._send(
                operation, "PATCH", url, headers=headers, content=self._chunks(chunk), good=(202,)
            )
        url = urljoin(doors[-1], answer.headers["location"])
        url = f"{url}{'&' if '?' in url else '?'}digest={digest}"
        await self._send(operation, "PUT", url, good=(201,))

    async def _blob(self, operation: Operation, repository: str, digest: str, size: int) -> None:
        began, path = trio.current_time(), f"/v2/{repository}/blobs/{digest}"
        url, where = urljoin(self.url, path), "registry"
        try:
            for _ in range(3):
                async with self._http.stream("GET", url) as answer:
                    if answer.status_code == 307:
                        url, where = answer.headers["location"], answer.headers["antipode-location"]
                        continue
                    if answer.status_code != 200:
                        text = (await answer.aread())[:500].decode(errors="replace")
                        raise self._failed(operation, began, f"GET {path} at {where}: {answer.status_code} {text}")
                    if (location := answer.headers.get("antipode-location")) is not None:
                        self.looked_at.add((digest, location))
                    hasher, received = hashlib.sha256(), 0
                    async for piece in answer.aiter_raw(_CHUNK):
                        self._moved = trio.current_time()
                        hasher.update(piece)
                        received += len(piece)
                break
        except httpx.HTTPError as error:
            raise self._failed(operation, began, f"GET {path} at {where}: {error!r}") from error
        if received != size or f"sha256:{hasher.hexdigest()}" != digest:
            text = f"GET {path} at {where}: {received} of {size} bytes, sha256:{hasher.hexdigest()}"
            if where == "registry":
                raise WrongBytes(text)
            # The client notices and the registry cannot: it never saw these bytes.
            raise self._failed(operation, began, text)

    async def _send(
        self,
        operation: Operation,
        method: str,
        path: str,
        *,
        good: tuple[int, ...],
        headers: dict[str, str] | None = None,
        content: bytes | Iterator[bytes] | None = None,
    ) -> httpx.Response:
        began = trio.current_time()
        url = urljoin(self.url, path)
        if isinstance(content, Iterator):
            request = partial(send_pieces, self._http, method, url, content, headers)
        else:
            request = partial(self._http.request, method, url, headers=headers, content=content)
        try:
            try:
                answer = await request()
            except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError):
                if method not in ("GET", "HEAD") or not self.habits.retries:
                    raise
                answer = await request()
        except httpx.HTTPError as error:
            raise self._failed(operation, began, f"{method} {path}: {error!r}") from error
        if answer.status_code not in good:
            raise self._failed(operation, began, f"{method} {path}: {answer.status_code} {answer.text[:700]}")
        return answer

    def _failed(self, operation: Operation, began: float, reason: str) -> RequestFailed:
        operation.failures.append(Failure(began, trio.current_time(), reason, self._moved))
        return RequestFailed(reason)

    def _chunks(self, data: bytes) -> Iterator[bytes]:
        for start in range(0, len(data), _CHUNK):
            self._moved = trio.current_time()
            yield data[start : start + _CHUNK]


async def repeat(delays: Sequence[float], work: Callable[[], Awaitable[T]]) -> T:
    """Do the work, again after each of these delays while it fails. Raises RequestFailed."""
    for delay in delays:
        try:
            return await work()
        except RequestFailed:
            await trio.sleep(delay)
    return await work()
