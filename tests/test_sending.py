"""A body that is cut off midway leaves nothing that is collected later with a warning."""

import gc
import socket
import struct
from collections.abc import Iterator
from functools import partial

import httpx
import pytest
import trio

from tests.sending import send_pieces

_PATIENCE = 30


async def test_a_request_that_is_reset_midway_leaves_nothing_open() -> None:
    sent = 0

    def pieces() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(1000):
            sent += 1
            yield bytes(64 * 1024)

    async def reset(stream: trio.SocketStream) -> None:
        await stream.receive_some(1000)
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    async with trio.open_nursery() as nursery:
        listener = (await nursery.start(partial(trio.serve_tcp, reset, 0, host="127.0.0.1")))[0]
        url = f"http://127.0.0.1:{listener.socket.getsockname()[1]}/"
        async with httpx.AsyncClient(timeout=_PATIENCE, trust_env=False) as http:
            with pytest.raises(httpx.TransportError):
                await send_pieces(http, "PATCH", url, pieces())
        gc.collect()
        nursery.cancel_scope.cancel()
    assert 0 < sent < 1000


async def test_the_pieces_arrive_in_order_chunked_or_with_their_length() -> None:
    received: list[bytes] = []

    async def keep(stream: trio.SocketStream) -> None:
        data = b""
        while not data.endswith((b"0\r\n\r\n", b"onetwo")):
            data += await stream.receive_some(1000)
        received.append(data.lower())
        await stream.send_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")

    async with trio.open_nursery() as nursery:
        listener = (await nursery.start(partial(trio.serve_tcp, keep, 0, host="127.0.0.1")))[0]
        url = f"http://127.0.0.1:{listener.socket.getsockname()[1]}/"
        async with httpx.AsyncClient(timeout=_PATIENCE, trust_env=False) as http:
            for headers in (None, {"Content-Length": "6"}):
                answer = await send_pieces(http, "PUT", url, iter((b"one", b"two")), headers)
                assert answer.status_code == 200
        nursery.cancel_scope.cancel()
    chunked, counted = received
    assert b"\r\ntransfer-encoding: chunked\r\n" in chunked
    assert b"content-length" not in chunked
    assert chunked.endswith(b"\r\n\r\n3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n")
    assert b"\r\ncontent-length: 6\r\n" in counted
    assert b"transfer-encoding" not in counted
