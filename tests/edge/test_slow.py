"""Slow requests: one line that says where the time went."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
import trio.testing

from engines.trace import waiting
from node.answers import Answer, Request, Stream
from tests.edge.conftest import Logged, Node, hello
from tests.edge.wire import PATIENCE

SIZE = 32 << 20
"""More than the sockets between the node and a client hold."""


async def toilsome(_request: Request) -> Answer:
    """Wait for every part of a node, for two stores at once."""
    with waiting("gate"):
        await trio.sleep(0.05)
    with waiting("database"):
        await trio.sleep(0.1)

    async def ask_store() -> None:
        with waiting("store"):
            await trio.sleep(0.2)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask_store)
        nursery.start_soon(ask_store)
    return Answer(200, body=b"at last")


async def slow_lines(logged: Logged, count: int) -> list[dict[str, object]]:
    """Return the lines about slow requests, once `count` requests have ended."""
    await logged.request(count)
    await trio.testing.wait_all_tasks_blocked()
    return [dict(entry) for entry in logged.entries if entry["event"] == "slow request"]


async def test_a_slow_request_says_where_its_time_went(node: Node, logged: Logged) -> None:
    """Each part has its seconds, tasks that wait together count once, and the line is a warning under the request's id."""
    await node.start(toilsome, slow_request=0.3)
    async with node.client() as client:
        reply = await client.ask("/v2/a/tags/list")
        assert reply.body == b"at last"
    (line,) = await slow_lines(logged, 1)
    assert (line["log_level"], line["request_id"], line["path"], line["status"]) == (
        "warning",
        reply.headers["x-request-id"],
        "/v2/a/tags/list",
        200,
    )
    parts = {name: line[name] for name in ("gate", "database", "store", "client", "elsewhere")}
    assert all(isinstance(seconds, float) for seconds in parts.values())
    gate, database, store, client_, elsewhere = (float(str(seconds)) for seconds in parts.values())
    assert gate >= 0.05
    assert database >= 0.1
    assert store >= 0.2
    total = float(str(line["duration"]))
    assert abs(gate + database + store + client_ + elsewhere - total) < 1e-4
    # Two stores that were waited for at the same time would be 0.4 s.
    assert store <= total - gate - database + 1e-4


async def test_a_quick_request_has_no_line(node: Node, logged: Logged) -> None:
    """What takes less than the threshold is not mentioned."""
    await node.start(hello, slow_request=60.0)
    async with node.client() as client:
        await client.ask("/v2/")
    assert await slow_lines(logged, 1) == []


async def test_a_slow_client_is_no_warning(node: Node, logged: Logged) -> None:
    """Where it was the client that did not take its bytes, the line says so and warns nobody."""

    @asynccontextmanager
    async def opened() -> AsyncIterator[AsyncIterator[bytes]]:
        async def chunks() -> AsyncIterator[bytes]:
            for _ in range(SIZE >> 20):
                yield bytes(1 << 20)

        yield chunks()

    async def large(_request: Request) -> Answer:
        return Answer(200, body=Stream(SIZE, opened))

    await node.start(large, slow_request=0.4)
    async with node.client() as client:
        await client.send(b"GET /v2/ HTTP/1.1\r\nHost: node\r\n\r\n")
        head = await client.head()
        # Until the sockets are full: from then on it is the client that the node waits for.
        await trio.testing.wait_all_tasks_blocked(0.1)
        await trio.sleep(0.5)
        with trio.fail_after(PATIENCE):
            await client.read(int(head.headers["content-length"]))
    (line,) = await slow_lines(logged, 1)
    assert line["log_level"] == "info" or float(str(line["duration"])) - float(str(line["client"])) >= 0.4
    assert float(str(line["client"])) >= 0.3
