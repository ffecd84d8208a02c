"""Slow clients: one that is never silent and yet takes for ever is given up, one that is merely slow is not."""

import socket
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager

import pytest
import trio
import trio.testing
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import LifespanState
from hypothesis import given
from hypothesis import strategies as st

from node.answers import Answer, BodyStalled, Request, Stream
from node.web.app import BEYOND_LIMIT, create_app
from node.web.asgi import Message
from node.web.connection import Connection, Pushback
from node.web.incoming import IncomingBody
from node.web.lane import Lane
from node.web.listener import hypercorn_config
from node.web.pace import MINIMUM_RATE, PATIENCE, SILENCES, Pace
from node.web.waits import Waits
from tests.edge.conftest import SETTINGS, Logged, Node

KIB = 1 << 10
SIZE = 4 << 20


def sender(seconds: float, size: int) -> Callable[[], object]:
    """A client that sends `size` bytes every so many seconds, for ever."""

    async def receive() -> Message:
        await trio.sleep(seconds)
        return {"type": "http.request", "body": bytes(size), "more_body": True}

    return receive


async def _read_all(body: IncomingBody) -> None:
    while await body.receive():
        pass


async def test_a_body_that_trickles_is_given_up(autojump_clock: object) -> None:
    """A byte every ten seconds is no silence of thirty, and yet the place is free again after ten times that."""
    body = IncomingBody(sender(10, 1), 30.0)  # type: ignore[arg-type]  # what ASGI's receive is here
    with pytest.raises(BodyStalled):
        await _read_all(body)
    assert SILENCES * 30 - 1 < trio.current_time() < SILENCES * 30 + 11


async def test_a_body_that_is_merely_slow_is_not(autojump_clock: object) -> None:
    """A client at the least rate may take hours, and a busy node uses up nobody's patience."""
    body = IncomingBody(sender(10, 10 * int(MINIMUM_RATE)), 30.0)  # type: ignore[arg-type]  # likewise
    for _ in range(500):
        assert await body.receive()
        await trio.sleep(60)


async def _answer(request: Request) -> Answer:
    @asynccontextmanager
    async def chunks() -> AsyncIterator[AsyncIterator[bytes]]:
        async def source() -> AsyncGenerator[bytes, None]:
            for _ in range(SIZE >> 20):
                # As a store does: meanwhile the edge learns that its client is gone.
                await trio.sleep(0.001)
                yield bytes(1 << 20)

        async with aclosing(source()) as pieces:
            yield pieces

    return Answer(200, (), Stream(SIZE, chunks))


async def _read_at(stream: trio.abc.Stream, rate: int) -> int:
    """Ask for the blob and take `rate` bytes a second; return how many came."""
    await stream.send_all(b"GET /v2/x HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n")
    count = 0
    while data := await stream.receive_some(rate):
        count += len(data)
        await trio.sleep(len(data) / rate)
    return count


class _Loopback:
    """Where the two ends of a connection in memory are said to be."""

    family = socket.AF_INET

    def getpeername(self) -> tuple[str, int]:
        return "127.0.0.1", 1

    getsockname = getpeername


async def _serve_by_hypercorn(stream: trio.abc.Stream, nursery: trio.Nursery) -> None:
    app = create_app(_answer, Node(nursery), SETTINGS, draining=lambda: False)
    held = Pushback(stream, b"")  # type: ignore[arg-type]  # in memory, not a socket's
    state = LifespanState({BEYOND_LIMIT: False})
    connection = Connection(Waits(1.0), ASGIWrapper(app), hypercorn_config(75.0), WorkerContext(None), state, held)  # type: ignore[arg-type]
    await connection.serve(_Loopback(), peer="127.0.0.1", secure=False)  # type: ignore[arg-type]  # likewise


@pytest.mark.parametrize("edge", ["hypercorn", "lane"])
@pytest.mark.parametrize(("rate", "whole"), [(256, False), (2 * KIB, False), (8 * KIB, True), (1024 * KIB, True)])
async def test_a_reader_that_trickles_is_given_up(
    edge: str, rate: int, whole: bool, autojump_clock: object, logged: Logged
) -> None:
    """Who takes less than 4 KiB a second loses the connection in bounded time; who takes more has all, however long it lasts."""
    ours, theirs = trio.testing.lockstep_stream_pair()
    counts: list[int] = []

    async def client() -> None:
        counts.append(await _read_at(theirs, rate))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(client)
        if edge == "lane":
            assert await Lane(_answer).serve(ours, "127.0.0.1") is None
        else:
            await _serve_by_hypercorn(ours, nursery)
        lasted = trio.current_time()
        await ours.aclose()
    assert (counts[0] > SIZE) is whole
    assert logged.requests()[0]["outcome"] == ("complete" if whole else "aborted")
    if not whole:
        assert lasted < 3 * PATIENCE


@given(st.lists(st.tuples(st.floats(0, 100), st.integers(0, 1 << 20))))
def test_patience_is_bounded(waits: list[tuple[float, int]]) -> None:
    """However fast a client was, it cannot save up more patience than it began with."""
    pace = Pace(60.0)
    for seconds, count in waits:
        pace.waited(seconds, count)
        assert 0 <= pace.allowance() <= 60.0
