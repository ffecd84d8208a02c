"""One engine for every store that speaks S3: Amazon, Ceph's gateway, NooBaa, Google's and IBM's interoperability layers."""

import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from hashlib import md5

from attrs import define, evolve, field

from . import presign
from .contract import (
    MIB,
    ChunkMaker,
    Engine,
    EngineRefused,
    EngineUnavailable,
    Inflow,
    KeyPage,
    ObjectFacts,
    ObjectMissing,
    ObjectReader,
    OpenParts,
    Part,
    PartsMissing,
)
from .s3_arguments import S3Arguments
from .s3_client import S3Client, open_client

_MD5 = re.compile(r"[0-9a-f]{32}")
_OF_PARTS = re.compile(r"[0-9a-f]{32}-[0-9]+")


@define(eq=False)
class S3Engine:
    """A bucket as an `Engine`. Made by `open_s3`."""

    _arguments: S3Arguments
    _client: S3Client
    _target: presign.Target = field(init=False)

    def __attrs_post_init__(self) -> None:
        given = self._arguments
        self._target = presign.Target(
            given.public_endpoint or given.endpoint, given.bucket, given.region, given.addressing
        )

    @property
    def kind(self) -> str:
        """The class name that the configuration used."""
        return self._arguments.kind

    @property
    def prefix(self) -> str:
        """What every key starts with."""
        return self._arguments.prefix

    @property
    def part_minimum(self) -> int:
        """The smallest part but the last, in bytes (Amazon S3 User Guide, multipart upload limits)."""
        return 5 * MIB

    @property
    def presigns(self) -> bool:
        """False only while credentials that are fetched at run time have not been fetched yet, or have expired."""
        return self._client.credentials() is not None

    def presign(self, key: str, *, now: float, expires: int, method: str = "GET") -> str:
        """Return a URL that is good for `expires` seconds from `now`; temporary credentials may end it earlier."""
        credentials = self._client.credentials()
        if credentials is None:
            raise NotImplementedError("no credentials have been fetched yet: presigns is false")
        return presign.presign(self._target, credentials, key, now=now, expires=expires, method=method)

    async def head(self, key: str) -> ObjectFacts:
        """Return the object's facts. Raises ObjectMissing."""
        return await self._client.head(key)

    @asynccontextmanager
    async def open(self, key: str, start: int = 0, length: int | None = None) -> AsyncIterator[ObjectReader]:
        """Open the bytes [start, start + length). Raises ObjectMissing on entry."""
        body = await self._client.open(key, start, length)
        try:
            yield body
        finally:
            body.close()

    async def read(self, key: str, start: int, length: int) -> bytes:
        """Return exactly these bytes. Raises ObjectMissing; EngineUnavailable if there are fewer."""
        data = await self._client.read(key, start, length)
        if len(data) != length:
            raise EngineUnavailable(f"GET {key}: {len(data)} bytes from {start} on, not {length}")
        return data

    async def put(self, key: str, data: bytes, sha256: str | None = None) -> ObjectFacts:
        """Write a whole small object."""
        return await self._client.put(key, data, sha256)

    async def inflow(self, key: str, start: int, length: int, silence: float, *, whole: bool = False) -> Inflow:
        """Return the bytes [start, start + length), not asked for yet."""
        return await self._client.inflow(key, start, length, silence, whole=whole)

    async def put_stream(
        self, key: str, size: int, chunks: ChunkMaker, patience: float, sha256: str | None = None
    ) -> ObjectFacts:
        """Write a whole object of `size` bytes while it is made. Raises CannotStream."""
        return await self._client.put_stream(key, size, chunks, patience, sha256)

    async def put_part_stream(
        self, key: str, upload: str, number: int, size: int, chunks: ChunkMaker, patience: float
    ) -> Part:
        """Write one part of `size` bytes while it is made. Raises PartsMissing, CannotStream."""
        return await self._client.put_part_stream(key, upload, number, size, chunks, patience)

    async def begin_parts(self, key: str) -> str:
        """Begin a multi-part write and return its id."""
        return await self._client.begin(key)

    async def put_part(self, key: str, upload: str, number: int, data: bytes) -> Part:
        """Write one part. Raises PartsMissing."""
        return await self._client.put_part(key, upload, number, data)

    def copies_from(self, other: Engine) -> bool:
        """Return whether this is another bucket, or path, of one service under the same credentials."""
        if not isinstance(other, S3Engine):
            return False
        mine, theirs = self._arguments, other._arguments  # noqa: SLF001 - of the same class
        return (mine.endpoint, mine.region, mine.keys) == (theirs.endpoint, theirs.region, theirs.keys)

    async def copy_object(self, other: Engine, source: str, key: str, size: int) -> ObjectFacts:
        """Let the store copy an object of another of its buckets. Raises ObjectMissing."""
        return await self._client.copy(self._bucket_of(other), source, key, size)

    async def copy_part(
        self, other: Engine, source: str, key: str, upload: str, number: int, start: int, length: int
    ) -> Part:
        """Let the store copy a range of such an object as a part. Raises PartsMissing."""
        return await self._client.copy_part(self._bucket_of(other), source, key, upload, number, start, length)

    def _bucket_of(self, other: Engine) -> str:
        if not isinstance(other, S3Engine) or not self.copies_from(other):
            raise EngineRefused(f"{self._arguments.bucket} cannot be copied into from another service")
        return other._arguments.bucket  # noqa: SLF001 - of the same class

    async def list_parts(self, key: str, upload: str) -> Sequence[Part]:
        """Return all parts by number. Raises PartsMissing."""
        return await self._client.list_parts(key, upload)

    async def finish_parts(self, key: str, upload: str, parts: Sequence[Part]) -> ObjectFacts:
        """Make the parts the object. Raises PartsMissing."""
        if not parts:
            raise PartsMissing(f"{key}: a multi-part write cannot be finished without parts")
        size = sum(part.size for part in parts)
        try:
            etag = await self._client.finish(key, upload, parts)
        except PartsMissing as error:
            # Stores forget a finished write sooner or later.
            ended = error
        else:
            if not is_of_others(etag, parts):
                return ObjectFacts(size, etag)
            # Or they remember it, and answer whoever ends it again as they did the first time.
            ended = PartsMissing(f"{key}: the store says that it was made of other parts ({etag})")
        # Keys are never used twice: what stands there is this write's, though perhaps of other parts.
        try:
            facts = await self._client.head(key)
        except ObjectMissing:
            facts = None
        if facts is None or facts.size != size:
            raise ended
        return evolve(facts, found=True)

    async def abandon_parts(self, key: str, upload: str | None = None) -> None:
        """Forget a multi-part write, or every open one of this key."""
        uploads = [upload] if upload is not None else []
        if upload is None:
            uploads = [found.upload for found in await self._client.list_open(key) if found.key == key]
        for one in uploads:
            try:
                await self._client.abandon(key, one)
            except PartsMissing:
                continue  # gone already, which is what was asked

    async def list_open_parts(self, prefix: str) -> Sequence[OpenParts]:
        """Return the open multi-part writes under a prefix."""
        return await self._client.list_open(prefix)

    async def delete(self, key: str) -> None:
        """Delete the object."""
        try:
            await self._client.delete(key)
        except ObjectMissing:
            return  # Google's store says so; the contract does not mind

    async def list_keys(self, prefix: str, after: str | None = None, most: int = 1000) -> KeyPage:
        """Return one page of keys."""
        return await self._client.list_keys(prefix, after, most)


def is_of_others(etag: str | None, parts: Sequence[Part]) -> bool:
    """Return whether an object's entity tag says that it was made of other parts. Pure.

    Amazon's is the MD5 of its parts' MD5s, and their number, as far as it is of that form. One of any other form, or none, as
    Ceph's, says nothing. A store that has a rule of its own for that form seems to be of others.
    """
    if etag is None or not _OF_PARTS.fullmatch(etag) or not all(_MD5.fullmatch(part.etag) for part in parts):
        return False
    whole = md5(b"".join(bytes.fromhex(part.etag) for part in parts), usedforsecurity=False)
    return etag != f"{whole.hexdigest()}-{len(parts)}"


@asynccontextmanager
async def open_s3(arguments: S3Arguments) -> AsyncIterator[S3Engine]:
    """Open an engine on a bucket, below `open_bridge`. No network I/O: a dead store does not stop a node from starting."""
    async with open_client(arguments) as client:
        yield S3Engine(arguments, client)
