"""What tests say of copies: the digests of a blob's pieces as they must be, and one copy that is recorded."""

import hashlib

from replication.macs import PieceProofs
from replication.model import PIECE, PIECE_DIGEST, CopyTask
from replication.ports import CopyOutcome, Ledger


def piece_digest(data: bytes) -> bytes:
    """Return the digest of one piece: the first `PIECE_DIGEST` bytes of its SHA-256."""
    return hashlib.sha256(data).digest()[:PIECE_DIGEST]


def pieces_of(data: bytes) -> bytes:
    """Return the digests of all pieces of `data`, which begins at a piece's first byte, one after another."""
    return b"".join(piece_digest(data[start : start + PIECE]) for start in range(0, len(data), PIECE))


async def finish_copy(ledger: Ledger, task: CopyTask, proofs: PieceProofs) -> CopyOutcome:
    """Record one copy, as `Ledger.finish_copies` does for many."""
    return (await ledger.finish_copies([(task, proofs)]))[0]
