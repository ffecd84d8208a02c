"""Blobs: pushed in one go, mounted, pulled whole or in part from memory, by stream or by redirect, deleted."""

import secrets
from urllib.parse import urlsplit

import httpx
import pytest
import trio

from tests.faulty_engine import Refuse, Wrong
from tests.registry.world import Body, MakeWorld, Region, Reply, digest_of

OTHER_FORM = [
    ("bytes=500-1499", (500, 1500)),
    ("bytes=500-", (500, None)),
    ("bytes=-500", (-500, None)),
    ("bytes=0-0", (0, 1)),
    ("bytes=2000-500000", (2000, None)),
]


@pytest.mark.parametrize("size", [0, 1, 3000, 200_000])
@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
async def test_a_blob_comes_back(us: Region, repository: str, size: int, algorithm: str) -> None:
    """What was pushed in a single POST is pulled byte for byte; HEAD tells its size and digest (end-2, end-4b)."""
    data = secrets.token_bytes(size)
    digest = await us.push_blob(repository, data, algorithm)
    path = f"/v2/{repository}/blobs/{digest}"
    head = await us.ask("HEAD", path)
    assert (head.status, head.length, head.body) == (200, size, b"")
    assert head.headers["docker-content-digest"] == digest
    pulled = await us.ask("GET", path)
    assert (pulled.status, pulled.body, pulled.headers["docker-content-digest"]) == (200, data, digest)
    assert (pulled.headers["content-type"], pulled.headers["accept-ranges"]) == ("application/octet-stream", "bytes")


async def test_sha512_named_early_or_late(us: Region, repository: str) -> None:
    """sha512 may be announced at the POST (end-4c) or only by the final PUT, which then reads the object once."""
    data = secrets.token_bytes(300_000)
    digest = digest_of(data, "sha512")
    for query, reads in (("?digest-algorithm=sha512", 0), ("", 1)):
        location = (await us.patch(await us.start_upload(repository, query), data)).location
        before = [call for call, _ in us.engines["us"].calls].count("open")
        reply = await us.put(location, digest)
        assert (reply.status, reply.headers["docker-content-digest"]) == (201, digest)
        assert [call for call, _ in us.engines["us"].calls].count("open") - before == reads
        late = await us.put(await us.start_upload(repository, query), digest_of(b"no", "sha512"), data)
        assert late.failure == (400, "DIGEST_INVALID")
    assert (await us.ask("GET", f"/v2/{repository}/blobs/{digest}")).body == data
    refused = await us.ask("POST", f"/v2/{repository}/blobs/uploads/?digest-algorithm=md5")
    assert refused.failure == (400, "DIGEST_INVALID")


async def test_unknown_blobs(us: Region, repository: str) -> None:
    """A blob that this repository does not have is BLOB_UNKNOWN, also when another one has it; a bad digest DIGEST_INVALID."""
    digest = await us.push_blob("another/one", b"data")
    for method in ("GET", "HEAD", "DELETE"):
        assert (await us.ask(method, f"/v2/{repository}/blobs/{digest}")).failure == (404, "BLOB_UNKNOWN")
        assert (await us.ask(method, f"/v2/{repository}/blobs/sha256:x")).failure == (400, "DIGEST_INVALID")
    assert (await us.ask("POST", f"/v2/{repository}/blobs/{digest}")).failure == (405, "UNSUPPORTED")


@pytest.mark.parametrize("size", [4000, 300_000], ids=["small", "streamed"])
async def test_ranges(us: Region, repository: str, size: int) -> None:
    """One range is answered with exactly its bytes; one outside the blob is 416 and says how long the blob is."""
    data = secrets.token_bytes(size)
    digest = await us.push_blob(repository, data)
    path = f"/v2/{repository}/blobs/{digest}"
    for header, (start, stop) in OTHER_FORM:
        part = await us.ask("GET", path, headers={"range": header})
        first = start if start >= 0 else size + start
        assert (part.status, part.body) == (206, data[start:stop])
        assert part.headers["content-range"] == f"bytes {first}-{first + len(part.body) - 1}/{size}"
    for header in ("bytes=500-0", f"bytes={size}-", "bytes=-0"):
        refused = await us.ask("GET", path, headers={"range": header})
        assert (refused.status, refused.headers["content-range"]) == (416, f"bytes */{size}")
    assert (await us.ask("GET", path, headers={"range": "bytes=0-1,3-4"})).body == data
    for header in ("bytes=0-0", f"bytes={size}-"):
        head = await us.ask("HEAD", path, headers={"range": header})
        assert (head.status, head.length) == (200, size), "a range is of a GET only (RFC 9110, 14.2)"
        for known, status in ((digest, 206 if header == "bytes=0-0" else 416), ("sha256:other", 200)):
            part = await us.ask("GET", path, headers={"range": header, "if-range": f'"{known}"'})
            assert part.status == status, "whoever goes on with another blob begins anew (RFC 9110, 13.1.5)"


async def test_redirects(world: MakeWorld, repository: str) -> None:
    """A larger blob is answered with a presigned URL that gives its bytes, whole or in part, and nothing else, for a while."""
    (us,) = await world("us", ceph=True)
    data = secrets.token_bytes(100_000)
    digest = await us.push_blob(repository, data)
    reply = await us.ask("GET", f"/v2/{repository}/blobs/{digest}", headers={"range": "bytes=5-9"})
    assert (reply.status, reply.outcome, reply.headers["cache-control"]) == (307, "redirect", "no-store")
    assert (reply.headers["antipode-location"], reply.headers["docker-content-digest"]) == ("us", digest)
    assert urlsplit(reply.location).scheme == "http"
    async with httpx.AsyncClient(timeout=60) as client:
        assert (await client.get(reply.location)).content == data
        assert (await client.get(reply.location, headers={"range": "bytes=5-9"})).content == data[5:10]
        # It is soon over, and for this one object and for reading alone.
        where = urlsplit(reply.location)
        assert f"X-Amz-Expires={us.registry.settings.presign_lifetime}&" in where.query
        other = await us.ask("GET", f"/v2/{repository}/blobs/{await us.push_blob(repository, data[::-1])}")
        elsewhere = [urlsplit(other.location).path, where.path.rsplit("/", 4)[0] + "/", f"{where.path}x"]
        tried = [await client.get(where._replace(path=path).geturl()) for path in elsewhere]
        tried += [await client.request(method, reply.location) for method in ("PUT", "DELETE", "POST")]
        assert {answer.status_code for answer in tried} <= {400, 403, 405, 412}
        assert (await client.get(reply.location)).content == data
    small = await us.push_blob(repository, b"a configuration")
    assert (await us.ask("GET", f"/v2/{repository}/blobs/{small}")).status == 200


async def test_small_blobs_come_from_memory(us: Region, repository: str) -> None:
    """A small blob is read from its store once, then answered from memory, also in part."""
    path = f"/v2/{repository}/blobs/{await us.push_blob(repository, b'0123456789')}"
    assert (await us.ask("GET", path)).outcome == "streamed"
    us.engines["us"].plan_all(Refuse())
    again = await us.ask("GET", path)
    assert (again.outcome, again.body) == ("memory", b"0123456789")
    assert (await us.ask("GET", path, headers={"range": "bytes=3-4"})).body == b"34"


async def test_a_crowd_reads_a_small_blob_once(us: Region, repository: str) -> None:
    """A small blob that many ask for at once is read from its store once, and by each of them if that read fails."""
    path = f"/v2/{repository}/blobs/{await us.push_blob(repository, b'0123456789')}"

    async def crowd() -> list[Reply]:
        replies: list[Reply] = []

        async def one() -> None:
            replies.append(await us.ask("GET", path))

        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(one)
        return replies

    engine = us.engines["us"]
    engine.plan_all(Refuse())
    assert {reply.status for reply in await crowd()} == {503}
    engine.clear()
    before = len(engine.calls)
    replies = await crowd()
    assert {reply.body for reply in replies} == {b"0123456789"}
    assert sorted(reply.outcome for reply in replies) == ["memory"] * 7 + ["streamed"]
    assert len(engine.calls) == before + 1


@pytest.mark.parametrize("size", [4000, 3_000_000], ids=["small", "streamed"])
async def test_a_bad_copy_is_never_served(world: MakeWorld, repository: str, size: int) -> None:
    """Bytes that do not match their digest never reach a client: another copy takes over, without one it is 503."""
    us, _ = await world("us eu", "eu us")
    data = secrets.token_bytes(size)
    path = f"/v2/{repository}/blobs/{await us.push_blob(repository, data)}"
    for operation in ("open", "read"):
        us.engines["us"].plan(operation, Wrong(at=size - 1))
    # Nothing wrong was sent before it was noticed, so an answer can still say so, unless the head had gone out.
    assert (await us.ask("GET", path)).failure == (503, "UNAVAILABLE")


async def test_mounts(us: Region, repository: str) -> None:
    """A blob of another repository is linked without a byte (end-11); what cannot be mounted begins an upload."""
    digest = await us.push_blob("library/base", b"layer" * 1000)
    before = len(us.engines["us"].calls)
    path = f"/v2/{repository}/blobs/uploads/?mount={digest}"
    mounted = await us.ask("POST", f"{path}&from=library/base")
    assert (mounted.status, mounted.location) == (201, f"/v2/{repository}/blobs/{digest}")
    assert len(us.engines["us"].calls) == before
    assert (await us.ask("GET", mounted.location)).body == b"layer" * 1000
    missing = digest_of(b"missing")
    for query in (
        f"mount={digest}",
        f"mount={missing}&from=library/base",
        f"mount={digest}&from=no/such",
        f"mount={digest}&from=Bad Name",
    ):
        began = await us.ask("POST", f"/v2/{repository}/blobs/uploads/?{query}")
        assert (began.status, began.headers["range"]) == (202, "0-0")
    assert (await us.ask("POST", f"{path}x&from=library/base")).failure == (400, "DIGEST_INVALID")


async def test_a_mount_owes_its_namespaces_copies(world: MakeWorld) -> None:
    """A pushed blob and a mounted one owe a copy to every required location but the one that has it."""
    us, _ = await world("us eu", "eu us")
    digest = await us.push_blob("one/repo", b"data")
    assert await us.rows("SELECT l.name FROM task t JOIN location l ON l.id = t.location_id") == [{"name": "eu"}]
    await us.rows("DELETE FROM task")
    assert (await us.ask("POST", f"/v2/two/repo/blobs/uploads/?mount={digest}&from=one/repo")).status == 201
    assert await us.rows("SELECT l.name FROM task t JOIN location l ON l.id = t.location_id") == [{"name": "eu"}]


async def test_a_mount_out_of_a_namespace_that_forbids_a_location(world: MakeWorld) -> None:
    """A blob of a namespace with a *never* is uploaded, not mounted: a link elsewhere would let it out to where it must not be."""
    us, _ = await world("us eu", "eu us")
    digest = await us.push_blob("strict/repo", b"data")
    await us.rows(
        "INSERT INTO namespace_never (namespace_id, location_id) SELECT n.id, l.id FROM namespace n, location l "
        "WHERE n.name = 'strict' AND l.name = 'eu'"
    )
    mount = f"blobs/uploads/?mount={digest}&from=strict/repo"
    assert (await us.ask("POST", f"/v2/open/repo/{mount}")).status == 202
    assert (await us.ask("HEAD", f"/v2/open/repo/blobs/{digest}")).status == 404
    assert (await us.ask("HEAD", f"/v2/strict/repo/blobs/{digest}")).status == 200


async def test_a_blob_in_use_stays(us: Region, repository: str) -> None:
    """A blob that a manifest of the repository uses cannot be deleted (405); afterwards it can, in this repository only."""
    layer = secrets.token_bytes(50)
    manifest = await us.push_image(repository, "v1", layer)
    await us.ask("POST", f"/v2/other/repo/blobs/uploads/?mount={digest_of(layer)}&from={repository}")
    path = f"/v2/{repository}/blobs/{digest_of(layer)}"
    assert (await us.ask("DELETE", path)).failure == (405, "UNSUPPORTED")
    assert (await us.ask("GET", path)).status == 200
    await us.ask("DELETE", f"/v2/{repository}/manifests/{manifest}")
    assert (await us.ask("DELETE", path)).status == 202
    for method in ("GET", "DELETE"):
        assert (await us.ask(method, path)).failure == (404, "BLOB_UNKNOWN")
    assert (await us.ask("GET", f"/v2/other/repo/blobs/{digest_of(layer)}")).body == layer


async def test_the_same_bytes_twice_are_one_object(us: Region, repository: str) -> None:
    """A blob that is pushed again keeps its first object; the second one is to be deleted."""
    await us.push_blob(repository, b"same")
    (first,) = await us.rows("SELECT key FROM placement")
    await us.push_blob("other/repo", b"same")
    assert await us.rows("SELECT key FROM placement") == [first]
    (dead,) = await us.rows("SELECT key FROM dead_object")
    assert dead != first
    assert await us.unaccounted("us") == set()


async def test_wrong_pushes_leave_nothing(world: MakeWorld, repository: str) -> None:
    """A wrong digest, length, range or id, or too many bytes: a specific error, no blob, and no object that nobody knows."""
    (us,) = await world("us", maximum_layer_size=100_000)
    uploads, good = f"/v2/{repository}/blobs/uploads/", digest_of(b"data")
    assert (await us.ask("POST", f"{uploads}?digest={digest_of(b'x')}", b"data")).failure == (400, "DIGEST_INVALID")
    for digest in ("sha256:abc", "md5:" + "0" * 32, "nonsense"):
        assert (await us.ask("POST", f"{uploads}?digest={digest}", b"data")).failure == (400, "DIGEST_INVALID")
        assert (await us.put(await us.start_upload(repository), digest, b"data")).failure == (400, "DIGEST_INVALID")
    assert (await us.ask("PUT", await us.start_upload(repository), b"data")).failure == (400, "DIGEST_INVALID")
    location = (await us.patch(await us.start_upload(repository), b"data")).location
    assert (await us.put(location, digest_of(b"other"))).failure == (400, "DIGEST_INVALID")
    assert (await us.ask("GET", location)).failure == (404, "BLOB_UPLOAD_UNKNOWN")
    location = await us.start_upload(repository)
    for wrong in ("x", "5-2", "1-", "-1", "bytes", "0-3-5", "\u0660-\u0663"):
        refused = await us.ask("PATCH", location, b"data", {"content-range": wrong})
        assert refused.failure == (400, "BLOB_UPLOAD_INVALID")
    for length, claimed in ((b"data", "0-9"), (b"more than it says", "0-3")):
        refused = await us.ask("PATCH", await us.start_upload(repository), length, {"content-range": claimed})
        assert refused.failure == (400, "SIZE_INVALID")
    for upload in ("x", "00000000-0000-0000-0000-000000000000", "..", "%20"):
        for method in ("GET", "PATCH", "DELETE"):
            assert (await us.ask(method, uploads + upload)).failure == (404, "BLOB_UPLOAD_UNKNOWN")
        assert (await us.put(uploads + upload, good)).failure == (404, "BLOB_UPLOAD_UNKNOWN")
    for large in (Body(bytes(100_001)), Body(bytes(100_001), chunk=200_000)):
        assert (await us.put(await us.start_upload(repository), digest_of(bytes(100_001)), large)).failure == (
            413,
            "SIZE_INVALID",
        )
    other = await us.start_upload("other/repo")
    assert (await us.patch(other.replace("other/repo", repository), b"data")).failure == (404, "BLOB_UPLOAD_UNKNOWN")
    assert (await us.ask("POST", "/v2/Bad/blobs/uploads/")).failure == (400, "NAME_INVALID")
    assert await us.rows("SELECT FROM blob") == []
    assert await us.unaccounted("us") == set()


@pytest.mark.parametrize("way", ["POST", "PATCH", "PUT"])
async def test_what_says_that_it_is_too_large(world: MakeWorld, repository: str, way: str) -> None:
    """A blob that is too large by its Content-Length is refused before any of it is read, and what came before is kept."""
    (us,) = await world("us", maximum_layer_size=100_000)
    uploads, digest = f"/v2/{repository}/blobs/uploads/", digest_of(bytes(100_001))
    body, says = Body(bytes(1000)), {"content-length": "100000"}
    if way == "POST":
        refused = await us.ask("POST", f"{uploads}?digest={digest}", body, {"content-length": "100001"})
        assert await us.rows("SELECT FROM upload") == []
    else:
        location = (await us.patch(await us.start_upload(repository), b"x")).location
        refused = await us.ask(way, f"{location}&digest={digest}", body, says)
        assert (await us.ask("GET", location)).headers["range"] == "0-0"
    assert refused.failure == (413, "SIZE_INVALID")
    assert body._at == 0, "nothing was read"


async def test_no_store_takes_uploads(world: MakeWorld, repository: str) -> None:
    """When no location of this node may be written to an upload is refused, at once and with a time to come back."""
    (us,) = await world("us")
    await us.rows("UPDATE location SET state = 'draining'")
    us.node.rows = {}
    refused = await us.ask("POST", f"/v2/{repository}/blobs/uploads/")
    assert (refused.failure, refused.headers["retry-after"]) == ((503, "UNAVAILABLE"), "10")
