"""The faults by name: how each begins and ends, what it may show clients, and the schedule that a seed stands for."""

import random
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Literal

import trio
from attrs import frozen

from tests import faults
from tests.nemesis.ground import PARTS, REGIONS, START_SECONDS, Ground
from tests.services import fetch_rows

Reach = Literal["store", "bytes", "database", "redis", "node", "freeze", "drain", "region", "load"]
"""What a fault takes away, and so what its clients may notice: see judge.py."""

_PARTS: Mapping[Reach, str] = {
    "store": "store",
    "bytes": "store",
    "node": "node",
    "freeze": "node",
    "drain": "node",
    "region": "node",
}


@frozen
class Fault:
    """One fault. `make(ground)` is there while its context is open."""

    name: str
    reach: Reach
    make: Callable[[Ground], AbstractAsyncContextManager[None]]
    cut: str | None = None
    """The store that nobody reaches meanwhile."""

    @property
    def part(self) -> str:
        """What kind of part breaks. Two faults meet only in different ones: without any store, or node, nothing is left."""
        return _PARTS.get(self.reach, self.reach)


@asynccontextmanager
async def _broken(part: str, how: faults.Fault, ground: Ground) -> AsyncIterator[None]:
    for proxy in ground.to(part):
        proxy.break_(how)
    try:
        yield
    finally:
        for proxy in ground.to(part):
            proxy.mend()


@asynccontextmanager
async def _slow(part: str, ground: Ground) -> AsyncIterator[None]:
    """Take a second and a half for every answer, and send a body at 300 kB a second."""
    for proxy in ground.to(part):
        proxy.delay, proxy.bytes_per_second = 1.5, 300_000
    try:
        yield
    finally:
        for proxy in ground.to(part):
            proxy.delay, proxy.bytes_per_second = 0.0, None


@asynccontextmanager
async def _wrong(store: str, ground: Ground) -> AsyncIterator[None]:
    """Spoil blobs in a store; nobody mends them but the registry."""
    await trio.to_thread.run_sync(corrupt, ground, store)
    yield


def corrupt(ground: Ground, name: str) -> None:
    """Put other bytes of the same length into every second blob of a store that is in the other one, too.

    Not into the smallest, which nodes answer from memory and so never look at again; and each store its own half: nobody may have
    read what was spoiled in the other one before, and no registry has a blob both of whose copies are gone.
    """
    store = ground.stores[name]
    client = store.client()
    keys = fetch_rows(
        ground.database_uri,
        """SELECT p.key FROM placement p JOIN location l ON l.id = p.location_id JOIN blob b ON b.id = p.blob_id
        WHERE l.name = $1 AND p.state = 'present' AND b.size > 16384 AND b.id % 2 = $2
        AND EXISTS (SELECT FROM placement o WHERE o.blob_id = p.blob_id AND o.location_id <> p.location_id AND o.state = 'present')
        ORDER BY p.blob_id""",
        name,
        sorted(ground.stores).index(name),
    )
    for (key,) in keys:
        size = client.head_object(Bucket=store.bucket, Key=key)["ContentLength"]
        client.put_object(Bucket=store.bucket, Key=key, Body=random.Random(key).randbytes(size))


@asynccontextmanager
async def _postgres_restarted(ground: Ground) -> AsyncIterator[None]:
    await ground.servers.restart_postgres()
    yield


@asynccontextmanager
async def _postgres_crashed(ground: Ground) -> AsyncIterator[None]:
    await ground.servers.crash_postgres()
    yield


@asynccontextmanager
async def _postgres_frozen(ground: Ground) -> AsyncIterator[None]:
    try:
        await ground.servers.freeze_postgres()
        yield
    finally:
        ground.servers.thaw_postgres()


@asynccontextmanager
async def _redis_killed(ground: Ground) -> AsyncIterator[None]:
    await trio.to_thread.run_sync(ground.servers.kill_redis)
    try:
        yield
    finally:
        with trio.CancelScope(shield=True):
            await ground.servers.start_redis()


@asynccontextmanager
async def _node_killed(names: tuple[str, ...], ground: Ground) -> AsyncIterator[None]:
    for name in names:
        ground.node(name).kill()
    try:
        yield
    finally:
        with trio.CancelScope(shield=True):
            await _start(ground, names)


@asynccontextmanager
async def _node_drained(names: tuple[str, ...], ground: Ground) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        for name in names:
            nursery.start_soon(ground.node(name).stop)
    try:
        yield
    finally:
        with trio.CancelScope(shield=True):
            await _start(ground, names)


@asynccontextmanager
async def _node_frozen(names: tuple[str, ...], ground: Ground) -> AsyncIterator[None]:
    """Let nodes stand still: their connections stay, and new ones are made, but nothing is answered; then they go on."""
    for name in names:
        ground.node(name).pause()
    try:
        yield
    finally:
        for name in names:
            ground.node(name).resume()


async def _start(ground: Ground, names: tuple[str, ...]) -> None:
    for name in names:
        ground.node(name).launch()
    for name in names:
        await trio.to_thread.run_sync(ground.node(name).wait_ready_now, START_SECONDS)


@asynccontextmanager
async def _region_cut(region: str, ground: Ground) -> AsyncIterator[None]:
    """Cut a region's nodes off from everything: silence to the shared parts, refused to the balancer."""
    for part in PARTS:
        ground.edges[region, part].break_("hang")
    fronts = [ground.fronts[node.name] for node in ground.cluster if node.name.startswith(region)]
    for front in fronts:
        front.break_("refuse")
    try:
        yield
    finally:
        for proxy in ground.of(region):
            proxy.mend()


@asynccontextmanager
async def _none(_ground: Ground) -> AsyncIterator[None]:
    yield


def _all() -> Mapping[str, Fault]:
    found = []
    for region in REGIONS:
        part = f"{region}-store"
        found += [
            Fault(f"{region} store refused", "store", partial(_broken, part, "refuse"), region),
            Fault(f"{region} store reset", "store", partial(_broken, part, "reset"), region),
            Fault(f"{region} store hung", "store", partial(_broken, part, "hang"), region),
            Fault(f"{region} store slow", "store", partial(_slow, part)),
            Fault(f"{region} store returns wrong bytes", "bytes", partial(_wrong, region)),
        ]
    found += [
        Fault("PostgreSQL restarted", "database", _postgres_restarted),
        Fault("PostgreSQL killed", "database", _postgres_crashed),
        Fault("PostgreSQL frozen", "database", _postgres_frozen),
        Fault("PostgreSQL cut off", "database", partial(_broken, "postgres", "hang")),
        Fault("PostgreSQL refused", "database", partial(_broken, "postgres", "refuse")),
        Fault("Redis killed", "redis", _redis_killed),
        Fault("Redis hung", "redis", partial(_broken, "redis", "hang")),
    ]
    for region in REGIONS:
        nodes = (region, f"{region}-2")
        found += [
            Fault(f"{region} nodes killed", "node", partial(_node_killed, nodes)),
            Fault(f"{region} nodes frozen", "freeze", partial(_node_frozen, nodes)),
            Fault(f"{region} nodes drained", "drain", partial(_node_drained, nodes)),
            Fault(f"{region} cut off from everything", "region", partial(_region_cut, region)),
        ]
    found.append(Fault("1 000 concurrent pulls", "load", _none))
    return {fault.name: fault for fault in found}


FAULTS = _all()


@frozen
class Spell:
    """One fault that happened. Seconds on Trio's clock."""

    fault: Fault
    began: float
    stopped: float
    alone: frozenset[str] = frozenset()
    """The blobs of which a store that nobody could reach had the only copy, by what the database knew at the end."""


@frozen
class Turn:
    """One entry of a schedule: the faults, at once or one straight after the other, and how many seconds each lasts."""

    faults: tuple[Fault, ...]
    seconds: float
    at_once: bool = True

    @property
    def name(self) -> str:
        """The turn in the words that `turn_of` reads."""
        return (_AT_ONCE if self.at_once else _THEN).join(fault.name for fault in self.faults)

    async def happen(self, ground: Ground) -> list[Spell]:
        """Let the faults happen and end; return when each did. Its nodes serve again afterwards."""
        if not self.at_once:
            return [await _spell(fault, self.seconds, ground) for fault in self.faults]
        async with AsyncExitStack() as stack:
            began = trio.current_time()
            # Nodes first, and so back last: they start on what works again.
            for fault in sorted(self.faults, key=lambda fault: fault.part != "node"):
                await stack.enter_async_context(fault.make(ground))
            await trio.sleep_until(began + self.seconds)
            stopped = trio.current_time()
            alone = [await _only_in(fault.cut, ground) for fault in self.faults]
        return [Spell(fault, began, stopped, held) for fault, held in zip(self.faults, alone, strict=True)]


_AT_ONCE, _THEN = " + ", " > "


async def _spell(fault: Fault, seconds: float, ground: Ground) -> Spell:
    began = trio.current_time()
    async with fault.make(ground):
        await trio.sleep_until(began + seconds)
        stopped = trio.current_time()
        alone = await _only_in(fault.cut, ground)
    return Spell(fault, began, stopped, alone)


_ALONE = """
    SELECT b.digest FROM blob b JOIN placement p ON p.blob_id = b.id JOIN location l ON l.id = p.location_id
    GROUP BY b.digest HAVING array_agg(l.name) = ARRAY[$1::text]
"""


async def _only_in(store: str | None, ground: Ground) -> frozenset[str]:
    """Return the blobs that no other store has, while nobody reaches this one and so nothing of it can be copied."""
    if store is None:
        return frozenset()
    # Not by a proxy: only a database that is frozen does not answer, and then nothing is excused.
    with trio.move_on_after(5):
        rows = await trio.to_thread.run_sync(fetch_rows, ground.database_uri, _ALONE, store, abandon_on_cancel=True)
        return frozenset(digest for (digest,) in rows)
    return frozenset()


def turn_of(words: str, seconds: float) -> Turn:
    """Return what is written as `fault`, `fault + fault` (at once) or `fault > fault` (in sequence).

    Raises ValueError with what would be right.
    """
    names = [word.strip() for part in words.split(_AT_ONCE) for word in part.split(_THEN)]
    if unknown := [name for name in names if name not in FAULTS]:
        raise ValueError(f"unknown: {', '.join(unknown)}; there are: {', '.join(FAULTS)}")
    faults = tuple(FAULTS[name] for name in names)
    if len({fault.part for fault in faults}) < len(faults):
        raise ValueError(f"{words}: two faults of a {faults[0].part} leave nothing that could work")
    return Turn(faults, seconds, at_once=_THEN not in words)


def schedule(seed: int, turns: int, names: Collection[str] = FAULTS) -> list[Turn]:
    """Return the faults that a seed stands for: different ones, each of 4 to 8 seconds. The same seed, the same faults."""
    source = random.Random(seed)
    chosen = source.sample(sorted(names), turns)
    return [Turn((FAULTS[name],), source.uniform(4, 8)) for name in chosen]


def schedule_pairs(seed: int, turns: int) -> list[Turn]:
    """Return pairs of faults that a seed stands for, at once and in sequence by turns."""
    source = random.Random(seed)
    found: list[Turn] = []
    while len(found) < turns:
        pair = tuple(FAULTS[name] for name in source.sample(sorted(FAULTS), 2))
        if pair[0].part != pair[1].part:
            found.append(Turn(pair, source.uniform(4, 8), at_once=len(found) % 2 == 0))
    return found
