"""Hints between nodes over real Redis and real PostgreSQL, also while the bus is killed, hung and started again."""

import signal
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, closing
from pathlib import Path

import asyncpg
import pytest
import redis
import trio
import trio.testing
from attrs import define, field
from structlog.testing import capture_logs

from engines.crossing import Trouble, cross, open_bridge
from node import hints
from node.config.settings import RedisSettings
from node.hint_hub import Hub, Subscription
from node.hints import CHANNEL, IDLE_SECONDS, LineLost, _keep_line, open_hints
from replication.ports import Forget, Hint, Placed, Wake
from scripts.services.postgres import Postgres
from scripts.services.processes import Daemon, accepts_connections, free_ports
from scripts.services.redis_server import RedisServer, find_binary

DIGEST = "sha256:" + "b" * 64
# A hung bus is noticed after the idle time and one unanswered ping; the rest is room for a busy machine.
NOTICED = IDLE_SECONDS + 28.0
AT_ONCE = 10.0
"""Seconds that many calls may take on a busy machine, none of which waits: each that did would wait for the bus's answer."""


@define
class Bus:
    """A server of this test's own, on a port that stays the same, that can be killed, hung and started again."""

    start: Callable[[], RedisServer | Postgres]
    redis: RedisSettings | None
    database_uri: str | None
    server: RedisServer | Postgres = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.server = self.start()

    def kill(self) -> None:
        if isinstance(self.server, Postgres):
            self.server.kill()
        else:
            self.server.daemon.process.kill()
            self.server.daemon.process.wait(30)

    def hang(self) -> None:
        if isinstance(self.server, Postgres):
            self.server.freeze()
        else:
            self.server.daemon.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        if isinstance(self.server, Postgres):
            self.server.thaw()
        else:
            self.server.daemon.process.send_signal(signal.SIGCONT)

    def restart(self) -> None:
        self.server = self.start()

    def stop(self) -> None:
        if self.server.daemon.process.poll() is None:
            self.go_on()
        self.server.stop()


def free_port() -> int:
    (port,) = free_ports(1)
    return port


@pytest.fixture(params=["redis", "postgresql"])
def bus(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bus]:
    port = free_port()
    if request.param == "redis":
        made = Bus(lambda: RedisServer(tmp_path, port=port), RedisSettings("127.0.0.1", port), None)
    else:
        uri = f"postgresql://antipode@127.0.0.1:{port}/postgres"
        made = Bus(lambda: Postgres(tmp_path, port=port), None, uri)
    yield made
    made.stop()


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bus that works is not taken for lost because the machine is busy."""
    for name in ("CONNECT_SECONDS", "ANSWER_SECONDS"):
        monkeypatch.setattr(hints, name, 30.0)


@pytest.fixture
def troubles() -> Iterator[list[Trouble]]:
    found: list[Trouble] = []
    yield found
    assert found == []


@define
class Node:
    hints: Hub
    subscription: Subscription

    async def next(self, seconds: float = 30) -> Hint:
        with trio.fail_after(seconds):
            return await anext(self.subscription)

    async def until(self, wanted: Hint, seconds: float = 30) -> list[Hint]:
        """Return what came before `wanted`."""
        before: list[Hint] = []
        with trio.fail_after(seconds):
            while (hint := await anext(self.subscription)) != wanted:
                before.append(hint)
        return before


@asynccontextmanager
async def open_nodes(bus: Bus, troubles: list[Trouble], *names: str) -> AsyncIterator[list[Node]]:
    """Open nodes that are connected and have read their first "everything"."""
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(open_bridge(troubles.append))
        nodes = []
        for name in names:
            hints = await stack.enter_async_context(open_hints(bus.redis, bus.database_uri, name))
            nodes.append(Node(hints, await stack.enter_async_context(hints.subscribe())))
        for node in nodes:
            assert [await node.next(), await node.next()] == [Forget(), Wake()]
            assert node.hints.statistics().connected
        yield nodes


def publishing(node: Node, count: int) -> float:
    """Publish that many hints and return the seconds that it took."""
    began = time.perf_counter()
    for number in range(count):
        node.hints.publish(Placed(DIGEST, str(number)))
    return time.perf_counter() - began


async def wait_lost(node: Node) -> None:
    with trio.fail_after(NOTICED):
        await node.hints.wait_lost()
    assert not node.hints.statistics().connected


async def test_a_hint_reaches_every_node_once(patient: None, bus: Bus, troubles: list[Trouble]) -> None:
    """What one node publishes, every node's subscribers get exactly once, this one's at once."""
    async with open_nodes(bus, troubles, "us", "eu", "ap") as (us, eu, ap):
        for number in range(50):
            us.hints.publish(Placed(DIGEST, str(number)), Wake(("eu",)))
        us.hints.publish(Forget("end"))
        expected = [hint for number in range(50) for hint in (Placed(DIGEST, str(number)), Wake(("eu",)))]
        assert await us.until(Forget("end")) == expected
        for node in (eu, ap):
            # Equal hints of one batch travel once.
            got = await node.until(Forget("end"))
            assert [hint for hint in got if isinstance(hint, Placed)] == expected[::2]
            assert Wake(("eu",)) in got
        assert us.hints.statistics().received == 0
        assert us.hints.statistics().dropped == 0
        eu.hints.publish(Wake(("us",)))
        assert await us.next() == Wake(("us",))
        assert await ap.next() == Wake(("us",))


async def shout(bus: Bus, payload: str) -> None:
    """Send a message as a stranger would."""
    if bus.redis is not None:
        client = redis.Redis(host=bus.redis.host, port=bus.redis.port)
        with closing(client):
            await trio.to_thread.run_sync(client.publish, f"{CHANNEL}:{bus.redis.db}", payload)
        return

    async def notify() -> None:
        connection = await asyncpg.connect(bus.database_uri)
        try:
            await connection.execute("SELECT pg_notify($1, $2)", CHANNEL, payload)
        finally:
            await connection.close()

    await cross(notify, deadline=30, unavailable=AssertionError)


async def test_messages_of_strangers_do_no_harm(patient: None, bus: Bus, troubles: list[Trouble]) -> None:
    """A message on our channel that is not ours is counted and ignored; the next hint arrives."""
    async with open_nodes(bus, troubles, "us", "eu") as (us, eu):
        await shout(bus, "hello")
        await shout(bus, '{"v": 99}')
        us.hints.publish(Wake(("eu",)))
        assert await eu.next() == Wake(("eu",))
        assert eu.hints.statistics().invalid == 2


async def test_two_processes_with_one_node_id_hear_each_other(patient: None, bus: Bus, troubles: list[Trouble]) -> None:
    """Only what this very process sent is ignored when it comes back."""
    async with open_nodes(bus, troubles, "us", "us") as (one, two):
        one.hints.publish(Wake(("us",)))
        assert await two.next() == Wake(("us",))


async def test_a_killed_bus_is_found_again(bus: Bus, troubles: list[Trouble]) -> None:
    """While the bus is dead publish returns at once and local subscribers go on; when it is back everybody gets everything."""
    async with open_nodes(bus, troubles, "us", "eu") as (us, eu):
        await trio.to_thread.run_sync(bus.kill)
        await wait_lost(us)
        await wait_lost(eu)
        assert us.hints.statistics().last_error
        # Together, so that a busy machine does not fail one of them.
        assert publishing(us, 200) < AT_ONCE
        assert await us.next() == Placed(DIGEST, "0")
        # Not in a thread of Trio's: the kernel ends a service with the thread that started it, here after ten idle seconds.
        bus.restart()
        for node in (us, eu):
            before = await node.until(Forget())
            assert await node.next() == Wake()
            assert all(isinstance(hint, Placed) for hint in before)
            assert node.hints.statistics().connected
        us.hints.publish(Placed(DIGEST, "after"))
        await eu.until(Placed(DIGEST, "after"))


async def test_a_hung_bus_is_noticed_and_waits_for_nobody(bus: Bus, troubles: list[Trouble]) -> None:
    """A bus that accepts and does not answer counts as lost within seconds; publish never waits; recovery says everything."""
    async with open_nodes(bus, troubles, "us", "eu") as (us, eu):
        bus.hang()
        # Far more than fits into any buffer on the way.
        assert publishing(us, 5000) < AT_ONCE
        assert us.hints.statistics().dropped > 0
        assert us.hints.statistics().waiting <= 1024
        await wait_lost(us)
        await wait_lost(eu)
        bus.go_on()
        # Here the subscriber was overrun as well: the first "everything" stands for those 5000.
        await us.until(Wake(), NOTICED)
        for node in (us, eu):
            await node.until(Forget(), NOTICED)
            await node.until(Wake(), NOTICED)
        us.hints.publish(Placed(DIGEST, "after"))
        await eu.until(Placed(DIGEST, "after"), NOTICED)


async def test_a_quiet_line_stays_up(patient: None, bus: Bus, troubles: list[Trouble]) -> None:
    """A line without hints is asked now and then whether it stands, and is not taken for lost."""
    async with open_nodes(bus, troubles, "us", "eu") as (us, eu):
        # Real silence is the subject: it must outlast the idle time.
        await trio.sleep(IDLE_SECONDS * 1.5)
        assert us.hints.statistics().gaps == 1
        us.hints.publish(Wake(("eu",)))
        assert await eu.next() == Wake(("eu",))
        assert eu.hints.statistics().gaps == 1


@pytest.mark.parametrize("moment", ["at once", "connected", "hung"])
async def test_closing_takes_no_time(bus: Bus, troubles: list[Trouble], moment: str) -> None:
    """Hints close within their deadlines whatever the bus does, and nothing of them goes on."""
    async with open_bridge(troubles.append) as bridge:
        with trio.fail_after(60):
            async with open_hints(bus.redis, bus.database_uri, "us") as hints:
                if moment != "at once":
                    await hints.wait_connected()
                if moment == "hung":
                    bus.hang()
                    hints.publish(Wake())
                    # The hint is on its way into the hung bus now.
                    await trio.testing.wait_all_tasks_blocked(0.05)
                began = trio.current_time()
        assert trio.current_time() - began < AT_ONCE
        assert bridge.statistics().left_behind == 0


async def test_a_bus_that_was_never_there_costs_nothing(troubles: list[Trouble]) -> None:
    """A node starts and publishes without its bus; statistics say that it is not connected, and why."""
    nowhere = RedisSettings("127.0.0.1", free_port())
    async with open_bridge(troubles.append), open_hints(nowhere, None, "us") as hints:
        async with hints.subscribe() as subscription:
            hints.publish(Wake(("us",)))
            assert await anext(subscription) == Wake(("us",))
        with trio.fail_after(NOTICED):
            await hints.wait_lost()
        assert hints.statistics().last_error
        assert not hints.statistics().connected


async def test_an_error_of_the_user_leaves_as_itself(troubles: list[Trouble]) -> None:
    """What is raised inside `open_hints` is not wrapped in a group."""
    async with open_bridge(troubles.append):
        with pytest.raises(KeyError):
            async with open_hints(RedisSettings("127.0.0.1", free_port()), None, "us"):
                raise KeyError


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1, and its key."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    words = f"req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=redis -keyout {key} -out {certificate}"
    words += " -addext subjectAltName=IP:127.0.0.1"
    subprocess.run(["openssl", *words.split()], check=True, capture_output=True)
    return key, certificate


async def test_redis_over_tls_is_checked(
    patient: None, certificate: tuple[Path, Path], tmp_path: Path, troubles: list[Trouble]
) -> None:
    """With `ssl: true` hints go through TLS; a server that the CA file does not vouch for is refused."""
    key, public = certificate
    port, program = free_port(), find_binary()
    if program is None:
        pytest.skip("no Redis server on this machine")
    options = f"--port 0 --bind 127.0.0.1 --tls-port {port} --tls-cert-file {public} --tls-key-file {key}"
    options += f" --tls-ca-cert-file {public} --tls-auth-clients no --save  --dir {tmp_path}"
    server = Daemon("redis", [program, *(word for word in options.split(" "))], tmp_path)
    try:
        await trio.to_thread.run_sync(server.wait_ready, lambda: accepts_connections(port))
        trusted = RedisSettings("127.0.0.1", port, tls=True, ca_file=str(public))
        async with (
            open_bridge(troubles.append),
            open_hints(trusted, None, "us") as us,
            open_hints(trusted, None, "eu") as eu,
            open_hints(RedisSettings("127.0.0.1", port, tls=True), None, "stranger") as stranger,
            eu.subscribe() as subscription,
        ):
            with trio.fail_after(60):
                await us.wait_connected()
                await eu.wait_connected()
                await stranger.wait_lost()
                us.publish(Wake(("eu",)))
                while await anext(subscription) != Wake(("eu",)):
                    # Another one: a line was new, or was lost once more on a busy machine, and the hint on it as well.
                    us.publish(Wake(("eu",)))
            assert not stranger.statistics().connected
            assert "certificate" in str(stranger.statistics().last_error).lower()
    finally:
        await trio.to_thread.run_sync(server.stop)


async def test_each_reason_of_an_outage_is_told_once(autojump_clock: trio.testing.MockClock) -> None:
    """Behind a bus that was slow at first may be a wrong password: that is told, too, and no reason twice before a line stands."""
    outages = iter(("slow", "slow", "wrong password", "slow", "", "slow"))
    over = trio.Event()

    class Broken:
        async def send(self, payload: str) -> None:  # noqa: ARG002 - the protocol names it
            raise LineLost("gone")

        async def receive(self) -> list[str | bytes]:
            raise LineLost("gone")

    @asynccontextmanager
    async def line() -> AsyncIterator[Broken]:
        reason = next(outages, None)
        if reason is None:
            over.set()
            await trio.sleep_forever()
        elif reason:
            raise LineLost(reason)
        yield Broken()

    with capture_logs() as logs:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_keep_line, Hub("us"), line)
            await over.wait()
            nursery.cancel_scope.cancel()
    assert [entry["error"] for entry in logs if "error" in entry] == ["slow", "wrong password", "gone", "slow"]
