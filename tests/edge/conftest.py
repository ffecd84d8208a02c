"""A real listener on a free loopback port, and a log in which an unexpected error fails the test."""

import logging
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import structlog
import trio
from attrs import define, evolve, field
from structlog.typing import EventDict, WrappedLogger

from node.answers import Answer, Request
from node.config.settings import Settings
from node.health import HealthFacts, Reachability
from node.logs import add_request_id
from node.web.adapter import Handler
from node.web.app import create_app
from node.web.arrival import TlsSource
from node.web.lane import Lane
from node.web.listener import Address, serve
from node.web.slow import SlowRequests
from replication.model import LocationHealth, Verdict
from tests.edge.wire import PATIENCE, Client, connect

SETTINGS = Settings(
    open_registry=True,
    server_hostname="registry.test",
    database_uri="postgresql://nobody@127.0.0.1:1/nothing",
    locations={},
    preference=("us", "eu"),
    default_locations=("us", "eu"),
    debug_secret="open sesame",
)


def healthy() -> HealthFacts:
    board = {name: LocationHealth(name, Verdict.HEALTHY, 0.0, "", 0.01, True, float("inf")) for name in ("us", "eu")}
    return HealthFacts(("us", "eu"), board, 4.0, Reachability(ok=True, since=0.0))


class Logged:
    """What was logged. A test takes the errors it expects; any that is left at the end fails it."""

    def __init__(self) -> None:
        self.entries: list[EventDict] = []
        self._changed = trio.Event()

    def __call__(self, _logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
        """Be the only structlog processor."""
        self.entries.append({**event, "log_level": method})
        self._changed.set()
        self._changed = trio.Event()
        raise structlog.DropEvent

    def requests(self) -> list[EventDict]:
        return [entry for entry in self.entries if entry["event"] == "request"]

    async def request(self, count: int = 1) -> EventDict:
        """Wait for the `count`-th access line and return it."""
        with trio.fail_after(PATIENCE):
            while len(self.requests()) < count:
                await self._changed.wait()
        return self.requests()[count - 1]

    def take_errors(self) -> list[EventDict]:
        errors = [entry for entry in self.entries if entry["log_level"] in ("error", "exception", "critical")]
        self.entries = [entry for entry in self.entries if entry not in errors]
        return errors


@pytest.fixture(autouse=True)
def logged(caplog: pytest.LogCaptureFixture) -> Iterator[Logged]:
    log = Logged()
    before = structlog.get_config()
    structlog.configure(processors=[structlog.contextvars.merge_contextvars, add_request_id, log])
    yield log
    structlog.configure(**before)
    assert log.take_errors() == []
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


@define
class Node:
    """A running edge. `facts` is what its health endpoints tell."""

    nursery: trio.Nursery
    facts_now: HealthFacts = field(factory=healthy)
    address: Address = field(factory=partial(Address, "", 0))
    shutdown: trio.Event = field(factory=trio.Event)
    stopped: trio.Event = field(factory=trio.Event)
    draining: bool = False
    with_lane: bool = False
    tls: TlsSource | None = None
    trust: ssl.SSLContext | None = None
    """What its clients trust, where it speaks TLS."""

    def facts(self) -> HealthFacts:
        return self.facts_now

    async def start(
        self,
        handler: Handler,
        *,
        bind: str = "127.0.0.1:0",
        keep_alive: float = 75.0,
        linger: float = 1.0,
        tls: TlsSource | None = None,
        **changes: Any,
    ) -> "Node":
        """Serve `handler` under /v2; `changes` go into the settings."""
        settings = evolve(SETTINGS, **changes)
        app = create_app(handler, self, settings, draining=lambda: self.draining, linger=linger)

        slow = SlowRequests(settings.slow_request)
        lane = Lane(handler, lambda: self.draining, slow, keep_alive=keep_alive) if self.with_lane else None

        async def run(task_status: trio.TaskStatus[Address]) -> None:
            await serve(
                app,
                settings,
                bind=bind,
                shutdown=self.shutdown,
                keep_alive=keep_alive,
                tls=tls or self.tls,
                lane=lane,
                task_status=task_status,
            )
            self.stopped.set()

        self.address = await self.nursery.start(run)
        return self

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        async with connect(self.address, tls=self.trust) as client:
            yield client

    async def stop(self) -> float:
        """Ask it to stop and return how many seconds it took."""
        began = trio.current_time()
        self.shutdown.set()
        with trio.fail_after(PATIENCE):
            await self.stopped.wait()
        return trio.current_time() - began


@pytest.fixture(params=["hypercorn", "lane"])
async def node(nursery: trio.Nursery, request: pytest.FixtureRequest) -> Node:
    """Every test runs over both edges: what a client sees must not depend on who answers it."""
    return Node(nursery, with_lane=request.param == "lane")


async def hello(request: Request) -> Answer:
    """Answer with what was asked."""
    return Answer(200, (("content-type", "text/plain"),), f"{request.method} {request.path}".encode(), outcome="memory")
