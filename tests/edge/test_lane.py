"""The pull lane answers as the other edge does, and gives up every connection that is not a plain pull, with every byte."""

import os
import sys
from ipaddress import ip_network

import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from node.answers import Answer, Asker, Lasting, Request, Stream
from node.config.settings import EdgeSettings
from node.errors import MANIFEST_UNKNOWN, RegistryError
from node.web.access import Exchange
from node.web.lane import HEAD_MOST, Lane
from tests.edge.conftest import Node, hello
from tests.edge.wire import PATIENCE, Client, Closed, Reply, connect

HOST = b"Host: node\r\nX-Request-ID: mine\r\n"
STRIPPED = {"date", "x-request-id"}


async def handler(request: Request) -> Answer:
    """Answer with all that an answer may depend on; some paths fail in their own way."""
    if request.path == "/v2/missing/manifests/x":
        raise RegistryError(MANIFEST_UNKNOWN, {"name": "missing"})
    if request.path == "/v2/empty":
        return Answer(204)
    if request.path == "/v2/stream":
        return Answer(200, (("content-type", "application/octet-stream"),), Stream(300_000, pieces))
    body = b""
    while data := await request.body.receive():
        body += data
    told = (
        f"{request.method} {request.path} {sorted(request.query.items())} {request.headers.get('accept')} {len(body)}"
    )
    return Answer(200, (("content-type", "text/plain"),), told.encode())


@trio.as_safe_channel
async def pieces():  # type: ignore[no-untyped-def]  # an async generator behind a decorator without types
    for _ in range(3):
        yield b"x" * 100_000


async def told(client: Client, method: str) -> tuple[int, dict[str, str], bytes]:
    reply: Reply = await client.reply(method)
    return reply.status, {name: value for name, value in reply.headers.items() if name not in STRIPPED}, reply.body


REQUESTS = [
    b"GET /v2/ HTTP/1.1\r\n" + HOST + b"\r\n",
    b"HEAD /v2/ HTTP/1.1\r\n" + HOST + b"\r\n",
    b"GET /v2/a/manifests/b?n=1&n=2&last=%41 HTTP/1.1\r\n" + HOST + b"Accept: x/y\r\nAccept: z/w\r\n\r\n",
    b"GET /v2/missing/manifests/x HTTP/1.1\r\n" + HOST + b"\r\n",
    b"HEAD /v2/missing/manifests/x HTTP/1.1\r\n" + HOST + b"\r\n",
    b"GET /v2/empty HTTP/1.1\r\n" + HOST + b"\r\n",
    b"GET /v2/stream HTTP/1.1\r\n" + HOST + b"\r\n",
    b"HEAD /v2/stream HTTP/1.1\r\n" + HOST + b"\r\n",
    b"GET /v2/%zz HTTP/1.1\r\n" + HOST + b"\r\n",
    b"GET /v2/%00 HTTP/1.1\r\n" + HOST + b"\r\n",
    b"GET /v2/a%2fb HTTP/1.1\r\n" + HOST + b"\r\n",
    b"GET http://node/v2/x HTTP/1.1\r\n" + HOST + b"\r\n",
    b"GET /v2/x HTTP/1.1\r\n" + HOST + b"Content-Length: 3\r\n\r\nabc",
    b"GET /v2/x HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    b"GET /v2/x HTTP/1.1\r\n" + HOST + b"Upgrade: h2c\r\nConnection: upgrade\r\n\r\n",
    b"POST /v2/x HTTP/1.1\r\n" + HOST + b"Content-Length: 3\r\n\r\nabc",
    b"GET /health HTTP/1.1\r\n" + HOST + b"\r\n",
    b"GET /v2/x HTTP/1.1\r\n" + HOST + b"Authorization: a\r\nAuthorization: b\r\n\r\n",
    b"GET /v2/x HTTP/1.1\r\n" + HOST + b"X-Long: " + b"y" * 10_000 + b"\r\n\r\n",
    b"OPTIONS /v2/x HTTP/1.1\r\n" + HOST + b"\r\n",
]


@pytest.fixture
async def edges(nursery: trio.Nursery) -> tuple[Node, Node]:
    """The same handler behind Hypercorn alone, and with the lane in front."""
    plain, lane = Node(nursery), Node(nursery, with_lane=True)
    for node in (plain, lane):
        # The id is in the bodies of errors, and here it is what the request says.
        await node.start(handler, edge=EdgeSettings(trusted_proxies=(ip_network("127.0.0.0/8"),)))
    return plain, lane


@pytest.mark.parametrize("raw", REQUESTS, ids=[raw[:60].decode("latin-1").split("\r")[0] for raw in REQUESTS])
async def test_both_edges_answer_alike(edges: tuple[Node, Node], raw: bytes) -> None:
    """Status, headers and body are the same, whole and byte by byte; the connection goes on afterwards alike."""
    answers = []
    method = raw.split(b" ")[0].decode()
    for node in edges:
        for step in (len(raw), 7):
            async with connect(node.address) as client:
                for start in range(0, len(raw), step):
                    await client.send(raw[start : start + step])
                first = await told(client, method)
                try:
                    again = await client.ask("/v2/again")
                    went_on = again.status
                except (Closed, trio.BrokenResourceError):
                    went_on = 0
                answers.append((first, went_on))
    assert all(answer == answers[0] for answer in answers)


@pytest.mark.parametrize(
    "raw",
    [
        b"GET /v2/x HTTP/1.1\r\n\r\n",
        b"GET /v2/x HTTP/1.1\r\n" + HOST + b"Host: other\r\n" + b"\r\n",
        b"GET /v2/x HTTP/1.1\r\n" + HOST + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET /v2/x HTTP/1.1\r\n" + HOST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"GET /v2/x HTTP/1.1\n" + HOST + b"\r\n",
        b"GET /v2/x HTTP/1.1\r\n" + HOST + b"A : b\r\n\r\n",
        b"GET /v2/x HTTP/1.1\r\n" + HOST + b" folded: b\r\n\r\n",
        b"GET /v2/x HTTP/1.1\r\n" + HOST + b"A: b\x00c\r\n\r\n",
        b"GET /v2/x HTTP/9.9\r\n" + HOST + b"\r\n",
        b"GET  /v2/x HTTP/1.1\r\n" + HOST + b"\r\n",
        b"get /v2/x HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET /v2/\x7f HTTP/1.1\r\n" + HOST + b"\r\n",
        b"\r\n\r\nGET /v2/x HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET /v2/x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
async def test_malformed_requests_meet_the_same_fate(edges: tuple[Node, Node], raw: bytes) -> None:
    """What the other edge refuses the lane does not answer: both refuse in the same words, or close."""
    fates = []
    for node in edges:
        async with connect(node.address) as client:
            await client.send(raw)
            await client.stream.send_eof()  # type: ignore[attr-defined]  # a socket stream
            fates.append((await client.rest()).split(b"\r\n")[0])
    assert fates[0] == fates[1]


async def test_pipelined_requests_are_answered_in_order(edges: tuple[Node, Node]) -> None:
    """Pulls, a push with its body and pulls again in one write: every answer comes, in order."""
    raw = b"".join(
        (
            b"GET /v2/1 HTTP/1.1\r\n" + HOST + b"\r\n",
            b"HEAD /v2/2 HTTP/1.1\r\n" + HOST + b"\r\n",
            b"POST /v2/3 HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\n\r\nhello",
            b"GET /v2/4 HTTP/1.1\r\n" + HOST + b"\r\n",
        )
    )
    for node in edges:
        async with connect(node.address) as client:
            await client.send(raw)
            bodies = [(await client.reply(method)).body for method in ("GET", "HEAD", "POST", "GET")]
            assert [body[:9] for body in bodies] == [b"GET /v2/1", b"", b"POST /v2/", b"GET /v2/4"]
            assert bodies[2].endswith(b" 5")


async def test_a_connection_that_turns_to_pushing_keeps_its_body(nursery: trio.Nursery) -> None:
    """The first bytes of a body that came with the head are not lost in the hand-over."""
    node = Node(nursery, with_lane=True)
    await node.start(handler)
    body = b"z" * 2_000_000
    async with connect(node.address) as client:
        assert (await client.ask("/v2/")).status == 200
        reply = await client.ask("/v2/push", "PATCH", body=body)
        assert reply.body.endswith(b" 2000000")
        assert (await client.ask("/v2/after")).status == 200


async def test_a_head_that_never_ends_is_cut(nursery: trio.Nursery) -> None:
    """A head larger than the lane takes goes to Hypercorn, which answers 431 or 400 and closes."""
    node = Node(nursery, with_lane=True)
    await node.start(hello)
    async with connect(node.address) as client:
        await client.send(b"GET /v2/x HTTP/1.1\r\n" + HOST + b"X: " + b"y" * (HEAD_MOST * 7))
        assert (await client.rest()).split(b" ")[1] in (b"400", b"431")


async def test_half_a_head_is_given_up_in_time(autojump_clock: object) -> None:
    """Slowloris: a client that dribbles its head loses the connection at the deadline, however busy it looks."""
    lane = Lane(hello)
    ours, theirs = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:

        async def dribble() -> None:
            await theirs.send_all(b"GET /v2/ HTTP/1.1\r\n")
            while True:
                await trio.sleep(1)
                await theirs.send_all(b"a: b\r\n")

        nursery.start_soon(dribble)
        began = trio.current_time()
        assert await lane.serve(ours, "127.0.0.1") is None
        assert trio.current_time() - began < 15
        nursery.cancel_scope.cancel()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.sampled_from(
            [b"GET ", b"/v2/", b" HTTP/1.1", b"\r\n", b"Host: h", b"\r\n\r\n", b"a: b", b"\x00", b"%41", b":", b"?n=1"]
        ),
        min_size=1,
        max_size=12,
    )
)
async def test_no_input_breaks_the_lane(parts: list[bytes]) -> None:
    """Whatever comes, the lane answers, hands every unanswered byte over, or closes; it never raises."""
    raw = b"".join(parts)
    ours, theirs = trio.testing.memory_stream_pair()
    await theirs.send_all(raw)
    await theirs.send_eof()
    with trio.fail_after(PATIENCE):
        rest = await Lane(hello).serve(ours, "::ffff:127.0.0.1")
    assert rest is None or raw.endswith(rest)


class Memory:
    """What answers at once, and for how long."""

    def __init__(self) -> None:
        self.lasts = True
        self.asked: list[str] = []
        """What was decided."""
        self.again: list[tuple[str, str]] = []
        """Who was given the same again, and by which id."""
        self.body = b"kept"

    def at_once(self, request: Request) -> Lasting | None:
        if not request.path.startswith("/v2/kept"):
            return None
        self.asked.append(f"{request.method} {request.path}")
        return Lasting(Answer(200, (("content-type", "a/b"),), self.body, outcome="memory"), self._again)

    def _again(self, asker: Asker, request_id: str, _now: float) -> bytes | None:
        if not self.lasts or "range" in asker.headers:
            return None
        self.again.append((asker.headers["user-agent"], request_id))
        return self.body


def head(target: str, *, method: str = "GET", agent: str = "a", more: str = "") -> bytes:
    return f"{method} {target} HTTP/1.1\r\nHost: it\r\nUser-Agent: {agent}\r\n{more}\r\n".encode()


async def asked_of(lane: Lane, *heads: bytes) -> list[bytes]:
    """Return the answers to heads over one connection in memory, each when the one before is there."""
    ours, theirs = trio.testing.memory_stream_pair()
    answers: list[bytes] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lane.serve, ours, "192.0.2.1")
        for one in heads:
            await theirs.send_all(one)
            await trio.testing.wait_all_tasks_blocked()
            answers.append(bytes(await theirs.receive_some()))
        await theirs.send_eof()
    return answers


def without_id(answer: bytes) -> bytes:
    return b"\r\n".join(line for line in answer.split(b"\r\n") if not line.startswith((b"x-request-id", b"date")))


async def test_what_lasts_is_given_again() -> None:
    """The same first line gets the same answer from everybody's memory, for as long as that says so, and is told of every time."""
    memory, told_of = Memory(), list[Exchange]()
    lane = Lane(hello, at_once=memory.at_once, observe=lambda exchange, _: told_of.append(exchange))
    get = head("/v2/kept")
    first, second, third = await asked_of(lane, get, get, head("/v2/kept", agent="b"))
    assert memory.asked == ["GET /v2/kept"] * 2, "headers that nobody has sent yet are read properly"
    assert without_id(first) == without_id(second) == without_id(third)
    assert first.endswith(b"\r\n\r\nkept")
    # Another connection.
    (fourth,) = await asked_of(lane, head("/v2/kept", agent="b"))
    assert without_id(fourth) == without_id(first)
    assert [agent for agent, _ in memory.again] == ["a", "b"]
    ids = {exchange.id for exchange in told_of}
    assert len(ids) == 4
    assert {request_id for _, request_id in memory.again} < ids
    for exchange, answer in zip(told_of, (first, second, third, fourth), strict=True):
        assert f"x-request-id: {exchange.id}\r\n".encode() in answer
        facts = exchange.method, exchange.path, exchange.client, exchange.status, exchange.sent, exchange.answered
        assert facts == ("GET", "/v2/kept", "192.0.2.1", 200, 4, "memory")
        assert exchange.outcome == "complete"
    memory.lasts = False
    await asked_of(lane, get)
    assert len(memory.asked) == 3


async def test_an_idle_connection_keeps_no_answer() -> None:
    """What was answered goes when it has gone out: idle connections hold no bodies beside the caches, which are bounded."""
    memory = Memory()
    memory.body = body = os.urandom(1000)
    ours, theirs = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Lane(hello, at_once=memory.at_once).serve, ours, "192.0.2.1")
        held = sys.getrefcount(body)
        for _ in range(3):
            await theirs.send_all(head("/v2/kept"))
            await trio.testing.wait_all_tasks_blocked()
            assert bytes(await theirs.receive_some()).endswith(body)
            assert sys.getrefcount(body) == held
        await theirs.send_eof()
    assert len(memory.again) == 2


async def test_what_asks_otherwise_is_read_properly() -> None:
    """Another method, other headers than plain ones, a query: nothing of that is answered by the first line alone."""
    memory = Memory()
    lane = Lane(hello, at_once=memory.at_once)
    plain, close = head("/v2/kept"), head("/v2/kept", more="Connection: close\r\n")
    await asked_of(lane, plain, plain)
    assert len(memory.asked) == 1
    answers = await asked_of(
        lane,
        head("/v2/kept", method="HEAD"),
        head("/v2/kept?n=1"),
        head("/v2/kept", more="X-Request-ID: mine\r\n"),
        head("/v2/kept", more="X-Request-ID: mine\r\n"),
        close,
    )
    assert len(memory.asked) == 1 + len(answers)
    assert answers[0].endswith(b"content-length: 4\r\n" + answers[0].partition(b"content-length: 4\r\n")[2])
    assert not answers[0].endswith(b"kept")
    assert b"connection: close" in answers[-1]
    (again,) = await asked_of(lane, head("/v2/kept", method="HEAD"))
    assert len(memory.asked) == 1 + len(answers)
    assert without_id(again) == without_id(answers[0])


async def test_what_lasts_is_the_last_answer_of_a_node_that_stops() -> None:
    """Its client is told that the connection ends."""
    memory, draining = Memory(), False
    lane = Lane(hello, lambda: draining, at_once=memory.at_once)
    await asked_of(lane, head("/v2/kept"))
    draining = True
    (answer,) = await asked_of(lane, head("/v2/kept"))
    assert b"connection: close\r\n" in answer
    assert len(memory.asked) == 1


async def test_a_client_that_does_not_take_what_lasts_is_given_up(autojump_clock: object) -> None:
    """A body that no socket takes at once goes out at its client's pace, or not at all; the log says which."""
    memory, told_of = Memory(), list[Exchange]()
    memory.body = bytes(300_000)
    lane = Lane(hello, at_once=memory.at_once, observe=lambda exchange, _: told_of.append(exchange))
    await asked_of(lane, head("/v2/kept"))
    ours, theirs = trio.testing.lockstep_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(theirs.send_all, head("/v2/kept"))
        assert await lane.serve(ours, "192.0.2.1") is None
    assert len(memory.asked) == 1
    assert told_of[-1].outcome == "aborted"
    assert told_of[-1].trace.seconds("client") > 10
