"""The canary of a drill: an image that is pushed and pulled all the time, as clients do, and what became of it."""

import hashlib
import json
import secrets
from collections.abc import Sequence

import httpx
import trio
from attrs import define, field, frozen

from node.auth.tokens import BadToken
from node.push.reading import OCI_MANIFEST
from node.records.drills import where_placed
from node.records.postgres import Database
from replication.ports import LedgerUnavailable

REQUEST = 15.0
"""Seconds that one pull or push may take."""

_LAYER = 64 * 1024
"""Bytes: enough to be redirected or streamed from a store, never answered from a node's memory."""


@frozen
class Seen:
    """One pull or push of the canary. Times on Trio's clock; `where` is the location that served or took it."""

    kind: str
    began: float
    ended: float
    where: str | None
    error: str | None = None


@frozen
class Tally:
    """What clients saw of one kind. Seconds."""

    tried: int = 0
    errors: int = 0
    slowest: float = 0.0
    failed_over_after: float | None = None
    """From the beginning of the drill to the end of the last that the location served or took; 0 if none was."""


class CanaryFailed(Exception):
    """The canary image could not be pushed or pulled, or its bytes are wrong."""


def tally(seen: Sequence[Seen], kind: str, location: str, began: float) -> Tally:
    """Return what clients saw of one kind since the drill `began`. Pure."""
    during = [one for one in seen if one.kind == kind and one.began >= began]
    if not during:
        return Tally()
    there = [one.ended - began for one in during if one.where == location]
    return Tally(
        len(during),
        sum(one.error is not None for one in during),
        max(one.ended - one.began for one in during),
        max(there, default=0.0),
    )


@define
class Canary:
    """An image in a repository of its own, and what came of every pull and push of it."""

    http: httpx.AsyncClient
    database: Database
    repository: str
    layer: bytes = field(factory=lambda: secrets.token_bytes(_LAYER))
    seen: list[Seen] = field(factory=list)

    async def push(self, tag: str, layer: bytes) -> None:
        """Push an image of one layer. Raises httpx.HTTPError, CanaryFailed, BadToken, LedgerUnavailable."""
        config = b'{"architecture":"amd64","os":"linux"}'
        for blob in (config, layer):
            answer = await self.http.post(
                f"/v2/{self.repository}/blobs/uploads/", params={"digest": digest_of(blob)}, content=blob
            )
            if answer.status_code == httpx.codes.ACCEPTED:
                answer = await self.http.put(
                    answer.headers["location"], params={"digest": digest_of(blob)}, content=blob
                )
            _expect(answer, 201)
        manifest = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": OCI_MANIFEST,
                "config": _descriptor("application/vnd.oci.image.config.v1+json", config),
                "layers": [_descriptor("application/vnd.oci.image.layer.v1.tar", layer)],
            }
        )
        path = f"/v2/{self.repository}/manifests/{tag}"
        _expect(await self.http.put(path, content=manifest, headers={"content-type": OCI_MANIFEST}), 201)

    async def pull(self) -> str | None:
        """Pull the canary; return the location that served its layer. Raises as `push`."""
        path = f"/v2/{self.repository}"
        _expect(await self.http.get(f"{path}/manifests/canary", headers={"accept": OCI_MANIFEST}), 200)
        answer = await self.http.get(f"{path}/blobs/{digest_of(self.layer)}")
        where = answer.headers.get("antipode-location")
        if answer.is_redirect:
            # A store knows nothing of the registry's tokens.
            answer = await self.http.get(answer.headers["location"], auth=None)
        _expect(answer, 200)
        if answer.content != self.layer:
            raise CanaryFailed("the blob's bytes are wrong")
        return None if where is None else str(where)

    async def keep(self, kind: str, every: float) -> None:
        """Do it for ever, and note what came of it."""
        while True:
            began = trio.current_time()
            await self.once(kind)
            await trio.sleep_until(max(began + every, trio.current_time()))

    async def once(self, kind: str) -> Seen:
        """Pull, or push a new image, and note what came of it."""
        began, where, error, layer = trio.current_time(), None, None, secrets.token_bytes(1024)
        try:
            with trio.fail_after(REQUEST):
                if kind == "pull":
                    where = await self.pull()
                else:
                    await self.push("new", layer)
        except (httpx.HTTPError, CanaryFailed, LedgerUnavailable, BadToken) as failure:
            error = f"{type(failure).__name__}: {failure}".rstrip(": ")
        except trio.TooSlowError:
            error = f"no answer within {REQUEST:g} s"
        ended = trio.current_time()
        if kind == "push" and error is None:
            where = await self._taken_by(layer)
        seen = Seen(kind, began, ended, where, error)
        self.seen.append(seen)
        return seen

    async def _taken_by(self, layer: bytes) -> str | None:
        """Return the location that took a layer; None where that cannot be asked, which is no error that a client sees."""
        try:
            return next(iter(await where_placed(self.database, digest_of(layer))), None)
        except LedgerUnavailable:
            return None


def _expect(answer: httpx.Response, status: int) -> None:
    if answer.status_code != status:
        raise CanaryFailed(f"{answer.request.method} was answered {answer.status_code}: {answer.text[:200]}")


def digest_of(data: bytes) -> str:
    """Return a blob's digest."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _descriptor(media_type: str, data: bytes) -> dict[str, object]:
    return {"mediaType": media_type, "digest": digest_of(data), "size": len(data)}
