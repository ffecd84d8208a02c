"""What crosses processes: two nodes are one registry, a slow store slows the client, and memory stays flat."""

import gzip
import hashlib
import json
import secrets
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import httpx
import pytest
import trio

from replication.scheduler import SchedulerSettings
from tests.busy import measured, slowness
from tests.cluster import Cluster, Node, StartCluster
from tests.faults import MakeFaulty
from tests.registry.world import MIB, digest_of, until
from tests.sending import send_pieces
from tests.services import Store
from tests.test_metrics import samples, value

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"


def client(node: Node) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=node.url, timeout=120, follow_redirects=True)


async def push(http: httpx.AsyncClient, repository: str, data: bytes) -> str:
    answer = await http.post(f"/v2/{repository}/blobs/uploads/?digest={digest_of(data)}", content=data)
    assert answer.status_code == 201, answer.text
    return digest_of(data)


def patterned(size: int, seed: int) -> Iterator[bytes]:
    """Yield a blob in chunks without holding it."""
    block = Random(seed).randbytes(MIB)
    for n in range(size // MIB):
        yield n.to_bytes(8, "big") + block[8:]


async def pulled_digest(http: httpx.AsyncClient, path: str) -> str:
    sha = hashlib.sha256()
    async with http.stream("GET", path) as answer:
        assert answer.status_code == 200
        async for chunk in answer.aiter_bytes():
            sha.update(chunk)
    return f"sha256:{sha.hexdigest()}"


async def push_patterned(http: httpx.AsyncClient, repository: str, size: int, seed: int) -> str:
    sha = hashlib.sha256()
    for chunk in patterned(size, seed):
        sha.update(chunk)
    digest = f"sha256:{sha.hexdigest()}"
    location = (await http.post(f"/v2/{repository}/blobs/uploads/")).headers["location"]
    answer = await send_pieces(http, "PATCH", location, patterned(size, seed))
    assert answer.status_code == 202, answer.text
    location = answer.headers["location"]
    assert location.startswith("/v2/")
    answer = await http.put(location, params={**dict(httpx.URL(location).params), "digest": digest})
    assert answer.status_code == 201, answer.text
    return digest


async def served_from(http: httpx.AsyncClient, path: str) -> str:
    answer = await http.get(path, follow_redirects=False)
    return answer.headers["antipode-location"]


async def test_pushed_here_pulled_there(cluster: Cluster, repository: str) -> None:
    """A push in us is pullable at once from eu, out of the source store, and a moment later out of eu's own."""
    data = secrets.token_bytes(3 * MIB)
    async with client(cluster["us"]) as us, client(cluster["eu"]) as eu:
        path = f"/v2/{repository}/blobs/{await push(us, repository, data)}"
        assert (await eu.get(path)).content == data

        async def at_home() -> bool:
            return await served_from(eu, path) == "eu"

        await until(at_home)
        assert (await eu.get(path)).content == data


async def test_lag_of_small_blobs(cluster: Cluster, repository: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A small blob has its copy in the other region within half a second, in the median of a hundred."""
    import asyncpg

    # The copies are made by other processes meanwhile: they have as much of the processor as this one.
    slow: list[float] = []
    async with client(cluster["us"]) as us:
        for number in range(100):
            await push(us, repository, secrets.token_bytes(2000))
            if number % 10 == 0:
                slow.append(slowness())

    def lags() -> list[float]:
        import asyncio

        async def ask() -> list[float]:
            connection = await asyncpg.connect(cluster.configuration["DB_URI"])
            try:
                rows = await connection.fetch(
                    """
                    SELECT extract(epoch FROM max(p.created_at) - min(p.created_at))::float8 AS lag
                    FROM placement p JOIN repository_blob rb USING (blob_id) JOIN repository r ON r.id = rb.repository_id
                    WHERE r.name = $1 GROUP BY p.blob_id HAVING count(*) = 2
                    """,
                    repository,
                )
                return [row["lag"] for row in rows]
            finally:
                await connection.close()

        return asyncio.run(ask())

    found: list[float] = []

    async def all_there() -> bool:
        found[:] = await trio.to_thread.run_sync(lags)
        return len(found) == 100

    await until(all_there, seconds=30)
    found.sort()
    with capsys.disabled():
        print(
            f"\nlag of 100 small blobs: p50 {found[50] * 1000:.0f} ms, p99 {found[98] * 1000:.0f} ms, "
            f"{statistics.mean(slow):.1f} times as slow as an idle machine"
        )
    assert statistics.median(found) < 0.5 * statistics.mean(slow)


async def test_two_nodes_in_one_region(start_cluster: StartCluster, repository: str) -> None:
    """Two nodes of one region work as one; hints go through the database where there is no Redis."""
    # Only hints can tell a node in time that something has changed.
    nodes = await start_cluster("us eu", "us eu", "eu us", USER_EVENTS_REDIS=None, METADATA_STALENESS="1h")
    data = secrets.token_bytes(300_000)
    async with client(nodes["us"]) as first, client(nodes["us-2"]) as second, client(nodes["eu"]) as eu:
        location = (await first.post(f"/v2/{repository}/blobs/uploads/")).headers["location"]
        location = (await second.patch(location, content=data[:1000])).headers["location"]
        location = (await first.patch(location, content=data[1000:])).headers["location"]
        parameters = {**dict(httpx.URL(location).params), "digest": digest_of(data)}
        assert (await second.put(location, params=parameters)).status_code == 201
        path = f"/v2/{repository}/blobs/{digest_of(data)}"

        async def at_home() -> bool:
            return await served_from(eu, path) == "eu"

        with measured() as slow:
            began = time.monotonic()
            await until(at_home, 60)
            took = time.monotonic() - began
        assert took < SchedulerSettings().poll / 2 * max(slow), "only the safety net's poll brought it"
        config = b"{}"
        await push(first, repository, config)
        manifest = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": {"mediaType": "application/vnd.oci.empty.v1+json", "size": 2, "digest": digest_of(config)},
            "layers": [],
        }
        body = json.dumps(manifest).encode()
        put = await first.put(f"/v2/{repository}/manifests/v1", content=body, headers={"content-type": OCI_MANIFEST})
        assert put.status_code == 201
        for http in (second, eu):
            assert (await http.get(f"/v2/{repository}/manifests/v1")).content == body
            assert (await http.get(f"/v2/{repository}/manifests/{digest_of(body)}")).content == body
        assert (await eu.delete(f"/v2/{repository}/manifests/{digest_of(body)}")).status_code == 202

        async def gone() -> bool:
            return (await second.get(f"/v2/{repository}/manifests/{digest_of(body)}")).status_code == 404

        await until(gone)


async def test_a_store_that_is_gone(
    start_cluster: StartCluster, faulty_store: MakeFaulty, s3_stores: dict[str, Store], repository: str
) -> None:
    """With the us store gone both nodes serve what has a copy elsewhere, and take pushes."""
    store = await faulty_store("us")
    nodes = await start_cluster("us eu", "eu us", stores={"us": store.store})
    data = secrets.token_bytes(2 * MIB)
    async with client(nodes["us"]) as us, client(nodes["eu"]) as eu:
        path = f"/v2/{repository}/blobs/{await push(us, repository, data)}"

        async def at_home() -> bool:
            return await served_from(eu, path) == "eu"

        await until(at_home)
        store.break_("refuse")
        # At once, too: a redirect to the dead store may be given until a probe has failed, so these do not follow any.
        for http in (us, eu):
            answers = [await http.get(path, follow_redirects=False) for _ in range(3)]
            assert {answer.status_code for answer in answers} <= {200, 307}

        async def streamed() -> bool:
            answer = await us.get(path, follow_redirects=False)
            return answer.headers["antipode-location"] == "eu" or answer.status_code == 200

        await until(streamed)
        for http in (us, eu):
            answer = await http.get(path)
            assert answer.content == data

        async def takes_pushes() -> bool:
            fresh = secrets.token_bytes(1000)
            answer = await us.post(f"/v2/{repository}/blobs/uploads/?digest={digest_of(fresh)}", content=fresh)
            assert answer.status_code in (201, 503)
            return answer.status_code == 201

        await until(takes_pushes, seconds=60)
        store.mend()


async def test_a_slow_store_slows_the_client(
    start_cluster: StartCluster, faulty_store: MakeFaulty, repository: str
) -> None:
    """A client is taken in no faster than the store takes, and the node's memory stays flat meanwhile."""
    store = await faulty_store("us")
    nodes = await start_cluster("us", stores={"us": store.store}, DISTRIBUTED_STORAGE_DEFAULT_LOCATIONS=["us"])
    node = nodes["us"]
    async with client(node) as us:
        await push_patterned(us, repository, 32 * MIB, seed=1)
        store.bytes_per_second = 8 * MIB
        before, began = node.resident_bytes, time.monotonic()
        await push_patterned(us, repository, 128 * MIB, seed=2)
        seconds = time.monotonic() - began
        store.bytes_per_second = None
    # Two parts are on their way at once, each over a connection of its own.
    assert seconds > 128 / 8 / 2 * 0.6
    assert node.peak_resident_bytes < before + 48 * MIB


async def large(
    start_cluster: StartCluster, repository: str, size: int, copies: int, *, far_first: bool = False
) -> tuple[tuple[Node, Node], int]:
    """Push one blob of `size` bytes to the node that makes `copies` copies of as much in all at the same time, and pull it.

    With `far_first` it is pulled where it is still missing before it is where it was pushed: pull and copy share one fetch.
    Returns the nodes, and how many copies the second one was at at the same time.
    """
    # A store that is healthy at the beginning stays so: fewer copies go into one that is slow to answer a probe.
    probes: dict[str, Any] = {"HEALTH_PROBE_INTERVAL": "5m", "HEALTH_PROBE_DEADLINE": "30s"}
    nodes, most = await start_cluster("us eu", "eu us", launch=False, FEATURE_PROXY_STORAGE=True, **probes), 0.0
    await nodes["us"].start()
    async with client(nodes["us"]) as us, client(nodes["eu"]) as eu:

        async def paused() -> bool:
            return await metric(us, "antipode_location_state", location="eu", state="paused") == 1

        async def healthy() -> bool:
            return await metric(eu, "antipode_location_verdict", location="eu", verdict="healthy") == 1

        # A node that is alone copies for the other regions as well: while eu is paused nobody does.
        await set_state(us, "eu", "paused")
        await until(paused)
        for seed in range(copies):
            await push_patterned(us, repository, size // copies, seed=100 + seed)
        await nodes["eu"].start()
        # Where nothing is known of a store yet, a node begins with one copy at a time.
        await until(healthy)
        async with trio.open_nursery() as nursery:

            async def look() -> None:
                nonlocal most
                while True:
                    most = max(most, await metric(eu, "antipode_copies_running", location="eu"))
                    await trio.sleep(0.05)

            async def copies_run() -> bool:
                return most > 0

            nursery.start_soon(look)
            await set_state(eu, "eu", "active")
            await until(copies_run)
            digest = await push_patterned(eu, repository, size, seed=1)
            nursery.cancel_scope.cancel()
        for http in (us, eu) if far_first else (eu, us):
            assert await pulled_digest(http, f"/v2/{repository}/blobs/{digest}") == digest
    return (nodes["us"], nodes["eu"]), int(most)


async def metric(http: httpx.AsyncClient, name: str, **labels: str) -> float:
    """Return what a node says that it has or does now."""
    return value(samples((await http.get("/metrics")).text), name, **labels)


async def set_state(http: httpx.AsyncClient, location: str, state: str) -> None:
    answer = await http.put(f"/api/v1/location/{location}/state", json={"state": state})
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("far_first", [False, True])
async def test_memory_is_bounded(start_cluster: StartCluster, repository: str, *, far_first: bool) -> None:
    """A 256 MiB push and pull, while 8 copies run, stay under 200 MiB resident on both nodes."""
    nodes, most = await large(start_cluster, repository, 256 * MIB, copies=8, far_first=far_first)
    assert most == 8
    for node in nodes:
        assert node.peak_resident_bytes < 200 * MIB, f"{node.name}: {node.peak_resident_bytes / MIB:.0f} MiB"


@pytest.mark.long
async def test_memory_is_bounded_for_large_blobs(
    start_cluster: StartCluster, repository: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A 2 GiB push to a node that makes 8 copies at once, and its pull, stay under 200 MiB resident on both nodes."""
    nodes, most = await large(start_cluster, repository, 2048 * MIB, copies=8)
    assert most == 8
    for node in nodes:
        with capsys.disabled():
            print(f"\npeak resident memory of {node.name}: {node.peak_resident_bytes / MIB:.0f} MiB")
        assert node.peak_resident_bytes < 200 * MIB


async def test_skopeo_round_trip(cluster: Cluster, repository: str, tmp_path: Path) -> None:
    """What skopeo pushes to us it pulls from eu, byte for byte."""
    blobs = tmp_path / "image" / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def keep(data: bytes) -> dict[str, object]:
        digest = digest_of(data)
        (blobs / digest.removeprefix("sha256:")).write_bytes(data)
        return {"digest": digest, "size": len(data)}

    content = secrets.token_bytes(200_000)
    layer = gzip.compress(content)
    config = {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [digest_of(content)]}}
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", **keep(json.dumps(config).encode())},
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", **keep(layer)}],
    }
    top = {
        "mediaType": OCI_MANIFEST,
        **keep(json.dumps(manifest).encode()),
        "annotations": {"org.opencontainers.image.ref.name": "v1"},
    }
    (tmp_path / "image" / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [top]}))
    (tmp_path / "image" / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    steps = (
        (f"oci:{tmp_path}/image:v1", f"docker://127.0.0.1:{cluster['us'].port}/{repository}:v1"),
        (f"docker://127.0.0.1:{cluster['eu'].port}/{repository}:v1", f"oci:{tmp_path}/back:v1"),
    )
    for source, target in steps:
        command = ["skopeo", "--insecure-policy", "copy", "--all", "--src-tls-verify=false", "--dest-tls-verify=false"]
        done = await trio.run_process([*command, source, target], capture_stdout=True, capture_stderr=True, check=False)
        assert done.returncode == 0, done.stderr.decode()
    back = tmp_path / "back" / "blobs" / "sha256"
    assert {file.name: file.read_bytes() for file in back.iterdir()} == {
        file.name: file.read_bytes() for file in blobs.iterdir()
    }


async def test_an_unreachable_database(start_cluster: StartCluster) -> None:
    """A node whose database cannot be reached does not start: exit code 1, one line that names the key."""
    nodes = await start_cluster("us eu", launch=False, DB_URI="postgresql://antipode@127.0.0.1:1/nothing")
    nodes["us"].launch()
    assert await nodes["us"].wait_ended() == 1
    lines = [line for line in nodes["us"].log.splitlines() if "DB_URI" in line]
    assert len(lines) == 1
    assert "Traceback" not in nodes["us"].log


async def test_an_unknown_location(start_cluster: StartCluster) -> None:
    """An unknown id in the preference is a configuration error that names the known ones: exit code 2."""
    nodes = await start_cluster("us nowhere", launch=False)
    nodes["us"].launch()
    assert await nodes["us"].wait_ended() == 2
    log = nodes["us"].log
    assert "QUAY_DISTRIBUTED_STORAGE_PREFERENCE" in log
    assert "nowhere" in log
    assert "us" in log
    assert "eu" in log
