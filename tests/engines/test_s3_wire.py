"""Answers as stores and what stands before them may send them, and connections that are kept, or not."""

import socket
import struct

import pytest
import trio

from engines import parse_engine
from engines.contract import EngineError, EngineRefused, EngineUnavailable
from engines.crossing import Bridge
from engines.s3_wire import head, make_room
from tests.engines.test_s3 import arguments, scripted, server

HELLO = b"HTTP/1.1 206 Partial Content\r\ncontent-RANGE:bytes 0-4/5\r\nContent-Length: 5\r\n\r\nhello"


def script(*answers: bytes, pace: int = 1 << 20) -> tuple[list[int], object]:
    """Return the numbers of requests per connection, and a handler that sends these answers, `pace` bytes at a time."""
    left, connections = list(answers), list[int]()

    async def handler(stream: trio.SocketStream) -> None:
        connections.append(0)
        mine = len(connections) - 1
        while left and await stream.receive_some(65536):
            connections[mine] += 1
            text = left.pop(0)
            for at in range(0, len(text), pace):
                await stream.send_all(text[at : at + pace])
                await trio.lowlevel.checkpoint()
            if b"close" in text or b"HTTP/1.0" in text:
                return

    return connections, handler


@pytest.mark.parametrize("pace", [1, 7, 1 << 20])
async def test_answers_in_any_pieces(bridge: Bridge, pace: int) -> None:
    """However a store cuts its answers, they are read whole, and one connection serves all."""
    connections, handler = script(HELLO, b"HTTP/1.1 100 Continue\r\n\r\n" + HELLO, HELLO, pace=pace)
    async with scripted(handler) as engine:  # type: ignore[arg-type]
        assert [await engine.read("k", 0, 5) for _ in range(3)] == 3 * [b"hello"]
    assert connections == [3]


@pytest.mark.parametrize(
    "last", [HELLO.replace(b"Content-L", b"Connection: close\r\nContent-L"), HELLO.replace(b"1.1", b"1.0")]
)
async def test_a_connection_that_ends_is_not_kept(bridge: Bridge, last: bytes) -> None:
    """A store that says it will hang up, or speaks HTTP/1.0, gets a new connection next time."""
    connections, handler = script(HELLO, last, HELLO)
    async with scripted(handler) as engine:  # type: ignore[arg-type]
        assert [await engine.read("k", 0, 5) for _ in range(3)] == 3 * [b"hello"]
    assert connections == [2, 1]


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 34\r\n\r\n<Error><Code>NoSuchKey</Code></Err>",
        b"HTTP/1.1 404 No\r\nTransfer-Encoding: chunked\r\n\r\n7\r\n<Error>\r\n1b;x=y\r\n<Code>NoSuchKey</Code></Err>\r\n0\r\n\r\n",
        b"HTTP/1.1 404 Not Found\r\nConnection: close\r\n\r\n<Error><Code>NoSuchKey</Code></Err>",
    ],
)
async def test_errors_in_every_form(bridge: Bridge, answer: bytes) -> None:
    """An error is understood with a length, in chunks, and up to the connection's end; the next call is not confused by it."""
    connections, handler = script(answer, HELLO)
    async with (
        server(handler) as port,  # type: ignore[arg-type]
        parse_engine("RadosGWStorage", arguments(port, read_timeout=60)).open() as engine,
    ):
        with trio.fail_after(30), pytest.raises(EngineError, match="NoSuchKey"):
            await engine.read("k", 0, 5)
        assert await engine.read("k", 0, 5) == b"hello"
    assert connections == [1, 1]


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000,
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nconnection: close\r\n",
    ],
)
async def test_what_is_no_answer(bridge: Bridge, answer: bytes) -> None:
    """What is not HTTP/1.1, or has no end, is an error of the store."""
    _, handler = script(answer + b"close")
    async with scripted(handler) as engine:  # type: ignore[arg-type]
        with pytest.raises(EngineUnavailable):
            await engine.read("k", 0, 5)


async def test_more_than_was_asked_for_ends_the_connection(bridge: Bridge) -> None:
    """Bytes behind an answer belong to nothing: what they would be taken for is somebody else's."""
    connections, handler = script(HELLO + b"HTTP/1.1 200 OK\r\n", HELLO)
    async with scripted(handler) as engine:  # type: ignore[arg-type]
        assert [await engine.read("k", 0, 5) for _ in range(2)] == 2 * [b"hello"]
    assert connections == [1, 1]


async def test_a_refusal_is_heard_while_sending(bridge: Bridge) -> None:
    """A store that says no and hangs up before it has the whole body is heard."""

    async def handler(stream: trio.SocketStream) -> None:
        await stream.receive_some(1000)
        text = b"<Error><Code>AccessDenied</Code></Error>"
        head = b"HTTP/1.1 403 Forbidden\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(text)
        await stream.send_all(head + text)
        await stream.send_eof()
        while await stream.receive_some(1 << 20):
            pass

    async with scripted(handler) as engine:
        with pytest.raises(EngineRefused, match="AccessDenied"):
            await engine.put("k", b"x" * (1 << 22))


async def test_a_read_is_repeated_on_a_connection_that_was_reset(bridge: Bridge) -> None:
    """A store that was started anew resets what it kept: a read is asked once more."""
    connections = 0

    async def handler(stream: trio.SocketStream) -> None:
        nonlocal connections
        connections += 1
        await stream.receive_some(65536)
        await stream.send_all(HELLO)
        await stream.receive_some(10)
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    async with scripted(handler) as engine:
        assert [await engine.read("k", 0, 5) for _ in range(3)] == 3 * [b"hello"]
    assert connections == 3


@pytest.mark.parametrize("value", ["a\r\nx-amz-acl: public", "a\nb", "a\rb"])
def test_a_header_is_one_line(value: str) -> None:
    """What comes from a client cannot become a header of ours."""
    with pytest.raises(ValueError, match="line"):
        head("GET", "/b/k", {"host": "h", "x-request-id": value})


def test_room_for_a_piece() -> None:
    """The kernel takes in a piece that nobody reads yet, and a small answer is still given out as it comes."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as ours,
        listener.accept()[0] as theirs,
    ):
        make_room(ours)
        assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) >= 1 << 20
        ours.settimeout(30)
        theirs.sendall(b"hello")
        assert ours.recv(1 << 20) == b"hello"
