"""The way that objects' bytes take: what ends a thread, what is asked again, and what is left to the library."""

import hashlib
import uuid

import pytest
import trio

from engines import parse_engine
from engines.contract import EngineError, EngineRefused, EngineUnavailable
from engines.crossing import Bridge
from tests.engines.stores import spec_of
from tests.engines.test_s3 import LONG, answer, arguments, scripted, server
from tests.services import Store


async def test_a_cancelled_call_ends_its_thread(bridge: Bridge) -> None:
    """Whoever stops waiting closes the connection: the thread that waits for the store ends long before its own limits."""
    gone, asked = trio.Event(), trio.Event()

    async def handler(stream: trio.SocketStream) -> None:
        while await stream.receive_some(65536):
            asked.set()
        gone.set()

    async with (
        server(handler) as port,
        parse_engine("RadosGWStorage", arguments(port, read_timeout=60, write_timeout=60)).open() as engine,
    ):
        for call in (lambda: engine.read("k", 0, 5), lambda: engine.put("k", b"x" * 100)):
            gone, asked = trio.Event(), trio.Event()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(call)
                with trio.fail_after(60):
                    await asked.wait()
                began = trio.current_time()
                nursery.cancel_scope.cancel()
            assert trio.current_time() - began < 30
            with trio.fail_after(60):
                await gone.wait()


async def test_a_body_left_in_the_middle_is_not_read_on(bridge: Bridge) -> None:
    """A reader that is closed or cancelled before the last byte closes its connection; the next call has one of its own."""
    connections = 0

    async def handler(stream: trio.SocketStream) -> None:
        nonlocal connections
        connections += 1
        await answer(stream, "HTTP/1.1 200 OK\nContent-Length: 1000", b"x" * 10)
        assert await stream.receive_some(1) == b""

    async with scripted(handler) as engine:
        async with engine.open("k") as reader:
            assert await reader.receive(10) == b"x" * 10
        async with engine.open("k") as reader:
            with trio.move_on_after(0.1) as scope:
                await reader.receive(1000)
            assert scope.cancelled_caught
    assert connections == 2


async def test_a_buffer_that_the_store_fills_by_half_is_an_error(bridge: Bridge) -> None:
    """A store that breaks off before a buffer is full is an error, never a short answer, and its connection is not used again."""
    connections = 0

    async def handler(stream: trio.SocketStream) -> None:
        nonlocal connections
        connections += 1
        await answer(stream, "HTTP/1.1 200 OK\nContent-Length: 1000", b"x" * 300)

    async with scripted(handler) as engine:
        for _ in range(2):
            async with engine.open("k") as reader:
                with pytest.raises(EngineUnavailable, match="700 bytes before the end"):
                    await reader.receive_into(memoryview(bytearray(1000)), lambda _: None)
    assert connections == 2


async def test_a_read_is_repeated_on_a_dead_connection(bridge: Bridge) -> None:
    """A read on a kept connection that the store closes instead of answering is asked once more, a write is not."""
    connections = 0

    async def handler(stream: trio.SocketStream) -> None:
        nonlocal connections
        connections += 1
        await answer(stream, "HTTP/1.1 206 OK\nContent-Range: bytes 0-4/5\nContent-Length: 5", b"hello")
        await stream.receive_some(65536)  # the next request, which gets no answer

    async with scripted(handler) as engine:
        assert [await engine.read("k", 0, 5) for _ in range(3)] == [b"hello"] * 3
        assert connections == 3
        with pytest.raises(EngineError):
            await engine.put("k", b"x")
        assert connections == 3


@pytest.mark.parametrize("status", [(301, "PermanentRedirect"), (400, "AuthorizationHeaderMalformed")])
async def test_the_library_follows(bridge: Bridge, status: tuple[int, str]) -> None:
    """A store that names another region or endpoint is asked by the library, which knows how to follow."""
    agents: list[str] = []
    xml = f"<Error><Code>{status[1]}</Code><Region>us-east-1</Region></Error>".encode()

    async def handler(stream: trio.SocketStream) -> None:
        while head := bytes(await stream.receive_some(65536)).decode().lower():
            agents.append("library" if "boto" in head else "lane")
            if "boto" in head:
                await stream.send_all(b'HTTP/1.1 200 OK\r\nETag: "e"\r\nContent-Length: 0\r\n\r\n')
            else:
                line = f"HTTP/1.1 {status[0]} X\r\nContent-Length: {len(xml)}\r\n\r\n".encode()
                await stream.send_all(line + xml)

    async with scripted(handler) as engine:
        assert (await engine.put("k", b"x")).etag == "e"
    assert agents[0] == "lane"
    assert "library" in agents


async def test_a_proxy_of_the_environment_is_used(bridge: Bridge, monkeypatch: pytest.MonkeyPatch) -> None:
    """HTTP_PROXY is heeded: the proxy is told the whole address."""
    asked: list[str] = []

    async def proxy(stream: trio.SocketStream) -> None:
        while head := bytes(await stream.receive_some(65536)).decode():
            asked.append(head.partition(" HTTP/")[0])
            if not head.endswith("\r\n\r\nx"):
                # The body comes by itself where the machine is quick enough to see the head alone.
                assert bytes(await stream.receive_some(65536)) == b"x"
            await stream.send_all(b'HTTP/1.1 200 OK\r\nETag: "e"\r\nContent-Length: 0\r\n\r\n')

    async with server(proxy) as port:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{port}")
        monkeypatch.delenv("no_proxy", raising=False)
        given = arguments(8080, hostname="store.invalid", **LONG)
        async with parse_engine("RadosGWStorage", given).open() as engine:
            await engine.put("some/key", b"x")
    assert asked == ["PUT http://store.invalid:8080/bucket/some/key"]


async def test_a_known_digest_is_what_the_store_compares(
    bridge: Bridge, s3_stores: dict[str, Store], storage_path: str
) -> None:
    """A body with another SHA-256 than the one it is said to have is refused by Ceph."""
    async with spec_of(s3_stores["us"], storage_path).open() as engine:
        key, data = f"{engine.prefix}{uuid.uuid4()}", b"some bytes"
        await engine.put(key, data, hashlib.sha256(data).hexdigest())
        assert await engine.read(key, 0, len(data)) == data
        with pytest.raises(EngineRefused):
            await engine.put(f"{key}.other", data, hashlib.sha256(b"other bytes").hexdigest())
