"""Waits for the browser to come back from a login: a listener on this machine alone, for one answer (RFC 8252, 7.3)."""

import hmac
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from urllib.parse import parse_qs, urlsplit

import trio
import trio.lowlevel
from attrs import field, frozen

_MOST = 16 * 1024
_SECONDS = 10.0
_PAGE = "<!doctype html><meta charset=utf-8><title>antipode</title><p>{}</p>"


@frozen
class CameBack:
    """What the browser brought: a code, or why there is none."""

    code: str | None = field(default=None, repr=False)
    error: str = ""


def read_return(head: bytes, path: str, state: str) -> CameBack | None:
    """Return what a request's head brings; None: it is none of the login that `state` is of."""
    try:
        method, target, version = head.split(b"\r\n", 1)[0].decode("ascii").split(" ")
        parts = urlsplit(target)
        query = parse_qs(parts.query, max_num_fields=20)
    except ValueError:
        return None
    given = [query.get(name, [""]) for name in ("state", "code", "error")]
    if method != "GET" or not version.startswith("HTTP/1.") or parts.path != path or max(map(len, given)) > 1:
        return None
    (said,), (code,), (error,) = given
    if not hmac.compare_digest(said.encode("utf-8", "replace"), state.encode()):
        return None
    if error or not code:
        text = " ".join((error, *query.get("error_description", [])))[:300]
        return CameBack(error="".join(letter if letter.isprintable() else "?" for letter in text) or "no code")
    return CameBack(code)


async def wait_for_return(listener: trio.SocketListener, path: str, state: str) -> CameBack:
    """Return what the browser brings, whatever else is sent here meanwhile. The caller's deadline ends it."""
    send, receive = trio.open_memory_channel[CameBack](1)
    async with trio.open_nursery() as nursery:
        take = partial(_serve, take=send.send_nowait, path=path, state=state)
        nursery.start_soon(partial(trio.serve_listeners, take, [listener]))
        found = await receive.receive()
        # The page is on its way to the browser.
        await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    return found


async def _serve(stream: trio.SocketStream, *, take: Callable[[CameBack], None], path: str, state: str) -> None:
    head, found = b"", None
    try:
        with trio.move_on_after(_SECONDS):
            while b"\r\n\r\n" not in head and len(head) < _MOST and (data := await stream.receive_some(4096)):
                head += data
            found = read_return(head, path, state)
            if found is None:
                await _answer(stream, "404 Not Found", "This is not the end of a login.")
            elif found.code is None:
                await _answer(stream, "200 OK", "The login failed; the terminal says why.")
            else:
                await _answer(stream, "200 OK", "Logged in. This window may be closed.")
    except trio.BrokenResourceError:
        pass
    finally:
        if found is not None:
            # It may come twice.
            with suppress(trio.WouldBlock):
                take(found)


async def _answer(stream: trio.SocketStream, status: str, text: str) -> None:
    page = _PAGE.format(text).encode()
    head = (
        f"HTTP/1.1 {status}\r\ncontent-type: text/html\r\ncontent-length: {len(page)}\r\n"
        "cache-control: no-store\r\nreferrer-policy: no-referrer\r\nconnection: close\r\n\r\n"
    )
    await stream.send_all(head.encode() + page)
    await stream.send_eof()
