"""MACs of pieces: true ones are accepted without hashing, and nothing but the blob's own piece in its own place ever is."""

import hashlib
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replication.hashing import BlobHasher
from replication.macs import KEY_ID, MacKey, MacKeys, PieceCheck, PieceProofs, ProofMaker
from replication.model import PIECE, Blob
from tests.copies import pieces_of

KEY, OTHER = MacKey(b"key-one.", b"1" * 32), MacKey(b"key-two.", b"2" * 32)
DATA = hashlib.shake_128(b"macs").digest(3 * PIECE + 12345)
SIZES = st.one_of(st.integers(0, len(DATA)), st.sampled_from([0, 1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE]))


def proofs_of(data: bytes, key: MacKey | None = KEY) -> PieceProofs:
    maker = ProofMaker(key)
    maker.add(data)
    return maker.proofs()


def blob_of(data: bytes, proofs: PieceProofs) -> Blob:
    return Blob(1, f"sha256:{hashlib.sha256(data).hexdigest()}", len(data), proofs.pieces, proofs.macs)


def check_of(data: bytes, keys: MacKeys | None = None, *, learn: bool = False) -> PieceCheck:
    check = (keys or MacKeys([KEY])).check(blob_of(data, proofs_of(data)), learn=learn)
    assert check is not None
    return check


class Hashed(AssertionError):
    """Somebody has hashed."""


@pytest.fixture
def no_hashing(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Returns what makes hashing a failure from then on."""

    def refuse(_data: object) -> None:
        raise Hashed

    return lambda: monkeypatch.setattr(hashlib, "sha256", refuse)


def test_right_pieces_are_accepted_without_hashing(no_hashing: Callable[[], None]) -> None:
    """Where the MAC is right nothing is hashed; where it is not, or no key is known, the digest is asked."""
    check, unknown = check_of(DATA), check_of(DATA, MacKeys([OTHER]))
    digest = hashlib.sha256(DATA[:PIECE]).digest()
    no_hashing()
    assert check.wrong(0, DATA) is None
    assert check.look(0, DATA[:PIECE]) == (True, digest)
    with pytest.raises(Hashed):
        check.right(0, DATA[1 : PIECE + 1])
    with pytest.raises(Hashed):
        unknown.right(0, DATA[:PIECE])


@given(SIZES.filter(bool), st.data())
def test_one_wrong_bit_is_found(size: int, data: st.DataObject) -> None:
    """Right bytes verify, with and without MACs; one wrong bit names its piece."""
    blob = DATA[:size]
    place, bit = data.draw(st.integers(0, size - 1)), data.draw(st.integers(0, 7))
    bad = bytearray(blob)
    bad[place] ^= 1 << bit
    start = place // PIECE * PIECE
    for check in (check_of(blob), PieceCheck(pieces_of(blob))):
        assert check.wrong(0, blob) is None
        assert check.wrong(0, bytes(bad)) == place // PIECE
        assert check.wrong(start, memoryview(blob)[start : start + PIECE]) is None
        with pytest.raises(ValueError, match="inside a piece"):
            check.wrong(start + 1, blob)


@given(st.integers(0, 3), st.integers(0, 3), st.integers(1, PIECE))
def test_other_pieces_and_short_ones_are_refused(index: int, other: int, less: int) -> None:
    """A piece counts in its own place only, whole, and nothing longer does."""
    check = check_of(DATA)
    piece = DATA[other * PIECE : (other + 1) * PIECE]
    assert check.right(index, piece) is (index == other)
    assert not check.right(other, piece[: max(0, len(piece) - less)])
    assert not check.right(other, piece + b"\0")
    assert not check.right(4, piece)
    assert not check.right(4, b"")


@given(st.binary(max_size=3000), st.binary(max_size=3000))
def test_another_blobs_piece_is_refused(one: bytes, two: bytes) -> None:
    """Whatever a store holds under one key is not taken for what it holds under another."""
    assert check_of(one + b".").right(0, two + b".") is (one == two)


@given(SIZES.filter(bool), st.data())
def test_no_mac_makes_good_bytes_look_bad(size: int, data: st.DataObject) -> None:
    """Damaged, cut off, made by another key or under another id: whatever stands there, the digest has the last word."""
    blob, proofs = DATA[:size], proofs_of(DATA[:size])
    assert proofs.macs is not None
    damaged = bytearray(proofs.macs)
    damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    foreign = proofs_of(blob, OTHER).macs
    assert foreign is not None
    kept = data.draw(
        st.sampled_from(
            [
                *(None, b"", bytes(damaged), foreign, KEY.id + foreign[KEY_ID:]),
                *(proofs.macs[: -data.draw(st.integers(1, 30))], proofs.macs + b"0"),
            ]
        )
    )
    for keys in (MacKeys(), MacKeys([KEY]), MacKeys([OTHER, KEY])):
        check = keys.check(blob_of(blob, PieceProofs(proofs.pieces, kept)))
        assert check is not None
        assert check.wrong(0, blob) is None
        assert check.wrong(0, blob[:-1] + bytes([blob[-1] ^ 1])) == (size - 1) // PIECE


@given(st.permutations(range(4)), st.integers(0, 4))
def test_a_check_learns(order: list[int], seen: int) -> None:
    """What a blob without MACs is verified by makes them on the way, once it has seen every piece, in any order."""
    bare = blob_of(DATA, PieceProofs(pieces_of(DATA)))
    check = MacKeys([KEY, OTHER]).check(bare, learn=True)
    assert check is not None
    for index in order[:seen]:
        assert not check.right(index, b"wrong")
        assert check.right(index, DATA[index * PIECE : (index + 1) * PIECE])
    assert check.learnt() == (proofs_of(DATA).macs if seen == 4 else None)


def test_what_there_is_nothing_to_learn_of() -> None:
    """A blob that has MACs, a check that was not asked to, and a node without keys learn nothing."""
    bare = blob_of(DATA, PieceProofs(pieces_of(DATA)))
    for check in (check_of(DATA, learn=True), MacKeys([KEY]).check(bare), MacKeys().check(bare, learn=True)):
        assert check is not None
        assert check.wrong(0, DATA) is None
        assert check.learnt() is None
    assert MacKeys([KEY]).check(Blob(1, bare.digest, bare.size), learn=True) is None


def test_unknown_keys_are_learnt_anew() -> None:
    """MACs of a key that is gone are replaced by ones of a key that is there."""
    check = check_of(DATA, MacKeys([OTHER]), learn=True)
    assert check.wrong(0, DATA) is None
    assert check.learnt() == proofs_of(DATA, OTHER).macs


@given(SIZES, st.lists(st.integers(0, len(DATA)), max_size=5), st.data())
def test_a_hasher_makes_the_same(size: int, cuts: list[int], data: st.DataObject) -> None:
    """An upload's hasher makes the MACs of all pieces or none; all where each of them was there as a whole in the end."""
    blob, ends = DATA[:size], sorted({*(cut for cut in cuts if cut < size), size})
    hasher, lacking = BlobHasher(key=KEY), dict[int, bool]()
    for begin, end in pairwise([0, *ends]):
        known = data.draw(st.integers(0, begin)) if begin else 0
        for index in range(begin // PIECE, -(-end // PIECE)):
            lacking[index] = index * PIECE < begin - known
        hasher.update(blob[begin - known : end], known)
    proofs = hasher.proofs()
    assert hasher.digest() == f"sha256:{hashlib.sha256(blob).hexdigest()}"
    assert proofs.pieces == pieces_of(blob)
    assert proofs.macs == (None if any(lacking.values()) else proofs_of(blob).macs)
    state = hasher.save()
    assert state is not None
    assert size == 0 or BlobHasher.restore(state).proofs().macs is None
