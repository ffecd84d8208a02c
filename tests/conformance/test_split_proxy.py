"""The proxy that splits by method, in front of two real listeners."""

import ssl
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import h11
import httpx
import pytest
import trio

from tests.certificates import Authority
from tests.conformance.split_proxy import SplitProxy, Terminating


class Origin:
    """A server that answers every request with its name, the method and the number of bytes it got."""

    def __init__(self, name: str, tls: ssl.SSLContext | None = None) -> None:
        self.name = name
        self.port = 0
        self._tls = tls

    async def serve(self, task_status: trio.TaskStatus[None]) -> None:
        async with trio.open_nursery() as nursery:
            (listener,) = await nursery.start(partial(trio.serve_tcp, self._accept, 0, host="127.0.0.1"))
            self.port = listener.socket.getsockname()[1]
            task_status.started()

    async def _accept(self, stream: trio.SocketStream) -> None:
        if self._tls is None:
            await self._answer(stream)
        else:
            await self._answer(trio.SSLStream(stream, self._tls, server_side=True, https_compatible=True))

    async def _answer(self, stream: trio.abc.Stream) -> None:
        connection = h11.Connection(h11.SERVER)
        method, size = b"", 0
        while not isinstance(event := connection.next_event(), h11.EndOfMessage):
            if connection.they_are_waiting_for_100_continue:
                await stream.send_all(connection.send(h11.InformationalResponse(status_code=100, headers=[])) or b"")
            if event is h11.NEED_DATA:
                connection.receive_data(bytes(await stream.receive_some()))
            elif isinstance(event, h11.Request):
                method = event.method
            elif isinstance(event, h11.Data):
                size += len(event.data)
        body = f"{self.name} {method.decode()} {size}".encode()
        headers = [("content-length", str(len(body))), ("location", "/v2/somewhere")]
        for part in (h11.Response(status_code=202, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
            if method != b"HEAD" or not isinstance(part, h11.Data):
                await stream.send_all(connection.send(part) or b"")
        await stream.aclose()


@pytest.fixture(params=[False, True], ids=["plain", "tls"])
def tls(request: pytest.FixtureRequest, tmp_path: Path) -> Terminating | None:
    """What the proxy and the nodes behind it speak."""
    if not request.param:
        return None
    authority = Authority.make(tmp_path / "authority")
    return Terminating(authority.sign("both"), authority.own.certificate)


@pytest.fixture
async def client(tls: Terminating | None) -> AsyncIterator[httpx.AsyncClient]:
    async with trio.open_nursery() as nursery:
        context = None if tls is None else tls.towards_clients()
        reads, writes = Origin("reads", context), Origin("writes", context)
        await nursery.start(reads.serve)
        await nursery.start(writes.serve)
        port = await nursery.start(SplitProxy(reads.port, writes.port, tls).serve)
        url = f"{'http' if tls is None else 'https'}://127.0.0.1:{port}"
        trusted = True if tls is None else tls.towards_nodes()
        async with httpx.AsyncClient(base_url=url, verify=trusted, trust_env=False, timeout=60) as found:
            yield found
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE"])
async def test_a_method_goes_where_it_belongs(client: httpx.AsyncClient, method: str) -> None:
    """Reads go to one side and everything else to the other, with status, headers and bodies unchanged."""
    answer = await client.request(method, "/v2/", content=b"" if method == "GET" else b"x" * 1_000_000)
    side, size = ("reads", 0) if method == "GET" else ("writes", 1_000_000)
    assert answer.status_code == 202
    assert answer.text == f"{side} {method} {size}"
    assert answer.headers["location"] == "/v2/somewhere"


async def test_head_goes_to_the_reads_and_has_no_body(client: httpx.AsyncClient) -> None:
    """HEAD is a read whose Content-Length announces bytes that do not come."""
    answer = await client.head("/v2/")
    assert answer.headers["content-length"] == str(len("reads HEAD 0"))
    assert answer.content == b""


async def test_one_connection_carries_many_requests(client: httpx.AsyncClient) -> None:
    """A client may go on over its connection, whichever side answered before."""
    texts = [(await client.request(method, "/v2/")).text for method in ("GET", "POST", "GET", "PUT")]
    assert texts == ["reads GET 0", "writes POST 0", "reads GET 0", "writes PUT 0"]


async def test_a_client_may_wait_for_100(client: httpx.AsyncClient, tls: Terminating | None) -> None:
    """A body that the client holds back until the server asks for it arrives."""
    port = httpx.URL(client.base_url).port or 0
    stream: trio.abc.Stream = (
        await trio.open_tcp_stream("127.0.0.1", port)
        if tls is None
        else await trio.open_ssl_over_tcp_stream("127.0.0.1", port, ssl_context=tls.towards_nodes())
    )
    async with stream:
        await stream.send_all(b"PUT /v2/ HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n")
        with trio.fail_after(60):
            assert (await stream.receive_some()).startswith(b"HTTP/1.1 100 ")
            await stream.send_all(b"body")
            assert (await stream.receive_some()).startswith(b"HTTP/1.1 202 ")
