"""What a connection remembers of heads never changes what the next one says."""

from ipaddress import ip_network

import pytest

from node.web.heads import Heads, Kept, NotHere
from node.web.proxies import Proxies

LINES = b"Host: node\r\nAuthorization: Bearer a\r\nAccept: x/y\r\n\r\n"


def head(target: bytes, lines: bytes = LINES, method: bytes = b"GET", version: bytes = b"1.1") -> bytes:
    return b"%s %s HTTP/%s\r\n%s" % (method, target, version, lines)


def test_the_same_lines_say_the_same_again() -> None:
    """Only the first line and the id differ."""
    heads = Heads("192.0.2.1")
    first, second = heads.read(head(b"/v2/a/blobs/b")), heads.read(head(b"/v2/c/blobs/d", method=b"HEAD"))
    assert (
        second.request.headers
        == first.request.headers
        == {"host": "node", "authorization": "Bearer a", "accept": "x/y"}
    )
    assert (second.request.method, second.request.path) == ("HEAD", "/v2/c/blobs/d")
    assert (second.request.client, second.keep_alive, second.client_id) == ("192.0.2.1", True, "")
    assert first.request.id != second.request.id


def test_other_lines_say_something_else() -> None:
    """A token that changes in the middle of a connection is a new one."""
    heads = Heads("192.0.2.1")
    heads.read(head(b"/v2/a"))
    assert (
        heads.read(head(b"/v2/a", LINES.replace(b"Bearer a", b"Bearer b"))).request.headers["authorization"]
        == "Bearer b"
    )
    assert heads.read(head(b"/v2/a")).request.headers["authorization"] == "Bearer a"


@pytest.mark.parametrize(
    "first",
    [
        b"GET  /v2/a HTTP/1.1\r\n",
        b"POST /v2/a HTTP/1.1\r\n",
        b"GET /v3/a HTTP/1.1\r\n",
        b"GET /v2/a HTTP/2.0\r\n",
        b"GET /v2/\x80 HTTP/1.1\r\n",
    ],
)
def test_known_lines_do_not_excuse_a_first_one(first: bytes) -> None:
    """What is not the lane's is not, whatever was read before."""
    heads = Heads("192.0.2.1")
    heads.read(head(b"/v2/a"))
    with pytest.raises(NotHere):
        heads.read(first + LINES)


def test_an_older_version_closes() -> None:
    """HTTP/1.0 is not kept alive, though the same lines were in HTTP/1.1."""
    heads = Heads("192.0.2.1")
    assert heads.read(head(b"/v2/a")).keep_alive
    assert not heads.read(head(b"/v2/a", version=b"1.0")).keep_alive
    assert heads.read(head(b"/v2/a")).keep_alive


def test_who_closes_closes_every_time() -> None:
    """Lines that end a connection are not remembered as ones that keep it."""
    heads, lines = Heads("192.0.2.1"), LINES.replace(b"Accept: x/y", b"Connection: close")
    assert not heads.read(head(b"/v2/a", lines)).keep_alive
    assert not heads.read(head(b"/v2/a", lines)).keep_alive


def test_a_given_id_is_kept_every_time() -> None:
    """What a client or a listed proxy calls a request is on each of its requests."""
    lines = LINES.replace(b"Accept: x/y", b"X-Request-ID: theirs")
    heads = Heads("192.0.2.1")
    assert [heads.read(head(b"/v2/a", lines)).client_id for _ in range(2)] == ["theirs"] * 2
    heads = Heads("192.0.2.1", Proxies((ip_network("192.0.2.0/24"),)))
    assert [heads.read(head(b"/v2/a", lines)).request.id for _ in range(2)] == ["theirs"] * 2


def test_what_is_remembered_is_bounded() -> None:
    """A client that says something else every time is remembered no better than others."""
    heads = Heads("192.0.2.1")
    for number in range(1000):
        heads.read(head(b"/v2/a", LINES.replace(b"x/y", b"x/%d" % number)))
    heads.read(head(b"/v2/a", LINES.replace(b"x/y", b"x" * 8192)))
    assert heads.kept
    assert len(heads.kept) <= 256
    assert all(len(lines) <= 4096 for _, lines in heads.kept)


def test_what_is_remembered_is_of_one_peer() -> None:
    """The next connection knows the lines already, of the same peer only: others are somebody else."""
    kept: Kept = {}
    Heads("192.0.2.1", kept=kept).read(head(b"/v2/a"))
    known = dict(kept)
    assert Heads("192.0.2.1", kept=kept).read(head(b"/v2/b")).request.client == "192.0.2.1"
    assert kept == known
    assert Heads("192.0.2.2", kept=kept).read(head(b"/v2/a")).request.client == "192.0.2.2"
