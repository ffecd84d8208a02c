"""The only module that says aioboto3: trio-native calls on one bucket, one crossing each, with errors in our own words.

Objects' bytes take another way, `s3_bytes.py`, and come by here only where a store names another endpoint or region. Everything
below "asyncio side" runs in the loop; nothing outside this module awaits an asyncio-flavoured function of it.
"""

import asyncio
import io
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import cache, partial
from typing import Any, TypeVar, TypeVarTuple
from urllib.parse import quote

import aioboto3
import aiohttp
import trio
from aiobotocore.config import AioConfig
from aiobotocore.credentials import (
    AioAssumeRoleCredentialFetcher,
    AioAssumeRoleWithWebIdentityCredentialFetcher,
    AioCredentials,
    AioDeferredRefreshableCredentials,
)
from aiobotocore.session import AioSession
from attrs import define, field
from botocore.exceptions import BotoCoreError, ClientError, ConnectionClosedError, NoCredentialsError
from botocore.loaders import create_loader
from botocore.utils import FileWebIdentityTokenLoader

from .contract import MIB, EngineUnavailable, KeyPage, ObjectFacts, OpenParts, Part
from .crossing import cross
from .presign import Credentials
from .s3_arguments import RoleKeys, S3Arguments, StaticKeys
from .s3_bytes import ByteLane, Elsewhere, Incoming, open_lane
from .s3_errors import error_code, error_status, is_missing, translate
from .trace import current_trace, waiting

Result = TypeVar("Result")
Arguments = TypeVarTuple("Arguments")

_ON_PARTS = frozenset({"PUT part", "GET parts", "POST upload", "DELETE upload"})

SLOWEST = 64 * 1024
"""Bytes per second. A store that sends a body more slowly than this on the whole counts as silent."""

SLOWEST_COPY = 16 * MIB
"""Likewise for a store that copies its own bytes."""


class KeySource:
    """Hands the library its credentials, whatever they come from, only when a request is signed; never earlier.

    It is what the library calls a credential provider and the credentials in one. `current` is what presigning may use.
    """

    method = "antipode"

    def __init__(self, arguments: S3Arguments) -> None:
        self._arguments = arguments
        self._source: Any = None
        self._finding = asyncio.Lock()
        self._current: Credentials | None = None
        if isinstance(keys := arguments.keys, StaticKeys):
            self._source = AioCredentials(keys.access_key, keys.secret_key, keys.token)
            self._current = Credentials(keys.access_key, keys.secret_key, keys.token)

    @property
    def current(self) -> Credentials | None:
        """What the last request was signed with, None before the first or when it has expired."""
        expires = isinstance(self._source, AioDeferredRefreshableCredentials)
        return None if expires and self._source.refresh_needed(0) else self._current

    async def load_credentials(self) -> "KeySource":
        """Return the credentials (the library's provider interface)."""
        return self

    def get_account_id(self) -> None:
        """Return nothing: S3's endpoints don't depend on the account."""

    def get_deferred_property(self, name: str) -> Callable[[], Any]:
        """Return a getter of one property (the library asks for the account's id only)."""
        return self.get_account_id if name == "account_id" else partial(getattr, self, name)

    async def get_frozen_credentials(self) -> Any:
        """Return what to sign the next request with (the library's credentials interface)."""
        async with self._finding:
            if self._source is None:
                self._source = await self._find()
        frozen = await self._source.get_frozen_credentials()
        self._current = Credentials(frozen.access_key, frozen.secret_key, frozen.token)
        return frozen

    async def _find(self) -> Any:
        if isinstance(keys := self._arguments.keys, RoleKeys):
            return AioDeferredRefreshableCredentials(self._role(keys).fetch_credentials, "assume-role")
        found = await AioSession().get_credentials()
        if found is None:
            raise NoCredentialsError
        return found

    def _role(self, keys: RoleKeys) -> Any:
        def create(service: str, **names: Any) -> Any:
            names.setdefault("config", AioConfig(connect_timeout=self._arguments.limits.connect))
            place = {"region_name": self._arguments.region, "endpoint_url": keys.endpoint}
            return AioSession().create_client(service, **place, **names)

        # Quay's session name: a role's trust policy may ask for it.
        extra = {"RoleSessionName": "quay"}
        if keys.user is not None:
            user = AioCredentials(keys.user.access_key, keys.user.secret_key, keys.user.token)
            return AioAssumeRoleCredentialFetcher(create, user, keys.role_arn, extra_args=extra)
        role = keys.role_arn or os.environ.get("AWS_ROLE_ARN", "")
        file = os.environ.get("AWS_WEB_IDENTITY_TOKEN_FILE", "")
        if not role or not file:
            raise NoCredentialsError
        return AioAssumeRoleWithWebIdentityCredentialFetcher(
            create, FileWebIdentityTokenLoader(file), role, extra_args=extra
        )


@define(eq=False)
class S3Client:
    """Calls on one bucket. Made by `open_client`; safe for concurrent use.

    Every call raises EngineUnavailable, EngineRefused, or what its docstring names, within the limits of the arguments.
    """

    _arguments: S3Arguments
    _client: Any
    _keys: KeySource
    _lane: ByteLane
    _extra: dict[str, str] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._extra = {"ServerSideEncryption": "AES256"} if self._arguments.encrypt else {}

    def credentials(self) -> Credentials | None:
        """Return what the last request was signed with; None before the first where that is not in the configuration."""
        return self._keys.current

    async def head(self, key: str) -> ObjectFacts:
        """Return an object's facts. Raises ObjectMissing."""
        return await self._call("HEAD", key, self._limits_read, self._head, key)

    async def read(self, key: str, start: int, length: int) -> bytes:
        """Return up to `length` bytes from `start`, fewer only where the object ends. Raises ObjectMissing."""
        deadline = self._limits_read + length / SLOWEST
        if length == 0:
            await self.head(key)
            return b""
        keys = await self._fresh_keys()
        with self._translated("GET", key):
            try:
                return await self._lane.read(keys, key, start, length, deadline)
            except Elsewhere:
                pass
        return await self._call("GET", key, deadline, self._read, key, start, length)

    async def open(self, key: str, start: int, length: int | None) -> "S3Body":
        """Open bytes of an object; the caller closes the body. Raises ObjectMissing."""
        if length == 0:
            await self.head(key)
            return S3Body(0, _nothing, _close_nothing)
        keys = await self._fresh_keys()
        with self._translated("GET", key):
            try:
                incoming = await self._lane.get(keys, key, start, length, self._limits_read)
            except Elsewhere:
                pass
            else:
                return S3Body(incoming.size, partial(self._receive_more, key, incoming), incoming.close)
        stream, size = await self._call("GET", key, self._limits_read, self._open, key, start, length)

        async def receive(wanted: int) -> bytes:
            deadline = self._arguments.limits.read + wanted / SLOWEST
            return await self._call("GET", key, deadline, self._receive, stream, wanted)

        return S3Body(size, receive, _close_nothing if stream is None else stream.close)

    async def _receive_more(self, key: str, incoming: Incoming, wanted: int) -> bytes:
        with self._translated("GET", key):
            return await incoming.receive(wanted, self._arguments.limits.read + wanted / SLOWEST)

    async def put(self, key: str, data: bytes, sha256: str | None = None) -> ObjectFacts:
        """Write a whole object."""
        headers = {"x-amz-server-side-encryption": "AES256"} if self._arguments.encrypt else {}
        answer = await self._send("PUT", key, "", headers, data, sha256)
        if answer is not None:
            return ObjectFacts(len(data), _bare(answer.get("etag")))
        return await self._call("PUT", key, self._limits_write, self._put, key, data)

    async def _send(
        self, verb: str, key: str, query: str, headers: Mapping[str, str], data: bytes, sha256: str | None = None
    ) -> Mapping[str, str] | None:
        """Send a body by the byte lane; return the headers of the answer, None where the library has to."""
        keys = await self._fresh_keys()
        with self._translated(verb, key):
            try:
                return await self._lane.put(keys, key, query, headers, data, sha256, self._limits_write)
            except Elsewhere:
                return None

    async def begin(self, key: str) -> str:
        """Begin a multi-part write and return its id."""
        return await self._call("POST uploads", key, self._limits_write, self._begin, key)

    async def put_part(self, key: str, upload: str, number: int, data: bytes) -> Part:
        """Write one part. Raises PartsMissing."""
        query = f"partNumber={number}&uploadId={quote(upload, safe='~')}"
        answer = await self._send("PUT part", key, query, {}, data)
        if answer is not None:
            return Part(number, len(data), _bare(answer.get("etag")) or "")
        return await self._call("PUT part", key, self._limits_write, self._put_part, key, upload, number, data)

    async def copy(self, bucket: str, source: str, key: str, size: int) -> ObjectFacts:
        """Copy an object of another bucket of this service. Raises ObjectMissing."""
        deadline = self._limits_write + size / SLOWEST_COPY
        return await self._call("PUT copy", key, deadline, self._copy, bucket, source, key)

    async def copy_part(
        self, bucket: str, source: str, key: str, upload: str, number: int, start: int, length: int
    ) -> Part:
        """Copy a range of such an object as a part. Raises PartsMissing."""
        deadline = self._limits_write + length / SLOWEST_COPY
        return await self._call(
            "PUT part", key, deadline, self._copy_part, bucket, source, key, upload, number, start, length
        )

    async def list_parts(self, key: str, upload: str) -> tuple[Part, ...]:
        """Return all parts by number. Raises PartsMissing."""
        return await self._call("GET parts", key, 3 * self._limits_read, self._list_parts, key, upload)

    async def finish(self, key: str, upload: str, parts: Sequence[Part]) -> str | None:
        """Complete a multi-part write and return the object's entity tag. Raises PartsMissing."""
        # A store assembles thousands of parts while we wait; Amazon documents minutes.
        deadline = self._limits_write + 0.05 * len(parts)
        return await self._call("POST upload", key, deadline, self._finish, key, upload, parts)

    async def abandon(self, key: str, upload: str) -> None:
        """Abort a multi-part write. Raises PartsMissing if there is none."""
        await self._call("DELETE upload", key, self._limits_read, self._abandon, key, upload)

    async def list_open(self, prefix: str) -> tuple[OpenParts, ...]:
        """Return all open multi-part writes under a prefix."""
        return await self._call("GET uploads", prefix, 6 * self._limits_read, self._list_open, prefix)

    async def delete(self, key: str) -> None:
        """Delete an object; there need not be one."""
        await self._call("DELETE", key, self._limits_read, self._delete, key)

    async def list_keys(self, prefix: str, after: str | None, most: int) -> KeyPage:
        """Return one page of keys."""
        return await self._call("GET list", prefix, self._limits_read, self._list_keys, prefix, after, most)

    @property
    def _limits_read(self) -> float:
        return self._arguments.limits.connect + self._arguments.limits.read

    @property
    def _limits_write(self) -> float:
        return self._arguments.limits.connect + self._arguments.limits.write

    async def _call(
        self,
        verb: str,
        key: str,
        deadline: float,
        fn: Callable[[*Arguments], Awaitable[Result]],
        *args: *Arguments,
    ) -> Result:
        """Cross once and translate what comes back."""
        with self._translated(verb, key):
            result = await cross(fn, *args, deadline=deadline, unavailable=EngineUnavailable)
        return result  # noqa: RET504 - here, because a context manager may swallow errors as far as mypy knows

    async def _fresh_keys(self) -> Credentials:
        """Return what to sign a request with, fetched or renewed where that is needed."""
        if isinstance(self._arguments.keys, StaticKeys) and (current := self._keys.current) is not None:
            return current
        await self._call("credentials", "", self._limits_read, self._keys.get_frozen_credentials)
        current = self._keys.current
        if current is None:
            raise EngineUnavailable(f"{self._arguments.bucket}: the credentials have expired")
        return current

    @contextmanager
    def _translated(self, verb: str, key: str) -> Iterator[None]:
        """Say in the contract's words what goes wrong, and where."""
        where = f"{verb} {self._arguments.bucket}/{key}"
        try:
            with waiting("store"):
                yield
        except EngineUnavailable as error:
            raise EngineUnavailable(f"{where}: {error}") from error
        except (BotoCoreError, ClientError, aiohttp.ClientError, OSError) as error:
            raise translate(where, error, of_parts=verb in _ON_PARTS) from error

    # The asyncio side.

    def _names(self, key: str) -> dict[str, Any]:
        return {"Bucket": self._arguments.bucket, "Key": key}

    async def _again_if_dead(self, call: Callable[..., Awaitable[Any]], **names: Any) -> Any:
        """Repeat a read once on a connection that the store had closed meanwhile."""
        try:
            return await call(**names)
        except ConnectionClosedError:
            return await call(**names)

    async def _head(self, key: str) -> ObjectFacts:
        try:
            answer = await self._again_if_dead(self._client.head_object, **self._names(key))
        except ClientError as error:
            if is_missing(error):
                # An answer to HEAD has no body: a missing bucket looks the same, and must not pass for a lost object.
                await self._require_bucket()
            raise
        modified = answer.get("LastModified")
        return ObjectFacts(
            answer["ContentLength"], _bare(answer.get("ETag")), None if modified is None else modified.timestamp()
        )

    async def _require_bucket(self) -> None:
        try:
            await self._again_if_dead(self._client.head_bucket, Bucket=self._arguments.bucket)
        except ClientError as error:
            if error_status(error) == 404:
                error.response["Error"] = {"Code": "NoSuchBucket", "Message": "there is no such bucket"}
                raise
            if error_status(error) >= 500:
                raise

    async def _open(self, key: str, start: int, length: int | None) -> tuple[Any, int]:
        """Return the open stream and the number of bytes it has to give; no stream where the range is behind the end."""
        if length == 0:
            await self._head(key)
            return None, 0
        names = self._names(key)
        ranged = start > 0 or length is not None
        if ranged:
            names["Range"] = f"bytes={start}-" + ("" if length is None else str(start + length - 1))
        try:
            answer = await self._again_if_dead(self._client.get_object, **names)
        except ClientError as error:
            if error_code(error) == "InvalidRange" or error_status(error) == 416:
                return None, 0
            raise
        if ranged and not str(answer.get("ContentRange", "")).startswith(f"bytes {start}-"):
            answer["Body"].close()
            raise OSError("the store did not heed the Range header")
        return answer["Body"], int(answer["ContentLength"])

    async def _read(self, key: str, start: int, length: int) -> bytes:
        stream, size = await self._open(key, start, length)
        try:
            return await self._receive(stream, min(size, length))
        finally:
            if stream is not None:
                stream.close()

    async def _receive(self, stream: Any, size: int) -> bytes:
        """Read exactly `size` bytes. BytesIO hands its buffer over without a copy, so memory peaks at `size` and a little."""
        buffer = io.BytesIO()
        left = size
        while left:
            # The client's own read timeout has to leave room for writes; a reader wants to hear of silence earlier.
            async with asyncio.timeout(self._arguments.limits.read):
                piece = await stream.read(min(left, MIB))
            if not piece:
                raise OSError(f"the store broke off {left} bytes before the end")
            buffer.write(piece)
            left -= len(piece)
        return buffer.getvalue()

    async def _put(self, key: str, data: bytes) -> ObjectFacts:
        answer = await self._client.put_object(
            **self._names(key), Body=_Body(data), ContentLength=len(data), **self._extra
        )
        return ObjectFacts(len(data), _bare(answer.get("ETag")))

    async def _begin(self, key: str) -> str:
        answer = await self._client.create_multipart_upload(**self._names(key), **self._extra)
        return str(answer["UploadId"])

    async def _put_part(self, key: str, upload: str, number: int, data: bytes) -> Part:
        answer = await self._client.upload_part(
            **self._names(key), UploadId=upload, PartNumber=number, Body=_Body(data), ContentLength=len(data)
        )
        return Part(number, len(data), _bare(answer["ETag"]) or "")

    async def _copy(self, bucket: str, source: str, key: str) -> ObjectFacts:
        await self._client.copy_object(**self._names(key), CopySource={"Bucket": bucket, "Key": source}, **self._extra)
        # The answer does not tell the size.
        return await self._head(key)

    async def _copy_part(
        self, bucket: str, source: str, key: str, upload: str, number: int, start: int, length: int
    ) -> Part:
        answer = await self._client.upload_part_copy(
            **self._names(key),
            UploadId=upload,
            PartNumber=number,
            CopySource={"Bucket": bucket, "Key": source},
            CopySourceRange=f"bytes={start}-{start + length - 1}",
        )
        return Part(number, length, _bare(answer["CopyPartResult"]["ETag"]) or "")

    async def _list_parts(self, key: str, upload: str) -> tuple[Part, ...]:
        parts: list[Part] = []
        more: dict[str, Any] = {}
        while True:
            answer = await self._again_if_dead(self._client.list_parts, **self._names(key), UploadId=upload, **more)
            parts += [
                Part(part["PartNumber"], part["Size"], _bare(part["ETag"]) or "") for part in answer.get("Parts", ())
            ]
            if not answer.get("IsTruncated"):
                return tuple(sorted(parts, key=lambda part: part.number))
            more = {"PartNumberMarker": answer["NextPartNumberMarker"]}

    async def _finish(self, key: str, upload: str, parts: Sequence[Part]) -> str | None:
        listed = [{"PartNumber": part.number, "ETag": f'"{part.etag}"'} for part in parts]
        names = self._names(key)
        try:
            answer = await self._client.complete_multipart_upload(
                **names, UploadId=upload, MultipartUpload={"Parts": listed}
            )
        except ClientError as error:
            if error_code(error) == "InternalError":
                # Ceph says so, as if another completion were under way, of a write that is gone; listing it tells.
                await self._client.list_parts(**names, UploadId=upload, MaxParts=1)
            raise
        return _bare(answer.get("ETag"))

    async def _abandon(self, key: str, upload: str) -> None:
        await self._client.abort_multipart_upload(**self._names(key), UploadId=upload)

    async def _list_open(self, prefix: str) -> tuple[OpenParts, ...]:
        found: list[OpenParts] = []
        more: dict[str, Any] = {}
        while True:
            answer = await self._again_if_dead(
                self._client.list_multipart_uploads, Bucket=self._arguments.bucket, Prefix=prefix, **more
            )
            found += [OpenParts(upload["Key"], upload["UploadId"]) for upload in answer.get("Uploads", ())]
            if not answer.get("IsTruncated"):
                return tuple(found)
            more = {"KeyMarker": answer["NextKeyMarker"], "UploadIdMarker": answer["NextUploadIdMarker"]}

    async def _delete(self, key: str) -> None:
        await self._client.delete_object(**self._names(key))

    async def _list_keys(self, prefix: str, after: str | None, most: int) -> KeyPage:
        more = {} if after is None else {"StartAfter": after}
        answer = await self._again_if_dead(
            self._client.list_objects_v2, Bucket=self._arguments.bucket, Prefix=prefix, MaxKeys=most, **more
        )
        keys = tuple(item["Key"] for item in answer.get("Contents", ()))
        return KeyPage(keys, keys[-1] if answer.get("IsTruncated") and keys else None)


class _Body(io.BytesIO):
    """Bytes to send. Raw ones go out in one blocking piece and make aiohttp warn; these it sends in slices."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._data = data

    def getbuffer(self) -> memoryview:
        """Return the bytes. aiohttp asks only for their number; BytesIO's own answer would copy a whole part for it."""
        return memoryview(self._data)


@define(eq=False)
class S3Body:
    """An open body of an object: `size` bytes are left to receive."""

    size: int
    _receive: Callable[[int], Awaitable[bytes]]
    close: Callable[[], None]
    """Give the connection back to the pool after the last byte; before that, close it. Never waits."""

    async def receive(self, most: int) -> bytes:
        """Return exactly `most` bytes, fewer at the end; one crossing, however short the library's own reads are."""
        wanted = min(most, self.size)
        if wanted <= 0:
            return b""
        data = await self._receive(wanted)
        self.size -= wanted
        return data


async def _nothing(_: int) -> bytes:
    return b""


def _close_nothing() -> None:
    """Do nothing: there is no stream."""


def _name_request(request: Any, **_: Any) -> None:
    """Tell the store for which request it works, after the signature, which covers neither header.

    A store's access log has the User-Agent (Amazon's and Ceph's do), a proxy on the way may keep the other.
    """
    trace = current_trace()
    if trace is not None:
        request.headers["X-Request-ID"] = trace.id
        request.headers["User-Agent"] = f"{request.headers.get('User-Agent', '')} request/{trace.id}".lstrip()


@cache
def _loader() -> Any:
    """Return what reads the library's service descriptions: 12 MB once, and not once per store."""
    return create_loader()


@asynccontextmanager
async def open_client(arguments: S3Arguments) -> AsyncIterator[S3Client]:
    """Open the client of one bucket without any network I/O, and close its connections at the end.

    Must be entered below `open_bridge`.
    """
    keys = KeySource(arguments)
    session = AioSession()
    session.register_component("credential_provider", keys)
    session.register_component("data_loader", _loader())
    context = aioboto3.Session(botocore_session=session).client(
        "s3",
        region_name=arguments.region,
        endpoint_url=arguments.endpoint,
        verify=arguments.ca_bundle or arguments.verify_tls,
        config=AioConfig(
            signature_version="s3v4",
            connect_timeout=arguments.limits.connect,
            # One silence limit has to serve reads and writes; reads have their own, shorter one in _receive and in cross.
            read_timeout=max(arguments.limits.read, arguments.limits.write),
            max_pool_connections=arguments.maximum_connections,
            retries={"total_max_attempts": 1, "mode": "standard"},
            # The defaults turn bodies over https into aws-chunked ones, which Ceph and others refuse.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            s3={
                "addressing_style": arguments.addressing,
                # Over TLS nobody can change the body on its way, and hashing it once more costs CPU.
                "payload_signing_enabled": arguments.endpoint.startswith("http://"),
                "us_east_1_regional_endpoint": "regional",
            },
        ),
    )

    def closing(reason: str) -> EngineUnavailable:
        return EngineUnavailable(f"opening or closing the client of {arguments.bucket}: {reason}")

    client = await cross(context.__aenter__, deadline=60.0, unavailable=closing)
    client.meta.events.register("before-send.s3", _name_request)
    try:
        with open_lane(arguments) as lane:
            yield S3Client(arguments, client, keys, lane)
    finally:
        await _close(context, closing)


async def _close(context: Any, unavailable: Callable[[str], Exception]) -> None:
    """Close the client also where the scope is cancelled already; it has no network round trip to wait for."""
    with trio.CancelScope(shield=True, deadline=trio.current_time() + 5):
        await cross(context.__aexit__, None, None, None, deadline=3.0, unavailable=unavailable)


def _bare(etag: str | None) -> str | None:
    # Ceph answers the end of a multi-part write with an empty one.
    return etag.strip('"') or None if etag else None
