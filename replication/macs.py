"""A keyed MAC of every piece beside its digest: verifying by it takes a twelfth of what SHA-256 takes (0.05 ms per MiB, not 0.6).

The MAC of a piece is AES-256-GMAC under a key that only the registry's nodes know, its nonce the piece's SHA-256, whose second
half is kept beside it (the first is in `Blob.pieces`): who signs with the hash of what is sent need not hash it either. Why the MAC
will do:

- A store that returns other bytes than were pushed must find some with the same MAC without ever having seen one: each try
  succeeds with a probability of 2^-112 (65 537 blocks of a piece, 128 bits), whatever bytes it chose or pushed itself.
- Under one nonce lies one true piece, as sure as nobody finds two with the same SHA-256. So even MACs that leak, with a backup of
  the database, say nothing about the key. What is compared with them is never shown to anybody.
- A piece in another's place, or another blob's, has another nonce: it is as wrong as any.
- A MAC only ever says that a piece is right. Where it does not, or there is none, or its key is not known (an old blob, a database
  restored or rebuilt, another DATABASE_SECRET_KEY), the digest decides, as it always did: no MAC makes good bytes look bad.
"""

import hashlib
import hmac
from collections.abc import Iterable

from attrs import define, field, frozen
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from replication.model import PIECE, PIECE_DIGEST, Blob

KEY_ID = 8
"""Bytes that name a key, in front of the MACs that were made with it."""
ENTRY = 32
"""Bytes per piece: the second half of its SHA-256, and its MAC."""

Bytes = bytes | bytearray | memoryview


@frozen(eq=False)
class MacKey:
    """A key of the registry: an id of `KEY_ID` bytes, and 32 secret ones."""

    id: bytes
    secret: bytes = field(repr=False)
    _cipher: AESGCM = field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "_cipher", AESGCM(self.secret))

    def entry(self, digest: bytes, piece: Bytes) -> bytes:
        """Return what is kept of a piece that has this SHA-256."""
        return digest[PIECE_DIGEST:] + self._cipher.encrypt(digest, b"", piece)


@frozen
class PieceProofs:
    """What is to be kept of a blob's pieces, as `Blob` has it. None: nothing new."""

    pieces: bytes | None = field(default=None, repr=False)
    macs: bytes | None = field(default=None, repr=False)


class MacKeys:
    """The keys that a node knows; `take` brings what the database has of them. Without any, digests decide."""

    def __init__(self, keys: Iterable[MacKey] = ()) -> None:
        self._keys: dict[bytes, MacKey] = {}
        self.current: MacKey | None = None
        """What new MACs are made with."""
        self.take(keys)

    def take(self, keys: Iterable[MacKey]) -> None:
        """Know these keys from now on; the first of them is the current one."""
        self._keys = {key.id: key for key in keys}
        self.current = next(iter(self._keys.values()), None)

    def check(self, blob: Blob, *, learn: bool = False) -> "PieceCheck | None":
        """Return what the pieces of a blob are verified by, None for a blob without.

        With `learn` the check makes MACs of what it finds right, where the blob has none that this node can use.
        """
        if blob.pieces is None:
            return None
        key = self._keys.get(blob.macs[:KEY_ID]) if blob.macs is not None else None
        if (
            blob.macs is not None
            and key is not None
            and len(blob.macs) == KEY_ID + len(blob.pieces) // PIECE_DIGEST * ENTRY
        ):
            return PieceCheck(blob.pieces, key, blob.macs)
        return PieceCheck(blob.pieces, self.current if learn else None)


@define(eq=False)
class PieceCheck:
    """Verifies the pieces of one blob. Any number of threads may use it at once.

    With MACs, `key` is the one that they were made with; without, the one to make them with of all that was right (`learnt`).
    """

    _pieces: bytes
    _key: MacKey | None = None
    _macs: bytes | None = None
    _learnt: dict[int, bytes] = field(factory=dict, init=False)

    def right(self, index: int, piece: Bytes) -> bool:
        """Say whether these bytes are the piece of this index."""
        return self.look(index, piece)[0]

    def look(self, index: int, piece: Bytes) -> tuple[bool, bytes]:
        """Say whether these bytes are the piece of this index, and their SHA-256."""
        expected = self._pieces[index * PIECE_DIGEST : (index + 1) * PIECE_DIGEST]
        if self._key is not None and self._macs is not None:
            entry = self._macs[KEY_ID + index * ENTRY : KEY_ID + (index + 1) * ENTRY]
            digest = expected + entry[:PIECE_DIGEST]
            if entry and hmac.compare_digest(self._key.entry(digest, piece), entry):
                return True, digest
        digest = hashlib.sha256(piece).digest()
        right = digest[:PIECE_DIGEST] == expected
        if right and self._key is not None and self._macs is None:
            self._learnt[index] = self._key.entry(digest, piece)
        return right, digest

    def wrong(self, start: int, data: Bytes) -> int | None:
        """Return the index of the first piece of `data`, which begins at `start` of the blob, that is wrong; None if all are right.

        `start` must be a piece's first byte, and `data` end where a piece does. Raises ValueError when `start` is not.
        """
        if start % PIECE:
            raise ValueError(f"offset {start} is inside a piece")
        view = memoryview(data)
        for offset in range(0, len(data), PIECE):
            index = (start + offset) // PIECE
            if not self.right(index, view[offset : offset + PIECE]):
                return index
        return None

    def learnt(self) -> bytes | None:
        """Return MACs for a blob that had none, to be kept with it; None unless every piece was seen."""
        count = len(self._pieces) // PIECE_DIGEST
        if self._key is None or self._macs is not None or len(self._learnt) < count:
            return None
        return self._key.id + b"".join(self._learnt[index] for index in range(count))


class ProofMaker:
    """Makes digests and, with a key, MACs of a blob's pieces, in order."""

    def __init__(self, key: MacKey | None) -> None:
        self._key = key
        self._pieces = bytearray()
        self._macs = bytearray(b"" if key is None else key.id)

    def add(self, data: Bytes) -> None:
        """Take in the next pieces, the last of them whole unless it is the blob's last."""
        view = memoryview(data)
        for start in range(0, len(data), PIECE):
            piece = view[start : start + PIECE]
            digest = hashlib.sha256(piece).digest()
            self._pieces += digest[:PIECE_DIGEST]
            if self._key is not None:
                self._macs += self._key.entry(digest, piece)

    def proofs(self) -> PieceProofs:
        """Return what to keep of all that came."""
        return PieceProofs(bytes(self._pieces), None if self._key is None else bytes(self._macs))
