"""Connections of the lane that wait for a request: given up in time, ended by a stop, and never after their request has come."""

import os
import socket
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import LifespanState

from node.answers import Answer, Request
from node.web.app import BEYOND_LIMIT, create_app
from node.web.connection import Connection, Pushback, stream_of
from node.web.direct import Direct
from node.web.lane import Lane
from node.web.listener import hypercorn_config
from node.web.waits import Waits, close
from tests.edge.conftest import SETTINGS, Node, hello
from tests.edge.wire import PATIENCE

HEAD = b"GET /v2/ HTTP/1.1\r\nHost: node\r\n\r\n"


Pair = tuple[socket.socket, trio.SocketStream]


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    """Two ends of a connection: the node's, and a client's."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    async with trio.SocketStream(trio.socket.from_stdlib_socket(theirs)) as client:
        yield ours, client
    ours.close()


async def test_a_wait_ends_when_its_time_is_up(pair: Pair, nursery: trio.Nursery) -> None:
    """Nothing came: the wait says so, soon after its time."""
    waits = Waits(0.05)
    nursery.start_soon(waits.run)
    began = trio.current_time()
    with trio.fail_after(PATIENCE):
        assert not await waits.readable(pair[0], began + 0.1, idle=None)
    assert trio.current_time() - began >= 0.1


async def test_a_stop_ends_only_what_is_idle(pair: Pair, nursery: trio.Nursery) -> None:
    """Who has begun to send a head may send the rest of it."""
    waits, (second, other) = Waits(1.0, last_request=0.0), socket.socketpair()
    second.setblocking(False)
    ended: list[tuple[str, bool]] = []

    async def wait(name: str, end: socket.socket, idle: float | None) -> None:
        ended.append((name, await waits.readable(end, trio.current_time() + PATIENCE, idle=idle)))

    nursery.start_soon(waits.run)
    nursery.start_soon(wait, "idle", pair[0], trio.current_time())
    nursery.start_soon(wait, "begun", second, None)
    await trio.testing.wait_all_tasks_blocked()
    waits.stop()
    await trio.testing.wait_all_tasks_blocked(0.1)
    assert ended == [("idle", False)]
    other.send(b"x")
    await trio.testing.wait_all_tasks_blocked(0.05)
    assert ended == [("idle", False), ("begun", True)]
    second.close()
    other.close()


async def test_a_socket_that_is_closed_is_not_merely_late(pair: Pair, nursery: trio.Nursery) -> None:
    """Who closes the socket under a wait ends it with an error, as Trio does."""
    waits, failed = Waits(1.0), trio.Event()

    async def wait() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await waits.readable(pair[0], trio.current_time() + PATIENCE, idle=trio.current_time())
        failed.set()

    nursery.start_soon(wait)
    await trio.testing.wait_all_tasks_blocked()
    close(pair[0])
    with trio.fail_after(PATIENCE):
        await failed.wait()


class AfterPolling(trio.abc.Instrument):
    """Does something, once, when Trio has just asked the kernel what there is to read, and before it looks whose time is over."""

    def __init__(self, do: Callable[[], object]) -> None:
        self._do: Callable[[], object] | None = do

    def after_io_wait(self, _timeout: float) -> None:
        if self._do is not None:
            do, self._do = self._do, None
            do()


async def test_what_an_idle_client_has_sent_is_read_before_it_is_given_up(pair: Pair, nursery: trio.Nursery) -> None:
    """Its time is over, and its bytes are with the kernel, of which nobody has told yet."""
    (ours, theirs), received = pair, trio.Event()
    waits = Waits(1.0, last_request=0.0)

    async def receive() -> None:
        line = Direct(ours, waits)
        assert await line.receive(trio.current_time() + PATIENCE, idle=trio.current_time()) == HEAD
        assert await line.receive(trio.current_time() + PATIENCE, idle=trio.current_time()) is None
        received.set()

    nursery.start_soon(receive)
    nursery.start_soon(waits.run)
    await trio.testing.wait_all_tasks_blocked()
    polled = AfterPolling(lambda: os.write(theirs.socket.fileno(), HEAD))
    trio.lowlevel.add_instrument(polled)
    waits.stop()
    with trio.fail_after(PATIENCE):
        await received.wait()
    trio.lowlevel.remove_instrument(polled)


class Between(trio.abc.Instrument):
    """Does something when a task has been woken and has not run yet."""

    def __init__(self, do: Callable[[], None]) -> None:
        self.task: trio.lowlevel.Task | None = None
        self._do = do
        self._woken = False

    def task_scheduled(self, task: trio.lowlevel.Task) -> None:
        self._woken = self._woken or task is self.task

    def before_task_step(self, _task: trio.lowlevel.Task) -> None:
        if self._woken:
            self.task, self._woken = None, False
            self._do()


async def test_a_request_that_came_before_the_stop_is_answered(pair: Pair, nursery: trio.Nursery) -> None:
    """Its bytes have woken the connection, which has not run yet when the node stops: the request is not lost."""
    lane, (ours, theirs) = Lane(hello), pair
    between, served = Between(lane.waits.stop), trio.Event()

    async def serve() -> None:
        between.task = trio.lowlevel.current_task()
        assert await lane.serve(ours, "127.0.0.1") is None
        served.set()

    nursery.start_soon(serve)
    await trio.testing.wait_all_tasks_blocked()
    trio.lowlevel.add_instrument(between)
    await theirs.send_all(HEAD)
    with trio.fail_after(PATIENCE):
        assert (await theirs.receive_some()).startswith(b"HTTP/1.1 200 ")
        await served.wait()
    trio.lowlevel.remove_instrument(between)
    assert between.task is None


async def test_hypercorn_gives_nobody_up_whose_request_has_just_come(nursery: trio.Nursery) -> None:
    """An idle connection's time is over, and its request came after the kernel was asked: it is answered."""
    waits = Waits(1.0, last_request=0.0)
    app = ASGIWrapper(create_app(hello, Node(nursery), SETTINGS))  # type: ignore[arg-type]
    with socket.create_server(("127.0.0.1", 0)) as listening:
        theirs = await trio.open_tcp_stream(*listening.getsockname())
        accepted = listening.accept()[0]
    held: Any = Pushback(stream_of(accepted), b"")
    state = LifespanState({BEYOND_LIMIT: False})
    connection = Connection(waits, app, hypercorn_config(75.0), WorkerContext(None), state, held)
    nursery.start_soon(partial(connection.serve, accepted, peer="127.0.0.1", secure=False))
    await trio.testing.wait_all_tasks_blocked()
    polled = AfterPolling(lambda: os.write(theirs.socket.fileno(), HEAD.replace(b"GET", b"POST")))
    trio.lowlevel.add_instrument(polled)
    waits.stop()
    async with theirs:
        with accepted, trio.fail_after(PATIENCE):
            assert (await theirs.receive_some()).startswith(b"HTTP/1.1 200 ")
    trio.lowlevel.remove_instrument(polled)


async def test_many_requests_at_once_let_others_in(node: Node, nursery: trio.Nursery) -> None:
    """A client that sends a hundred requests in one piece does not keep another one waiting until all are answered."""
    order: list[str] = []

    async def handler(request: Request) -> Answer:
        order.append(request.path)
        return Answer(200, (), b"")

    await node.start(handler)
    async with node.client() as greedy, node.client() as modest:
        await modest.ask("/v2/first")
        await greedy.ask("/v2/first")
        await greedy.send(HEAD.replace(b"/v2/", b"/v2/greedy") * 100)
        await modest.send(HEAD.replace(b"/v2/", b"/v2/modest"))
        for _ in range(100):
            await greedy.reply()
        await modest.reply()
    assert order.index("/v2/modest") < len(order) - 1
