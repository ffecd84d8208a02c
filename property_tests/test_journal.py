"""What is written into the journals is what is read from them, in whatever order and however often."""

import gzip
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.journal.facts import (
    KINDS,
    Damaged,
    Entry,
    StoredManifest,
    decode,
    decode_manifest,
    encode,
    encode_manifest,
    journal_key,
    last_words,
    manifest_digest,
    manifest_prefix,
    read_key,
)

NAMES = st.sampled_from(["a/b:v1", "a/b:v2", "a/b@sha256:00", "us k"])
FACTS = st.none() | st.dictionaries(st.sampled_from(["digest", "size"]), st.text() | st.integers(), max_size=2)
ENTRIES = st.lists(
    st.builds(Entry, st.sampled_from(KINDS), NAMES, st.integers(0, 5), st.integers(0, 5), FACTS),
    unique_by=lambda entry: (entry.kind, entry.name, entry.at, entry.seq),
)


@given(ENTRIES)
def test_entries_come_back(entries: list[Entry]) -> None:
    """An object holds its entries as they were given."""
    head, found = decode(encode("batch", entries, {"last": 3}))
    assert (head["kind"], head["last"], found) == ("batch", 3, entries)


@given(ENTRIES, st.integers())
def test_the_last_word_counts_in_any_order(entries: list[Entry], seed: int) -> None:
    """Order and repetition change nothing: each thing is what was said of it last."""
    said = last_words(entries)
    again = [*entries, *entries[: len(entries) // 2]]
    Random(seed).shuffle(again)
    assert last_words(again) == said
    assert last_words([*said, *again]) == said
    for entry in entries:
        last = next(one for one in said if (one.kind, one.name) == (entry.kind, entry.name))
        assert (last.at, last.seq) >= (entry.at, entry.seq)


@given(ENTRIES, st.data())
def test_damage_is_noticed(entries: list[Entry], data: st.DataObject) -> None:
    """An object that was cut short is never taken for a whole one."""
    whole = encode("batch", entries)
    with pytest.raises(Damaged):
        decode(whole[: data.draw(st.integers(0, len(whole) - 1))])


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"antipode": "journal"}', '{"antipode": "journal", "version": 2}', '{"antipode": "x", "version": 1}'],
)
def test_what_is_no_journal_is_refused(text: str) -> None:
    """Another program's object, or a later version's, is named and not read."""
    with pytest.raises(Damaged):
        decode(gzip.compress(text.encode()))


@given(st.binary(), st.text(), st.none() | st.text(), st.floats(0, 1e10))
def test_a_manifest_comes_back(body: bytes, text: str, subject: str | None, at: float) -> None:
    """A manifest's object gives its very bytes and what was said of them."""
    manifest = StoredManifest("a/b", "sha256:00", text, subject, at, body)
    assert decode_manifest(encode_manifest(manifest)) == manifest


@given(
    st.sampled_from(["", "x/y/"]), st.sampled_from(["batch", "hour", "page", "complete"]), st.integers(0, 4_000_000_000)
)
def test_a_key_says_what_its_object_is(prefix: str, kind: str, second: int) -> None:
    """Kind and hour, or a snapshot's second, are read back from a key, and from no other."""
    found = read_key(prefix, journal_key(prefix, kind, second, "0af3"))
    assert found is not None
    assert (found.kind, found.hour) == (kind, second - second % 3600 if kind in ("batch", "hour") else second)
    assert read_key(prefix, f"{prefix}journal/other") is None
    assert read_key(prefix, f"{prefix}uploads/1.2") is None


def test_a_manifest_s_key_names_its_digest() -> None:
    """Keys of manifests are found by their digest, and nothing else is taken for one."""
    digest = f"sha256:{'0a' * 32}"
    key = f"{manifest_prefix('p/', digest)}12ff"
    assert manifest_digest("p/", key) == digest
    assert manifest_digest("p/", f"p/sha256/0a/{'0a' * 32}.12ff") is None
