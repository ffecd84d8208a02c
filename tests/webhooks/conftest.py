"""A receiver of events that can be told to fail, hang or lie, and nodes whose webhooks may be on this machine."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any, Protocol

import h11
import pytest
import trio
from attrs import define, evolve, field

from node.api.tags import Means
from node.api.webhooks import set_webhook
from node.hooks.courier import CourierSettings
from tests.registry.conftest import database, migrated_uri, us, world
from tests.registry.world import Region

__all__ = ["database", "migrated_uri", "us", "world"]

HERE = ("127.0.0.0/8",)
QUICK = CourierSettings(poll=0.05, deadline=30.0, first=0.02, longest=0.05, attempts=4)
"""A receiver that answers has all the time that a busy machine takes for it: what it was too late for would come twice."""


@define
class Got:
    """One request as it came."""

    headers: dict[str, str]
    body: bytes


@define(eq=False)
class Receiver:
    """A real HTTP server. `mode`: an int is a status to answer; "hang", "drop", "redirect" and "endless" are what they say."""

    url: str = ""
    mode: Any = 200
    got: list[Got] = field(factory=list)
    more: trio.Event = field(factory=trio.Event)

    async def serve(self, stream: trio.abc.Stream) -> None:
        # A sender may have had enough at any moment, or not believe who we are.
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async with stream:
                if await self._take(stream):
                    await self._answer(stream)

    async def _take(self, stream: trio.abc.Stream) -> bool:
        """Read a request; False where it ends before its end."""
        connection = h11.Connection(h11.SERVER)
        headers: dict[str, str] = {}
        body = b""
        while not isinstance(event := connection.next_event(), h11.EndOfMessage):
            if event is h11.NEED_DATA:
                data = await stream.receive_some()
                if not data:
                    return False
                connection.receive_data(bytes(data))
            elif isinstance(event, h11.Request):
                headers = {name.decode(): value.decode() for name, value in event.headers}
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
        self.got.append(Got(headers, body))
        self.more.set()
        self.more = trio.Event()
        return True

    async def _answer(self, stream: trio.abc.Stream) -> None:
        if self.mode == "drop":
            return
        if self.mode == "hang":
            await trio.sleep_forever()
        if self.mode == "redirect":
            await stream.send_all(f"HTTP/1.1 307 x\r\nlocation: {self.url}again\r\ncontent-length: 0\r\n\r\n".encode())
        elif self.mode == "endless":
            await stream.send_all(b"HTTP/1.1 200 x\r\ncontent-length: 999999999999\r\n\r\n")
            while True:
                await stream.send_all(b"x" * 65536)
        elif self.mode == "nonsense":
            await stream.send_all(b"\xff\xfe what is this\r\n\r\n")
        else:
            await stream.send_all(f"HTTP/1.1 {self.mode} x\r\ncontent-length: 0\r\n\r\n".encode())

    async def requests(self, most: int) -> list[Got]:
        """Wait until so many have come."""
        with trio.fail_after(60):
            while len(self.got) < most:
                await self.more.wait()
        return self.got


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    """A receiver that takes everything until it is told otherwise."""
    made = Receiver()
    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, made.serve, 0, host="127.0.0.1"))
        made.url = f"http://127.0.0.1:{listener.socket.getsockname()[1]}/"
        yield made
        nursery.cancel_scope.cancel()


class Subscribe(Protocol):
    """Make a webhook; return its secret as it was shown."""

    def __call__(self, name: str, *events: str, namespace: str | None = None, url: str = "") -> Awaitable[str]: ...


def means_of(region: Region) -> Means:
    return Means(region.registry.database, region.node.settings, region.registry.hints.publish)


def allow_here(region: Region) -> None:
    region.node.settings = evolve(region.node.settings, webhook_networks=HERE)
    region.node.courier.settings = QUICK


@pytest.fixture
def subscribe(us: Region, receiver: Receiver) -> Subscribe:
    """Webhooks of a node alone, which may be on this machine."""
    allow_here(us)

    async def make(name: str, *events: str, namespace: str | None = None, url: str = "") -> str:
        body = {"url": url or receiver.url, "events": list(events)}
        return str((await set_webhook(means_of(us), namespace, name, body))["secret"])

    return make


Start = Callable[[], Awaitable[None]]


@pytest.fixture
async def deliver(us: Region, nursery: trio.Nursery) -> Start:
    """Let the node's courier work from when this is called."""

    async def start() -> None:
        await nursery.start(us.node.courier.run)

    return start
