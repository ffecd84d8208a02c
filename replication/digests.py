"""Digests and pieces as values, the keys of objects that we write, and the layout of a blob's parts. Pure."""

import hashlib
import re
from typing import Self

from attrs import frozen

from replication.model import PIECE

MIB = 1 << 20
DEFAULT_PART = 5 * MIB
MOST_PARTS = 9000
"""S3 allows 10 000 parts; the distance is for stores that count more strictly."""

_LENGTHS = {"sha256": 64, "sha512": 128}
_HEX = re.compile(r"[0-9a-f]+\Z")


class BadDigest(ValueError):
    """A text is not a digest. The message names what is wrong with it."""


@frozen
class Digest:
    """A content digest, `algorithm:hex` (OCI image-spec, descriptor, "Digests"). Made by `Digest.parse`."""

    algorithm: str
    hex: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the digest that `text` spells: `sha256:` and 64, or `sha512:` and 128 lowercase hex digits. Raises BadDigest."""
        algorithm, colon, digits = text.partition(":")
        shown = text if len(text) <= 160 else text[:160] + "..."
        if not colon:
            raise BadDigest(f"digest {shown!r} has no colon: expected sha256:<64 hex digits>")
        length = _LENGTHS.get(algorithm)
        if length is None:
            raise BadDigest(f"digest {shown!r} names the algorithm {algorithm[:40]!r}: supported are sha256 and sha512")
        if len(digits) != length:
            raise BadDigest(f"digest {shown!r} has {len(digits)} digits: {algorithm} has {length}")
        if not _HEX.match(digits):
            raise BadDigest(f"digest {shown!r} has characters that are not lowercase hex digits")
        return cls(algorithm, digits)

    def matches(self, data: bytes) -> bool:
        """Whether `data` has this digest."""
        return hashlib.new(self.algorithm, data).hexdigest() == self.hex

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"


def piece_count(size: int) -> int:
    """Return how many pieces a blob of `size` bytes has; the empty blob has none."""
    return -(-size // PIECE)


def piece_bounds(start: int, end: int, size: int) -> tuple[int, int]:
    """Return the smallest run of whole pieces, as byte offsets, that covers [start, end) of a blob of `size` bytes."""
    return start // PIECE * PIECE, min(piece_count(end) * PIECE, size)


def blob_key(prefix: str, digest: Digest, nonce: str) -> str:
    """Return a fresh key for a blob whose digest is known. `nonce` makes sure that it is never used again."""
    return f"{prefix}{digest.algorithm}/{digest.hex[:2]}/{digest.hex}.{nonce}"


def upload_key(prefix: str, upload_id: str, nonce: str) -> str:
    """Return a fresh key for an upload whose digest is not known yet."""
    return f"{prefix}uploads/{upload_id}.{nonce}"


@frozen
class PartLayout:
    """How a blob is cut into parts for a copy. Parts count from 1; all have `part` bytes, the last one what is left."""

    size: int
    part: int

    @property
    def count(self) -> int:
        """How many parts there are; the empty blob has one, which is empty."""
        return max(1, -(-self.size // self.part))

    def span(self, number: int) -> tuple[int, int]:
        """Return the offset and the length in bytes of part `number`. Raises IndexError if there is no such part."""
        if not 1 <= number <= self.count:
            raise IndexError(f"part {number} of {self.count}")
        start = (number - 1) * self.part
        return start, min(self.part, self.size - start)


def part_layout(size: int, part_size: int = DEFAULT_PART) -> PartLayout:
    """Return the layout of a blob of `size` bytes: a function of these two numbers only, so that any node resumes any copy.

    `part_size` is rounded up to whole MiB, and grows where there would be more than `MOST_PARTS` parts.
    """
    needed = max(part_size, -(-size // MOST_PARTS), 1)
    return PartLayout(size=size, part=-(-needed // MIB) * MIB)
