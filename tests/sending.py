"""Request bodies in pieces, for clients whose request may be cut off midway."""

from collections.abc import Iterable, Iterator, Mapping

import httpx
import trio
from attrs import frozen


class _Pieces(httpx.AsyncByteStream):
    """Not an async generator: httpx leaves one open when the request fails midway, and its collection is a warning."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = pieces

    def __aiter__(self) -> "_Sent":
        return _Sent(iter(self._pieces))


@frozen
class _Sent:
    _pieces: Iterator[bytes]

    def __aiter__(self) -> "_Sent":
        return self

    async def __anext__(self) -> bytes:
        await trio.lowlevel.checkpoint()
        for piece in self._pieces:
            return piece
        raise StopAsyncIteration


async def send_pieces(
    http: httpx.AsyncClient,
    method: str,
    url: str,
    pieces: Iterable[bytes],
    headers: Mapping[str, str] | None = None,
) -> httpx.Response:
    """Send a request whose body is these pieces: chunked, unless `headers` say its length. Raises httpx.HTTPError."""
    about = {name.lower(): value for name, value in (headers or {}).items()}
    if "content-length" not in about:
        about["transfer-encoding"] = "chunked"
    request = http.build_request(method, url, headers=about)
    if "content-length" not in about:
        request.headers.pop("content-length", None)
    request.stream = _Pieces(pieces)
    return await http.send(request)
