"""Request heads as the pull lane reads them: strictly, because two servers that read one request differently are a way to smuggle.

1. Only `GET` and `HEAD` of `/v2/...` in origin form, HTTP/1.0 and 1.1, by httptools. Everything else, and whatever is odd (a body
   or the mention of one, Expect, Upgrade, a repeated Host, Authorization or Range, no Host, a head that httptools refuses), is
   not the lane's.
2. A head ends at the first empty line. The parser is given exactly that head and is never fed what follows.
3. The lines below the first one are the same in most requests of a client, and the same bytes of it mean the same again.
"""

import re
from collections.abc import Mapping

import httptools
from attrs import define, evolve, field, frozen

from node.answers import Asker, EmptyBody, Request
from node.errors import RegistryError
from node.web.access import new_id, request_ids
from node.web.incoming import headers_of, path_of, query_of
from node.web.proxies import NO_PROXIES, Proxies

_ODD = frozenset(
    {
        b"content-length",
        b"transfer-encoding",
        b"expect",
        b"upgrade",
        b"http2-settings",
        b"proxy-connection",
        b"te",
        b"trailer",
    }
)
_ONCE = frozenset({b"host", b"authorization", b"range", b"connection"})

VERSION = b" HTTP/1.1\r\n"
_PLAIN = re.compile(rb"(GET|HEAD) (/v2/[A-Za-z0-9._:/-]*)" + re.escape(VERSION))
"""A first line that needs no parser: every reader of HTTP takes these characters for what they are."""

_KEPT = 256
"""Blocks of header lines that are remembered of all clients. They ask for manifests with other headers than for blobs, over a new
connection for every image: two blocks an image, each of which takes 20 us to read."""
_KEPT_MOST = 4096
"""Bytes of one. Together they hold 1 MiB, and what is read from them as much again."""

_NO_QUERY: Mapping[str, tuple[str, ...]] = {}
_NO_BODY = EmptyBody()


class NotHere(Exception):
    """This request is Hypercorn's."""


@define(eq=False)
class _Parsed:
    """One request's head, filled by httptools' callbacks."""

    target: bytes = b""
    headers: list[tuple[bytes, bytes]] = field(factory=list)
    keep_alive: bool = False
    parser: httptools.HttpRequestParser | None = None

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        # llhttp leaves white space behind a value, which is no part of it (RFC 9110, 5.5).
        self.headers.append((name.lower(), value.strip(b" \t")))

    def on_headers_complete(self) -> None:
        # Asked here: llhttp has forgotten it when feed_data returns.
        assert self.parser is not None
        self.keep_alive = self.parser.should_keep_alive()

    def parse(self, head: bytes) -> str:
        """Read exactly one head; return its method. Raises NotHere."""
        self.parser = parser = httptools.HttpRequestParser(self)
        try:
            parser.feed_data(head)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            raise NotHere from error
        finally:
            # A parser that its own receiver holds is a cycle, which only the collector would break.
            self.parser = None
        method, version = parser.get_method(), parser.get_http_version()
        if method not in (b"GET", b"HEAD") or version not in ("1.1", "1.0") or not self.target.startswith(b"/v2/"):
            raise NotHere
        if not head.startswith(b"%s %s HTTP/%s\r\n" % (method, self.target, version.encode())):
            # llhttp overlooks white space that it should not.
            raise NotHere
        seen: set[bytes] = set()
        for name, _ in self.headers:
            if name in _ODD or (name in _ONCE and name in seen):
                raise NotHere
            seen.add(name)
        if b"host" not in seen:
            raise NotHere
        # HTTP/1.0 may ask to be kept alive; closing is always allowed.
        self.keep_alive = self.keep_alive and version == "1.1"
        return str(method.decode())


@frozen
class Head:
    """What one head asks."""

    request: Request
    client_id: str
    """What its client calls it, where that is not its id."""
    keep_alive: bool
    plain: bytes = b""
    """Its method and target as they stand there, where they need no parser."""


Kept = dict[tuple[str, bytes], Asker]
"""(peer, lines below a first one) -> what they say, of connections with the same proxies in front.

Nothing in them is of one request only, and the connection goes on.
"""


@define(eq=False)
class Heads:
    """Reads the heads of one connection, whose other end is `peer`. `kept` is what all connections remember together."""

    peer: str
    proxies: Proxies = NO_PROXIES
    kept: Kept = field(factory=dict)

    def read(self, head: bytes) -> Head:
        """Read exactly one head. Raises NotHere."""
        plain = _PLAIN.match(head)
        if plain is None:
            return self._parse(head)[0]
        # 2.6 us instead of the 9 that parsing it all again takes.
        first, lines = head[: plain.end() - len(VERSION)], head[plain.end() :]
        asker = self.asker(lines)
        if asker is None:
            read, lasting = self._parse(head)
            if lasting and len(lines) <= _KEPT_MOST:
                if len(self.kept) >= _KEPT:
                    self.kept.clear()
                self.kept[self.peer, lines] = Asker(read.request.client, read.request.headers)
            return evolve(read, plain=first)
        method, target = plain.groups()
        request = Request(method.decode(), target.decode(), _NO_QUERY, asker.headers, _NO_BODY, asker.client, new_id())
        return Head(request, "", keep_alive=True, plain=first)

    def asker(self, lines: bytes) -> Asker | None:
        """Return what lines below a plain first one say, if somebody has sent them before."""
        return self.kept.get((self.peer, lines))

    def _parse(self, head: bytes) -> tuple[Head, bool]:
        """Read a head, and say whether other requests may have the same lines below the first one."""
        parsed = _Parsed()
        method = parsed.parse(head)
        origin = self.proxies.origin(self.peer, parsed.headers)
        made, theirs = request_ids(origin.headers, believed=origin.believed)
        raw_path, _, query = parsed.target.partition(b"?")
        headers = headers_of(origin.headers)
        try:
            request = Request(
                method=method,
                path=path_of(raw_path),
                query=query_of(query),
                headers=headers,
                body=_NO_BODY,
                client=origin.client,
                id=made,
            )
        except RegistryError as error:
            # A target that cannot be decoded: the other edge has the answer.
            raise NotHere from error
        return Head(request, theirs, parsed.keep_alive), parsed.keep_alive and "x-request-id" not in headers
