"""The only module that says aioboto3: what it asks of one bucket, in asyncio's flavour, and what it signs with.

Everything here runs in asyncio's loop, but for `open_library`; `s3_client.py` crosses over to it, once for each call.
"""

import asyncio
import io
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

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
from botocore.utils import FileWebIdentityTokenLoader

from .contract import MIB, EngineUnavailable, KeyPage, ObjectFacts, OpenParts, Part
from .crossing import cross
from .presign import Credentials
from .s3_arguments import RoleKeys, S3Arguments, StaticKeys
from .s3_descriptions import descriptions
from .s3_errors import error_code, error_status, is_missing
from .trace import current_trace

FAILURES = (BotoCoreError, ClientError, aiohttp.ClientError, OSError)
"""What every call here may raise."""


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
            session = AioSession()
            session.register_component("data_loader", descriptions())
            return session.create_client(service, **place, **names)

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
class Library:
    """Calls on one bucket, for asyncio's loop. Made by `open_library`."""

    _arguments: S3Arguments
    _client: Any
    keys: KeySource
    _extra: dict[str, str] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._extra = {"ServerSideEncryption": "AES256"} if self._arguments.encrypt else {}

    def _names(self, key: str) -> dict[str, Any]:
        return {"Bucket": self._arguments.bucket, "Key": key}

    async def _again_if_dead(self, call: Callable[..., Awaitable[Any]], **names: Any) -> Any:
        """Repeat a read once on a connection that the store had closed meanwhile."""
        try:
            return await call(**names)
        except ConnectionClosedError:
            return await call(**names)

    async def head(self, key: str) -> ObjectFacts:
        """Return an object's facts."""
        try:
            answer = await self._again_if_dead(self._client.head_object, **self._names(key))
        except ClientError as error:
            if is_missing(error):
                # An answer to HEAD has no body: a missing bucket looks the same, and must not pass for a lost object.
                await self._require_bucket()
            raise
        modified = answer.get("LastModified")
        return ObjectFacts(
            answer["ContentLength"], bare(answer.get("ETag")), None if modified is None else modified.timestamp()
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

    async def open(self, key: str, start: int, length: int | None) -> tuple[Any, int]:
        """Return the open stream and the number of bytes it has to give; no stream where the range is behind the end."""
        if length == 0:
            await self.head(key)
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

    async def read(self, key: str, start: int, length: int) -> bytes:
        """Return up to `length` bytes from `start`."""
        stream, size = await self.open(key, start, length)
        try:
            return await self.receive(stream, min(size, length))
        finally:
            if stream is not None:
                stream.close()

    async def receive(self, stream: Any, size: int) -> bytes:
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

    async def put(self, key: str, data: bytes) -> ObjectFacts:
        """Write a whole object."""
        answer = await self._client.put_object(
            **self._names(key), Body=_Body(data), ContentLength=len(data), **self._extra
        )
        return ObjectFacts(len(data), bare(answer.get("ETag")))

    async def begin(self, key: str) -> str:
        """Begin a multi-part write and return its id."""
        answer = await self._client.create_multipart_upload(**self._names(key), **self._extra)
        return str(answer["UploadId"])

    async def put_part(self, key: str, upload: str, number: int, data: bytes) -> Part:
        """Write one part."""
        answer = await self._client.upload_part(
            **self._names(key), UploadId=upload, PartNumber=number, Body=_Body(data), ContentLength=len(data)
        )
        return Part(number, len(data), bare(answer["ETag"]) or "")

    async def copy(self, bucket: str, source: str, key: str) -> ObjectFacts:
        """Copy an object of another bucket of this service."""
        await self._client.copy_object(**self._names(key), CopySource={"Bucket": bucket, "Key": source}, **self._extra)
        # The answer does not tell the size.
        return await self.head(key)

    async def copy_part(
        self, bucket: str, source: str, key: str, upload: str, number: int, start: int, length: int
    ) -> Part:
        """Copy a range of such an object as a part."""
        answer = await self._client.upload_part_copy(
            **self._names(key),
            UploadId=upload,
            PartNumber=number,
            CopySource={"Bucket": bucket, "Key": source},
            CopySourceRange=f"bytes={start}-{start + length - 1}",
        )
        return Part(number, length, bare(answer["CopyPartResult"]["ETag"]) or "")

    async def list_parts(self, key: str, upload: str) -> tuple[Part, ...]:
        """Return all parts by number."""
        parts: list[Part] = []
        more: dict[str, Any] = {}
        while True:
            answer = await self._again_if_dead(self._client.list_parts, **self._names(key), UploadId=upload, **more)
            parts += [
                Part(part["PartNumber"], part["Size"], bare(part["ETag"]) or "") for part in answer.get("Parts", ())
            ]
            if not answer.get("IsTruncated"):
                return tuple(sorted(parts, key=lambda part: part.number))
            more = {"PartNumberMarker": answer["NextPartNumberMarker"]}

    async def finish(self, key: str, upload: str, parts: Sequence[Part]) -> str | None:
        """Complete a multi-part write and return the object's entity tag."""
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
        return bare(answer.get("ETag"))

    async def abandon(self, key: str, upload: str) -> None:
        """Abort a multi-part write."""
        await self._client.abort_multipart_upload(**self._names(key), UploadId=upload)

    async def list_open(self, prefix: str) -> tuple[OpenParts, ...]:
        """Return all open multi-part writes under a prefix."""
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

    async def delete(self, key: str) -> None:
        """Delete an object; there need not be one."""
        await self._client.delete_object(**self._names(key))

    async def list_keys(self, prefix: str, after: str | None, most: int) -> KeyPage:
        """Return one page of keys."""
        more = {} if after is None else {"StartAfter": after}
        while True:
            answer = await self._again_if_dead(
                self._client.list_objects_v2, Bucket=self._arguments.bucket, Prefix=prefix, MaxKeys=most, **more
            )
            keys = tuple(item["Key"] for item in answer.get("Contents", ()))
            if keys or not answer.get("IsTruncated"):
                return KeyPage(keys, keys[-1] if answer.get("IsTruncated") else None)
            # Nothing that can be seen among what the store has looked at, which is not the end: old versions, say.
            if not answer.get("NextContinuationToken"):
                raise OSError("the store sent an empty page of keys, and not how to go on")
            more = {"ContinuationToken": answer["NextContinuationToken"]}


class _Body(io.BytesIO):
    """Bytes to send. Raw ones go out in one blocking piece and make aiohttp warn; these it sends in slices."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._data = data

    def getbuffer(self) -> memoryview:
        """Return the bytes. aiohttp asks only for their number; BytesIO's own answer would copy a whole part for it."""
        return memoryview(self._data)


def _name_request(request: Any, **_: Any) -> None:
    """Tell the store for which request it works, after the signature, which covers neither header.

    A store's access log has the User-Agent (Amazon's and Ceph's do), a proxy on the way may keep the other.
    """
    trace = current_trace()
    if trace is not None:
        request.headers["X-Request-ID"] = trace.id
        request.headers["User-Agent"] = f"{request.headers.get('User-Agent', '')} request/{trace.id}".lstrip()


@asynccontextmanager
async def open_library(arguments: S3Arguments) -> AsyncIterator[Library]:
    """Open the client of one bucket without any network I/O, and close its connections at the end.

    Must be entered below `open_bridge`.
    """
    keys = KeySource(arguments)
    session = AioSession()
    session.register_component("credential_provider", keys)
    session.register_component("data_loader", descriptions())
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
        yield Library(arguments, client, keys)
    finally:
        await _close(context, closing)


async def _close(context: Any, unavailable: Callable[[str], Exception]) -> None:
    """Close the client also where the scope is cancelled already; it has no network round trip to wait for."""
    with trio.CancelScope(shield=True, deadline=trio.current_time() + 5):
        await cross(context.__aexit__, None, None, None, deadline=3.0, unavailable=unavailable)


def bare(etag: str | None) -> str | None:
    """Return an entity tag without its quotes, None where there is none."""
    # Ceph answers the end of a multi-part write with an empty one.
    return etag.strip('"') or None if etag else None
