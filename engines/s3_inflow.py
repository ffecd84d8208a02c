"""Bytes of an object that a worker thread takes straight from the socket into memory of its own."""

import re
from collections.abc import Mapping

import urllib3
from attrs import define, field

from .presign import Credentials
from .s3_bytes import ByteLane, closing_after_errors, words_of
from .s3_calls import Call
from .s3_wire import Answer

_MD5 = re.compile(r'"?([0-9a-f]{32})"?')


@define(eq=False)
class ByteInflow:
    """Bytes of an object as `contract.Inflow` wants them, with the errors of the lane's calls."""

    _lane: ByteLane
    _credentials: Credentials
    _key: str
    _start: int
    _left: int
    _silence: float
    _whole: bool
    """The store is not asked for a range: Ceph reads an object's first bytes together with what it knows of it, but not for one."""
    md5: str | None = field(default=None, init=False)
    _call: Call = field(factory=Call, init=False)
    _answer: Answer | None = field(default=None, init=False)

    def receive_into(self, buffer: memoryview) -> None:
        """Fill a buffer."""
        try:
            if self._answer is None:
                length = None if self._whole else self._left
                self._answer = self._lane.opened(
                    self._call, self._credentials, self._key, self._start, length, self._silence
                )
                if self._whole and self._answer.size == self._left:
                    self.md5 = _md5_of(self._answer.headers)
            with closing_after_errors(self._answer):
                self._answer.fill(buffer)
        except urllib3.exceptions.HTTPError as error:
            raise OSError(words_of(error)) from error
        self._left -= len(buffer)

    def close(self) -> None:
        """Give the connection back, or close it."""
        if self._answer is None:
            return
        if self._left:
            self._answer.close()
        else:
            self._answer.release()

    def stop(self) -> None:
        """End what the thread waits for."""
        self._call.abort()


def _md5_of(headers: Mapping[str, str]) -> str | None:
    """Return the MD5 of an object in hex, None where its entity tag is something else.

    That of one with several parts has a suffix, that of one under a key of KMS or of a customer looks like an MD5 (Amazon S3 API
    Reference, "Object", ETag).
    """
    found = _MD5.fullmatch(headers.get("etag", ""))
    ours = "x-amz-server-side-encryption-customer-algorithm" not in headers
    plain = headers.get("x-amz-server-side-encryption", "AES256") == "AES256"
    return found.group(1) if found and ours and plain else None
