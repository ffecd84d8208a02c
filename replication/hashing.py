"""A blob's hasher that can stop on one node and go on at another: the whole digest and the digest of every piece.

hashlib cannot save a hash half-way, OpenSSL's own context can: it is a plain struct of 112 (SHA-256) or 216 (SHA-512) bytes,
copied out and in through ctypes, at hashlib's own speed and outside the GIL. Where OpenSSL cannot be reached like that,
`save` returns None, and an upload that another node continues is read once more before it is published.
"""

import ctypes
import ctypes.util
import hashlib
import struct
from functools import cache
from typing import Protocol

from attrs import frozen

from replication.macs import ENTRY, MacKey, PieceProofs
from replication.model import PIECE, PIECE_DIGEST

_HEADER = struct.Struct(">2s6sQI")
_VERSION = b"h1"


class HashStateInvalid(ValueError):
    """A saved hash state is damaged, or of another kind or version."""


@frozen
class _Kind:
    """An algorithm as OpenSSL's low-level interface spells it; sizes in bytes."""

    name: str
    context_size: int
    digest_size: int


_KINDS = {"sha256": _Kind("SHA256", 112, 32), "sha512": _Kind("SHA512", 216, 64)}


class _Hash(Protocol):
    def update(self, data: bytes, start: int, length: int) -> None: ...

    def digest(self) -> bytes: ...

    def save(self) -> bytes | None: ...


class _HashlibHash:
    """The fallback, which cannot be saved."""

    def __init__(self, algorithm: str) -> None:
        self._hash = hashlib.new(algorithm)

    def update(self, data: bytes, start: int, length: int) -> None:
        self._hash.update(memoryview(data)[start : start + length])

    def digest(self) -> bytes:
        return self._hash.digest()

    def save(self) -> bytes | None:
        return None


class _ContextHash:
    """A hash over an OpenSSL context of its own."""

    def __init__(self, library: ctypes.CDLL, kind: _Kind, context: bytes | None = None) -> None:
        self._library, self._kind = library, kind
        self._context = ctypes.create_string_buffer(kind.context_size)
        if context is None:
            getattr(library, f"{kind.name}_Init")(self._context)
        else:
            self._context.raw = context
        self._update = getattr(library, f"{kind.name}_Update")

    def update(self, data: bytes, start: int, length: int) -> None:
        address = ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p).value or 0
        self._update(self._context, ctypes.c_void_p(address + start), ctypes.c_size_t(length))

    def digest(self) -> bytes:
        finishing = ctypes.create_string_buffer(self._context.raw, self._kind.context_size)
        out = ctypes.create_string_buffer(self._kind.digest_size)
        getattr(self._library, f"{self._kind.name}_Final")(out, finishing)
        return out.raw

    def save(self) -> bytes | None:
        return self._context.raw


@cache
def _library(algorithm: str) -> ctypes.CDLL | None:
    """Return OpenSSL's library if its contexts behave as this module believes, else None."""
    kind = _KINDS[algorithm]
    for name in ("libcrypto.so.3", ctypes.util.find_library("crypto")):
        if name is None:
            continue
        try:
            library = ctypes.CDLL(name)
            # Trust the struct's size only after a hash that was saved and restored in the middle came out right.
            first = _ContextHash(library, kind)
            first.update(b"antipodes" * 50, 0, 301)
            second = _ContextHash(library, kind, first.save())
            second.update(b"antipodes" * 50, 301, 149)
        except (OSError, AttributeError):
            continue
        if second.digest() == hashlib.new(algorithm, b"antipodes" * 50).digest():
            return library
    return None


def _new_hash(algorithm: str, context: bytes | None = None) -> _Hash:
    library = _library(algorithm)
    if library is not None:
        return _ContextHash(library, _KINDS[algorithm], context)
    if context is not None:
        raise HashStateInvalid("this host cannot restore a saved hash")
    return _HashlibHash(algorithm)


class BlobHasher:
    """Hashes a blob's bytes in order: `sha256` or `sha512` of the whole, and SHA-256 of every MiB.

    With a key it makes MACs of the pieces too, as long as each of them is in memory as a whole when its end is hashed.
    """

    def __init__(self, algorithm: str = "sha256", key: MacKey | None = None) -> None:
        if algorithm not in _KINDS:
            message = f"algorithm {algorithm!r}: one of {', '.join(_KINDS)} is needed"
            raise ValueError(message)
        self.algorithm = algorithm
        self.offset = 0
        self._whole = _new_hash(algorithm)
        self._piece = _new_hash("sha256")
        self._pieces = bytearray()
        self._key = key
        self._macs = bytearray()
        self._last_mac = b""
        """Of a piece that has begun, should it be the last."""

    def update(self, data: bytes, known: int = 0) -> None:
        """Add the blob's next bytes, which follow `known` ones that were added before and are there for MACs only.

        Releases the GIL for most of its time, so that a thread can run it.
        """
        self._whole.update(data, known, len(data) - known)
        end = known
        while end < len(data):
            length = min(PIECE - self.offset % PIECE, len(data) - end)
            self._piece.update(data, end, length)
            end += length
            begin = end - length - self.offset % PIECE
            self.offset += length
            digest = self._piece.digest()
            # Where its first bytes are gone there is no MAC of this piece, and so none of the blob.
            mac = self._key.entry(digest, memoryview(data)[begin:end]) if self._key is not None and begin >= 0 else b""
            if self.offset % PIECE == 0:
                self._pieces += digest[:PIECE_DIGEST]
                self._macs += mac
                self._piece = _new_hash("sha256")
            else:
                self._last_mac = mac

    def digest(self) -> str:
        """Return the digest of everything so far, as `algorithm:hex`. Hashing can go on."""
        return f"{self.algorithm}:{self._whole.digest().hex()}"

    def pieces(self) -> bytes:
        """Return the piece digests, the last one of a partial piece: `PIECE_DIGEST` bytes each."""
        last = self._piece.digest()[:PIECE_DIGEST] if self.offset % PIECE else b""
        return bytes(self._pieces) + last

    def proofs(self) -> PieceProofs:
        """Return what is to be kept of the pieces, with MACs where all of them could be made."""
        pieces = self.pieces()
        macs = bytes(self._macs) + (self._last_mac if self.offset % PIECE else b"")
        whole = self._key is not None and len(macs) // ENTRY == len(pieces) // PIECE_DIGEST
        return PieceProofs(pieces, self._key.id + macs if self._key is not None and whole else None)

    def save(self) -> bytes | None:
        """Return the state for another node, or None where it cannot be had. MACs are not in it: the first copy makes them."""
        whole, piece = self._whole.save(), self._piece.save()
        if whole is None or piece is None:
            return None
        header = _HEADER.pack(_VERSION, self.algorithm.encode(), self.offset, len(self._pieces))
        return header + whole + piece + bytes(self._pieces)

    @classmethod
    def restore(cls, state: bytes) -> "BlobHasher":
        """Go on from a saved state. Raises HashStateInvalid."""
        try:
            version, name, offset, pieces_size = _HEADER.unpack_from(state)
        except struct.error as error:
            raise HashStateInvalid(str(error)) from error
        algorithm = name.rstrip(b"\0").decode("ascii", "replace")
        if version != _VERSION or algorithm not in _KINDS:
            raise HashStateInvalid(f"version {version!r}, algorithm {algorithm!r}")
        whole_end = _HEADER.size + _KINDS[algorithm].context_size
        piece_end = whole_end + _KINDS["sha256"].context_size
        if len(state) != piece_end + pieces_size or pieces_size != offset // PIECE * PIECE_DIGEST:
            raise HashStateInvalid(f"{len(state)} bytes for offset {offset}")
        hasher = cls(algorithm)
        hasher.offset = offset
        hasher._whole = _new_hash(algorithm, state[_HEADER.size : whole_end])
        hasher._piece = _new_hash("sha256", state[whole_end:piece_end])
        hasher._pieces = bytearray(state[piece_end:])
        return hasher


def can_save() -> bool:
    """Tell whether hashers of this host can be saved (both algorithms)."""
    return all(_library(algorithm) is not None for algorithm in _KINDS)
