"""Answers reach the client whole, or visibly broken; errors are told in the spec's words, and bugs are logged, not shown."""

import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager

import pytest
import trio

from node.answers import Answer, Request, Stream
from node.errors import BLOB_UNKNOWN, DENIED, UNAVAILABLE, RegistryError
from node.web.adapter import Handler
from node.web.failures import INTERNAL
from replication.ports import LedgerUnavailable
from tests.edge.conftest import Logged, Node
from tests.edge.wire import Closed

Source = Callable[[], AbstractAsyncContextManager[AsyncIterator[bytes]]]


def source(*chunks: bytes, error: Exception | None = None, gap: float = 0.0) -> Source:
    """Return a stream opener that yields these chunks and then fails, if it is given something to fail with."""

    @trio.as_safe_channel
    async def body() -> AsyncGenerator[bytes, None]:
        for chunk in chunks:
            await trio.sleep(gap)
            yield chunk
        if error is not None:
            raise error

    return body


def always(answer: Answer) -> Handler:
    async def handler(request: Request) -> Answer:
        return answer

    return handler


def streaming(length: int, opener: Source) -> Handler:
    return always(
        Answer(200, (("content-type", "application/octet-stream"),), Stream(length, opener), outcome="streamed")
    )


def raising(error: BaseException) -> Handler:
    async def handler(request: Request) -> Answer:
        raise error

    return handler


async def test_stream(node: Node, logged: Logged) -> None:
    """A streamed body has its length announced and arrives whole; the access line says how it was answered."""
    await node.start(streaming(9, source(b"one", b"", b"two", b"end")))
    async with node.client() as client:
        for _ in range(2):
            reply = await client.ask("/v2/x/blobs/y?secret=no", headers="X-Request-ID: abc\r\n")
            assert (reply.status, reply.body, reply.headers["content-length"]) == (200, b"onetwoend", "9")
    line = await logged.request(2)
    assert line.pop("duration") >= 0
    assert line == {
        "event": "request",
        "log_level": "info",
        "method": "GET",
        "path": "/v2/x/blobs/y",
        "status": 200,
        "sent": 9,
        "outcome": "complete",
        "answered": "streamed",
        "request_id": reply.headers["x-request-id"],
        "client_request_id": "abc",
        "client": "127.0.0.1",
    }


async def test_empty_stream(node: Node) -> None:
    """A stream of no bytes is a whole answer."""
    await node.start(streaming(0, source()))
    async with node.client() as client:
        assert (await client.ask("/v2/")).body == b""


async def test_slow_answers_are_not_cut(node: Node) -> None:
    """No timer ends an answer that goes on (stack pitfall P4)."""
    # The timers begin with the connection: a busy machine may take a while to bring the request.
    await node.start(streaming(2, source(*[b"x"] * 2, gap=2.5)), keep_alive=2.0, stall_deadline=2.0)
    async with node.client() as client:
        assert (await client.ask("/v2/")).body == b"xx"


async def test_head(node: Node, logged: Logged) -> None:
    """HEAD has GET's head, no body, and opens no stream."""

    def must_not_open() -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        raise AssertionError("opened")

    for answer, length in (
        (Answer(200, (), b"twelve bytes"), "12"),
        (Answer(200, (), Stream(1 << 33, must_not_open)), str(1 << 33)),
        (Answer(200, (), length=77), "77"),
        (Answer(404, (), b"{}"), "2"),
    ):
        here = await Node(node.nursery).start(always(answer))
        async with here.client() as client:
            reply = await client.ask("/v2/", "HEAD")
            assert (reply.status, reply.headers["content-length"]) == (answer.status, length)
            assert (await client.ask("/v2/", "HEAD")).status == answer.status  # nothing stood between the two
    assert {line["sent"] for line in logged.requests()} == {0}


async def test_no_content(node: Node) -> None:
    """A 204 has neither a body nor a length."""
    await node.start(always(Answer(204)))
    async with node.client() as client:
        assert "content-length" not in (await client.ask("/v2/", "DELETE")).headers
        assert (await client.ask("/v2/", "DELETE")).status == 204


@pytest.mark.parametrize("chunks", [(), (b"all of it!",)])
async def test_failure_before_the_first_byte(node: Node, chunks: tuple[bytes, ...]) -> None:
    """A body that fails before a byte of it is out becomes a proper error answer, on a connection that lives on."""
    await node.start(streaming(10, source(*chunks, error=RegistryError(UNAVAILABLE, "no source", retry_after=7))))
    async with node.client() as client:
        for _ in range(2):
            reply = await client.ask("/v2/")
            assert (reply.status, reply.headers["retry-after"]) == (503, "7")
            assert json.loads(reply.body)["errors"][0]["detail"] == "no source"


async def test_failure_in_the_body(node: Node, logged: Logged) -> None:
    """A body that fails half-way breaks the connection, so that no client takes it for whole."""
    await node.start(streaming(10, source(b"half", b"!", error=OSError("disk on fire"))))
    async with node.client() as client:
        with pytest.raises(Closed) as closed:
            await client.ask("/v2/")
        assert closed.value.received == b"half!"
    assert (await logged.request())["outcome"] == "truncated"
    (error,) = logged.take_errors()
    assert "disk on fire" in repr(error["exc_info"])


async def test_failure_at_the_very_end(node: Node) -> None:
    """What a source finds out after its last byte still breaks the answer: the last chunk is not out yet."""
    await node.start(streaming(10, source(b"bytes", b"wrong", error=RegistryError(DENIED))))
    async with node.client() as client:
        with pytest.raises(Closed) as closed:
            await client.ask("/v2/")
        assert closed.value.received == b"bytes"


@pytest.mark.parametrize("chunks", [(b"short", b"er"), (b"longer", b"than that")])
async def test_wrong_length(node: Node, logged: Logged, chunks: tuple[bytes, ...]) -> None:
    """A stream that is shorter or longer than promised breaks the connection, and is logged as our bug."""
    await node.start(streaming(10, source(*chunks)))
    async with node.client() as client:
        with pytest.raises(Closed) as closed:
            await client.ask("/v2/")
        assert closed.value.received == b"".join(chunks)[: len(closed.value.received)]
        assert len(closed.value.received) < 10
    assert (await logged.request())["outcome"] == "truncated"
    assert len(logged.take_errors()) == 1


async def test_registry_error(node: Node) -> None:
    """A registry error is told with its status, headers, the spec's body and the request id."""
    await node.start(raising(RegistryError(BLOB_UNKNOWN, {"digest": "sha256:1"}, headers=(("x-why", "because"),))))
    async with node.client() as client:
        reply = await client.ask("/v2/")
        assert (reply.status, reply.headers["x-why"], reply.headers["content-type"]) == (
            404,
            "because",
            "application/json",
        )
        assert json.loads(reply.body) == {
            "errors": [{"code": "BLOB_UNKNOWN", "message": BLOB_UNKNOWN.message, "detail": {"digest": "sha256:1"}}],
            "request_id": reply.headers["x-request-id"],
        }


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_bug(node: Node, logged: Logged, method: str) -> None:
    """A bug is answered 500 without a word about its cause, which is in the log under the request id."""
    await node.start(raising(KeyError("the secret cause")))
    async with node.client() as client:
        reply = await client.ask("/v2/", method)
        assert reply.status == 500
        assert b"secret" not in reply.body
        if method == "GET":
            assert json.loads(reply.body)["errors"] == [{"code": "UNKNOWN", "message": INTERNAL.message}]
        assert (await client.ask("/v2/", method)).status == 500  # the connection lives on
    line = await logged.request()
    assert line["outcome"] == "error"
    errors = logged.take_errors()
    assert errors[0]["request_id"] == line["request_id"] == reply.headers["x-request-id"] or len(errors) == 2
    assert "the secret cause" in repr(errors[0]["exc_info"])


async def test_database_away(node: Node) -> None:
    """An unreachable database is 503 with Retry-After, not a bug."""
    await node.start(raising(LedgerUnavailable("no route to host")))
    async with node.client() as client:
        reply = await client.ask("/v2/")
        assert (reply.status, "retry-after" in reply.headers) == (503, True)
        assert b"no route" not in reply.body


async def test_group_of_one(node: Node) -> None:
    """A registry error that comes out of nested nurseries is answered as if it had been raised alone."""
    await node.start(raising(ExceptionGroup("outer", [ExceptionGroup("inner", [RegistryError(BLOB_UNKNOWN)])])))
    async with node.client() as client:
        assert (await client.ask("/v2/")).status == 404


async def test_group_with_a_bug(node: Node, logged: Logged) -> None:
    """A bug beside a registry error is not hidden by it: 500, and both are in the log (stack pitfall P6)."""
    await node.start(
        raising(ExceptionGroup("both", [RegistryError(BLOB_UNKNOWN), KeyError("bug"), ValueError("other")]))
    )
    async with node.client() as client:
        assert (await client.ask("/v2/")).status == 500
    assert {repr(entry["exc_info"]) for entry in logged.take_errors()} == {"KeyError('bug')", "ValueError('other')"}
    assert any("BLOB_UNKNOWN" in entry.get("error", "") for entry in logged.entries)


async def test_group_with_cancellation(node: Node, logged: Logged) -> None:
    """An error beside a cancellation is not lost (stack pitfall P6)."""

    async def handler(request: Request) -> Answer:
        async with trio.open_nursery() as nursery:

            async def fail() -> None:
                raise RegistryError(DENIED)

            nursery.start_soon(fail)
            nursery.start_soon(trio.sleep_forever)
        raise AssertionError

    await node.start(handler)
    async with node.client() as client:
        assert (await client.ask("/v2/")).status == 403


@pytest.mark.parametrize(
    "header",
    [
        ("location", "/v2/\r\nset-cookie: evil=1"),
        ("location", "/v2/\nx"),
        ("location", "\N{SNOWMAN}"),
        ("x bad", "name"),
        ("x\r\ny", "name"),
        ("content-length", "5"),
        ("transfer-encoding", "chunked"),
    ],
)
async def test_header_injection(node: Node, logged: Logged, header: tuple[str, str]) -> None:
    """A header that HTTP cannot carry, or that is the edge's own, is never sent: it is our bug, answered 500."""
    await node.start(always(Answer(200, (header,), b"body")))
    async with node.client() as client:
        reply = await client.ask("/v2/")
        assert reply.status == 500
        assert header[0] == "content-length" or header[0] not in reply.headers
        assert "set-cookie" not in reply.headers
    assert len(logged.take_errors()) == 1
