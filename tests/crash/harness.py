"""A world that outlives its nodes, nodes that die at a chosen call, and what must hold when the dust has settled.

A crash is a BaseException out of one call to the database or to a store, before or after that call took effect. From then on
every call of the dead node raises it too: no clean-up of its own reaches the world.
"""

import hashlib
import os
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from random import Random
from typing import Any, Protocol
from uuid import uuid4

import trio
from attrs import define, evolve, field

from node.assembly import assemble
from node.cache import Freshness
from node.config.settings import Settings
from node.hint_hub import Hub
from node.janitor import sweep_up
from node.records.members import LocationRow, Membership
from node.records.postgres import Database, Row
from property_tests.memory_engine import Faults, MemoryEngine, MemoryStore
from replication.macs import MacKey
from tests.faulty_engine import Fault, FaultyEngine
from tests.registry.world import Region

LOCATIONS = ("us", "eu")
_INSTANT = Faults(latency=0.0, bytes_per_second=1e12)
_IDLE = ("WITH me AS", "WITH due AS ( SELECT d.id FROM dead_object", "SELECT extract(epoch FROM min(due)")
"""How the statements begin that a scheduler sends whether there is something to do or not."""
_KEY = MacKey(b"crashing", b"k" * 32)
"""What all nodes make MACs with."""
_DAYS = 3.0
"""How far time moves after a crash: beyond every lease, back-off and upload's end."""


class Crash(BaseException):
    """The node is dead. The message says at which call it died."""


@define(eq=False)
class Fuse:
    """Kills a node at its `at`-th call (from 1; None: never), before or after that call took effect.

    What a node asks again and again while it waits counts only once.
    """

    at: int | None = None
    after: bool = False
    calls: list[str] = field(factory=list)
    dead: bool = False
    _seen: Counter[str] = field(factory=Counter)

    @asynccontextmanager
    async def call(self, what: str) -> AsyncIterator[None]:
        """Pass one call, or die in it."""
        if self.dead:
            raise Crash(what)
        self._seen[what] += 1
        counts = self._seen[what] == 1 or not what.startswith(_IDLE)
        if counts:
            self.calls.append(what)
        last = counts and len(self.calls) == self.at
        if last and not self.after:
            self.dead = True
            raise Crash(what)
        yield
        if last or self.dead:
            self.dead = True
            raise Crash(what)


@define(eq=False)
class FragileDatabase(Database):
    """The way of one node to the database."""

    fuse: Fuse = field(factory=Fuse, kw_only=True)

    async def fetch(self, sql: str, *args: object, deadline: float | None = None) -> Sequence[Row]:
        async with self.fuse.call(" ".join(sql.split())[:120]):
            return await Database.fetch(self, sql, *args, deadline=deadline)


@define(eq=False)
class FragileEngine(FaultyEngine):
    """The way of one node to a store."""

    fuse: Fuse = field(factory=Fuse, kw_only=True)

    @asynccontextmanager
    async def _faulty(self, operation: str, key: str, *, body: bool = False) -> AsyncIterator[Fault | None]:
        async with self.fuse.call(f"{operation} {key}"), FaultyEngine._faulty(self, operation, key, body=body) as fault:
            yield fault


@define(eq=False)
class World:
    """The database and the stores, and what they must still have at the end."""

    database: Database
    settings: Settings
    rows: Mapping[str, LocationRow]
    stores: dict[str, MemoryStore] = field(factory=dict)
    blobs: dict[str, tuple[str, bytes]] = field(factory=dict)
    """Acknowledged blobs: digest to repository and bytes."""
    tags: dict[tuple[str, str], str] = field(factory=dict)
    """Acknowledged tags: repository and tag to digest."""
    gone: set[str] = field(factory=set)
    """Paths whose delete was acknowledged."""
    locations: tuple[str, ...] = LOCATIONS
    """Those that have not been removed."""

    def __attrs_post_init__(self) -> None:
        for name in LOCATIONS:
            self.stores[name] = MemoryStore(name, Random(0), faults=_INSTANT)

    def region(self, preference: str = "us eu", fuse: Fuse | None = None) -> Region:
        """Return a node that has just been started. Its services do not run."""
        fuse = fuse or Fuse()
        database = FragileDatabase(self.database._pool, self.database._dial, self.database._deadline, fuse=fuse)
        engines = {
            name: FragileEngine(MemoryEngine(store, part_minimum=1 << 20), fuse=fuse)
            for name, store in self.stores.items()
        }
        settings = evolve(self.settings, preference=tuple(preference.split()))
        member = Membership(uuid4(), settings.preference, settings.default_locations, "test")
        node = assemble(settings, database, Hub(member.id.hex), engines, self.rows, member)
        node.mac_keyring.keys.take([_KEY])
        scheduler = node.scheduler
        scheduler.settings = evolve(
            scheduler.settings,
            between_sweeps=0.0,
            shortest_wait=0.01,
            poll=0.05,
            heartbeat=0.05,
            streams_per_location=2,
        )
        for name in engines:
            node.watcher.report(name, ok=True)
        return Region(node, node.registry(Freshness(settings.metadata_staleness)), engines)

    async def sql(self, sql: str, *args: object) -> Sequence[Row]:
        """Ask the database past all nodes."""
        return await self.database.fetch(sql, *args)

    async def pass_days(self, *, uploads: bool) -> None:
        """Let every lease, back-off and grace run out; with `uploads` also what nobody finished."""
        await self.sql(
            f"""
            WITH t AS (UPDATE task SET due_at = due_at - {_DAYS} * interval '1 day',
                lease_until = lease_until - {_DAYS} * interval '1 day'),
            d AS (UPDATE dead_object SET not_before = not_before - {_DAYS} * interval '1 day'),
            u AS (UPDATE upload SET expires_at = expires_at - {_DAYS} * interval '1 day' WHERE $1)
            UPDATE node SET seen_at = seen_at - {_DAYS} * interval '1 day'
            """,  # noqa: S608 - a number of this module
            uploads,
        )

    async def ripen(self) -> bool:
        """Make due whatever waits; False when nothing does."""
        rows = await self.sql(
            """
            WITH t AS (UPDATE task SET due_at = least(due_at, now()) RETURNING 1),
            d AS (UPDATE dead_object SET not_before = least(not_before, now()) RETURNING 1)
            SELECT (SELECT count(*) FROM t) + (SELECT count(*) FROM d) AS waiting
            """
        )
        return bool(rows[0]["waiting"])

    async def settle(self, region: Region) -> None:
        """Run a node's scheduler until no debt and no dead object is left."""
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                await nursery.start(region.node.scheduler.run)
                nursery.start_soon(region.node.suspects.run)
                # Twice: what one statement makes of a task while another one reads is seen by neither.
                while await self.ripen() or await self.ripen():
                    region.node.scheduler.nudge()
                    await trio.sleep(0.02)
                nursery.cancel_scope.cancel()

    async def check_known(self) -> None:
        """Every object and open multi-part write of every store has a row that accounts for it."""
        for name in self.locations:
            assert await self.region().unaccounted(name) == set()

    async def check_settled(self) -> None:
        """Nothing acknowledged is lost, bytes are right, copies are complete, nothing more is in the stores, nothing came back."""
        placed = await self.sql(
            "SELECT b.digest, l.name, p.key, p.state FROM placement p JOIN blob b ON b.id = p.blob_id "
            "JOIN location l ON l.id = p.location_id WHERE l.name = ANY($1::text[])",
            list(self.locations),
        )
        for row in placed:
            data = self.stores[row["name"]].objects[row["key"]]
            assert row["state"] == "present"
            assert "sha256:" + hashlib.sha256(data).hexdigest() == row["digest"]
        linked = await self.sql("SELECT DISTINCT b.digest FROM blob b JOIN repository_blob rb ON rb.blob_id = b.id")
        at = {(row["digest"], row["name"]) for row in placed}
        assert {(row["digest"], name) for row in linked for name in self.locations} <= at
        for name in self.locations:
            store = self.stores[name]
            kept = {row["key"] for row in placed if row["name"] == name}
            assert set(store.objects) == kept, (name, set(store.objects) ^ kept, store.calls[-40:])
            assert store.uploads == {}
            assert not store.deleted & set(store.objects)
        for preference in ("us eu", "eu us"):
            region = self.region(preference)
            for digest, (repository, data) in self.blobs.items():
                reply = await region.ask("GET", f"/v2/{repository}/blobs/{digest}")
                assert (reply.status, reply.body) == (200, data)
            for (repository, tag), digest in self.tags.items():
                reply = await region.ask("GET", f"/v2/{repository}/manifests/{tag}")
                assert (reply.status, reply.headers["docker-content-digest"]) == (200, digest)
            for path in self.gone:
                assert (await region.ask("GET", path)).status == 404


class Client(Protocol):
    """Somebody who uses the registry, or its operator; made anew for every run."""

    async def prepare(self, world: World) -> None:
        """Bring the world to where it begins. Nobody dies here."""
        ...

    async def act(self, world: World, regions: Sequence[Region]) -> None:
        """Do it; the nodes may die at any call."""
        ...

    async def retry(self, world: World, region: Region) -> None:
        """Do what a client does that got no answer, at a node that lives."""
        ...


def died(error: BaseException) -> bool:
    """Return whether nothing but the crash is in this exception."""
    if isinstance(error, BaseExceptionGroup):
        return all(died(member) for member in error.exceptions)
    return isinstance(error, Crash)


async def run_once(world: World, client: Client, preferences: Sequence[str], fuse: Fuse) -> bool:
    """Let a client act on nodes that share one fuse, then see what is left. Returns whether they died."""
    await client.prepare(world)
    crashed = False
    try:
        await client.act(world, [world.region(preference, fuse) for preference in preferences])
    except BaseException as error:
        if not died(error):
            raise
        crashed = True
    await world.check_known()
    await world.pass_days(uploads=False)
    if crashed:
        await client.retry(world, world.region(preferences[-1]))
    await world.check_known()
    await world.pass_days(uploads=True)
    last = world.region(preferences[-1])
    await sweep_up(last.node.database, last.node.hints)
    await world.settle(last)
    await world.check_settled()
    return crashed


async def sweep(
    make: Callable[[], Awaitable[World]], client: Callable[[], Client], preferences: Sequence[str] = ("us eu",)
) -> int:
    """Die at every call of what a client does, before and after its effect; return how many crashes that were."""
    crashes = 0
    only = os.environ.get("ANTIPODE_CRASH_AT")
    for after in (False, True):
        at = int(only) if only else 1
        while True:
            fuse = Fuse(at, after)
            world = await make()
            try:
                crashed = await run_once(world, client(), preferences, fuse)
            except BaseException as error:
                where = fuse.calls[at - 1] if len(fuse.calls) >= at else "the end"
                error.add_note(f"killed {'after' if after else 'before'} call {at}: {where}")
                error.add_note("\n".join(f"  {n} {call}" for n, call in enumerate(fuse.calls, 1)))
                raise
            if not crashed or only:
                break
            crashes += 1
            at += 1
    return crashes


def pattern(size: int, seed: str) -> bytes:
    """Return bytes that nobody else pushes."""
    return Random(seed).randbytes(size)


def facts(value: Any) -> str:
    """Return a digest of bytes."""
    return "sha256:" + hashlib.sha256(value).hexdigest()
