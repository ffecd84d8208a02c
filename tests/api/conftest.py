"""Regions inside the test's process whose copies and waits work, and the API asked as its web edge asks it."""

from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import pytest
import trio
from attrs import define

from node.api.frame import Problem
from node.api.replication import replication_of
from node.records.policies import write_policy
from replication.policy import parse_policy
from tests.registry.conftest import database, migrated_uri, world
from tests.registry.world import MakeWorld, Region, until

__all__ = ["database", "migrated_uri", "world"]

PATIENCE = 60.0
SAFETY_NET = 50.0
"""Seconds after which who waits looks of his own accord: far beyond what a busy machine takes to bring a hint."""


@define(eq=False)
class Waiters:
    """Two regions, us and eu. Copies into eu run when `copy` was called; before, they are only owed."""

    us: Region
    eu: Region
    nursery: trio.Nursery
    copying: bool = False

    async def copy(self) -> None:
        """Let eu's node pay its debt from now on."""
        if not self.copying:
            self.copying = True
            await self.nursery.start(self.eu.node.scheduler.run)

    async def ask(
        self, name: str, reference: str, region: Region | None = None, who: str = "", **query: str
    ) -> dict[str, Any]:
        """Ask the wait API of us, or of another region's node. Raises Problem."""
        given = {key: (value,) for key, value in {"location": "eu", **query}.items()}
        with trio.fail_after(PATIENCE):
            return await replication_of((region or self.us).registry, name, reference, given, who)

    async def problem(self, name: str, reference: str, **query: str) -> Problem:
        """Ask us what must be refused."""
        with pytest.raises(Problem) as caught:
            await self.ask(name, reference, None, **query)
        return caught.value

    async def policy(self, namespace: str, **document: Any) -> None:
        """Give a namespace rules."""
        states = self.us.registry.states()
        written = await write_policy(self.us.registry.database, namespace, parse_policy(document, states))
        assert written is not None

    async def waiting(self, region: Region, most: int = 1) -> None:
        """Wait until so many wait on a node."""

        async def they_wait() -> bool:
            return region.registry.waiting.waiters >= most

        await until(they_wait)


class MakeWaiters(Protocol):
    """Assemble the two regions; `settings` as for `world`."""

    def __call__(self, **settings: Any) -> Awaitable[Waiters]: ...


@pytest.fixture
def make_waiters(world: MakeWorld, nursery: trio.Nursery) -> MakeWaiters:
    """A function that assembles us and eu, with everybody listening."""

    async def make(**settings: Any) -> Waiters:
        us, eu = await world("us eu", "eu us", **settings)
        for region in (us, eu):
            await nursery.start(region.node.waiting.run)
            await nursery.start(region.node.durable.run)
            region.registry.waiting.safety_net = SAFETY_NET
        return Waiters(us, eu, nursery)

    return make


@pytest.fixture
async def waiters(make_waiters: MakeWaiters) -> Waiters:
    """The two regions with default settings."""
    return await make_waiters()


Work = Callable[[], Awaitable[Any]]


@define
class Task:
    """Something that runs beside the test. `result` is there when `done` is set."""

    done: trio.Event
    result: Any = None
    at: float = 0.0

    async def get(self) -> Any:
        with trio.fail_after(PATIENCE):
            await self.done.wait()
        return self.result


def beside(nursery: trio.Nursery, work: Work) -> Task:
    """Start `work` and return where its result will be."""
    task = Task(trio.Event())

    async def run() -> None:
        task.result = await work()
        task.at = trio.current_time()
        task.done.set()

    nursery.start_soon(run)
    return task
