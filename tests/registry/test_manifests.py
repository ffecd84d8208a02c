"""Manifests, tags and their lists: every endpoint of the distribution specification, with the codes of its errors."""

import json
import secrets
from time import thread_time
from typing import Any

import pytest
import trio

from node.push.reading import DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST, read_manifest
from node.records.manifests import TagAsked, find_by_tags
from tests.registry.world import CONFIG, EMPTY, LAYER, MakeWorld, Region, descriptor, digest_of, image, index, until

INDEX_TYPES = (OCI_INDEX, DOCKER_LIST)


async def push_config(region: Region, name: str) -> bytes:
    config = b'{"architecture": "amd64", "os": "linux", "n": "%s"}' % secrets.token_hex(4).encode()
    await region.push_blob(name, config)
    return config


async def test_base(us: Region) -> None:
    """GET /v2/ says that this is a registry (end-1); other methods are not allowed, other paths unknown."""
    for path in ("/v2", "/v2/"):
        reply = await us.ask("GET", path)
        assert (reply.status, reply.body) == (200, b"{}")
        assert reply.headers["docker-distribution-api-version"] == "registry/2.0"
    refused = await us.ask("POST", "/v2/")
    assert (refused.failure, refused.headers["allow"]) == ((405, "UNSUPPORTED"), "GET, HEAD")
    assert (await us.ask("GET", "/v2/a/b/nothing/here")).failure == (404, "UNSUPPORTED")


async def test_push_and_pull(us: Region, repository: str) -> None:
    """A manifest comes back by tag and by digest byte for byte, with its type, its digest and its length (end-3, end-7)."""
    layer, config = secrets.token_bytes(1000), await push_config(us, repository)
    await us.push_blob(repository, layer)
    body = json.dumps(image(config, layer), indent=3).encode()
    pushed = await us.ask("PUT", f"/v2/{repository}/manifests/v1", body, {"content-type": OCI_MANIFEST})
    assert (pushed.status, pushed.location) == (201, f"/v2/{repository}/manifests/v1")
    assert pushed.headers["docker-content-digest"] == digest_of(body)
    for reference in ("v1", digest_of(body)):
        for method in ("GET", "HEAD"):
            reply = await us.ask(method, f"/v2/{repository}/manifests/{reference}")
            assert (reply.status, reply.body) == (200, body)
            assert reply.headers["content-type"] == OCI_MANIFEST
            assert reply.headers["docker-content-digest"] == digest_of(body)
            for known in (f'W/"x", {reply.headers["etag"]}', "*"):
                again = {"if-none-match": known}
                unchanged = await us.ask(method, f"/v2/{repository}/manifests/{reference}", headers=again)
                assert (unchanged.status, unchanged.body) == (304, b"")


async def test_unknown_manifests(us: Region, repository: str) -> None:
    """An unknown repository is NAME_UNKNOWN, an unknown tag or digest MANIFEST_UNKNOWN, a bad digest DIGEST_INVALID."""
    digest = digest_of(b"nothing")
    assert (await us.ask("GET", f"/v2/{repository}/manifests/v1")).failure == (404, "NAME_UNKNOWN")
    assert (await us.ask("GET", f"/v2/{repository}/tags/list")).failure == (404, "NAME_UNKNOWN")
    await us.push_image(repository, "v1")
    for reference in ("v2", digest, ".bad"):
        for method in ("GET", "HEAD", "DELETE"):
            assert (await us.ask(method, f"/v2/{repository}/manifests/{reference}")).failure == (
                404,
                "MANIFEST_UNKNOWN",
            )
    for method in ("GET", "DELETE", "PUT"):
        refused = await us.ask(method, f"/v2/{repository}/manifests/sha256:baddigest", b"{}")
        assert refused.failure == (400, "DIGEST_INVALID")
    assert (await us.ask("GET", "/v2/Bad/manifests/v1")).failure == (400, "NAME_INVALID")
    long_name = "a/" * 127 + "ab"
    assert (await us.ask("GET", f"/v2/{long_name}/manifests/v1")).failure == (400, "NAME_INVALID")


async def test_sha512_and_tag_parameters(us: Region, repository: str) -> None:
    """A manifest may be addressed by sha512 and be given several tags at once (end-7b); OCI-Tag repeats them."""
    config = await push_config(us, repository)
    body = json.dumps(image(config)).encode()
    digest = digest_of(body, "sha512")
    path = f"/v2/{repository}/manifests/{digest}"
    reply = await us.ask("PUT", f"{path}?tag=a&tag=b&tag=a", body, {"content-type": OCI_MANIFEST})
    assert (reply.status, reply.headers["docker-content-digest"]) == (201, digest)
    assert {tag.strip() for tag in reply.headers["oci-tag"].split(",")} == {"a", "b"}
    for reference in ("a", "b", digest):
        found = await us.ask("GET", f"/v2/{repository}/manifests/{reference}")
        assert (found.body, found.headers["docker-content-digest"]) == (body, digest)
    assert (await us.ask("PUT", f"{path}?tag=.x", body, {"content-type": OCI_MANIFEST})).failure[0] == 400
    many = "&".join(f"tag=t{n}" for n in range(51))
    assert (await us.ask("PUT", f"{path}?{many}", body, {"content-type": OCI_MANIFEST})).failure[0] == 400
    assert (await us.ask("GET", f"/v2/{repository}/tags/list")).json["tags"] == ["a", "b"]


async def test_wrong_manifests(us: Region, repository: str) -> None:
    """What is wrong with a manifest is named, and nothing of it is stored: no row, no tag, no repository."""
    config = await push_config(us, repository)
    good = image(config)
    lost = descriptor(b"never pushed", LAYER)
    wrong: list[tuple[bytes, str, str]] = [
        (b"{", OCI_MANIFEST, "body"),
        (b"\xff\xfe", OCI_MANIFEST, "body"),
        (b"[]", OCI_MANIFEST, "body"),
        (json.dumps(good).encode(), "text/plain", "Content-Type"),
        (json.dumps(good).encode(), DOCKER_MANIFEST, "mediaType"),
        (json.dumps({**good, "schemaVersion": 1}).encode(), OCI_MANIFEST, "schemaVersion"),
        (json.dumps({**good, "manifests": []}).encode(), OCI_MANIFEST, "manifests"),
        (json.dumps({**good, "config": {**lost, "size": -1}}).encode(), OCI_MANIFEST, "config.size"),
        (json.dumps({**good, "layers": [{**lost, "digest": "sha256:1"}]}).encode(), OCI_MANIFEST, "layers[0].digest"),
        (json.dumps({**good, "annotations": {"a": 1}}).encode(), OCI_MANIFEST, "annotations.a"),
    ]
    for body, content_type, field in wrong:
        refused = await us.ask("PUT", f"/v2/{repository}/manifests/v1", body, {"content-type": content_type})
        assert (refused.failure, refused.detail["field"]) == ((400, "MANIFEST_INVALID"), field)
        assert refused.detail["reason"]
    body = json.dumps({**good, "layers": [lost]}).encode()
    for name in (repository, "fresh/name"):
        refused = await us.ask("PUT", f"/v2/{name}/manifests/v1", body, {"content-type": OCI_MANIFEST})
        assert refused.failure == (404, "MANIFEST_BLOB_UNKNOWN")
        assert lost["digest"] in refused.detail["missing"]
    other = digest_of(b"other")
    refused = await us.ask("PUT", f"/v2/{repository}/manifests/{other}", body, {"content-type": OCI_MANIFEST})
    assert refused.failure == (400, "DIGEST_INVALID")
    for tag in (".x", "x" * 129):
        refused = await us.ask("PUT", f"/v2/{repository}/manifests/{tag}", body, {"content-type": OCI_MANIFEST})
        assert refused.failure == (400, "MANIFEST_INVALID")
    for table in ("manifest", "tag", "tag_history", "repository_manifest"):
        assert await us.rows(f"SELECT FROM {table}") == []
    assert await us.rows("SELECT FROM repository WHERE name = 'fresh/name'") == []


async def test_the_largest_manifest(us: Region, repository: str) -> None:
    """A manifest of 4 MiB is accepted, one byte more is 413, whether its length was announced or not."""
    config = await push_config(us, repository)
    bare = len(json.dumps(image(config, annotations={"a": ""})).encode())
    largest = json.dumps(image(config, annotations={"a": "x" * (4 * 1024 * 1024 - bare)})).encode()
    path, headers = f"/v2/{repository}/manifests/v1", {"content-type": OCI_MANIFEST}
    assert (await us.ask("PUT", path, largest, headers)).status == 201
    assert (await us.ask("GET", path)).body == largest
    for more in ({}, {"content-length": str(len(largest) + 1)}):
        assert (await us.ask("PUT", path, largest + b" ", headers | more)).failure == (413, "SIZE_INVALID")


async def test_foreign_layers(us: Region, repository: str) -> None:
    """Layers that may not be distributed need not be in the registry."""
    config = await push_config(us, repository)
    kinds = (
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
    )
    layers = [descriptor(secrets.token_bytes(9), kind, urls=["https://example.org/layer"]) for kind in kinds]
    await us.push_manifest(repository, "v1", {**image(config), "layers": layers})


@pytest.mark.parametrize("media_type", INDEX_TYPES)
async def test_an_index_needs_its_children(world: MakeWorld, repository: str, media_type: str) -> None:
    """An index whose children are missing is refused by name; FEATURE_SPARSE_INDEX accepts it."""
    (us,) = await world("us")
    child = await us.push_image(repository, "child")
    there = {"mediaType": OCI_MANIFEST, "digest": child, "size": 1}
    lost = descriptor(b"never pushed", OCI_MANIFEST)
    path, headers = f"/v2/{repository}/manifests/all", {"content-type": media_type}
    body = json.dumps(index([there, lost], media_type)).encode()
    refused = await us.ask("PUT", path, body, headers)
    assert (refused.failure, refused.detail["missing"]) == ((404, "MANIFEST_BLOB_UNKNOWN"), [lost["digest"]])
    assert (await us.ask("PUT", path, json.dumps(index([there], media_type)).encode(), headers)).status == 201
    (sparse,) = await world("us", sparse_index=True)
    assert (await sparse.ask("PUT", path, body, headers)).status == 201
    assert (await us.ask("GET", path)).body == body


async def test_a_build_cache_keeps_layers_in_an_index(us: Region, repository: str) -> None:
    """An index may name blobs beside manifests; they must be there, and are in use."""
    layer = secrets.token_bytes(100)
    body = json.dumps(index([descriptor(layer, LAYER)], OCI_INDEX)).encode()
    path, headers = f"/v2/{repository}/manifests/cache", {"content-type": OCI_INDEX}
    assert (await us.ask("PUT", path, body, headers)).failure == (404, "MANIFEST_BLOB_UNKNOWN")
    digest = await us.push_blob(repository, layer)
    assert (await us.ask("PUT", path, body, headers)).status == 201
    assert (await us.ask("DELETE", f"/v2/{repository}/blobs/{digest}")).failure == (405, "UNSUPPORTED")


@pytest.mark.parametrize(("index_type", "image_type"), [(OCI_INDEX, OCI_MANIFEST), (DOCKER_LIST, DOCKER_MANIFEST)])
async def test_old_clients_get_an_image(us: Region, repository: str, index_type: str, image_type: str) -> None:
    """A client that accepts images but no index gets linux/amd64 by tag; by digest everybody gets what was asked for."""
    digests = {}
    for architecture in ("arm64", "amd64"):
        config = await push_config(us, repository)
        digests[architecture] = await us.push_manifest(repository, architecture, image(config, media_type=image_type))
    children = [
        {
            "mediaType": image_type,
            "digest": digest,
            "size": 1,
            "platform": {"os": "linux", "architecture": architecture},
        }
        for architecture, digest in digests.items()
    ]
    whole = await us.push_manifest(repository, "all", index(children, index_type))

    async def pulled(reference: str, accept: str | None) -> tuple[int, str | None]:
        headers = {} if accept is None else {"accept": accept}
        reply = await us.ask("GET", f"/v2/{repository}/manifests/{reference}", headers=headers)
        return reply.status, reply.headers.get("docker-content-digest")

    assert await pulled("all", None) == (200, whole)
    assert await pulled("all", "*/*") == (200, whole)
    assert await pulled("all", f"{image_type}, {index_type}") == (200, whole)
    assert await pulled("all", image_type) == (200, digests["amd64"])
    assert await pulled("all", f"*/*, {index_type};q=0") == (200, digests["amd64"])
    assert await pulled(whole, image_type) == (200, whole)
    assert await pulled("arm64", index_type) == (404, None)
    assert await pulled("all", "text/html") == (404, None)


async def test_tags_in_pages(us: Region, repository: str) -> None:
    """Tags come in byte order; `n` and `last` page through them, the Link leads to the next page, `n=0` is empty (end-8)."""
    tags = sorted(["Z", "a", "B1", "b-1", "b.1", "b_1", "b1", *(f"v{n}" for n in range(8))])
    config = await push_config(us, repository)
    for tag in tags:
        await us.push_manifest(repository, tag, image(config))
    path = f"/v2/{repository}/tags/list"
    assert (await us.ask("GET", path)).json == {"name": repository, "tags": tags}
    for size in (1, 4, 15, 100):
        found, target = [], f"{path}?n={size}"
        for _ in range(20):
            page = await us.ask("GET", target)
            found += page.json["tags"]
            assert len(page.json["tags"]) <= size
            if "link" not in page.headers:
                break
            target, _, rel = page.headers["link"].partition(">; ")
            assert rel == 'rel="next"'
            target = target.removeprefix("<")
        assert found == tags
    empty = await us.ask("GET", f"{path}?n=0")
    assert (empty.json["tags"], "link" in empty.headers) == ([], False)
    assert (await us.ask("GET", f"{path}?last=b1")).json["tags"] == [tag for tag in tags if tag > "b1"]
    assert (await us.ask("GET", f"{path}?last=nosuchtag&n=2")).json["tags"] == ["v0", "v1"]
    for wrong in ("-1", "x", "1.5", "٣", "9" * 30):
        assert (await us.ask("GET", f"{path}?n={wrong}")).failure == (400, "UNSUPPORTED")


async def test_the_catalog_in_pages(us: Region) -> None:
    """The catalog lists the repositories that hold something, in pages like tags."""
    names = ["a/b", "a/b-c", "a/b/c", "alpine", "z/z"]
    for name in names:
        await us.push_image(name, "v1")
    await us.start_upload("empty/one")
    assert (await us.ask("GET", "/v2/_catalog")).json == {"repositories": names}
    page = await us.ask("GET", "/v2/_catalog?n=2")
    assert page.json["repositories"] == names[:2]
    assert page.headers["link"] == '</v2/_catalog?last=a%2Fb-c&n=2>; rel="next"'
    assert (await us.ask("GET", "/v2/_catalog?last=a%2Fb-c&n=2")).json["repositories"] == names[2:4]
    assert (await us.ask("POST", "/v2/_catalog")).failure == (405, "UNSUPPORTED")


async def test_referrers(us: Region, repository: str) -> None:
    """Referrers are an index of what has the digest as its subject, with types and annotations; filtered and paged (end-12)."""
    subject = digest_of(b"a subject that may come later")
    path = f"/v2/{repository}/referrers/{subject}"
    empty = await us.ask("GET", path)
    assert (empty.status, empty.headers["content-type"], empty.json["manifests"]) == (200, OCI_INDEX, [])
    await us.push_blob(repository, b"{}")
    expected: dict[str, dict[str, Any]] = {}
    for n in range(5):
        kind = ("application/spdx+json", "application/vnd.sig")[n % 2]
        manifest = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "artifactType": kind,
            "config": descriptor(b"{}", EMPTY),
            "layers": [],
            "subject": {"mediaType": OCI_MANIFEST, "digest": subject, "size": 7},
            "annotations": {"n": str(n)},
        }
        body = json.dumps(manifest).encode()
        pushed = await us.ask("PUT", f"/v2/{repository}/manifests/r{n}", body, {"content-type": OCI_MANIFEST})
        assert pushed.headers["oci-subject"] == subject
        digest = pushed.headers["docker-content-digest"]
        expected[digest] = {
            "mediaType": OCI_MANIFEST,
            "digest": digest,
            "size": len(body),
            "artifactType": kind,
            "annotations": {"n": str(n)},
        }
    found = (await us.ask("GET", path)).json
    assert {item["digest"]: item for item in found["manifests"]} == expected
    assert (found["schemaVersion"], found["mediaType"]) == (2, OCI_INDEX)
    filtered = await us.ask("GET", f"{path}?artifactType=application/vnd.sig")
    assert filtered.headers["oci-filters-applied"] == "artifactType"
    assert {item["annotations"]["n"] for item in filtered.json["manifests"]} == {"1", "3"}
    pages, target = [], f"{path}?n=2&artifactType=application%2Fspdx%2Bjson"
    while target:
        page = await us.ask("GET", target)
        pages.append([item["digest"] for item in page.json["manifests"]])
        target = page.headers.get("link", "").partition(">")[0].removeprefix("<")
    assert [len(page) for page in pages] == [2, 1]
    assert sorted(digest for page in pages for digest in page) == sorted(
        digest for digest, item in expected.items() if item["artifactType"] == "application/spdx+json"
    )
    assert (await us.ask("GET", f"/v2/{repository}/referrers/sha256:x")).failure == (400, "DIGEST_INVALID")
    assert (await us.ask("GET", f"/v2/another/one/referrers/{subject}")).json["manifests"] == []


async def test_referrers_with_long_annotations(us: Region, repository: str) -> None:
    """However long the annotations of what is attached, a page of referrers stays short, and all pages together have it all."""
    subject = {"mediaType": OCI_MANIFEST, "digest": digest_of(b"s"), "size": 1}
    config = await push_config(us, repository)
    pushed = set()
    for number, long in enumerate((3_000_000, 10, 400_000, 400_000, 400_000, 400_000, 10, 10)):
        annotated = {**image(config, subject=subject), "annotations": {"n": f"{number}" * long}}
        pushed.add(await us.push_manifest(repository, f"v{number}", annotated))
    seen, target, longest = [], f"/v2/{repository}/referrers/{subject['digest']}", 0
    while target:
        page = await us.ask("GET", target)
        manifests = page.json["manifests"]
        longest = max(longest, len(page.body) if len(manifests) > 1 else 0)
        seen += [item["digest"] for item in manifests]
        target = page.headers.get("link", "").partition(">")[0].removeprefix("<")
    assert (len(seen), set(seen)) == (8, pushed)
    assert longest < 1_100_000


async def test_referrers_with_many_annotations(us: Region, repository: str) -> None:
    """What is attached with hundreds of thousands of annotations is listed with them, in no time that others would wait for."""
    subject = {"mediaType": OCI_MANIFEST, "digest": digest_of(b"s"), "size": 1}
    annotations = {f"{number:x}": "é" for number in range(200_000)}
    manifest = {**image(await push_config(us, repository), subject=subject), "annotations": annotations}
    await us.push_manifest(repository, "v1", manifest)
    began = thread_time()
    page = await us.ask("GET", f"/v2/{repository}/referrers/{subject['digest']}")
    assert thread_time() - began < 0.08
    assert [item["annotations"] for item in page.json["manifests"]] == [annotations]


async def test_an_image_refers_by_its_configs_type(us: Region, repository: str) -> None:
    """Without an artifactType an image is listed with its config's type, an index without any."""
    subject = {"mediaType": OCI_MANIFEST, "digest": digest_of(b"s"), "size": 1}
    config = await push_config(us, repository)
    await us.push_manifest(repository, "a", image(config, subject=subject))
    await us.push_manifest(repository, "b", index([], OCI_INDEX, subject=subject))
    found = (await us.ask("GET", f"/v2/{repository}/referrers/{subject['digest']}")).json["manifests"]
    assert {item.get("artifactType") for item in found} == {CONFIG, None}


async def test_deletes(us: Region, repository: str) -> None:
    """Deleting a tag leaves the manifest; deleting a manifest takes every tag of it along (end-9)."""
    digest = await us.push_image(repository, "one")
    body = (await us.ask("GET", f"/v2/{repository}/manifests/one")).body
    await us.push_manifest(repository, "two", body)
    assert (await us.ask("DELETE", f"/v2/{repository}/manifests/one")).status == 202
    assert (await us.ask("GET", f"/v2/{repository}/manifests/one")).failure == (404, "MANIFEST_UNKNOWN")
    assert (await us.ask("GET", f"/v2/{repository}/manifests/{digest}")).status == 200
    assert (await us.ask("DELETE", f"/v2/{repository}/manifests/{digest}")).status == 202
    for reference in (digest, "two"):
        assert (await us.ask("GET", f"/v2/{repository}/manifests/{reference}")).failure == (404, "MANIFEST_UNKNOWN")
        assert (await us.ask("DELETE", f"/v2/{repository}/manifests/{reference}")).status == 404
    assert (await us.ask("GET", f"/v2/{repository}/tags/list")).json["tags"] == []
    await us.push_manifest(repository, "again", body)
    assert (await us.ask("GET", f"/v2/{repository}/manifests/{digest}")).body == body


async def test_deletes_are_seen_everywhere(world: MakeWorld, repository: str) -> None:
    """A deleted manifest is gone from another node's memory as soon as the hint is there, long before the staleness."""
    us, eu = await world("us eu", "eu us", metadata_staleness=3600.0)
    digest = await us.push_image(repository, "v1")
    path = f"/v2/{repository}/manifests/{digest}"
    assert (await eu.ask("GET", path)).outcome == "database"

    async def remembered() -> bool:
        return (await eu.ask("GET", path)).outcome == "memory"

    async def gone() -> bool:
        return (await eu.ask("GET", path)).status == 404

    await until(remembered)  # the hint about the push may still be on its way
    assert (await us.ask("DELETE", path)).status == 202
    assert (await us.ask("GET", path)).status == 404
    await until(gone)


async def test_tag_history(us: Region, repository: str) -> None:
    """Every move and deletion of a tag leaves a closed interval; pushing the same manifest again leaves none."""
    first, second = await us.push_image(repository, "v1"), await us.push_image(repository, "x", b"layer")
    bodies = [(await us.ask("GET", f"/v2/{repository}/manifests/{digest}")).body for digest in (first, second)]
    for body in (bodies[0], bodies[1], bodies[0]):
        await us.push_manifest(repository, "v1", body)
    await us.ask("DELETE", f"/v2/{repository}/manifests/v1")
    history = await us.rows(
        "SELECT m.digest, since, until FROM tag_history h JOIN manifest m ON m.id = h.manifest_id WHERE name = 'v1' ORDER BY h.id"
    )
    assert [row["digest"] for row in history] == [first, second, first]
    assert [row["until"] for row in history[:-1]] == [row["since"] for row in history[1:]]
    assert all(row["since"] <= row["until"] for row in history)


async def test_tag_history_of_moves_at_once(world: MakeWorld, repository: str) -> None:
    """However many nodes move one tag at once, its history is one unbroken line."""
    regions = await world("us eu", "eu us")
    config = await push_config(regions[0], repository)
    bodies = [json.dumps(image(config, annotations={"n": str(n)})).encode() for n in range(16)]

    async with trio.open_nursery() as nursery:
        for n, body in enumerate(bodies):
            nursery.start_soon(regions[n % 2].push_manifest, repository, "latest", body)
    line = await regions[0].rows("SELECT manifest_id, since, until FROM tag_history ORDER BY id")
    (tag,) = await regions[0].rows("SELECT manifest_id, since FROM tag")
    line.append({**tag, "until": None})
    assert len({row["manifest_id"] for row in line}) == len(line) == 16
    assert [row["until"] for row in line[:-1]] == [row["since"] for row in line[1:]]


@pytest.mark.parametrize(
    ("field", "value"), [("x", "NaN"), ("x", "-Infinity"), ("schemaVersion", "NaN"), ("schemaVersion", "1e999")]
)
async def test_numbers_that_json_has_not(us: Region, repository: str, field: str, value: str) -> None:
    """What Python's reader of JSON takes and no other does is refused, in an answer that any reads."""
    text = json.dumps({**image(await push_config(us, repository)), field: "here"}).replace('"here"', value)
    refused = await us.ask("PUT", f"/v2/{repository}/manifests/v1", text.encode(), {"content-type": OCI_MANIFEST})
    assert refused.failure == (400, "MANIFEST_INVALID")
    assert not {b"NaN,", b"Infinity,"} & set(refused.body.split(b" "))


@pytest.mark.parametrize("piece", ["[],", "{},", "[[[[]]]],"])
async def test_a_manifest_that_takes_long_to_read(us: Region, repository: str, piece: str) -> None:
    """A manifest of nothing but lists is refused before it is read, which would take seconds; the most descriptors are taken."""
    config = await push_config(us, repository)
    text = json.dumps({**image(config), "x": ["here"]}).replace('"here"', piece * (4_000_000 // len(piece)) + "1")
    refused = await us.ask("PUT", f"/v2/{repository}/manifests/v1", text.encode(), {"content-type": OCI_MANIFEST})
    assert refused.failure == (400, "MANIFEST_INVALID")
    assert refused.detail["reason"] == "at most 200000 lists and objects"
    platform = {"os": "linux", "architecture": "amd64", "os.features": []}
    child = {"mediaType": OCI_MANIFEST, "digest": digest_of(b"x"), "size": 1, "platform": platform, "annotations": {}}
    whole = json.dumps(index([child] * 10_000, OCI_INDEX)).encode()
    facts = read_manifest(whole, None, digest_of(whole))
    assert len(facts.children) == 10_000


@pytest.mark.parametrize("text", ["\\u0000", "a\\ud800b"])
async def test_annotations_that_are_hardly_text(us: Region, repository: str, text: str) -> None:
    """NUL and half a surrogate pair are JSON, and no text that a database holds: they come back as they went in."""
    subject = await us.push_image(repository, "v1")
    manifest = image(await push_config(us, repository))
    manifest["subject"] = {"mediaType": OCI_MANIFEST, "digest": subject, "size": 1}
    body = json.dumps(manifest).removesuffix("}") + f', "annotations": {{"{text}": "{text}"}}}}'
    pushed = await us.ask("PUT", f"/v2/{repository}/manifests/v2", body.encode(), {"content-type": OCI_MANIFEST})
    assert pushed.status == 201
    listed = await us.ask("GET", f"/v2/{repository}/referrers/{subject}")
    (descriptor_,) = json.loads(listed.body)["manifests"]
    assert descriptor_["annotations"] == json.loads(f'{{"{text}": "{text}"}}')


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("antipode-durability", "quorum:" + "9" * 5000),
        ("antipode-durability-timeout", "9" * 5000),
        ("antipode-durability-timeout", "9" * 5000 + "s"),
        ("antipode-durability-timeout", "²"),
    ],
)
async def test_numbers_without_end(us: Region, repository: str, name: str, value: str) -> None:
    """A number that is longer than anything it could mean is refused with the header's name, however long it is."""
    body = json.dumps(image(await push_config(us, repository))).encode()
    headers = {"content-type": OCI_MANIFEST, "antipode-durability": "local", name: value}
    refused = await us.ask("PUT", f"/v2/{repository}/manifests/v1", body, headers)
    assert refused.failure == (400, "UNSUPPORTED")
    assert refused.detail["header"].lower() == name


async def test_tags_that_are_asked_for_together(world: MakeWorld, repository: str) -> None:
    """Each question gets its own answer, in its place, whatever the others are: what is there, what is not, and what is known."""
    (us,) = await world("us")
    digest = await us.push_image(repository, "v1", b"layer")
    other = await us.push_image(f"{repository}-2", "v1", b"other")
    database = us.registry.database
    questions = [
        TagAsked(repository, "v1"),
        TagAsked(repository, "v2"),
        TagAsked(f"{repository}-3", "v1", digest),
        TagAsked(repository, "v1", digest),
        TagAsked(f"{repository}-2", "v1", digest),
        TagAsked(f"{repository}-2", "v1", other),
    ]
    alone = [(await find_by_tags(database, [question]))[0] for question in questions]
    assert await find_by_tags(database, questions) == alone
    assert [look.repository_exists for look in alone] == [True, True, False, True, True, True]
    assert [look.manifest and look.manifest.digest for look in alone] == [digest, None, None, digest, other, other]
    bodies = [look.manifest is not None and look.manifest.body is not None for look in alone]
    assert bodies == [True, False, False, False, True, False]
