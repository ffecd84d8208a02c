"""Properties of digests, pieces, keys and part layouts."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replication.digests import (
    MIB,
    MOST_PARTS,
    BadDigest,
    Digest,
    blob_key,
    part_layout,
    piece_bounds,
    piece_count,
    upload_key,
)
from replication.model import PIECE, PIECE_DIGEST
from tests.copies import pieces_of


@given(st.binary(), st.sampled_from(["sha256", "sha512"]))
def test_a_digest_is_read_as_it_is_written(data: bytes, algorithm: str) -> None:
    """Parsing and writing a digest are inverse, and it matches its own bytes only."""
    text = f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"
    digest = Digest.parse(text)
    assert str(digest) == text
    assert digest.matches(data)
    assert not digest.matches(data + b"x")


@given(st.text())
def test_anything_else_is_refused(text: str) -> None:
    """A text that is not a digest raises BadDigest."""
    with pytest.raises(BadDigest):
        Digest.parse(text)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a" * 64, "no colon"),
        ("md5:" + "a" * 32, "'md5'"),
        ("sha256:" + "a" * 63, "63 digits"),
        ("sha256:" + "A" * 64, "lowercase"),
        ("sha256:" + "a" * 63 + "\n", "lowercase"),
        ("sha512:" + "a" * 64, "sha512 has 128"),
    ],
)
def test_the_error_names_what_is_wrong(text: str, told: str) -> None:
    """Each way to be wrong has its own words."""
    with pytest.raises(BadDigest, match=told):
        Digest.parse(text)


@given(st.integers(0, 1 << 45), st.integers(1, 64 * MIB))
def test_parts_cover_a_blob_exactly(size: int, part_size: int) -> None:
    """Parts are whole MiB, at least as large as asked, not too many, and cover the blob without gap or overlap."""
    layout = part_layout(size, part_size)
    assert layout.part % MIB == 0
    assert layout.part >= part_size
    assert layout.count <= MOST_PARTS
    assert layout.span(1)[0] == 0
    start, length = layout.span(layout.count)
    assert start + length == size
    for number in {1, 2, layout.count - 1} & set(range(1, layout.count)):
        assert sum(layout.span(number)) == layout.span(number + 1)[0]
    with pytest.raises(IndexError):
        layout.span(layout.count + 1)


@given(
    st.integers(0, 1 << 40).flatmap(lambda size: st.tuples(st.just(size), st.integers(0, size), st.integers(0, size)))
)
def test_a_range_needs_less_than_a_piece_more_on_each_side(numbers: tuple[int, int, int]) -> None:
    """The pieces that cover a range begin and end at pieces' ends and less than a piece beyond it."""
    size, start, end = numbers[0], min(numbers[1:]), max(numbers[1:])
    low, high = piece_bounds(start, end, size)
    assert low % PIECE == 0
    assert high % PIECE == 0 or high == size
    assert start - PIECE < low <= start
    assert end <= high < end + PIECE


@given(st.integers(0, 3 * PIECE))
def test_every_piece_has_a_digest(size: int) -> None:
    """As many pieces are counted as have a digest."""
    assert len(pieces_of(bytes(size))) == PIECE_DIGEST * piece_count(size)


def test_keys_have_the_layout_of_the_design() -> None:
    """`{prefix}{algorithm}/{first two}/{hex}.{nonce}` and `{prefix}uploads/{id}.{nonce}`."""
    digest = Digest("sha256", "ab" * 32)
    assert blob_key("registry/", digest, "n1") == f"registry/sha256/ab/{'ab' * 32}.n1"
    assert upload_key("", "u-1", "n2") == "uploads/u-1.n2"
