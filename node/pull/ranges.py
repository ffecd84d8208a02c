"""Byte ranges of a blob (RFC 9110, 14): one range is honoured, several are answered with the whole. Pure."""

import re

from attrs import frozen

_SPEC = re.compile(r"bytes=\s*(\d{0,19})\s*-\s*(\d{0,19})\s*", re.IGNORECASE | re.ASCII)


class RangeNotSatisfiable(ValueError):
    """No byte of the blob is in the range."""


@frozen
class ByteRange:
    """The bytes [start, stop) of a blob."""

    start: int
    stop: int

    def content_range(self, size: int) -> str:
        """Return the Content-Range header's value."""
        return f"bytes {self.start}-{self.stop - 1}/{size}"


def parse_range(header: str | None, size: int) -> ByteRange | None:
    """Return the one range that a Range header asks of a blob of `size` bytes; None for the whole blob.

    Another unit, several ranges and what is no range at all are ignored, as the RFC allows. Raises RangeNotSatisfiable for a
    range that begins behind the end, an empty suffix, and one that ends before it begins.
    """
    match = _SPEC.fullmatch(header.strip()) if header else None
    if match is None or not (match[1] or match[2]):
        return None
    if not match[1]:
        wanted = int(match[2])
        if wanted == 0 or size == 0:
            raise RangeNotSatisfiable(f"the last {wanted} of {size} bytes")
        return ByteRange(max(0, size - wanted), size)
    start = int(match[1])
    last = min(int(match[2]), size - 1) if match[2] else size - 1
    if start >= size or last < start:
        raise RangeNotSatisfiable(f"{match[1]}-{match[2]} of {size} bytes")
    return ByteRange(start, last + 1)
