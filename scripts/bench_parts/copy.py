"""Question `copy`: throughput between two stores by our scheduler and copier, rclone, s5cmd, and one serial stream."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median

import trio
from attrs import frozen

from engines.contract import Part
from replication.plan import SHARED_BY, SMALL
from replication.ports import Wake
from tests.services import fresh_database, required

from .ground import AT_ONCE, ROUND_TRIP, WINDOW, Ground, clean, fill, open_ground
from .machine import collect_garbage, cpu_seconds, reset_peak, resident_bytes, store_pids
from .measure import in_turns
from .peers import say
from .report import Chart, Outcome, number, times
from .sizes import MIB, Sizes, words

OURS, SERIAL = "Antipode's copier (verified)", "one serial stream, 5 MiB parts"
_PART = 5 * MIB
_PATIENCE = 1800.0


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
        # To ask the database is not the product's work: not before as many copies have ended as there are.
        expected = node.scheduler.statistics.copied + len(digests)
        node.hints.publish(Wake(("eu",)))
        while node.scheduler.statistics.copied < expected:  # noqa: ASYNC110 - counts that nobody announces
            await trio.sleep(0.005)
        assert not await node.database.fetch("SELECT FROM task LIMIT 1")
        nursery.cancel_scope.cancel()


async def by_serial_stream(ground: Ground, label: str) -> None:
    """One blob after the other through one stream, in parts of 5 MiB, each written before the next is read; nothing is verified."""
    for at, source in enumerate(ground.sources[label]):
        key, parts = f"{ground.eu.prefix}serial/{at}", list[Part]()
        if source.size <= _PART:
            await ground.eu.put(key, await ground.us.read(source.key, 0, source.size))
            continue
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


async def by_rclone(ground: Ground, label: str, at_once: int = AT_ONCE) -> None:
    """`rclone copy` from bucket to bucket, `at_once` files at a time; for the rest with its defaults: four parts of 5 MiB."""
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
    many = ("--transfers", str(at_once), "--checkers", str(at_once))
    trust = [word for ca in {ground.stores[name].ca for name in ("us", "eu")} if ca for word in ("--ca-cert", ca)]
    command = ["rclone", "--config", os.devnull, "--s3-no-check-bucket", *many, *trust, "copy", source, destination]
    await trio.run_process(command, env=environment, stdin=subprocess.DEVNULL)


async def by_s5cmd(ground: Ground, label: str) -> None:
    """`s5cmd cp`, as many at once as we; it knows one endpoint at a time, so down to this machine's memory and up from there."""
    program, folder = _s5cmd(), f"{ground.prefix}/{label.replace(' ', '-')}"
    assert program is not None
    with tempfile.TemporaryDirectory(prefix="antipode-bench-", dir="/dev/shm") as scratch:
        for name, source, destination in (
            ("us", f"s3://{ground.stores['us'].bucket}/{folder}/*", f"{scratch}/"),
            ("eu", f"{scratch}/", f"s3://{ground.stores['eu'].bucket}/{ground.prefix}/s5cmd/"),
        ):
            store = ground.stores[name]
            keys = {"AWS_ACCESS_KEY_ID": store.access_key, "AWS_SECRET_ACCESS_KEY": store.secret_key}
            if store.ca is not None:
                keys["AWS_CA_BUNDLE"] = store.ca
            command = [
                program,
                "--log",
                "error",
                "--endpoint-url",
                store.endpoint,
                "--numworkers",
                str(AT_ONCE),
                "cp",
                source,
                destination,
            ]
            await trio.run_process(command, env={**os.environ, **keys}, stdin=subprocess.DEVNULL)


def _s5cmd() -> str | None:
    beside = Path(sys.executable).with_name("s5cmd")
    return str(beside) if beside.exists() else shutil.which("s5cmd")


def ways(*, peers: bool, far: bool) -> Mapping[str, Callable[[Ground, str], Awaitable[None]]]:
    """Return what can be measured here, by name; what cannot is said aloud."""
    found = {OURS: by_us, SERIAL: by_serial_stream}
    others = [("rclone copy", by_rclone, shutil.which("rclone")), ("s5cmd cp", by_s5cmd, _s5cmd())]
    if far:
        many = SHARED_BY * AT_ONCE
        others.insert(1, (f"rclone copy, {many} at once", partial(by_rclone, at_once=many), shutil.which("rclone")))
    for name, way, program in others:
        if peers and program is None:
            say(f"SKIPPED {name}: there is no {name.split()[0]} on this machine")
        elif peers:
            found[name] = way
    return found


@frozen
class _Copied:
    """One way's run: blobs and MiB per second, and seconds of the processor per GiB of the copier and of the stores."""

    blobs: float
    rate: float
    each: float
    """Of the copier per blob, in milliseconds."""
    cpu: float
    store: float
    peak: int
    """The most memory that the process held, in bytes."""
    held: int
    """What it held before: the benchmark itself, its libraries and what the allocator keeps of the filling."""


def compare_copies(sizes: Sizes, *, peers: bool) -> list[Outcome]:
    """Measure all ways in turns."""
    sets = {f"{count} blob{'s' * (count > 1)} of {words(size)}": (count, size) for count, size in sizes.copies}
    with fresh_database(required("ANTIPODE_TEST_POSTGRES")) as uri:
        found = trio.run(_compare, sizes, sets, ways(peers=peers, far=sizes.far), uri)
    return [_outcome(found, sizes)]


async def _compare(
    sizes: Sizes,
    sets: Mapping[str, tuple[int, int]],
    chosen: Mapping[str, Callable[[Ground, str], Awaitable[None]]],
    uri: str,
) -> dict[str, dict[str, list[_Copied]]]:
    found: dict[str, dict[str, list[_Copied]]] = {label: {name: [] for name in chosen} for label in sets}
    async with open_ground(uri, tls=sizes.tls, far=sizes.far) as ground:
        stores = tuple({pid for port in ground.gateways for pid in store_pids(port)})
        for label, (count, size) in sets.items():
            say(f"filling: {label}")
            await fill(ground, label, count, size)
            for round_ in range(sizes.rounds + 1):
                for name, way in in_turns(tuple(chosen.items()), round_):
                    await _settle(ground)
                    run = await _one(ground, label, way, stores, (count, size))
                    # Whoever is first after the filling pays for the memory that the stores have not had before.
                    if round_:
                        found[label][name].append(run)
                    say(
                        f"{f'round {round_}' if round_ else 'to warm up'}: {label}: {name}: {run.rate:.1f} MiB/s, "
                        f"{run.blobs:.1f} blobs/s, {run.cpu:.2f} CPU s/GiB, {run.each:.2f} CPU ms/blob"
                    )
                    await clean(ground)
    return found


async def _settle(ground: Ground) -> None:
    """Let the stores delete now what they would delete while the next one is measured."""
    for port in ground.gateways:
        await trio.to_thread.run_sync(collect_garbage, port)


async def _one(
    ground: Ground,
    label: str,
    way: Callable[[Ground, str], Awaitable[None]],
    stores: Sequence[int],
    amount: tuple[int, int],
) -> _Copied:
    count, size = amount
    gibibytes = count * size / (1024 * MIB)
    reset_peak(os.getpid())
    held = resident_bytes(os.getpid())
    before, began, store = os.times(), time.monotonic(), cpu_seconds(stores)
    with trio.fail_after(_PATIENCE):
        await way(ground, label)
    seconds, after = time.monotonic() - began, os.times()
    # A program of its own counts when it has ended, ours counts at once.
    spent = sum(after[:4]) - sum(before[:4])
    return _Copied(
        blobs=count / seconds,
        rate=count * size / MIB / seconds,
        each=1000 * spent / count,
        cpu=spent / gibibytes,
        store=(cpu_seconds(stores) - store) / gibibytes,
        peak=resident_bytes(os.getpid(), peak=True) if way in (by_us, by_serial_stream) else 0,
        held=held,
    )


def _outcome(found: Mapping[str, Mapping[str, Sequence[_Copied]]], sizes: Sizes) -> Outcome:
    title = "Copies between two stores" + ", an ocean apart" * sizes.far + ", over TLS" * sizes.tls
    rows, groups = [], dict[str, dict[str, float]]()
    for label, by_way in found.items():
        ours = median(run.rate for run in by_way[OURS])
        for name, runs in by_way.items():
            rate = median(run.rate for run in runs)
            groups.setdefault(label, {})[name] = rate
            peak, added = max((run.peak, run.peak - run.held) for run in runs)
            rows.append(
                (
                    label, name, number(rate), number(median(run.blobs for run in runs)),
                    ", ".join(number(run.rate) for run in runs), times(ours, rate),
                    number(median(run.cpu for run in runs)), number(median(run.each for run in runs)),
                    number(median(run.store for run in runs)), f"{peak >> 20} ({added >> 20})" if peak else "-",
                )
            )  # fmt: skip
    header = (
        "what", "how", "MiB/s", "blobs/s", "rounds, MiB/s", "Antipode is", "copier CPU s/GiB", "CPU ms/blob", "store CPU s/GiB",
        "peak MiB",
    )  # fmt: skip
    notes = [
        "Antipode: claims in PostgreSQL, every MiB verified, placements recorded.",
        f"{AT_ONCE} blobs at once, by all ways but the serial stream; in turns there and back, after a round that does not count.",
        "s5cmd knows one endpoint at a time: down to this machine's memory, then up.",
        "Peak: of the process that measures, in which the copier runs; in brackets what copying added to what it held before.",
    ]
    if sizes.far:
        notes.append(
            f"The store that is copied from is {1000 * ROUND_TRIP:.0f} ms away, with at most {WINDOW // MIB} MiB under way on each "
            "connection."
        )
        notes.append(
            f"There Antipode by itself copies {SHARED_BY} blobs of at most {SMALL // 1024} KiB at once where it copies one else. "
            f"rclone can be told to, and is measured with {SHARED_BY * AT_ONCE} of any size, too."
        )
    return Outcome(
        "copy" + "-far" * sizes.far + "-tls" * sizes.tls, title, header, rows, Chart(title, "MiB/s", groups), notes
    )
