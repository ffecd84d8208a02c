"""Question `copy`: throughput between two stores by our scheduler and copier, rclone, s5cmd, and one serial stream."""

import hashlib
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
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
from tests.services import Store, all_stores, fresh_database, required

from .machine import cpu_seconds, reset_peak, resident_bytes, store_pids
from .peers import say
from .report import Chart, Outcome, number, times
from .sizes import MIB, Sizes

OURS, SERIAL = "Antipode's copier (verified)", "one serial stream, 5 MiB parts"
_PART = 5 * MIB
_PATIENCE = 1800.0


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
            open_registry=True,
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
    for at in range(count):
        random = Random(f"{label} {at}")  # noqa: S311 - filler, the same in every round
        whole, pieces, parts = hashlib.sha256(), b"", list[Part]()
        key = f"{ground.us.prefix}{label.replace(' ', '-')}/{at}"
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
    for at, source in enumerate(ground.sources[label]):
        key, parts = f"{ground.eu.prefix}serial/{at}", list[Part]()
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


async def by_s5cmd(ground: Ground, label: str) -> None:
    """`s5cmd cp`, four at once as rclone; it knows one endpoint at a time, so down to this machine's memory and up from there."""
    program, folder = _s5cmd(), f"{ground.prefix}/{label.replace(' ', '-')}"
    assert program is not None
    with tempfile.TemporaryDirectory(prefix="antipode-bench-", dir="/dev/shm") as scratch:
        for name, source, destination in (
            ("us", f"s3://{ground.stores['us'].bucket}/{folder}/*", f"{scratch}/"),
            ("eu", f"{scratch}/", f"s3://{ground.stores['eu'].bucket}/{ground.prefix}/s5cmd/"),
        ):
            store = ground.stores[name]
            keys = {"AWS_ACCESS_KEY_ID": store.access_key, "AWS_SECRET_ACCESS_KEY": store.secret_key}
            words = [
                program,
                "--log",
                "error",
                "--endpoint-url",
                store.endpoint,
                "--numworkers",
                "4",
                "cp",
                source,
                destination,
            ]
            await trio.run_process(words, env={**os.environ, **keys}, stdin=subprocess.DEVNULL)


def _s5cmd() -> str | None:
    beside = Path(sys.executable).with_name("s5cmd")
    return str(beside) if beside.exists() else shutil.which("s5cmd")


async def clean(ground: Ground) -> None:
    """Take away what a round has copied, so that the next one begins in the same place."""
    await ground.node.database.fetch(
        "DELETE FROM placement p USING location l WHERE l.id = p.location_id AND l.name = 'eu'"
    )
    await trio.to_thread.run_sync(ground.stores["eu"].empty, f"/{ground.prefix}")


def ways(*, peers: bool) -> Mapping[str, Callable[[Ground, str], Awaitable[None]]]:
    """Return what can be measured here, by name; what cannot is said aloud."""
    found = {OURS: by_us, SERIAL: by_serial_stream}
    for name, way, program in (("rclone copy", by_rclone, shutil.which("rclone")), ("s5cmd cp", by_s5cmd, _s5cmd())):
        if peers and program is None:
            say(f"SKIPPED {name}: there is no {name.split()[0]} on this machine")
        elif peers:
            found[name] = way
    return found


@frozen
class _Copied:
    """One way's run: MiB per second, and seconds of the processor per GiB of the copier and of the stores."""

    rate: float
    cpu: float
    store: float
    peak: int
    """The most memory that the process held, in bytes."""
    held: int
    """What it held before: the benchmark itself, its libraries and what the allocator keeps of the filling."""


def compare_copies(sizes: Sizes, *, peers: bool) -> list[Outcome]:
    """Measure all ways in turns."""
    sets = {f"{sizes.copies} blobs of 16 MiB": (sizes.copies, 16), f"1 blob of {sizes.large} MiB": (1, sizes.large)}
    with fresh_database(required("ANTIPODE_TEST_POSTGRES")) as uri:
        found = trio.run(_compare, sizes.rounds, sets, ways(peers=peers), uri)
    return [_outcome(found)]


async def _compare(
    rounds: int,
    sets: Mapping[str, tuple[int, int]],
    chosen: Mapping[str, Callable[[Ground, str], Awaitable[None]]],
    uri: str,
) -> dict[str, dict[str, list[_Copied]]]:
    found: dict[str, dict[str, list[_Copied]]] = {label: {name: [] for name in chosen} for label in sets}
    async with open_ground(uri) as ground:
        stores = tuple({pid for name in ("us", "eu") for pid in store_pids(ground.stores[name].port)})
        for label, (count, mebibytes) in sets.items():
            say(f"filling: {label}")
            await fill(ground, label, count, mebibytes)
            for round_ in range(rounds):
                for name, way in chosen.items():
                    run = await _one(ground, label, way, stores, count * mebibytes)
                    found[label][name].append(run)
                    say(f"round {round_ + 1}: {label}: {name}: {run.rate:.0f} MiB/s, {run.cpu:.2f} CPU s/GiB")
                    await clean(ground)
    return found


async def _one(
    ground: Ground, label: str, way: Callable[[Ground, str], Awaitable[None]], stores: Sequence[int], mebibytes: int
) -> _Copied:
    reset_peak(os.getpid())
    held = resident_bytes(os.getpid())
    before, began, store = os.times(), time.monotonic(), cpu_seconds(stores)
    with trio.fail_after(_PATIENCE):
        await way(ground, label)
    seconds, after = time.monotonic() - began, os.times()
    # A program of its own counts when it has ended, ours counts at once.
    spent = sum(after[:4]) - sum(before[:4])
    return _Copied(
        mebibytes / seconds,
        spent * 1024 / mebibytes,
        (cpu_seconds(stores) - store) * 1024 / mebibytes,
        resident_bytes(os.getpid(), peak=True) if way in (by_us, by_serial_stream) else 0,
        held,
    )


def _outcome(found: Mapping[str, Mapping[str, Sequence[_Copied]]]) -> Outcome:
    rows, groups = [], dict[str, dict[str, float]]()
    for label, by_way in found.items():
        ours = median(run.rate for run in by_way[OURS])
        for name, runs in by_way.items():
            rate = median(run.rate for run in runs)
            groups.setdefault(label, {})[name] = rate
            peak, added = max((run.peak, run.peak - run.held) for run in runs)
            rows.append(
                (
                    label, name, number(rate), ", ".join(f"{run.rate:.0f}" for run in runs), times(ours, rate),
                    number(median(run.cpu for run in runs)), number(median(run.store for run in runs)),
                    f"{peak >> 20} ({added >> 20})" if peak else "-",
                )
            )  # fmt: skip
    header = ("what", "how", "MiB/s", "rounds", "Antipode is", "copier CPU s/GiB", "store CPU s/GiB", "peak MiB")
    notes = [
        "Antipode: claims in PostgreSQL, every MiB verified, placements recorded. rclone and s5cmd: four files at once.",
        "s5cmd knows one endpoint at a time: down to this machine's memory, then up.",
        "Peak: of the process that measures, in which the copier runs; in brackets what copying added to what it held before.",
    ]
    return Outcome(
        "copy", "Copies between two stores", header, rows, Chart("Copies between two stores", "MiB/s", groups), notes
    )
