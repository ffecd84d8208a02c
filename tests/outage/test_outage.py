"""Three locations on real gateways, each behind a proxy that breaks on command, while blobs are copied between them."""

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from random import Random
from typing import Any

import httpx
import pytest
import trio

from engines.crossing import open_bridge
from node.records.postgres import Row, open_database
from tests.cluster import Cluster, Node, StartCluster
from tests.faults import Fault, FaultyStore, MakeFaulty
from tests.services import Store

MIB = 1 << 20
Look = Callable[..., Awaitable[list[Row]]]

_PLACED = (
    "SELECT b.digest, l.name, p.key, p.state, extract(epoch FROM p.created_at - b.created_at)::float8 AS lag FROM placement p "
    "JOIN blob b ON b.id = p.blob_id JOIN location l ON l.id = p.location_id WHERE b.digest = ANY($1::text[])"
)


@pytest.fixture
async def look(database_uri: str) -> AsyncIterator[Look]:
    """A function that asks the cluster's database."""
    async with open_bridge(), open_database(database_uri) as database:

        async def ask(sql: str, *args: object) -> list[Row]:
            return list(await database.fetch(sql, *args))

        yield ask


class Ground:
    """Locations us, eu and ap: us on one gateway, eu and ap on the other, in folders of their own; a proxy before each."""

    def __init__(self, us: FaultyStore, eu: FaultyStore, ap: FaultyStore) -> None:
        self.us, self.eu, self.ap = us, eu, ap

    @property
    def stores(self) -> Mapping[str, Store]:
        return {"us": self.us.store, "eu": self.eu.store, "ap": self.ap.store}


@pytest.fixture
async def ground(faulty_store: MakeFaulty) -> Ground:
    return Ground(await faulty_store("us"), await faulty_store("eu"), await faulty_store("eu"))


async def push(node: Node, repository: str, data: bytes) -> str:
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    async with httpx.AsyncClient(timeout=120) as client:
        reply = await client.post(f"{node.url}/v2/{repository}/blobs/uploads/?digest={digest}", content=data)
    assert reply.status_code == 201, reply.text
    return digest


async def wait_placed(look: Look, digests: list[str], *locations: str, seconds: float = 120) -> list[Row]:
    """Wait until all blobs are present in all these locations; return the placements there."""
    with trio.fail_after(seconds):
        while True:
            placed = [row for row in await look(_PLACED, digests) if row["name"] in locations]
            if sum(row["state"] == "present" for row in placed) == len(digests) * len(locations):
                return placed
            await trio.sleep(0.1)


def read_all(ground: Ground, cluster: Cluster, placed: list[Row]) -> dict[str, str]:
    """Return the digest of what is really stored, by location. Past the proxies and the product."""
    config: Any = cluster.configuration["DISTRIBUTED_STORAGE_CONFIG"]
    upstream = {"us": ground.us.upstream, "eu": ground.eu.upstream, "ap": ground.ap.upstream}
    found = {}
    for row in placed:
        store = upstream[row["name"]]
        assert config[row["name"]][1]["bucket_name"] == store.bucket
        body = store.client().get_object(Bucket=store.bucket, Key=row["key"])["Body"]
        found[row["name"]] = "sha256:" + hashlib.sha256(body.read()).hexdigest()
    return found


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


@pytest.mark.parametrize(
    "fault",
    [
        "hang",
        pytest.param("refuse", marks=pytest.mark.long),
        pytest.param("reset", marks=pytest.mark.long),
        pytest.param("silent", marks=pytest.mark.long),
    ],
)
async def test_one_bad_location_delays_no_other(
    ground: Ground, start_cluster: StartCluster, look: Look, repository: str, fault: Fault
) -> None:
    """While a location hangs, refuses, resets or is silent the others' lag is as always; it catches up when it is back."""
    nodes = await start_cluster("us eu ap", "eu us ap", stores=ground.stores)
    random = Random(fault)
    digests = [await push(nodes["us"], repository, random.randbytes(20_000)) for _ in range(5)]
    ground.ap.break_(fault)
    sizes = random.choices([2_000, 200_000], k=40)
    digests += [await push(nodes["us"], repository, random.randbytes(size)) for size in sizes]
    placed = await wait_placed(look, digests, "us", "eu")
    lags = [row["lag"] for row in placed if row["name"] == "eu"]
    print(f"lag us to eu while ap is {fault}: p50 {percentile(lags, 0.5):.3f} s, p99 {percentile(lags, 0.99):.3f} s")
    # Whatever waits for the bad location waits for ten seconds at least.
    assert percentile(lags, 0.99) < 5
    ground.ap.mend()
    placed = await wait_placed(look, digests, "us", "eu", "ap")
    assert all(read_all(ground, nodes, [row])[row["name"]] == row["digest"] for row in placed[:12])


async def cut_by_kill(ground: Ground, nodes: Cluster) -> None:
    nodes["eu"].kill()
    await nodes["eu"].start()


async def cut_by_reset(ground: Ground, nodes: Cluster) -> None:
    ground.eu.break_("reset")
    await trio.sleep(1)
    ground.eu.mend()


async def cut_by_hang(ground: Ground, nodes: Cluster) -> None:
    ground.eu.break_("hang")
    await trio.sleep(75)
    ground.eu.mend()


async def cut_by_pause(ground: Ground, nodes: Cluster) -> None:
    nodes["eu"].pause()
    await trio.sleep(8)
    nodes["eu"].resume()


Cut = Callable[[Ground, Cluster], Awaitable[None]]


@pytest.mark.parametrize(
    ("cut", "mebibytes"),
    [
        (cut_by_kill, 64),
        pytest.param(cut_by_reset, 64, marks=pytest.mark.long),
        pytest.param(cut_by_pause, 64, marks=pytest.mark.long),
        pytest.param(cut_by_hang, 64, marks=pytest.mark.long),
        pytest.param(cut_by_kill, 1024, marks=pytest.mark.long),
        pytest.param(cut_by_pause, 1024, marks=pytest.mark.long),
        pytest.param(cut_by_hang, 1024, marks=pytest.mark.long),
    ],
)
async def test_a_cut_copy_goes_on(
    ground: Ground, start_cluster: StartCluster, look: Look, repository: str, cut: Cut, mebibytes: int
) -> None:
    """A copy that is cut off goes on after the parts that are there: what was fetched twice is what was in flight."""
    stores = {"us": ground.us.store, "eu": ground.eu.store}
    nodes = await start_cluster(
        "us eu",
        "eu us",
        stores=stores,
        REPLICATION_PARTS_PER_BLOB=2,
        REPLICATION_LEASE_SECONDS=5,
        REPLICATION_BYTES_PER_SECOND=64 * MIB,
    )
    size = mebibytes * MIB
    ground.eu.bytes_per_second = None
    before = ground.us.answered
    digest = await push(nodes["us"], repository, Random(mebibytes).randbytes(MIB) * mebibytes)
    with trio.fail_after(300):
        while ground.us.answered - before < size // 2:  # noqa: ASYNC110 - bytes on a wire
            await trio.sleep(0.01)
    await cut(ground, nodes)
    placed = await wait_placed(look, [digest], "us", "eu", seconds=400)
    fetched = ground.us.answered - before
    print(f"{cut.__name__} of {mebibytes} MiB: {fetched / MIB:.1f} MiB fetched")
    # Two parts in flight at each side of the cut, and the probes.
    assert fetched < size + 4 * 16 * MIB
    assert set(read_all(ground, nodes, placed).values()) == {digest}


@pytest.mark.parametrize("cut", [cut_by_kill, cut_by_pause, cut_by_hang])
async def test_small_blobs_go_on_too(
    ground: Ground, start_cluster: StartCluster, look: Look, repository: str, cut: Cut
) -> None:
    """Many small copies that are cut off at once all arrive, and none of them leaves an object that no record knows."""
    stores = {"us": ground.us.store, "eu": ground.eu.store}
    nodes = await start_cluster("us eu", "eu us", stores=stores, REPLICATION_LEASE_SECONDS=5)
    random = Random(cut.__name__)
    blobs = [random.randbytes(20_000) for _ in range(100)]
    there = "SELECT FROM placement p JOIN location l ON l.id = p.location_id AND l.name = 'eu'"

    async def pushes() -> None:
        for data in blobs:
            await push(nodes["us"], repository, data)

    with trio.fail_after(400):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pushes)
            while len(await look(there)) < 20:  # noqa: ASYNC110 - another process does it
                await trio.sleep(0.05)
            await cut(ground, nodes)
    digests = ["sha256:" + hashlib.sha256(data).hexdigest() for data in blobs]
    placed = await wait_placed(look, digests, "us", "eu", seconds=400)
    await wait_swept(look)
    upstream, prefix = ground.eu.upstream, placed[0]["key"].partition("/sha256/")[0]
    known = {row["key"] for row in await look("SELECT key FROM placement")}
    assert [key for key in upstream.keys(prefix) if "/sha256/" in key and key not in known] == []


async def wait_swept(look: Look) -> None:
    """Wait until every dead object is gone."""
    with trio.move_on_after(400):
        while await look("SELECT FROM dead_object WHERE key LIKE '%/sha256/%'"):  # noqa: ASYNC110 - another process does it
            await trio.sleep(0.5)
        return
    left = await look("SELECT key, attempts, last_error, not_before - now() AS due FROM dead_object")
    raise AssertionError(f"not deleted: {[dict(row) for row in left]}")


async def test_a_source_that_lies_is_replaced_and_healed(
    ground: Ground, start_cluster: StartCluster, look: Look, repository: str
) -> None:
    """Wrong bytes in a source: the copy takes them from another one, the liar is marked and healed from a good copy."""
    ground.ap.break_("refuse")
    nodes = await start_cluster("us eu ap", "eu us ap", "ap us eu", stores=ground.stores)
    data = Random(7).randbytes(24 * MIB)
    digest = await push(nodes["us"], repository, data)
    placed = await wait_placed(look, [digest], "us", "eu")
    (bad,) = [row["key"] for row in placed if row["name"] == "us"]
    wrong = data[: 15 * MIB + 5] + bytes([data[15 * MIB + 5] ^ 1]) + data[15 * MIB + 6 :]
    store = ground.us.upstream
    store.client().put_object(Bucket=store.bucket, Key=bad, Body=wrong)
    # Which source is the best depends on what was measured: only the liar can be read until it is found out.
    ground.eu.break_("refuse")
    ground.ap.mend()
    with trio.fail_after(120):
        while not await look("SELECT FROM placement WHERE state = 'suspect'"):  # noqa: ASYNC110 - another process does it
            await trio.sleep(0.2)
    ground.eu.mend()
    with trio.fail_after(120):
        while True:
            placed = await wait_placed(look, [digest], "us", "eu", "ap")
            if all(row["key"] != bad for row in placed):
                break
            await trio.sleep(0.2)
    assert read_all(ground, nodes, placed) == dict.fromkeys(("us", "eu", "ap"), digest)
    async with httpx.AsyncClient(timeout=60) as client:
        counts = [(await client.get(f"{node.url}/metrics")).text for node in nodes]
    assert sum('antipode_verification_failures_total{location="us"}' in text for text in counts) >= 1
    assert sum('antipode_heals_total{location="us"} 1.0' in text for text in counts) == 1
