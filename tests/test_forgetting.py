"""A delete is answered when every live node has forgotten, or when its patience is over."""

from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

import pytest
import trio
import trio.testing

from node.forgetting import PATIENCE, Forgetting
from node.running import living_others
from property_tests.memory_hints import MemoryHints
from replication.model import ClusterView, NodeView
from replication.ports import Forget, Heard
from tests.cluster import StartCluster
from tests.faults import FaultProxy
from tests.test_overload import client_of, push

_DELETES = 10
_UNHEARD = "a delete was answered before every node had heard of it"


def _alive(*names: str) -> Callable[[], Awaitable[frozenset[str]]]:
    """Return what asks which nodes live, and learns these."""

    async def ask() -> frozenset[str]:
        return frozenset(names)

    return ask


async def _obey(hints: MemoryHints, forgetting: Forgetting, task_status: trio.TaskStatus[None]) -> None:
    """Do what a node's listener does."""
    async with hints.subscribe() as subscription:
        task_status.started()
        async for hint in subscription:
            if isinstance(hint, Forget):
                forgetting.obeyed(hint, hints)
            elif isinstance(hint, Heard):
                forgetting.heard(hint)


async def test_a_delete_waits_for_the_other_nodes(autojump_clock: object) -> None:
    """It returns as soon as all live nodes have said that they have forgotten."""
    hints = MemoryHints()
    us = Forgetting([hints], "us", _alive("eu", "ap"))
    eu, ap = (Forgetting([hints], name, _alive()) for name in ("eu", "ap"))
    async with trio.open_nursery() as nursery:
        for node in (us, eu, ap):
            await nursery.start(_obey, hints, node)
        began = trio.current_time()
        assert await us.everywhere("a/b", "sha256:1")
        assert trio.current_time() - began < PATIENCE
        nursery.cancel_scope.cancel()


async def test_a_node_that_hangs_holds_nobody_up_for_long(autojump_clock: object) -> None:
    """A node that does not answer costs the bound, once per delete, and no more."""
    hints = MemoryHints()
    us, eu = Forgetting([hints], "us", _alive("eu", "gone")), Forgetting([hints], "eu", _alive())
    async with trio.open_nursery() as nursery:
        for node in (us, eu):
            await nursery.start(_obey, hints, node)
        for _ in range(2):
            began = trio.current_time()
            assert not await us.everywhere("a/b", None)
            assert trio.current_time() - began == pytest.approx(PATIENCE)
        nursery.cancel_scope.cancel()


async def test_hints_that_do_not_get_through_cost_one_delete(autojump_clock: object) -> None:
    """When no node at all has answered, the next deletes wait for none, until one is heard again."""
    hints = MemoryHints()
    us, eu = Forgetting([hints], "us", _alive("eu")), Forgetting([hints], "eu", _alive())
    async with trio.open_nursery() as nursery:
        await nursery.start(_obey, hints, us)
        for patience in (PATIENCE, 0, 0):
            began = trio.current_time()
            assert not await us.everywhere("a/b", None)
            assert trio.current_time() - began == pytest.approx(patience)
        await nursery.start(_obey, hints, eu)
        # Not waited for, and answered all the same: hints are back.
        await us.everywhere("a/b", None)
        await trio.testing.wait_all_tasks_blocked()
        assert await us.everywhere("a/b", None)
        nursery.cancel_scope.cancel()


async def test_a_single_node_waits_for_nobody() -> None:
    """Without other nodes a delete is answered at once."""
    assert await Forgetting([MemoryHints()], "us", _alive()).everywhere("a/b", None)


def test_only_nodes_that_were_heard_of_lately_count() -> None:
    """What a heartbeat said ages until the next one."""
    cluster = ClusterView((NodeView("eu", ("eu",), 1.0), NodeView("ap", ("ap",), 9.5)), {})
    assert living_others(cluster, seen_at=100.0, now=100.0) == {"eu", "ap"}
    assert living_others(cluster, seen_at=100.0, now=101.0) == {"eu"}
    assert living_others(None, seen_at=0.0, now=0.0) == frozenset()


async def test_nobody_waits_where_hints_have_no_way_out(autojump_clock: object) -> None:
    """While the line is known to be lost not even the first delete waits, and when it stands again deletes wait as ever."""
    hints, connected = MemoryHints(), False
    us = Forgetting([hints], "us", _alive("eu"), lambda: connected)
    async with trio.open_nursery() as nursery:
        await nursery.start(_obey, hints, us)
        for patience in (0.0, PATIENCE):
            began = trio.current_time()
            assert not await us.everywhere("a/b", "sha256:1")
            assert trio.current_time() - began == pytest.approx(patience)
            connected = True
        nursery.cancel_scope.cancel()


async def test_a_second_way_is_enough(autojump_clock: object) -> None:
    """Where Redis hangs, who hears of a delete by the other way answers by it, and the delete waits for nothing else."""
    redis, other = MemoryHints(), MemoryHints()
    hangs = MemoryHints()
    us, eu = Forgetting([hangs, other], "us", _alive("eu")), Forgetting([redis, other], "eu", _alive())
    async with trio.open_nursery() as nursery:
        for node in (us, eu):
            await nursery.start(_obey, redis, node)
            await nursery.start(_obey, other, node)
        for _ in range(2):
            began = trio.current_time()
            assert await us.everywhere("a/b", "sha256:1")
            assert trio.current_time() == began
        nursery.cancel_scope.cancel()


async def test_a_delete_needs_no_redis(
    start_cluster: StartCluster, redis_uri: str, repository: str, nursery: trio.Nursery
) -> None:
    """Redis hangs without a word: a delete is known to every node when it is answered, and is not held up."""
    redis = await nursery.start(FaultProxy("127.0.0.1", urlsplit(redis_uri).port or 0).serve)
    nodes = await start_cluster("us eu", "eu us", USER_EVENTS_REDIS={"host": "127.0.0.1", "port": redis.port})
    us, eu = nodes["us"], nodes["eu"]
    async with client_of(us) as here, client_of(eu) as there:
        paths = []
        for number in range(_DELETES):
            await push(here, repository, f"v{number}", f"version {number}".encode())
            found = await there.get(f"/v2/{repository}/manifests/v{number}")
            paths.append(f"/v2/{repository}/manifests/{found.headers['docker-content-digest']}")
            assert (await there.get(paths[-1])).status_code == 200
        redis.break_("hang")
        known = 0
        for path in paths:
            unheard = us.log.count(_UNHEARD)
            assert (await here.delete(path)).status_code == 202
            # A node that is too busy to answer within a second is not waited for, as ever.
            if us.log.count(_UNHEARD) == unheard:
                assert (await there.get(path)).status_code == 404
                known += 1
        assert known
    redis.mend()
    nursery.cancel_scope.cancel()
