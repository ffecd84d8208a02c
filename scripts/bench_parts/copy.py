"""Copy throughput between two stores: the product's scheduler and copier, one serial stream, and rclone, in alternating rounds."""

import hashlib
import os
import platform
import secrets
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from random import Random
from statistics import median
from uuid import uuid4

import trio
from attrs import define, field, frozen

from engines import parse_engine
from engines.contract import Engine, Part
from engines.crossing import open_bridge
from node.assembly import Node, assemble
from node.hint_hub import Hub
from node.records.members import Membership, enrol_locations
from node.records.migrate import migrate
from node.records.postgres import open_database
from node.settings import LocationSettings, Settings
from replication.digests import pieces_of
from replication.ports import Wake
from tests.services import Store, all_stores

MIB = 1 << 20
_PART = 5 * MIB
_PATIENCE = 1800.0


@frozen
class CopyBench:
    """What to copy: by a label, how many blobs of how many MiB."""

    rounds: int
    sets: Mapping[str, tuple[int, int]]


@frozen
class Source:
    """An object to be copied, with what the database knows of it."""

    key: str
    digest: str
    size: int
    pieces: bytes


@define(eq=False)
class Ground:
    """A node over the two stores, not serving; `prefix` is the folder in both buckets."""

    node: Node
    stores: Mapping[str, Store]
    prefix: str
    sources: dict[str, list[Source]] = field(factory=dict)

    @property
    def us(self) -> Engine:
        """The store that everything is copied from."""
        return self.node.engines["us"]

    @property
    def eu(self) -> Engine:
        """The store that everything is copied to."""
        return self.node.engines["eu"]


def say(text: str) -> None:
    """Tell the terminal how far it is."""
    print(text, file=sys.stderr, flush=True)


@asynccontextmanager
async def open_ground(uri: str) -> AsyncIterator[Ground]:
    """Open an empty database and a folder of our own in both stores, emptied afterwards."""
    stores, path = all_stores(), f"/bench-{secrets.token_hex(4)}"
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(open_bridge())
        database = await stack.enter_async_context(open_database(uri))
        await migrate(database)
        specs = {name: parse_engine(*stores[name].configuration(path)) for name in ("us", "eu")}
        settings = Settings(
            server_hostname="bench",
            database_uri=uri,
            locations={name: LocationSettings(name, spec) for name, spec in specs.items()},
            preference=("eu", "us"),
            default_locations=("us", "eu"),
            replicate=True,
        )
        rows = await enrol_locations(database, ["us", "eu"], ("us", "eu"))
        engines = {name: await stack.enter_async_context(spec.open()) for name, spec in specs.items()}
        member = Membership(uuid4(), settings.preference, settings.default_locations, "bench")
        node = assemble(settings, database, Hub("bench"), engines, rows, member)
        node.watcher.report("us", ok=True)
        try:
            yield Ground(node, stores, path.strip("/"))
        finally:
            for name in ("us", "eu"):
                await trio.to_thread.run_sync(stores[name].empty, path)


async def fill(ground: Ground, label: str, count: int, mebibytes: int) -> None:
    """Put the objects of one set into the source store and into the records."""
    ground.sources[label] = []
    for number in range(count):
        random = Random(f"{label} {number}")  # noqa: S311 - filler, the same in every round
        whole, pieces, parts = hashlib.sha256(), b"", list[Part]()
        key = f"{ground.us.prefix}{label.replace(' ', '-')}/{number}"
        upload = await ground.us.begin_parts(key)
        for part in range((mebibytes + 15) // 16):
            data = random.randbytes(min(16, mebibytes - 16 * part) * MIB)
            whole.update(data)
            pieces += pieces_of(data)
            parts.append(await ground.us.put_part(key, upload, part + 1, data))
        await ground.us.finish_parts(key, upload, parts)
        source = Source(key, "sha256:" + whole.hexdigest(), mebibytes * MIB, pieces)
        ground.sources[label].append(source)
        await ground.node.database.fetch(
            "WITH b AS (INSERT INTO blob (digest, size, pieces) VALUES ($1, $2, $3) RETURNING id) "
            "INSERT INTO placement (blob_id, location_id, key) SELECT b.id, l.id, $4 FROM b, location l WHERE l.name = 'us'",
            source.digest,
            source.size,
            source.pieces,
            source.key,
        )


async def by_us(ground: Ground, label: str) -> None:
    """Owe the set to the other location and let the product pay: claims, verified parts in parallel, placements."""
    node, digests = ground.node, [source.digest for source in ground.sources[label]]
    async with trio.open_nursery() as nursery:
        await nursery.start(node.scheduler.run)
        await node.database.fetch(
            "INSERT INTO task (blob_id, location_id, size) SELECT b.id, l.id, b.size FROM blob b, location l "
            "WHERE l.name = 'eu' AND b.digest = ANY($1::text[])",
            digests,
        )
        node.hints.publish(Wake(("eu",)))
        while await node.database.fetch("SELECT FROM task LIMIT 1"):  # noqa: ASYNC110 - a condition of the database
            await trio.sleep(0.05)
        nursery.cancel_scope.cancel()


async def by_serial_stream(ground: Ground, label: str) -> None:
    """One blob after the other through one stream, in parts of 5 MiB, each written before the next is read; nothing is verified."""
    for number, source in enumerate(ground.sources[label]):
        key, parts = f"{ground.eu.prefix}serial/{number}", list[Part]()
        upload = await ground.eu.begin_parts(key)
        async with ground.us.open(source.key) as reader:
            while data := await _exactly(reader.receive, _PART):
                parts.append(await ground.eu.put_part(key, upload, len(parts) + 1, data))
        await ground.eu.finish_parts(key, upload, parts)


async def _exactly(receive: Callable[[int], Awaitable[bytes]], size: int) -> bytes:
    got = bytearray()
    while len(got) < size and (data := await receive(min(MIB, size - len(got)))):
        got += data
    return bytes(got)


async def by_rclone(ground: Ground, label: str) -> None:
    """`rclone copy` from bucket to bucket with its own defaults: four files at once, four parts of 5 MiB each."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    for name in ("us", "eu"):
        store, stem = ground.stores[name], f"RCLONE_CONFIG_{name.upper()}_"
        environment |= {
            stem + "TYPE": "s3",
            stem + "PROVIDER": "Ceph",
            stem + "ENDPOINT": store.endpoint,
            stem + "ACCESS_KEY_ID": store.access_key,
            stem + "SECRET_ACCESS_KEY": store.secret_key,
        }
    folder = f"{ground.prefix}/{label.replace(' ', '-')}"
    source, destination = (
        f"us:{ground.stores['us'].bucket}/{folder}",
        f"eu:{ground.stores['eu'].bucket}/{ground.prefix}/rclone",
    )
    words = ["rclone", "--config", os.devnull, "--s3-no-check-bucket", "copy", source, destination]
    await trio.run_process(words, env=environment, stdin=subprocess.DEVNULL)


async def clean(ground: Ground) -> None:
    """Take away what a round has copied, so that the next one begins in the same place."""
    await ground.node.database.fetch(
        "DELETE FROM placement p USING location l WHERE l.id = p.location_id AND l.name = 'eu'"
    )
    await trio.to_thread.run_sync(ground.stores["eu"].empty, f"/{ground.prefix}")


def ways() -> Mapping[str, Callable[[Ground, str], Awaitable[None]]]:
    """Return what can be measured here, by name."""
    found = {"Antipode's copier (verified)": by_us, "one serial stream, 5 MiB parts": by_serial_stream}
    return {**found, "rclone copy": by_rclone} if shutil.which("rclone") else found


async def compare(bench: CopyBench, uri: str) -> str:
    """Run all rounds and return the table."""
    rates: dict[str, dict[str, list[float]]] = {label: {name: [] for name in ways()} for label in bench.sets}
    began = os.getloadavg()
    async with open_ground(uri) as ground:
        for label, (count, mebibytes) in bench.sets.items():
            say(f"filling: {label}")
            await fill(ground, label, count, mebibytes)
            for number in range(bench.rounds):
                for name, way in ways().items():
                    start = trio.current_time()
                    with trio.fail_after(_PATIENCE):
                        await way(ground, label)
                    rate = count * mebibytes / (trio.current_time() - start)
                    rates[label][name].append(rate)
                    say(f"round {number + 1}: {label}: {name}: {rate:.0f} MiB/s (load {os.getloadavg()[0]:.1f})")
                    await clean(ground)
    return table(rates, began, os.getloadavg())


def table(rates: Mapping[str, Mapping[str, Sequence[float]]], before: Sequence[float], after: Sequence[float]) -> str:
    """Return medians, all rounds and the ratio to the serial stream."""
    lines = [
        f"{os.cpu_count()} cores, Python {platform.python_version()}; load {before[0]:.1f} before, {after[0]:.1f} after; in turns.",
        "",
        "| what | how | median MiB/s | rounds | times the serial stream |",
        "|---|---|---:|---|---:|",
    ]
    for label, found in rates.items():
        serial = median(next(values for name, values in found.items() if "serial" in name))
        lines += [
            f"| {label} | {name} | {median(values):.0f} | {', '.join(f'{v:.0f}' for v in values)} | {median(values) / serial:.2f} |"
            for name, values in found.items()
        ]
    return "\n".join(lines)
