"""The rehearsal of what a backup is for, on running nodes over Ceph: an old dump, or none at all, and the stores' journals."""

import hashlib
import json
import os
import subprocess
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from attrs import define, field

from engines.crossing import open_bridge
from node.push.reading import OCI_MANIFEST
from node.records.postgres import open_database
from tests.cluster import Cluster, StartCluster, program
from tests.collection.clock import HOUR, pass_time
from tests.registry.world import image
from tests.services import Store, fetch_rows, fresh_database, required

_SECONDS = 120.0


@define
class Client:
    """Pushes images and remembers what was acknowledged: (repository, tag) -> digest, digest -> its blobs."""

    url: str
    tags: dict[tuple[str, str], str] = field(factory=dict)
    blobs: dict[str, list[bytes]] = field(factory=dict)

    async def push(self, repository: str, tag: str, layer: bytes) -> str:
        config = json.dumps({"architecture": "amd64", "os": "linux", "tag": tag}).encode()
        body = json.dumps(image(config, layer)).encode()
        async with httpx.AsyncClient(base_url=self.url, timeout=60) as http:
            for blob in (config, layer):
                answer = await http.post(f"/v2/{repository}/blobs/uploads/?digest={_digest(blob)}", content=blob)
                assert answer.status_code == 201, answer.text
            answer = await http.put(
                f"/v2/{repository}/manifests/{tag}", content=body, headers={"content-type": OCI_MANIFEST}
            )
            assert answer.status_code == 201, answer.text
        self.tags[repository, tag] = _digest(body)
        self.blobs[_digest(body)] = [config, layer]
        return _digest(body)

    async def delete(self, repository: str, reference: str) -> None:
        async with httpx.AsyncClient(base_url=self.url, timeout=60) as http:
            assert (await http.delete(f"/v2/{repository}/manifests/{reference}")).status_code == 202
        for key, digest in list(self.tags.items()):
            if key[0] == repository and reference in (key[1], digest):
                del self.tags[key]

    async def check(self, url: str) -> None:
        """Every image pulls from a node with the same bytes."""
        async with httpx.AsyncClient(base_url=url, timeout=60, follow_redirects=True) as http:
            for (repository, tag), digest in self.tags.items():
                answer = await http.get(f"/v2/{repository}/manifests/{tag}", headers={"accept": OCI_MANIFEST})
                assert answer.status_code == 200, (repository, tag, answer.text)
                assert _digest(answer.content) == answer.headers["docker-content-digest"] == digest, (repository, tag)
                for blob in self.blobs[digest]:
                    assert (await http.get(f"/v2/{repository}/blobs/{_digest(blob)}")).content == blob


@pytest.fixture
def restored() -> Iterator[str]:
    """Another database, empty."""
    with fresh_database(required("ANTIPODE_TEST_POSTGRES")) as uri:
        yield uri


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


async def _until(look: Callable[[], Awaitable[bool]]) -> None:
    with trio.fail_after(_SECONDS):
        while not await look():  # noqa: ASYNC110 - another process's doing has no event here
            await trio.sleep(0.1)


async def _written(uri: str) -> None:
    """Wait until every journal has every change, and every copy is paid."""
    query = (
        "SELECT FROM journal_entry e WHERE e.batch IS NULL UNION ALL SELECT FROM task UNION ALL "
        "SELECT FROM journal_location jl WHERE jl.snapshot_at IS NULL OR jl.written < (SELECT max(batch) FROM journal_entry) "
        "UNION ALL SELECT WHERE NOT EXISTS (SELECT FROM journal_location)"
    )

    async def done() -> bool:
        return await trio.to_thread.run_sync(fetch_rows, uri, query) == []

    await _until(done)


async def _command(cluster: Cluster, *words: str, code: int = 0) -> str:
    done = await trio.run_process(
        [*program(), *words, "--config", str(cluster.configuration_file)],
        capture_stdout=True,
        capture_stderr=True,
        check=False,
    )
    assert done.returncode == code, (words, done.returncode, done.stdout, done.stderr)
    return bytes(done.stdout).decode()


async def _program(*words: str) -> None:
    done = await trio.run_process(list(words), capture_stdout=True, stderr=subprocess.STDOUT, check=False)
    assert done.returncode == 0, (words[0], done.stdout)


async def _stop(nodes: Cluster) -> None:
    for node in nodes:
        await node.stop()


async def test_an_old_backup_and_the_journals_lose_nothing(
    restored: str,
    start_cluster: StartCluster,
    database_uri: str,
    s3_stores: Mapping[str, Store],
    storage_path: str,
    tmp_path: Path,
) -> None:
    """What was acknowledged before a backup and after it is there, tags do not go back, and what was deleted stays deleted."""
    quick: Mapping[str, Any] = {"JOURNAL_FREQUENCY": "0.3s"}
    nodes = await start_cluster("us eu", "eu us", **quick)
    client = Client(nodes["us"].url)
    await client.push("drill/app", "kept", os.urandom(100_000))
    await client.push("drill/app", "moved", os.urandom(1000))
    await client.push("drill/app", "untagged", os.urandom(1000))
    doomed = await client.push("drill/doomed", "v1", os.urandom(1000))
    layer = client.blobs[doomed][1]
    await _written(database_uri)

    backup = tmp_path / "backup.sql"
    await _program("pg_dump", "--no-owner", "--file", str(backup), database_uri)

    await client.push("drill/app", "moved", os.urandom(2000))
    await client.push("drill/new", "v1", os.urandom(100_000))
    await client.delete("drill/app", "untagged")
    await client.delete("drill/doomed", doomed)
    # Long after: what was deleted is collected, and its bytes leave the stores.
    async with open_bridge(), open_database(database_uri) as database:
        for _ in range(3):
            await pass_time(database, 500 * HOUR)
            await _command(nodes, "collect")
        await pass_time(database, 500 * HOUR)
    hexdigest = _digest(layer).removeprefix("sha256:")

    async def gone() -> bool:
        found = await trio.to_thread.run_sync(s3_stores["eu"].keys, storage_path)
        return found != [] and not any(hexdigest in key for key in found)

    await _until(gone)
    await _written(database_uri)
    await _stop(nodes)

    await _program("psql", "--quiet", "--set", "ON_ERROR_STOP=1", "--file", str(backup), restored)
    stores = nodes.configuration["DISTRIBUTED_STORAGE_CONFIG"]
    later = await start_cluster("us eu", "eu us", DB_URI=restored, DISTRIBUTED_STORAGE_CONFIG=stores, **quick)
    # A client is quicker than the repair: its tag is newer than all that the journals know.
    client.url = later["eu"].url
    await client.push("drill/app", "quick", os.urandom(1000))
    said = await _command(later, "repair", "--after-restore")
    assert "0 blobs lost" in said, said
    assert "collection goes on" in said
    for node in later:
        await client.check(node.url)
    async with httpx.AsyncClient(base_url=later["us"].url, timeout=60) as http:
        assert (await http.get("/v2/drill/app/manifests/untagged")).status_code == 404
        assert (await http.get(f"/v2/drill/doomed/manifests/{doomed}")).status_code == 404
    # Once more finds nothing to do.
    again = json.loads((await _command(later, "repair", "--after-restore", "--output", "json")).splitlines()[-1])
    assert (again["gone"], again["adopted"], again["replayed"]["tags"], again["replayed"]["manifests"]) == (
        0,
        0,
        0,
        0,
    )
    await _stop(later)


async def test_a_registry_without_its_database_is_rebuilt_from_its_stores(
    restored: str, start_cluster: StartCluster, database_uri: str
) -> None:
    """With the database gone, an empty one and two stores are enough: every image pulls from every node with the same bytes."""
    quick: Mapping[str, Any] = {"JOURNAL_FREQUENCY": "0.3s"}
    nodes = await start_cluster("us eu", "eu us", **quick)
    client = Client(nodes["us"].url)
    for n in range(3):
        await client.push("team/app", f"v{n}", os.urandom(10_000))
    # Large enough to be written in parts, into the other region's store.
    client.url = nodes["eu"].url
    await client.push("team/app", "large", os.urandom(12_000_000))
    await client.push("team/app", "v0", os.urandom(1000))
    await _written(database_uri)
    await _stop(nodes)

    stores = nodes.configuration["DISTRIBUTED_STORAGE_CONFIG"]
    later = await start_cluster(
        "us eu", "eu us", launch=False, DB_URI=restored, DISTRIBUTED_STORAGE_CONFIG=stores, **quick
    )
    said = await _command(later, "rescue")
    assert "0 blobs lost" in said, said
    assert "what no rescue can know" in said
    await trio.to_thread.run_sync(later.start_now)
    for node in later:
        await client.check(node.url)
    assert "stop them" in await _refused(later)
    for location in ("us", "eu"):
        await _command(later, "verify", "--location", location)
    assert await trio.to_thread.run_sync(fetch_rows, restored, "SELECT * FROM unverified_copy") == []
    orphans = json.loads(await _command(later, "orphans", "--location", "us", "--output", "json"))["orphans"]
    # A copy that was tried twice, on a busy machine, leaves an object that waited to be deleted when the database went.
    waited = await trio.to_thread.run_sync(fetch_rows, database_uri, "SELECT key FROM dead_object")
    assert {orphan["key"] for orphan in orphans} <= {key for (key,) in waited}, orphans
    await _stop(later)


async def _refused(cluster: Cluster) -> str:
    done = await trio.run_process(
        [*program(), "rescue", "--config", str(cluster.configuration_file)],
        capture_stdout=True,
        capture_stderr=True,
        check=False,
    )
    assert done.returncode == 1
    return bytes(done.stderr).decode()
