"""The hasher that can stop and go on elsewhere gives hashlib's digests, whatever was cut where."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replication import hashing
from replication.hashing import BlobHasher, HashStateInvalid, can_save
from replication.model import PIECE
from tests.copies import pieces_of

ALGORITHMS = st.sampled_from(["sha256", "sha512"])
BLOB = hashlib.shake_128(b"blob").digest(3 * PIECE + 12345)
CUTS = st.lists(
    st.one_of(st.integers(0, len(BLOB)), st.integers(-2, 2).map(lambda d: PIECE + d), st.integers(0, 130)), max_size=6
)


def expected(algorithm: str, data: bytes) -> str:
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"


@given(ALGORITHMS, CUTS, st.integers(0, len(BLOB)))
def test_saved_and_restored_anywhere(algorithm: str, cuts: list[int], end: int) -> None:
    """Saved and restored between any two bytes, the digest of the whole and of every piece are right."""
    data = BLOB[:end]
    hasher, at = BlobHasher(algorithm), 0
    for cut in sorted({*(cut for cut in cuts if cut < end), end}):
        hasher.update(data[at:cut])
        at = cut
        assert (hasher.offset, hasher.algorithm) == (at, algorithm)
        assert hasher.digest() == expected(algorithm, data[:at])
        state = hasher.save()
        assert state is not None
        hasher = BlobHasher.restore(state)
    assert hasher.digest() == expected(algorithm, data)
    assert hasher.pieces() == pieces_of(data)


def test_this_host_can_save() -> None:
    """Where tests run OpenSSL's contexts can be had, or every continued upload would be read twice without a word."""
    assert can_save()


@given(st.binary(max_size=600))
def test_damaged_states_are_refused(state: bytes) -> None:
    """Bytes that are no saved state are refused by name, never taken."""
    with pytest.raises(HashStateInvalid):
        BlobHasher.restore(state)


@given(st.integers(0, 3 * PIECE), st.integers(1, 40), st.integers(0, 31))
def test_a_state_of_another_length_is_refused(size: int, less: int, header: int) -> None:
    """A state that was cut off, or whose header contradicts its length, is refused."""
    hasher = BlobHasher()
    hasher.update(BLOB[:size])
    state = hasher.save()
    assert state is not None
    with pytest.raises(HashStateInvalid):
        BlobHasher.restore(state[:-less])
    with pytest.raises(HashStateInvalid):
        BlobHasher.restore(state + bytes(less))
    damaged = bytearray(state)
    damaged[header % 8] ^= 0x15
    with pytest.raises(HashStateInvalid):
        BlobHasher.restore(bytes(damaged))


def test_without_openssl(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the library cannot be reached digests are right, nothing is saved, and what was saved elsewhere is refused."""
    saved = BlobHasher().save()
    monkeypatch.setattr(hashing, "_library", lambda _algorithm: None)
    hasher = BlobHasher("sha512")
    hasher.update(BLOB)
    assert (hasher.digest(), hasher.pieces()) == (expected("sha512", BLOB), pieces_of(BLOB))
    assert hasher.save() is None
    assert saved is not None
    with pytest.raises(HashStateInvalid):
        BlobHasher.restore(saved)
    assert not can_save()
