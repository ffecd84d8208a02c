"""Bodies that are made while they are sent, as S3 wants them signed: by the digest of the whole, by chunks, or not at all.

A store makes the MD5 of an object that comes in one piece in any case: that is its entity tag. So where the store that the bytes
come from has told theirs, the other one is asked to compare by that (the header Content-MD5, which is signed): neither it nor we
hash anything more, where comparing by SHA-256 takes a store 0.9 s of the processor per GiB. It finds what went wrong on the way. It
does not hold up somebody who changes both what one store says and what the other is sent; who can do that without TLS can also
answer in a store's place.
"""

from base64 import b64encode
from collections.abc import Generator, Iterator, Mapping
from itertools import chain

from attrs import define, field

from .contract import MIB, Chunk, ChunkMaker
from .presign import EMPTY, STREAMED, UNSIGNED, Credentials, Target, sign_chunk

_SIGNATURE = len(";chunk-signature=") + 64 + 2


@define(eq=False)
class Streamed:
    """A body of `size` bytes, which `chunks` makes in the sending thread."""

    size: int
    chunks: ChunkMaker
    payload: str
    """What the request is signed with: the body's SHA-256, UNSIGNED, or STREAMED."""
    by_md5: bool = False
    """The store may compare by the body's MD5 where the first chunk tells it."""
    md5: str | None = field(default=None, init=False)
    """By what it compares then."""
    _made: Generator[Chunk, None, None] = field(init=False)
    _first: Chunk = field(init=False)

    def begin(self) -> None:
        """Make the first chunk: what fails before it costs the store no request."""
        self._made = self.chunks()
        self._first = next(self._made)
        if self.by_md5 and self._first.md5 is not None:
            self.md5, self.payload = self._first.md5, UNSIGNED

    def close(self) -> None:
        """End the making, wherever it is."""
        self._made.close()

    @property
    def headers(self) -> Mapping[str, str]:
        """Return what the request says of its body, to be signed."""
        if self.md5 is not None:
            return {"content-md5": b64encode(bytes.fromhex(self.md5)).decode()}
        if self.payload != STREAMED:
            return {}
        return {"content-encoding": "aws-chunked", "x-amz-decoded-content-length": str(self.size)}

    @property
    def length(self) -> int:
        """Return how many bytes go over the wire."""
        if self.payload != STREAMED:
            return self.size
        whole, rest = divmod(self.size, MIB)
        sizes = [MIB] * whole + [rest] * bool(rest)
        return self.size + sum(len(f"{size:x}") + _SIGNATURE + 2 for size in sizes) + 1 + _SIGNATURE + 2

    def sent(self, target: Target, credentials: Credentials, signed: Mapping[str, str]) -> Iterator[bytes | memoryview]:
        """Yield what goes over the wire after a request with these headers."""
        made = chain((self._first,), self._made)
        if self.payload != STREAMED:
            yield from (chunk.data for chunk in made)
            return
        stamp, before, end = signed["x-amz-date"], signed["authorization"].rpartition("=")[2], b""
        for chunk in made:
            before = sign_chunk(target, credentials, stamp, before, chunk.sha256.hex())
            yield end + f"{len(chunk.data):x};chunk-signature={before}\r\n".encode()
            yield chunk.data
            end = b"\r\n"
        before = sign_chunk(target, credentials, stamp, before, EMPTY)
        yield end + f"0;chunk-signature={before}\r\n\r\n".encode()
