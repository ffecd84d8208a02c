"""An answer without end is given up at a bound, and what read it ends in order: nothing of it is left to be collected."""

import gc
import ssl
from functools import partial
from pathlib import Path

import httpx
import pytest
import trio

from node.auth.outgoing import ANYWHERE, NoAnswer, Outgoing
from node.commands.signing_in import Client, Failed
from tests.certificates import Authority


async def _endless(stream: trio.abc.Stream) -> None:
    try:
        async with stream:
            await stream.receive_some(65536)
            await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 999999999999\r\n\r\n")
            while True:
                await stream.send_all(b"x" * 65536)
    except trio.BrokenResourceError:
        pass  # enough has come


async def test_a_provider_that_never_ends(
    nursery: trio.Nursery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what a provider answers no more is read than a bound, and that is said."""
    monkeypatch.setattr("node.auth.outgoing._SECONDS", 60.0)
    authority = Authority.make(tmp_path)
    pair = authority.sign("provider")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pair.certificate, pair.key)
    (listener,) = await nursery.start(partial(trio.serve_ssl_over_tcp, _endless, 0, context, host="127.0.0.1"))
    port = listener.transport_listener.socket.getsockname()[1]
    with pytest.raises(NoAnswer, match="longer than"):
        await Outgoing(ANYWHERE, authority.own.certificate).ask(f"https://127.0.0.1:{port}/")
    gc.collect()


async def test_a_registry_that_never_ends(nursery: trio.Nursery) -> None:
    """Nor does the command line read more of a registry's answer, and ends with that."""
    (listener,) = await nursery.start(partial(trio.serve_tcp, _endless, 0, host="127.0.0.1"))
    url = f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
    async with httpx.AsyncClient(base_url=url, timeout=60, trust_env=False) as http:
        with pytest.raises(Failed, match="too long"):
            await Client(http).ask("GET", "/login")
    gc.collect()
