"""A node that stood still, frozen with its connections, and goes on: it knows that it did, and blames nobody for what it missed."""

import json
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

import httpx
import pytest
import trio
from trio.testing import MockClock

from engines.crossing import open_bridge
from node.records.postgres import DatabaseUnavailable, open_database
from replication.standstill import BEAT, LATE, Standstill
from tests.cluster import Node, StartCluster
from tests.faults import FaultProxy
from tests.nemesis.ground import until
from tests.test_overload import client_of, push

_ASKED = 6
"""Requests that wait for the database when the node freezes: more than the failures by which it is taken to be away."""
_FROZEN = 9.0
"""Seconds: longer than a statement, and than METADATA_STALENESS."""
_PATIENCE = 60.0


async def test_what_is_on_time_is_no_standstill(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    """However long a task sleeps: the process is awake."""
    standstill = Standstill()
    assert not standstill.since(0)
    await nursery.start(standstill.run)
    await trio.sleep(1000)
    assert not standstill.since(0)


async def test_a_standstill_is_known_at_once(mock_clock: MockClock, nursery: trio.Nursery) -> None:
    """Also to a task that comes before the one that looks at the clock; what begins afterwards is not concerned."""
    standstill = Standstill()
    await nursery.start(standstill.run)
    began = trio.current_time()
    mock_clock.jump(BEAT + LATE / 2)
    assert not standstill.since(began)
    mock_clock.jump(LATE)
    assert standstill.since(began)
    ended = standstill.ended()
    mock_clock.jump(0.1)
    assert standstill.since(began)
    assert standstill.ended() == ended
    assert not standstill.since(trio.current_time())


class Frozen:
    """A node whose database and Redis can be held back, so that requests wait when it freezes."""

    def __init__(self, node: Node, database: FaultProxy, redis: FaultProxy) -> None:
        self.node, self.database, self.redis = node, database, redis

    async def freeze(self, ask: Callable[[], Awaitable[None]], nursery: trio.Nursery) -> None:
        """Freeze it while `_ASKED` requests of `ask` wait for the database, whose answers come meanwhile."""
        self.database.asked = bytearray()
        self.database.break_("silent")
        for _ in range(_ASKED):
            nursery.start_soon(ask)

        async def sent() -> bool:
            return bool(self.database.asked)

        await until(sent, _PATIENCE)
        # Those that ask for the same wait for the first; what else there is has been sent by then.
        await trio.sleep(0.5)
        self.node.pause()
        self.database.mend()


@pytest.fixture
async def proxies(database_uri: str, redis_uri: str, nursery: trio.Nursery) -> tuple[FaultProxy, FaultProxy]:
    ports = [urlsplit(uri).port or 0 for uri in (database_uri, redis_uri)]
    database, redis = [await nursery.start(FaultProxy("127.0.0.1", port).serve) for port in ports]
    return database, redis


async def start(
    start_cluster: StartCluster, database_uri: str, proxies: tuple[FaultProxy, FaultProxy]
) -> tuple[Node, Node]:
    nodes = await start_cluster("us eu", "eu us", launch=False, FEATURE_PROXY_STORAGE=True)
    database, redis = proxies
    seen = database_uri.replace(f":{database.upstream_port}/", f":{database.port}/")
    own = {"DB_URI": seen, "USER_EVENTS_REDIS": {"host": "127.0.0.1", "port": redis.port}}
    nodes["us"].environment["QUAY_OVERRIDE_CONFIG"] = json.dumps(own)
    await trio.to_thread.run_sync(nodes.start_now)
    return nodes["us"], nodes["eu"]


async def test_clients_of_a_frozen_node(
    start_cluster: StartCluster,
    database_uri: str,
    proxies: tuple[FaultProxy, FaultProxy],
    repository: str,
    nursery: trio.Nursery,
) -> None:
    """Who waited for a look-up gets an answer and no 503, and the node does not say that its store or the database is ill.

    What was deleted meanwhile is not served from memory to who asks afterwards, though hints did not reach the node.
    """
    us, eu = await start(start_cluster, database_uri, proxies)
    node, answers = Frozen(us, *proxies), list[httpx.Response]()
    async with client_of(us) as here, client_of(eu) as there:
        await push(there, repository, "kept", b"kept")
        for tag in range(_ASKED):
            await push(there, repository, f"v{tag}", f"version {tag}".encode())
        gone = await there.get(f"/v2/{repository}/manifests/v0")
        path = f"/v2/{repository}/manifests/{gone.headers['docker-content-digest']}"
        assert (await here.get(path)).status_code == 200
        assert (await here.get(path)).status_code == 200
        waiting = iter(range(_ASKED))

        async def ask() -> None:
            answers.append(await here.get(f"/v2/{repository}/manifests/v{next(waiting)}"))

        async with trio.open_nursery() as asking:
            await node.freeze(ask, asking)
            node.redis.break_("hang")
            frozen = trio.current_time()
            assert (await there.delete(path)).status_code == 202
            await trio.sleep_until(frozen + _FROZEN)
            late: list[int] = []

            async def ask_late() -> None:
                async with client_of(us) as another:
                    late.append((await another.get(path)).status_code)

            for _ in range(_ASKED):
                asking.start_soon(ask_late)
            us.resume()
        assert late == [404] * _ASKED
        # The first was deleted while it was asked for.
        assert {answer.status_code for answer in answers} <= {200, 404}, [answer.text for answer in answers]

        async def well() -> bool:
            # Not at once: a probe from before vouches for nothing.
            return (await here.get("/health/endtoend")).status_code == 200

        await until(well, _PATIENCE)
    assert '"event": "location is down"' not in us.log


class Clock(Standstill):
    """Stands still when it is told to."""

    def stand_still(self) -> None:
        self._ended = trio.current_time()

    def ended(self) -> float:
        return self._ended


async def test_the_database_is_not_blamed(database_uri: str, nursery: trio.Nursery) -> None:
    """Statements that ran out of time by a standstill do not make the database be away, unless it never answers between."""
    port = urlsplit(database_uri).port or 5432
    proxy: FaultProxy = await nursery.start(FaultProxy("127.0.0.1", port).serve)
    clock = Clock()
    async with (
        open_bridge(),
        open_database(database_uri.replace(f":{port}/", f":{proxy.port}/"), standstill=clock) as database,
    ):

        async def fail() -> None:
            with pytest.raises(DatabaseUnavailable):
                await database.fetch("SELECT 1", deadline=1.5)

        async def freeze() -> None:
            async with trio.open_nursery() as asking:
                for _ in range(_ASKED):
                    asking.start_soon(fail)
                await trio.sleep(0.1)
                clock.stand_still()

        assert await database.fetch("SELECT 1")
        for _ in range(2):
            proxy.break_("silent")
            await freeze()
            assert database.reachability()[0]
            proxy.mend()
            assert await database.fetch("SELECT 1")
        proxy.break_("silent")
        for _ in range(2):
            await freeze()
        assert not database.reachability()[0]
