"""A delete is answered when every live node has forgotten, or when its patience is over."""

import pytest
import trio
import trio.testing

from node.assembly import living_others
from node.forgetting import PATIENCE, Forgetting
from property_tests.memory_hints import MemoryHints
from replication.model import ClusterView, NodeView
from replication.ports import Forget, Heard


async def _obey(hints: MemoryHints, forgetting: Forgetting, task_status: trio.TaskStatus[None]) -> None:
    """Do what a node's listener does."""
    async with hints.subscribe() as subscription:
        task_status.started()
        async for hint in subscription:
            if isinstance(hint, Forget):
                forgetting.obeyed(hint)
            elif isinstance(hint, Heard):
                forgetting.heard(hint)


async def test_a_delete_waits_for_the_other_nodes(autojump_clock: object) -> None:
    """It returns as soon as all live nodes have said that they have forgotten."""
    hints = MemoryHints()
    us = Forgetting(hints, "us", lambda: frozenset({"eu", "ap"}))
    eu, ap = (Forgetting(hints, name, frozenset) for name in ("eu", "ap"))
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
    us = Forgetting(hints, "us", lambda: frozenset({"gone"}))
    async with trio.open_nursery() as nursery:
        await nursery.start(_obey, hints, us)
        began = trio.current_time()
        assert not await us.everywhere("a/b", None)
        assert trio.current_time() - began == pytest.approx(PATIENCE)
        nursery.cancel_scope.cancel()


async def test_a_single_node_waits_for_nobody() -> None:
    """Without other nodes a delete is answered at once."""
    assert await Forgetting(MemoryHints(), "us", frozenset).everywhere("a/b", None)


def test_only_nodes_that_were_heard_of_lately_count() -> None:
    """What a heartbeat said ages until the next one."""
    cluster = ClusterView((NodeView("eu", ("eu",), 1.0), NodeView("ap", ("ap",), 9.5)), {})
    assert living_others(cluster, seen_at=100.0, now=100.0) == {"eu", "ap"}
    assert living_others(cluster, seen_at=100.0, now=101.0) == {"eu"}
    assert living_others(None, seen_at=0.0, now=0.0) == frozenset()
