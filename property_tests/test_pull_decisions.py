"""What a pull decides without asking anybody: ranges, acceptable types, how old an answer may be, what is a name."""

import json
import re
import time
from collections.abc import Iterable

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from engines.presign import LONGEST_EXPIRY, shared_moment
from node.cache import Cache, Freshness
from node.errors import RegistryError
from node.names import check_digest, check_name, is_name, is_tag, namespace_of
from node.pull.accept import accepts, default_child
from node.pull.ranges import ByteRange, RangeNotSatisfiable, parse_range
from node.push.reading import DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST
from node.routes import About, about_of
from replication.ports import Forget, Placed

PATHS = {
    "uploads": re.compile(r"/v2/(?P<name>.+)/blobs/uploads/(?P<last>[^/]*)"),
    "blobs": re.compile(r"/v2/(?P<name>.+)/blobs/(?P<last>[^/]+)"),
    "manifests": re.compile(r"/v2/(?P<name>.+)/manifests/(?P<last>[^/]+)"),
    "tags": re.compile(r"/v2/(?P<name>.+)/tags/(?P<last>list)"),
    "referrers": re.compile(r"/v2/(?P<name>.+)/referrers/(?P<last>[^/]+)"),
}
"""The endpoints as the specification writes them."""


@given(
    st.lists(st.sampled_from(["v2", "a", "", "blobs", "uploads", "manifests", "tags", "list", "referrers"]), max_size=8)
)
@example(["v2", "a", "blobs", "uploads", ""])
@example(["v2", "a", "blobs", "uploads"])
@example(["v2", "blobs", "uploads", "blobs", "uploads", "a"])
@example(["v2", "", "blobs", "a"])
def test_a_path_is_about_what_the_specification_says(parts: list[str]) -> None:
    """Also where a repository is called as a part of these paths is."""
    path = "/" + "/".join(parts)
    expected = None
    for kind, pattern in PATHS.items():
        if match := pattern.fullmatch(path):
            expected = About(kind, match["name"], match["last"])
            break
    assert about_of(path) == expected


@given(st.floats(0, 4e9), st.integers(1, LONGEST_EXPIRY))
def test_a_shared_url_has_nearly_all_of_its_life_before_it(now: float, expires: int) -> None:
    """Nobody gets a URL of which more than a twentieth is over, or a second of a very short one, nor one that begins later."""
    moment = shared_moment(now, expires)
    assert 0 <= now - moment <= max(1.0, expires / 20)
    assert shared_moment(moment, expires) == moment or expires % 20


NUMBERS = st.one_of(st.just(""), st.integers(0, 30).map(str))


@given(NUMBERS, NUMBERS, st.integers(0, 25))
def test_a_range_is_what_counting_says(first: str, last: str, size: int) -> None:
    """A range selects exactly the bytes that one would count off; none is refused; no range at all is the whole."""
    if first:
        picked = [n for n in range(size) if int(first) <= n <= (int(last) if last else size)]
    else:
        picked = list(range(size))[-int(last) :] if last and int(last) else []
    header = f"bytes={first}-{last}"
    if not first and not last:
        assert parse_range(header, size) is None
    elif not picked:
        with pytest.raises(RangeNotSatisfiable):
            parse_range(header, size)
    else:
        found = parse_range(header, size)
        assert found == ByteRange(picked[0], picked[-1] + 1)
        assert found.content_range(size) == f"bytes {picked[0]}-{picked[-1]}/{size}"


@given(st.text(max_size=30), st.integers(0, 100))
@example("bytes=0-1,3-4", 10)
@example("pages=1-2", 10)
@example("bytes=٣-٤", 10)
@example("bytes=" + "9" * 5000 + "-", 10)
def test_what_is_no_range_is_the_whole(header: str, size: int) -> None:
    """Other units, several ranges and nonsense are ignored, never an error of ours."""
    assume(re.fullmatch(r"(?i)\s*bytes=\s*\d*\s*-\s*\d*\s*", header, re.ASCII) is None)
    assert parse_range(header, size) is None


TYPES = [OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_LIST]
RANGES = st.sampled_from([*TYPES, "application/*", "*/*", "text/*", "text/html", "application/json"])
QUALITIES = st.sampled_from([None, "0", "0.0", "0.000", "0.1", "1", "1.0"])


def slowly_accepted(items: Iterable[tuple[str, str | None]], media_type: str) -> bool:
    """Let the most specific range decide (RFC 9110, 12.5.1); of two alike, the kinder one."""
    for wanted in (media_type, "application/*", "*/*"):
        alike = [quality for name, quality in items if name == wanted]
        if alike:
            return any(quality is None or float(quality) > 0 for quality in alike)
    return False


@given(
    st.lists(st.tuples(RANGES, QUALITIES), min_size=1, max_size=6), st.sampled_from(TYPES), st.sampled_from([",", ", "])
)
@example([("*/*", None), (OCI_INDEX, "0")], OCI_INDEX, ",")
def test_the_most_specific_range_decides(items: list[tuple[str, str | None]], media_type: str, comma: str) -> None:
    """A type is acceptable if the most specific range that covers it is not excluded by q=0, in whatever order they come."""
    header = comma.join(name if quality is None else f"{name}; q={quality}" for name, quality in items)
    assert accepts(header, media_type) == slowly_accepted(items, media_type)


@given(st.one_of(st.none(), st.text(max_size=60)), st.binary(max_size=60))
def test_accept_never_fails(header: str | None, index: bytes) -> None:
    """No header accepts everything, and nonsense, in the header or in an index, is never an error."""
    assert accepts(None, OCI_INDEX)
    assert accepts(" ", OCI_INDEX)
    accepts(header, OCI_INDEX)
    default_child(index, header)


def test_an_index_that_takes_long_to_read() -> None:
    """An index beyond any image is not looked into: every pull by an old client would do so again."""
    child = {"platform": {"os": "linux", "architecture": "amd64"}, "mediaType": "a/b", "digest": "d"}
    for count, found in ((1000, "d"), (10_000, None)):
        index = json.dumps({"manifests": [child] * count}).encode()
        assert default_child(index, "a/b") == found


def test_a_long_header_is_read_once() -> None:
    """An index with thousands of children and a header with thousands of ranges cost their sum, not their product."""
    child = {"platform": {"os": "linux", "architecture": "amd64"}, "digest": "d"}
    children = [{**child, "mediaType": f"a/{number}"} for number in range(2000)]
    index = json.dumps({"manifests": [*children, {**child, "mediaType": "b/c"}]}).encode()
    began = time.process_time()
    assert default_child(index, ",".join(f"x/{number};q=1" for number in range(2000)) + ",b/*") == "d"
    assert time.process_time() - began < 1


@given(
    st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 5), st.integers(0, 4)), max_size=40), st.integers(1, 9)
)
def test_a_cache_is_a_bounded_map(steps: list[tuple[str, int, int]], most: int) -> None:
    """What a cache gives was kept under that key, asked for late enough, and all together never weighs more than it may."""
    cache: Cache[str, int] = Cache(most, weigh=lambda value: value)
    kept: dict[str, set[tuple[int, int]]] = {}
    for key, value, at in steps:
        cache.keep(key, value, at)
        kept.setdefault(key, set()).add((value, at))
        assert cache.statistics().weight <= most
        for other, history in kept.items():
            found = cache.get(other, oldest=at - 1)
            assert found is None or any((found, moment) in history for moment in range(at, 5))


HINTS = st.one_of(
    st.builds(Forget, st.sampled_from([None, "a/b", "c/d"]), st.sampled_from([None, "d1", "d2"])),
    st.builds(Placed, st.sampled_from(["d1", "d2"]), st.just("eu")),
)


def concerns(hint: Forget | Placed, repository: str, digest: str) -> bool:
    if isinstance(hint, Placed):
        return hint.digest == digest
    return hint.repository in (None, repository) and hint.digest in (None, digest)


@given(st.lists(st.tuples(st.integers(0, 3), HINTS), max_size=25), st.integers(0, 80), st.integers(0, 10))
def test_no_answer_from_before_a_hint(events: list[tuple[int, Forget | Placed]], asked_at: int, later: int) -> None:
    """An answer that was asked for before a hint about it, or longer ago than the staleness, is never served."""
    staleness, now = 5, 0
    freshness, cache = Freshness(staleness), Cache[tuple[str, str], str](100)
    noted: list[tuple[int, Forget | Placed]] = []
    cache.keep(("a/b", "d1"), "answer", asked_at)
    for wait, hint in events:
        now += wait
        freshness.note(hint, now)
        noted.append((now, hint))
    now = max(now, asked_at) + later
    served = cache.get(("a/b", "d1"), freshness.oldest("a/b", "d1", now))
    out_of_date = any(at >= asked_at and concerns(hint, "a/b", "d1") for at, hint in noted)
    assert (served is not None) == (not out_of_date and asked_at > now - staleness)


@given(st.lists(st.tuples(st.integers(0, 3), HINTS), max_size=25), st.integers(0, 80), st.integers(0, 60))
def test_memory_outlives_gaps_while_the_database_is_away(
    events: list[tuple[int, Forget | Placed]], asked_at: int, later: int
) -> None:
    """While the database is away an answer is served for the grace, unless a hint was about it; one about everything is not."""
    grace, now = 50, 0
    freshness, cache = Freshness(5, grace), Cache[tuple[str, str], str](100)
    noted: list[tuple[int, Forget | Placed]] = []
    cache.keep(("a/b", "d1"), "answer", asked_at)
    for wait, hint in events:
        now += wait
        freshness.note(hint, now)
        noted.append((now, hint))
    now = max(now, asked_at) + later
    served = cache.get(("a/b", "d1"), freshness.oldest("a/b", "d1", now, away=True))
    out_of_date = any(at >= asked_at and hint != Forget() and concerns(hint, "a/b", "d1") for at, hint in noted)
    assert (served is not None) == (not out_of_date and asked_at > now - grace)


GRAMMAR = re.compile(r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(\/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*")


@given(
    st.one_of(st.text(alphabet="ab0._-/A", max_size=12), st.text(max_size=6), st.from_regex(GRAMMAR, fullmatch=True))
)
@example("a\n")
@example("a" * 255)
@example("a" * 256)
@example("aé")
def test_names_are_the_specs(name: str) -> None:
    """A name is one exactly where the specification's expression says so, up to 255 characters; the reason is told."""
    right = GRAMMAR.fullmatch(name) is not None and len(name) <= 255
    assert is_name(name) == right
    if right:
        assert check_name(name) == name
        assert namespace_of(name, "library") == (name.split("/")[0] if "/" in name else "library")
    else:
        with pytest.raises(RegistryError) as caught:
            check_name(name)
        assert caught.value.code.name == "NAME_INVALID"


@given(st.one_of(st.text(max_size=8), st.text(alphabet="aZ0_.-", min_size=1, max_size=130)))
@example("v1\n")
def test_tags_are_the_specs(tag: str) -> None:
    """A tag begins with a letter, digit or underscore and has at most 128 characters."""
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_"
    right = 1 <= len(tag) <= 128 and tag[0] in letters and all(c in letters + ".-" for c in tag)
    assert is_tag(tag) == right


@given(st.one_of(st.text(max_size=90), st.from_regex(r"(sha256|sha512|md5):[0-9a-f]{60,130}", fullmatch=True)))
def test_digests_are_two_kinds(text: str) -> None:
    """A digest is sha256 with 64 or sha512 with 128 lowercase hex digits; anything else is DIGEST_INVALID."""
    if re.fullmatch(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}", text):
        assert str(check_digest(text)) == text
    else:
        with pytest.raises(RegistryError) as caught:
            check_digest(text)
        assert caught.value.code.name == "DIGEST_INVALID"
