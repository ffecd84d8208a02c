"""Operators change policies and locations of running nodes over Ceph, by the API and the command line, while blobs come in."""

import hashlib
import json
import subprocess
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import httpx
import trio

from node.commands.location import EXIT_STUCK
from replication.plan import STALLED_AFTER
from tests.cluster import Cluster, StartCluster, program
from tests.faults import MakeFaulty
from tests.services import Store, fetch_rows

_SECONDS = 60.0


async def _push(url: str, repository: str, data: bytes) -> str:
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    async with httpx.AsyncClient(timeout=30) as client:
        answer = await client.post(f"{url}/v2/{repository}/blobs/uploads/?digest={digest}", content=data)
    assert answer.status_code == 201, answer.text
    return digest


async def _pull(url: str, repository: str, digest: str) -> httpx.Response:
    async with httpx.AsyncClient(timeout=30, follow_redirects=True) as client:
        return await client.get(f"{url}/v2/{repository}/blobs/{digest}")


async def _ask(url: str, path: str, method: str = "GET", body: object = None) -> Any:
    async with httpx.AsyncClient(timeout=30) as client:
        answer = await client.request(method, f"{url}/api/v1{path}", json=body)
    return answer.json()


async def _until(look: Callable[[], Awaitable[bool]]) -> None:
    with trio.fail_after(_SECONDS):
        while not await look():  # noqa: ASYNC110 - another process's doing has no event here
            await trio.sleep(0.1)


async def _holds(url: str, **blobs: int) -> bool:
    lines = {line["name"]: line for line in (await _ask(url, "/location"))["locations"]}
    return all(lines[name]["blobs"] == count for name, count in blobs.items())


async def _run(cluster: Cluster, *words: str, code: int = 0) -> str:
    command = [*program(), *words, "--config", str(cluster.configuration_file)]
    done = await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False)
    assert done.returncode == code, (words, done.returncode, done.stdout, done.stderr)
    return bytes(done.stdout or done.stderr).decode()


async def test_policies_and_locations_of_running_nodes(start_cluster: StartCluster, repository: str) -> None:
    """A policy trims and brings back copies, a pause and a drain are obeyed, a removal leaves the bucket."""
    nodes = await start_cluster("us eu", "eu us")
    url = nodes["us"].url
    namespace = repository.partition("/")[0]
    digest = await _push(url, repository, b"x" * 100_000)
    await _until(lambda: _holds(url, us=1, eu=1))

    made = await _ask(url, f"/namespace/{namespace}/policy", "PUT", {"required": ["us"], "never": ["eu"]})
    assert made["trims"] == {"eu": {"blobs": 1, "bytes": 100_000}}
    await _until(lambda: _holds(url, us=1, eu=0))
    # Never binds uploads, too: the eu node writes to us.
    other = await _push(nodes["eu"].url, repository, b"y" * 50_000)
    assert await _holds(url, us=2, eu=0)
    assert (await _pull(nodes["eu"].url, repository, other)).status_code == 200
    assert json.loads(await _run(nodes, "replication", "risk", "--output", "json"))["risk"][1]["blobs"] == 2

    assert "0 errors" not in await _run(nodes, "policy", "remove", namespace)
    await _until(lambda: _holds(url, us=2, eu=2))

    await _run(nodes, "location", "pause", "us")
    await _until(lambda: _refuses_us(nodes, repository, digest))
    await _push(url, repository, b"z" * 10_000)
    assert await _holds(url, us=2, eu=3)
    await _run(nodes, "location", "resume", "us")
    await _until(lambda: _holds(url, us=3, eu=3))

    assert "not drained" in await _run(nodes, "location", "remove", "us", code=1)
    await _run(nodes, "location", "drain", "us", "--wait")
    await _push(url, repository, b"w" * 10_000)
    assert await _holds(url, us=3, eu=4)
    refused = await _ask(url, "/location/eu/state", "PUT", {"state": "draining"})
    assert refused["status"] == 409
    await _run(nodes, "location", "remove", "us")
    assert (await _pull(url, repository, digest)).content == b"x" * 100_000
    assert await _holds(url, us=0, eu=4)
    await _run(nodes, "location", "add", "us", "--wait")
    assert await _holds(url, us=4, eu=4)
    assert "all copies: 4 of 4" in await _run(nodes, "verify", "--location", "us")
    orphans = json.loads(await _run(nodes, "orphans", "--location", "us", "--output", "json"))["orphans"]
    blobs = [orphan for orphan in orphans if not any(part in orphan["key"] for part in ("/journal/", "/manifests/"))]
    assert len(blobs) == 3, "a removal leaves the bucket as it is, and the database forgets it"


async def _refuses_us(nodes: Cluster, repository: str, digest: str) -> bool:
    """Whether both nodes read the blob, but not from us."""
    answers = [await _pull(node.url, repository, digest) for node in nodes]
    assert all(answer.status_code == 200 for answer in answers)
    sources = [answer.history[0] if answer.history else answer for answer in answers]
    return all(source.headers["antipode-location"] == "eu" for source in sources)


async def test_a_location_fails_back_by_itself(
    start_cluster: StartCluster, faulty_store: MakeFaulty, repository: str
) -> None:
    """Pushes that went elsewhere while a store was down come home when it is back, and spare copies are trimmed."""
    eu = await faulty_store("eu")
    nodes = await start_cluster("eu us", stores={"eu": eu.store}, HEALTH_RECOVERY_QUIET=1)
    url = nodes["eu"].url
    namespace = repository.partition("/")[0]
    await _ask(url, f"/namespace/{namespace}/policy", "PUT", {"required": ["eu"]})
    eu.break_("refuse")
    await _until(lambda: _verdict(url, "eu", "down"))
    digests = [await _push(url, repository, bytes([n]) * 20_000) for n in range(3)]
    assert await _holds(url, us=3, eu=0)
    assert (await _ask(url, "/replication/status"))["locations"][0]["debt_blobs"] == 3
    eu.mend()
    await _until(lambda: _holds(url, eu=3))
    # Trimming is gentle; an operator who asks for a round gets it at once.
    await _run(nodes, "policy", "apply")
    await _until(lambda: _holds(url, us=0, eu=3))
    for n, digest in enumerate(digests):
        assert (await _pull(url, repository, digest)).content == bytes([n]) * 20_000


async def test_a_spare_copy_goes_only_after_one_that_stays_was_read(
    start_cluster: StartCluster, s3_stores: dict[str, Store], database_uri: str, repository: str
) -> None:
    """The copy that a policy keeps has silently rotted: the other one stays until it has healed it, and goes then."""
    nodes = await start_cluster("us eu", "eu us")
    url, data = nodes["us"].url, b"x" * 300_000
    digest = await _push(url, repository, data)
    await _until(lambda: _holds(url, us=1, eu=1))
    keys = "SELECT p.key FROM placement p JOIN location l ON l.id = p.location_id WHERE l.name = 'us'"
    ((key,),) = await trio.to_thread.run_sync(fetch_rows, database_uri, keys)
    store = s3_stores["us"]
    rotten = partial(store.client().put_object, Bucket=store.bucket, Key=key, Body=b"x" * 299_999 + b"y")
    await trio.to_thread.run_sync(rotten)
    namespace = repository.partition("/")[0]
    await _ask(url, f"/namespace/{namespace}/policy", "PUT", {"required": ["us"]})

    async def healed() -> bool:
        return await trio.to_thread.run_sync(fetch_rows, database_uri, keys) != [(key,)]

    await _until(healed)
    assert await _holds(url, us=1, eu=1), "the copy that healed the other one is still there"
    await _run(nodes, "policy", "apply")
    await _until(lambda: _holds(url, us=1, eu=0))
    ((key,),) = await trio.to_thread.run_sync(fetch_rows, database_uri, keys)
    found = await trio.to_thread.run_sync(partial(store.client().get_object, Bucket=store.bucket, Key=key))
    assert found["Body"].read() == data
    assert (await _pull(nodes["eu"].url, repository, digest)).content == data
    assert "it is not good" in nodes["us"].log + nodes["eu"].log
    async with httpx.AsyncClient(timeout=60) as client:
        counts = [(await client.get(f"{node.url}/metrics")).text for node in nodes]
    for outcome in ("wrong", "right"):
        assert sum(f'antipode_trim_reads_total{{outcome="{outcome}"}} 1.0' in text for text in counts) == 1


async def test_what_nobody_trusts_is_moved_out_of_a_drained_location(
    start_cluster: StartCluster, s3_stores: dict[str, Store], database_uri: str, repository: str
) -> None:
    """Of two blobs with nothing but a suspect copy there the right one is copied out; the other one keeps the location, by name."""
    nodes = await start_cluster("us eu", "eu us")
    url = nodes["us"].url
    namespace = repository.partition("/")[0]
    await _ask(url, f"/namespace/{namespace}/policy", "PUT", {"required": ["us"]})
    right, wrong = [await _push(url, repository, text * 100_000) for text in (b"r", b"w")]
    await _run(nodes, "location", "pause", "us")
    distrust = "UPDATE placement SET state = 'suspect', reason = 'it was said so' RETURNING key"
    keys = [key for (key,) in await trio.to_thread.run_sync(fetch_rows, database_uri, distrust)]
    (key,) = [key for key in keys if wrong.partition(":")[2] in key]
    store = s3_stores["us"]
    rotten = partial(store.client().put_object, Bucket=store.bucket, Key=key, Body=b"w" * 99_999 + b"x")
    await trio.to_thread.run_sync(rotten)
    await _run(nodes, "location", "drain", "us")
    await _until(lambda: _holds(url, eu=1))
    assert (await _pull(nodes["eu"].url, repository, right)).content == b"r" * 100_000
    refused = await _ask(url, "/location/us/state", "PUT", {"state": "removed"})
    assert (refused["status"], refused["only_copies"], refused["suspect_blobs"]) == (409, 1, 1)
    assert "no copy is trusted" in refused["detail"]
    errors = "SELECT t.last_error FROM task t JOIN location l ON l.id = t.location_id WHERE l.name = 'eu'"
    await _until(lambda: _says(database_uri, errors, "us: "))

    # As if minutes of tries had gone by.
    tried = f"UPDATE task SET attempts = {STALLED_AFTER}, due_at = now() + interval '1 hour' RETURNING attempts"  # noqa: S608 - a number
    await trio.to_thread.run_sync(fetch_rows, database_uri, tried)
    told = await _run(nodes, "location", "drain", "us", "--wait", code=EXIT_STUCK)
    assert all(word in told for word in (wrong, repository, "is wrong", "Push again", "or delete the images"))
    refused = await _ask(url, "/location/us/state", "PUT", {"state": "removed"})
    (line,) = [line for line in (await _ask(url, "/location"))["locations"] if line["name"] == "us"]
    assert (line["stuck_blobs"], line["unproven"], refused["stuck"][0]["digest"]) == (1, 1, wrong)
    assert [(blob["digest"], blob["repositories"]) for blob in line["stuck"]] == [(wrong, [repository])]

    # What is said to help does: a client that pushes asks first, and is not told that the blob is there.
    async with httpx.AsyncClient(timeout=60) as client:
        assert (await client.head(f"{url}/v2/{repository}/blobs/{right}")).status_code == 200
        assert (await client.head(f"{url}/v2/{repository}/blobs/{wrong}")).status_code == 404
    await _push(url, repository, b"w" * 100_000)
    told = await _run(nodes, "location", "drain", "us", "--wait")
    assert "us is drained" in told
    await _run(nodes, "location", "remove", "us")


async def _says(database_uri: str, sql: str, text: str) -> bool:
    rows = await trio.to_thread.run_sync(fetch_rows, database_uri, sql)
    return len(rows) == 1 and text in str(rows[0][0])


async def _verdict(url: str, location: str, verdict: str) -> bool:
    lines = (await _ask(url, "/health/locations"))["locations"]
    return any(line["location"] == location and line["verdict"] == verdict for line in lines)


async def test_a_drain_waits_for_a_store_that_is_away(
    start_cluster: StartCluster, faulty_store: MakeFaulty, repository: str, database_uri: str
) -> None:
    """However often copies failed while it was: who waits is told for whom, and that it is drained when the store is back."""
    us = await faulty_store("us")
    nodes = await start_cluster("us eu", "eu us", stores={"us": us.store})
    url = nodes["us"].url
    await _ask(url, f"/namespace/{repository.partition('/')[0]}/policy", "PUT", {"required": ["us"]})
    digest = await _push(url, repository, b"r" * 100_000)
    us.break_("refuse")
    await trio.to_thread.run_sync(fetch_rows, database_uri, "UPDATE placement SET state = 'suspect' RETURNING 1")
    await _run(nodes, "location", "drain", "us")
    failed = "SELECT t.unreached::text FROM task t JOIN location l ON l.id = t.location_id WHERE l.name = 'eu'"
    await _until(lambda: _says(database_uri, failed, "us"))
    # As if minutes of tries had gone by.
    tried = f"UPDATE task SET attempts = {STALLED_AFTER}, due_at = now() + interval '1 hour' RETURNING attempts"  # noqa: S608 - a number
    await trio.to_thread.run_sync(fetch_rows, database_uri, tried)
    command = [*program(), "location", "drain", "us", "--wait", "--config", str(nodes.configuration_file)]
    process = await trio.lowlevel.open_process(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    seen = b""
    with trio.fail_after(_SECONDS):
        while b"1 blobs wait for us, which" not in seen:
            more = await process.stderr.receive_some()
            assert more, (await process.wait(), seen)
            seen += more
    (line,) = [line for line in (await _ask(url, "/location"))["locations"] if line["name"] == "us"]
    assert (line["stuck_blobs"], line["waiting_blobs"], line["stuck"]) == (0, 1, [])
    assert [(at["location"], at["blobs"], at["paused"]) for at in line["waits_for"]] == [("us", 1, False)]
    us.mend()
    due = "UPDATE task SET due_at = now() RETURNING 1"
    await trio.to_thread.run_sync(fetch_rows, database_uri, due)
    with trio.fail_after(2 * _SECONDS):
        assert (await process.wait(), b"us is drained" in await process.stdout.receive_some()) == (0, True)
    assert (await _pull(nodes["eu"].url, repository, digest)).content == b"r" * 100_000
