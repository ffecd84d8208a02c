"""From an ASGI scope to a `Request`: strict about encodings, so that nothing behind the edge meets a control character."""

import unicodedata
from collections.abc import Iterable, Mapping
from urllib.parse import unquote_to_bytes

import trio

from engines.trace import waiting
from node.answers import BodyStalled, ClientGone, EmptyBody, Request, RequestBody
from node.errors import RegistryError
from node.web.access import client_address
from node.web.asgi import DISCONNECT, Receive, Scope
from node.web.failures import BAD_REQUEST
from node.web.pace import SILENCES, Pace

HEX = frozenset(b"0123456789abcdefABCDEF")
MOST_PARAMETERS = 100
"""Of a query. No endpoint knows more than a handful."""


def request_from(scope: Scope, body: RequestBody, request_id: str) -> Request:
    """Return the request of an HTTP scope. Raises RegistryError (400) for a target that cannot be decoded."""
    return Request(
        method=scope["method"],
        path=path_of(scope["raw_path"]),
        query=query_of(scope["query_string"]),
        headers=headers_of(scope["headers"]),
        body=body,
        client=client_address(scope),
        id=request_id,
    )


def origin_form(raw_path: bytes) -> bytes:
    """Return the path of a request target, the absolute form's too (RFC 9112, 3.2.2). Raises RegistryError (400)."""
    if raw_path.startswith(b"/"):
        return raw_path
    if raw_path[:8].lower().startswith((b"http://", b"https://")):
        _, slash, path = raw_path.partition(b"//")[2].partition(b"/")
        return slash + path or b"/"
    raise RegistryError(BAD_REQUEST, "the request target must begin with a slash")


def path_of(raw_path: bytes) -> str:
    """Return the decoded path. Raises RegistryError (400) for a bad escape, for what is not UTF-8, and for control characters.

    The escape of a slash becomes a slash: names, tags and digests have none to hide.
    """
    return _decode(origin_form(raw_path), "path")


def query_of(query: bytes) -> Mapping[str, tuple[str, ...]]:
    """Return all values of all parameters in order; one without `=` has the value "". Raises RegistryError (400) as `path_of`.

    A plus stays a plus (RFC 3986): media types have them, and nothing that is asked here has spaces.
    """
    values: dict[str, tuple[str, ...]] = {}
    parts = [part for part in query.split(b"&") if part]
    if len(parts) > MOST_PARAMETERS:
        raise RegistryError(BAD_REQUEST, f"more than {MOST_PARAMETERS} query parameters")
    for part in parts:
        raw_name, _, raw_value = part.partition(b"=")
        name = _decode(raw_name, "query")
        values[name] = (*values.get(name, ()), _decode(raw_value, "query"))
    return values


def headers_of(headers: Iterable[tuple[bytes, bytes]]) -> Mapping[str, str]:
    """Return the headers with repeated ones joined by a comma (RFC 9110, 5.3)."""
    joined: dict[str, str] = {}
    for raw_name, raw_value in headers:
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
        joined[name] = f"{joined[name]}, {value}" if name in joined else value
    return joined


def _decode(raw: bytes, what: str) -> str:
    at = raw.find(b"%")
    while at >= 0:
        escape = raw[at + 1 : at + 3]
        if len(escape) != 2 or not HEX.issuperset(escape):
            raise RegistryError(BAD_REQUEST, f"{what}: bad percent-encoding at byte {at}")
        at = raw.find(b"%", at + 3)
    try:
        text = unquote_to_bytes(raw).decode()
    except UnicodeDecodeError as error:
        raise RegistryError(BAD_REQUEST, f"{what}: not UTF-8 at byte {error.start}") from None
    if not text.isprintable() and any(unicodedata.category(character) == "Cc" for character in text):
        raise RegistryError(BAD_REQUEST, f"{what}: control character")
    return text


class IncomingBody:
    """A request body over ASGI `receive`. Nothing is read ahead: what is not received stays in the client's socket.

    `over` is set once nobody will receive any more: the body has ended, or the handler has answered without it. From then on the
    connection may be watched for the client's leaving.
    """

    def __init__(self, receive: Receive, stall_deadline: float) -> None:
        self._receive = receive
        self._stall_deadline = stall_deadline
        self._pace = Pace(SILENCES * stall_deadline)
        self._ended = False
        self._gone = False
        self.over = trio.Event()

    async def receive(self) -> bytes:
        """Return the next bytes, b"" at the end. Raises ClientGone or BodyStalled; see `RequestBody`."""
        while not self._ended:
            if self._gone:
                raise ClientGone
            began = trio.current_time()
            longest = min(self._stall_deadline, self._pace.allowance())
            with waiting("client"), trio.move_on_after(longest) as scope:
                message = await self._receive()
            if scope.cancelled_caught:
                raise BodyStalled
            self._pace.waited(trio.current_time() - began, len(message.get("body", b"")))
            if message["type"] == DISCONNECT:
                self._gone = True
                continue
            if not message.get("more_body", False):
                self._ended = True
                self.over.set()
            if data := message.get("body", b""):
                return bytes(data)
        return b""


def body_of(scope: Scope, receive: Receive, stall_deadline: float) -> IncomingBody | EmptyBody:
    """Return the body that the headers announce (RFC 9112, 6.3), or an empty one that never touches `receive`."""
    for name, value in scope["headers"]:
        if name == b"transfer-encoding" or (name == b"content-length" and value.strip(b"0")):
            return IncomingBody(receive, stall_deadline)
    return EmptyBody()
