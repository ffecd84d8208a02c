"""A store that dies in the middle of a push, on real nodes, stores and clients: the push lands elsewhere and comes home later."""

import json
import secrets
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
import trio

from engines.crossing import open_bridge
from node.records.postgres import open_database
from tests.cluster import Cluster, Node, StartCluster
from tests.faults import Fault, FaultyStore, MakeFaulty
from tests.registry.world import MIB, digest_of, until
from tests.sending import send_pieces

SIZE = 20 * MIB
BOUND = 5.0
"""Seconds from a store's death to the answer: its next probe, and the silence that is waited for."""

FAULTS: tuple[Fault, ...] = ("refuse", "hang", "reset")


def client(node: Node) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=node.url, timeout=60, follow_redirects=True, trust_env=False)


def arriving(data: bytes, at: int, then: Callable[[], None]) -> Iterator[bytes]:
    """Send a body in pieces; do something when byte `at` is reached."""
    for start in range(0, len(data), MIB):
        if start == at:
            then()
        yield data[start : start + MIB]


async def begin(http: httpx.AsyncClient, repository: str) -> str:
    answer = await http.post(f"/v2/{repository}/blobs/uploads/")
    assert answer.status_code == 202, answer.text
    return answer.headers["location"]


async def put(http: httpx.AsyncClient, location: str, data: bytes, content: bytes = b"") -> httpx.Response:
    return await http.put(f"{location}&digest={digest_of(data)}", content=content)


async def push(http: httpx.AsyncClient, repository: str, data: bytes) -> None:
    """POST, PATCH and PUT, as docker and podman do."""
    patched = await http.patch(await begin(http, repository), content=data)
    assert patched.status_code == 202, patched.text
    done = await put(http, patched.headers["location"], data)
    assert done.status_code == 201, done.text


async def rows(uri: str, sql: str) -> list[object]:
    async with open_bridge(), open_database(uri, most=1) as database:
        return [tuple(row.values()) for row in await database.fetch(sql)]


async def until_home(uri: str, us: FaultyStore, path: str) -> None:
    """Wait until the us store has a copy of everything, and nothing else."""

    async def paid() -> bool:
        dead = "SELECT FROM dead_object WHERE key !~ '(^|/)(journal|manifests)/'"
        return await rows(uri, f"SELECT FROM task UNION ALL {dead}") == []

    await until(paid, 60)
    placed = await rows(
        uri, "SELECT p.key FROM placement p JOIN location l ON l.id = p.location_id WHERE l.name = 'us'"
    )
    assert await trio.to_thread.run_sync(us.upstream.open_uploads, path) == []
    found, ours = await trio.to_thread.run_sync(us.upstream.keys, path), ("_antipode/", "/journal/", "/manifests/")
    assert {(key,) for key in found if not any(part in key for part in ours)} == set(placed)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("where", ["PATCH", "PUT"])
async def test_a_store_dies_in_the_middle(
    start_cluster: StartCluster,
    faulty_store: MakeFaulty,
    database_uri: str,
    storage_path: str,
    repository: str,
    fault: Fault,
    where: str,
) -> None:
    """The client hears of it at once and begins again elsewhere; later the blob is at home, and nothing of the first try is."""
    us = await faulty_store("us")
    nodes = await start_cluster("us eu", stores={"us": us.store}, HEALTH_RECOVERY_QUIET="1s")
    data, broken = secrets.token_bytes(SIZE), [0.0]

    def die() -> None:
        us.break_(fault)
        broken[0] = trio.current_time()

    async with client(nodes["us"]) as http:
        location = await begin(http, repository)
        if where == "PATCH":
            failed = await send_pieces(http, "PATCH", location, arriving(data, SIZE // 2, die))
        else:
            location = (await http.patch(location, content=data)).headers["location"]
            die()
            failed = await put(http, location, data)
        assert trio.current_time() - broken[0] < BOUND
        assert failed.status_code == 503, failed.text
        assert failed.headers["retry-after"] == "1"
        status = await http.get(location)
        assert (status.status_code, status.json()["errors"][0]["code"]) == (404, "BLOB_UPLOAD_UNKNOWN")
        began = trio.current_time()
        await push(http, repository, data)
        assert trio.current_time() - began < BOUND
        pulled = await http.get(f"/v2/{repository}/blobs/{digest_of(data)}")
        assert pulled.content == data
        us.mend()
        await rows(database_uri, "UPDATE dead_object SET not_before = now()")
        await until_home(database_uri, us, storage_path)


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_spool_hides_the_death(
    start_cluster: StartCluster,
    faulty_store: MakeFaulty,
    database_uri: str,
    storage_path: str,
    tmp_path: Path,
    repository: str,
    fault: Fault,
) -> None:
    """With UPLOAD_SPOOL the very PATCH, and the very PUT, in which the store dies succeed; the disk is empty afterwards."""
    us = await faulty_store("us")
    spool = {"path": str(tmp_path), "max_bytes": "100MiB"}
    nodes = await start_cluster("us eu", stores={"us": us.store}, HEALTH_RECOVERY_QUIET="1s", UPLOAD_SPOOL=spool)
    first, second = secrets.token_bytes(SIZE), secrets.token_bytes(SIZE)
    async with client(nodes["us"]) as http:
        one, two = await begin(http, repository), await begin(http, repository)
        # The second is at rest with all its bytes when the first meets the end of the store.
        two = (await http.patch(two, content=second)).headers["location"]
        began = trio.current_time()
        patched = await send_pieces(http, "PATCH", one, arriving(first, SIZE // 2, lambda: us.break_(fault)))
        assert patched.status_code == 202, patched.text
        for location, data in ((patched.headers["location"], first), (two, second)):
            done = await put(http, location, data)
            assert done.status_code == 201, done.text
            assert (await http.get(f"/v2/{repository}/blobs/{digest_of(data)}")).content == data
        assert trio.current_time() - began < 4 * BOUND
        us.mend()
        await rows(database_uri, "UPDATE dead_object SET not_before = now()")
        await until_home(database_uri, us, storage_path)
    # A nameless file in use would still be held by the process.
    assert nameless_files(nodes["us"], tmp_path) == []


def nameless_files(node: Node, folder: Path) -> list[Path]:
    """Return the files that a node holds open in a folder although they are not to be seen there."""
    held = []
    for entry in Path(f"/proc/{node.pid}/fd").iterdir():
        # A node that goes on closes its sockets while they are listed here.
        with suppress(FileNotFoundError):
            held.append(entry.readlink())
    return [path for path in held if path.is_relative_to(folder) and path.name.endswith("(deleted)")]


def image_layout(folder: Path, size: int) -> Path:
    """Write an OCI layout of one image with one layer of random bytes."""
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def write(data: bytes) -> dict[str, object]:
        digest = digest_of(data)
        (blobs / digest.removeprefix("sha256:")).write_bytes(data)
        return {"digest": digest, "size": len(data)}

    content = folder / "content"
    content.write_bytes(secrets.token_bytes(size))
    with tarfile.open(folder / "layer.tar", "w") as layer:
        layer.add(content, "content")
    tar = (folder / "layer.tar").read_bytes()
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [digest_of(tar)]},
        }
    )
    kind = "application/vnd.oci.image"
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{kind}.manifest.v1+json",
        "config": {"mediaType": f"{kind}.config.v1+json", **write(config.encode())},
        "layers": [{"mediaType": f"{kind}.layer.v1.tar", **write(tar)}],
    }
    descriptor = {"mediaType": manifest["mediaType"], **write(json.dumps(manifest).encode())}
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [descriptor]}))
    return folder


async def copied_while_the_store_dies(
    nodes: Cluster, us: FaultyStore, path: str, layout: Path, repository: str, *words: str
) -> subprocess.CompletedProcess[bytes]:
    """Copy an image with skopeo; the us store refuses everything as soon as it holds a part of the upload."""
    target = f"docker://{nodes['us'].url.removeprefix('http://')}/{repository}:v1"
    command = ["skopeo", "copy", *words, "--dest-tls-verify=false", f"oci:{layout}", target]
    result: list[subprocess.CompletedProcess[bytes]] = []
    us.bytes_per_second = 20 * MIB

    async def copy() -> None:
        with trio.fail_after(60):
            result.append(await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(copy)

        async def under_way() -> bool:
            return bool(await trio.to_thread.run_sync(us.upstream.open_uploads, path))

        await until(under_way, 30)
        us.break_("reset")
    return result[0]


@pytest.mark.parametrize("kept", [False, True], ids=["begins again", "spool"])
async def test_skopeo_succeeds(
    start_cluster: StartCluster,
    faulty_store: MakeFaulty,
    storage_path: str,
    tmp_path: Path,
    repository: str,
    kept: bool,
) -> None:
    """`skopeo copy` of a large image succeeds though the store dies meanwhile: with its retries, and without any by the spool."""
    if shutil.which("skopeo") is None:
        pytest.skip("skopeo is not installed")
    us = await faulty_store("us")
    room = "200MiB" if kept else 0
    # A busy machine must not make the store look ill before its time.
    nodes = await start_cluster(
        "us eu", stores={"us": us.store}, UPLOAD_SPOOL={"max_bytes": room}, HEALTH_PROBE_DEADLINE="20s"
    )
    layout = image_layout(tmp_path / "layout", 60 * MIB)
    words = [] if kept else ["--retry-times", "3"]
    done = await copied_while_the_store_dies(nodes, us, storage_path, layout, repository, *words)
    assert done.returncode == 0, done.stderr.decode()
    log = nodes["us"].log
    assert "store failed an upload" in log
    assert ("upload goes on in another store" in log) is kept
    async with client(nodes["us"]) as http:
        manifest = (await http.get(f"/v2/{repository}/manifests/v1")).json()
        (layer,) = manifest["layers"]
        pulled = await http.get(f"/v2/{repository}/blobs/{layer['digest']}")
    assert digest_of(pulled.content) == layer["digest"]
