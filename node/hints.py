"""Hints between nodes over a wire: Redis pub/sub, or LISTEN and NOTIFY where no Redis is configured.

A *line* is one connection to the bus. It is opened, used until it breaks or falls silent, closed, and opened again with
back-off; `Hub` keeps what happens meanwhile. redis-py and asyncpg are met here only, in functions that `cross` runs.
"""

import random
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import Any, Protocol

import asyncpg
import redis.asyncio
import structlog
import trio
from attrs import define, field
from redis.asyncio.client import PubSub
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from engines.crossing import cross
from engines.tls_trust import NOT_ASKED
from node.config.settings import RedisSettings
from node.hint_hub import Hub
from node.hint_wire import encode

log = structlog.get_logger("antipode.hints")

CONNECT_SECONDS = 3.0
"""For a new line, in all."""
ANSWER_SECONDS = 1.0
"""For one answer of the bus: a published message, a ping."""
IDLE_SECONDS = 2.0
"""Silence after which a line is asked whether it still stands."""
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 2.0
"""Seconds between two attempts to open a line."""
REASONS = 10
"""That are told of one outage, at most."""
CHANNEL = "antipode_hints"

_POSTGRES_FAULTS = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, ValueError)
_REDIS_FAULTS = (RedisError, OSError)


class LineLost(Exception):
    """The bus could not be reached, broke off, or did not answer in time. `str(error)` is one line."""


class Line(Protocol):
    """One connection to the bus, already listening."""

    async def send(self, payload: str) -> None:
        """Give a message to the bus. Raises LineLost."""
        ...

    async def receive(self) -> list[str | bytes]:
        """Wait for messages; an empty list now and then says that the line still stands. Raises LineLost."""
        ...


@contextmanager
def _as_line_lost(*faults: type[Exception]) -> Iterator[None]:
    try:
        yield
    except TimeoutError:
        # The crossing turns it into LineLost, after it has looked whether the caller was cancelled.
        raise
    except faults as error:
        text = " ".join(str(error).split())
        raise LineLost(f"{type(error).__name__}: {text}" if text else type(error).__name__) from error


async def _close(fn: Callable[[], Any]) -> None:
    """Close something on the other side, also when cancelled, within ANSWER_SECONDS; what fails there is gone anyway."""
    with trio.move_on_after(ANSWER_SECONDS, shield=True):
        try:
            await cross(fn, deadline=ANSWER_SECONDS, unavailable=LineLost)
        except (LineLost, *_REDIS_FAULTS, *_POSTGRES_FAULTS) as error:
            log.debug("hint line did not close in order", error=str(error))


@define(eq=False)
class _RedisLine:
    """Two connections to Redis: one listens, one publishes."""

    _client: "redis.asyncio.Redis"
    _listener: PubSub
    _channel: str

    async def send(self, payload: str) -> None:
        async def publish() -> None:
            with _as_line_lost(*_REDIS_FAULTS):
                await self._client.publish(self._channel, payload)

        # redis-py repeats the call once on a new connection, hence twice the time.
        await cross(publish, deadline=2 * ANSWER_SECONDS, unavailable=LineLost)

    async def receive(self) -> list[str | bytes]:
        return await cross(self._receive, deadline=IDLE_SECONDS + 2 * ANSWER_SECONDS, unavailable=LineLost)

    async def _receive(self) -> list[str | bytes]:
        with _as_line_lost(*_REDIS_FAULTS):
            message = await self._listener.get_message(timeout=IDLE_SECONDS)
            if message is None:
                await self._listener.ping()
                message = await self._listener.get_message(timeout=ANSWER_SECONDS)
                if message is None:
                    raise LineLost("Redis does not answer")
            found: list[str | bytes] = []
            # What came in the same packet needs no crossing of its own.
            while message is not None:
                if message["type"] == "message":
                    found.append(message["data"])
                elif message["type"] == "subscribe":
                    # The library connected again by itself: what was sent meanwhile is lost.
                    raise LineLost("the subscription was renewed")
                message = await self._listener.get_message(timeout=0)
            return found

    async def listen(self) -> None:
        """Subscribe, and wait for Redis to say so. asyncio-flavoured."""
        with _as_line_lost(*_REDIS_FAULTS):
            await self._listener.subscribe(self._channel)
            if await self._listener.get_message(timeout=ANSWER_SECONDS) is None:
                raise LineLost("Redis does not answer")


@asynccontextmanager
async def _open_redis(settings: RedisSettings) -> AsyncIterator[Line]:
    """Open a line through Redis. Raises LineLost."""
    options: dict[str, Any] = {
        "host": settings.host,
        "port": settings.port,
        "password": settings.password,
        "db": settings.db,
        "socket_timeout": ANSWER_SECONDS,
        "socket_connect_timeout": ANSWER_SECONDS,
        # The library's ten retries would keep a hint waiting for seconds.
        "retry": Retry(NoBackoff(), 1),
        "protocol": 2,
    }
    if settings.tls:
        options |= {"ssl": True, "ssl_ca_certs": settings.ca_file, "ssl_exclude_verify_flags": list(NOT_ASKED)}
    client = redis.asyncio.Redis(**options)
    # Publish and subscribe know no database numbers, so that the number must be in the name.
    listener = client.pubsub()
    line = _RedisLine(client, listener, f"{CHANNEL}:{settings.db}")

    async def close() -> None:
        try:
            await listener.aclose()  # type: ignore[no-untyped-call]  # the library has no types here
        finally:
            # Whatever became of that one: a connection that is left open is closed by nobody.
            await client.aclose()

    try:
        await cross(line.listen, deadline=CONNECT_SECONDS, unavailable=LineLost)
        yield line
    finally:
        await _close(close)


@define(eq=False)
class _PostgresLine:
    """One connection to PostgreSQL that listens, notifies and is asked whether it stands."""

    _connection: Any
    _arrivals: trio.MemoryReceiveChannel[str]
    # asyncpg allows one operation at a time.
    _turn: trio.Lock = field(factory=trio.Lock)

    async def _execute(self, statement: str, *arguments: str) -> None:
        async def execute() -> None:
            with _as_line_lost(*_POSTGRES_FAULTS):
                await self._connection.fetchval(statement, *arguments, timeout=ANSWER_SECONDS)

        async with self._turn:
            await cross(execute, deadline=2 * ANSWER_SECONDS, unavailable=LineLost)

    async def send(self, payload: str) -> None:
        await self._execute("SELECT pg_notify($1, $2)", CHANNEL, payload)

    async def receive(self) -> list[str | bytes]:
        found: list[str | bytes] = []
        with trio.move_on_after(IDLE_SECONDS):
            try:
                found.append(await self._arrivals.receive())
            except trio.EndOfChannel:
                raise LineLost("PostgreSQL closed the connection, or sent hints faster than they were read") from None
        if not found:
            await self._execute("SELECT 1")
        return found


async def _connect_postgres(
    uri: str, node_id: str, heard: Callable[[Any, int, str, str], None], ended: Callable[[Any], None]
) -> Any:
    """Return a connection that listens. asyncio-flavoured."""
    with _as_line_lost(*_POSTGRES_FAULTS):
        connection = await asyncpg.connect(
            uri, timeout=CONNECT_SECONDS, server_settings={"application_name": f"antipode hints {node_id}"[:63]}
        )
        try:
            connection.add_termination_listener(ended)
            await connection.add_listener(CHANNEL, heard)
        except BaseException:
            connection.terminate()
            raise
        return connection


@asynccontextmanager
async def _open_postgres(uri: str, node_id: str) -> AsyncIterator[Line]:
    """Open a line through PostgreSQL. Raises LineLost."""
    # asyncpg calls back and cannot be told to wait; a reader that is 1024 messages behind has lost the thread anyway.
    arrivals, receiver = trio.open_memory_channel[str](1024)

    def heard(_connection: Any, _pid: int, _channel: str, payload: str) -> None:
        try:
            arrivals.send_nowait(payload)
        except (trio.WouldBlock, trio.BrokenResourceError, trio.ClosedResourceError):
            arrivals.close()

    connection = await cross(
        _connect_postgres,
        uri,
        node_id,
        heard,
        lambda _connection: arrivals.close(),
        deadline=CONNECT_SECONDS + ANSWER_SECONDS,
        unavailable=LineLost,
    )
    try:
        yield _PostgresLine(connection, receiver)
    finally:
        # In order if PostgreSQL answers, else by force.
        await _close(lambda: connection.close(timeout=ANSWER_SECONDS / 2))
        arrivals.close()
        receiver.close()


async def _send(hub: Hub, line: Line) -> None:
    while True:
        batch = await hub.next_batch()
        arrived = False
        try:
            for payload in encode(hub.sender, batch):
                await line.send(payload)
                hub.sent()
            arrived = True
        finally:
            if not arrived:
                hub.batch_lost(batch)


async def _receive(hub: Hub, line: Line) -> None:
    while True:
        for payload in await line.receive():
            hub.heard(payload)


async def _use(hub: Hub, line: Line) -> None:
    """Send and receive until the line is lost. Raises LineLost."""
    lost: list[LineLost] = []
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_send, hub, line)
            nursery.start_soon(_receive, hub, line)
    except* LineLost as group:
        lost.extend(error for error in group.exceptions if isinstance(error, LineLost))
    raise lost[0] if lost else LineLost("the line ended")


async def _keep_line(hub: Hub, open_line: Callable[[], AbstractAsyncContextManager[Line]]) -> None:
    """Keep a line open, for ever."""
    pause, told = FIRST_PAUSE, set[str]()
    while True:
        try:
            async with open_line() as line:
                stood = hub.statistics().gaps > 0
                hub.line_stands()
                log.info("hints connected", transport=hub.transport, again=stood)
                pause = FIRST_PAUSE
                told.clear()
                await _use(hub, line)
        except LineLost as error:
            # Each reason once until the line stands again: behind a bus that was slow at first may be a password that is wrong.
            if str(error) not in told and len(told) < REASONS:
                told.add(str(error))
                log.warning("hints lost their connection", transport=hub.transport, error=str(error))
            hub.line_lost(str(error))
        # Not all nodes at once when the bus comes back.
        await trio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - no secret
        pause = min(LONGEST_PAUSE, 2 * pause)


@contextmanager
def _unwrapped() -> Iterator[None]:
    """Let the only error of a nursery out as itself."""
    try:
        yield
    except BaseExceptionGroup as group:
        if len(group.exceptions) == 1:
            raise group.exceptions[0] from group.exceptions[0].__cause__
        raise


@asynccontextmanager
async def open_hints(redis: RedisSettings | None, database_uri: str | None, node_id: str) -> AsyncIterator[Hub]:
    """Open the hints of this node: over Redis, else over PostgreSQL, else within this process only.

    Does not wait for the connection, and goes on without one: hints are lost then, and nothing but time with them. A bridge
    (`engines.crossing.open_bridge`) must be open around it unless hints stay within the process.
    """
    hub = Hub(f"{node_id}/{secrets.token_hex(4)}")
    if redis is not None:
        hub.transport, settings = "redis", redis

        def open_line() -> AbstractAsyncContextManager[Line]:
            return _open_redis(settings)
    elif database_uri is not None:
        hub.transport, uri = "postgresql", database_uri

        def open_line() -> AbstractAsyncContextManager[Line]:
            return _open_postgres(uri, node_id)
    else:
        yield hub
        return
    with _unwrapped():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_keep_line, hub, open_line)
            yield hub
            nursery.cancel_scope.cancel("hints are closed")
