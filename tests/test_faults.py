"""The proxy that breaks on command, in front of the real gateway: every fault is what it says, and mending ends it."""

import socket

import httpx
import pytest
import trio
import trio.testing

from tests.faults import Fault, FaultProxy, FaultyStore, MakeFaulty
from tests.services import Store


async def put(store: Store, key: str, body: bytes, silence: float = 60.0) -> None:
    """Write an object by way of a presigned URL, so that the client here is Trio's own."""
    url = store.client().generate_presigned_url("put_object", Params={"Bucket": store.bucket, "Key": key})
    async with httpx.AsyncClient(trust_env=False, timeout=httpx.Timeout(60, read=silence)) as client:
        answer = await client.put(url, content=body)
    assert answer.status_code == 200, answer.text


async def test_a_whole_proxy_changes_nothing(faulty_store: MakeFaulty, storage_path: str) -> None:
    """What is written through the proxy is in the store behind it."""
    proxy = await faulty_store("us")
    key = f"{storage_path}/object"[1:]
    await put(proxy.store, key, b"bytes")
    assert proxy.upstream.keys(storage_path) == [key]


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("refuse", httpx.ConnectError),
        # The second when the reset arrives between the client's write and its read.
        ("reset", (httpx.NetworkError, httpx.RemoteProtocolError)),
        ("hang", httpx.ReadTimeout),
        ("silent", httpx.ReadTimeout),
    ],
)
async def test_a_fault_is_what_it_says(
    faulty_store: MakeFaulty, storage_path: str, fault: Fault, error: type[Exception] | tuple[type[Exception], ...]
) -> None:
    """A broken store fails in the way that was asked for, and serves again once it is mended."""
    proxy = await faulty_store("us")
    proxy.break_(fault)
    key = f"{storage_path}/object"[1:]
    with pytest.raises(error):
        await put(proxy.store, key, b"bytes", silence=1.0)
    proxy.mend()
    await put_when_open(proxy, key)
    assert proxy.upstream.keys(storage_path) == [key]


async def test_a_reset_reaches_open_connections(faulty_store: MakeFaulty) -> None:
    """A connection that was idle when the fault began is reset, too."""
    proxy = await faulty_store("us")
    async with await trio.open_tcp_stream(proxy.store.hostname, proxy.store.port) as stream:
        await stream.send_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        with trio.fail_after(60):
            assert (await stream.receive_some()).startswith(b"HTTP/1.1")
            proxy.break_("reset")
            with pytest.raises(trio.BrokenResourceError):
                await read_to_the_end(stream)


async def read_to_the_end(stream: trio.SocketStream) -> None:
    while await stream.receive_some():
        pass


async def put_when_open(proxy: FaultyStore, key: str) -> None:
    with trio.fail_after(60):
        while True:
            try:
                await put(proxy.store, key, b"bytes")
            except httpx.ConnectError:
                await trio.lowlevel.checkpoint()
            else:
                return


async def test_a_proxy_comes_back_though_its_port_is_held_for_a_moment() -> None:
    """A process that is forked while the proxy stops listening holds its port until it begins its own program."""
    async with trio.open_nursery() as nursery:
        proxy = FaultProxy("127.0.0.1", 1)
        await nursery.start(proxy.serve)
        proxy.break_("refuse")
        with trio.fail_after(60):
            while await _listens(proxy.port):
                pass
            with socket.socket() as held:
                held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                held.bind(("127.0.0.1", proxy.port))
                held.listen()
                proxy.mend()
                await trio.testing.wait_all_tasks_blocked()
            while not await _listens(proxy.port):
                pass
        nursery.cancel_scope.cancel()


async def _listens(port: int) -> bool:
    try:
        stream = await trio.open_tcp_stream("127.0.0.1", port)
    except OSError:
        return False
    await trio.aclose_forcefully(stream)
    return True
