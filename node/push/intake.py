"""A request's body on its way into an upload: measured, kept where that is wanted, and written again where a store has died."""

from node.answers import BodyStalled, ClientGone, RequestBody
from node.errors import BLOB_TOO_LARGE, SIZE_INVALID, RegistryError
from replication.upload_spool import KeptUpload
from replication.uploading import UploadWriter

_AGAIN = 1 << 20
"""Bytes that are read back at once."""


def check_size(size: int, most: int) -> None:
    """Return if a blob may have so many bytes. Raises RegistryError (413)."""
    if size > most:
        raise RegistryError(BLOB_TOO_LARGE, {"limit": most, "reason": "MAXIMUM_LAYER_SIZE"})


class Intake:
    """The body of one request that writes an upload from byte `begin` on.

    `length` is what its Content-Range promised, None for any; `most` the largest blob; both in bytes.
    """

    def __init__(self, body: RequestBody, begin: int, length: int | None, most: int, kept: KeptUpload | None) -> None:
        self._body = body
        self._begin = begin
        self._end = begin
        self._length = length
        self._most = most
        self._kept = kept
        self._failure: Exception | None = None

    @property
    def taken(self) -> int:
        """Bytes of the body that have come."""
        return self._end - self._begin

    async def pour(self, writer: UploadWriter) -> None:
        """Move the body into the writer, at the pace of the slower side; what is kept and not in the writer yet goes first.

        Can be repeated with another writer. Raises ClientGone, BodyStalled and RegistryError, each time again; NotKept.
        """
        await self._again(writer)
        if self._failure is not None:
            raise self._failure
        try:
            while data := await self._body.receive():
                self._check(len(data))
                self._end += len(data)
                if self._kept is not None:
                    await self._kept.append(data)
                await writer.write(data)
            self._check_all()
        except (ClientGone, BodyStalled, RegistryError) as error:
            self._failure = error
            raise

    async def _again(self, writer: UploadWriter) -> None:
        while self._kept is not None and self._kept.whole and writer.offset < self._kept.size:
            await writer.write(await self._kept.read(writer.offset, _AGAIN))

    def _check(self, size: int) -> None:
        check_size(self._end + size, self._most)
        if self._length is not None and self.taken + size > self._length:
            raise RegistryError(
                SIZE_INVALID, {"content-range": self._length, "reason": "the body is longer than its Content-Range"}
            )

    def _check_all(self) -> None:
        if self._length is not None and self.taken < self._length:
            raise RegistryError(
                SIZE_INVALID,
                {
                    "content-range": self._length,
                    "found": self.taken,
                    "reason": "the body is shorter than its Content-Range",
                },
            )
