"""Quotas of namespaces: what counts, what is refused and where, and that no number of pushes at once gets past."""

import json
import secrets
from functools import partial
from typing import Any

import pytest
import trio
from attrs import evolve

from node.api.frame import Problem
from node.api.quotas import get_quota, get_quotas, set_quota
from node.collector import Collector
from node.records.collect import CollectRules
from node.records.removal import delete_namespace, delete_repository
from tests.registry.world import MakeWorld, Region, digest_of, image

CONFIG = b"{}"


async def used(us: Region, namespace: str) -> tuple[int, int]:
    """Return blobs and bytes as they are kept, which must be what a count over everything finds."""
    document = await get_quota(us.registry.database, namespace, 0)
    (counted,) = await us.rows(
        "SELECT count(*) AS blobs, coalesce(sum(size), 0)::bigint AS bytes FROM blob WHERE id IN (SELECT rb.blob_id "
        "FROM repository_blob rb JOIN repository r ON r.id = rb.repository_id JOIN namespace n ON n.id = r.namespace_id "
        "WHERE n.name = $1)",
        namespace,
    )
    kept = (document["blobs"], document["used_bytes"])
    assert kept == (counted["blobs"], counted["bytes"])
    return counted["blobs"], counted["bytes"]


async def limit(us: Region, namespace: str, **limits: Any) -> None:
    await set_quota(us.registry.database, namespace, limits, 0)


async def put(us: Region, repository: str, tag: str, *layers: bytes) -> Any:
    return await us.ask(
        "PUT",
        f"/v2/{repository}/manifests/{tag}",
        json.dumps(image(CONFIG, *layers)).encode(),
        {"content-type": "application/vnd.oci.image.manifest.v1+json"},
    )


async def test_what_counts(us: Region) -> None:
    """A blob counts once per namespace however often it is linked there, and as long as it is linked anywhere in it."""
    layer = secrets.token_bytes(1000)
    digest = await us.push_blob("team/a", layer)
    assert await used(us, "team") == (1, 1000)
    await us.push_blob("team/a", layer)
    await us.push_blob("team/b", layer)
    mounted = await us.ask("POST", f"/v2/team/c/blobs/uploads/?mount={digest}&from=team/a")
    other = await us.ask("POST", f"/v2/other/a/blobs/uploads/?mount={digest}&from=team/a")
    assert (mounted.status, other.status) == (201, 201)
    assert await used(us, "team") == (1, 1000)
    assert await used(us, "other") == (1, 1000)
    await us.push_blob("team/a", b"more")
    assert await used(us, "team") == (2, 1004)
    assert (await us.ask("DELETE", f"/v2/team/a/blobs/{digest}")).status == 202
    assert await delete_repository(us.registry.database, "team/b")
    assert await used(us, "team") == (2, 1004)
    assert await delete_repository(us.registry.database, "team/c")
    assert await used(us, "team") == (1, 4)
    assert await delete_namespace(us.registry.database, "team") == 1
    assert await used(us, "other") == (1, 1000)
    assert (
        await us.rows(
            "SELECT FROM namespace_blob nb LEFT JOIN namespace n ON n.id = nb.namespace_id WHERE n.id IS NULL"
        )
        == []
    )


async def test_collection_gives_room(us: Region) -> None:
    """What was deleted counts until it is collected."""
    await us.push_image("team/a", "v1", b"x" * 500)
    before = await used(us, "team")
    assert (await us.ask("DELETE", "/v2/team/a/manifests/v1")).status == 202
    assert await used(us, "team") == before
    rules = CollectRules(grace=0.0, retention=0.0, tag_expiration=0.0)
    await Collector(us.registry.database, lambda *_: None, rules).collect(gentle=False)
    assert await used(us, "team") == (0, 0)


async def test_a_full_namespace_begins_nothing(us: Region) -> None:
    """A full namespace refuses the beginning of an upload with DENIED, and what says that it is too large before a byte of it."""
    layer = secrets.token_bytes(600)
    await us.push_blob("team/a", layer)
    await limit(us, "team", reject=1000)
    size = {"content-length": "401"}
    large = await us.ask("POST", f"/v2/team/a/blobs/uploads/?digest={digest_of(b'y' * 401)}", b"y" * 401, size)
    assert large.failure == (403, "DENIED")
    assert large.detail["used_bytes"] == 600
    assert large.detail["limit_bytes"] == 1000
    assert "team" in large.json["errors"][0]["message"]
    assert (await us.ask("POST", "/v2/team/a/blobs/uploads/")).status == 202
    await us.push_blob("team/a", b"y" * 400)
    for target in ("", f"?digest={digest_of(b'z')}", "?digest-algorithm=sha512"):
        assert (await us.ask("POST", f"/v2/team/b/blobs/uploads/{target}", b"z")).failure == (403, "DENIED")
    # What the namespace has already costs nothing.
    assert (await us.ask("POST", f"/v2/team/b/blobs/uploads/?digest={digest_of(layer)}", layer)).status == 201
    assert (await us.ask("POST", "/v2/other/b/blobs/uploads/")).status == 202


async def test_a_manifest_beyond_the_limit(us: Region) -> None:
    """A manifest is refused while its namespace holds too much; one that is there already moves its tag; deletes go on."""
    await us.push_image("team/a", "v1", b"first")
    for blob in (CONFIG, b"x" * 900):
        await us.push_blob("team/a", blob)
    await limit(us, "team", reject=500)
    refused = await put(us, "team/a", "v2", b"x" * 900)
    assert refused.failure == (403, "DENIED")
    assert (await us.ask("HEAD", "/v2/team/a/manifests/v2")).status == 404
    body = (await us.ask("GET", "/v2/team/a/manifests/v1")).body
    await us.push_manifest("team/a", "stable", body)
    assert (await us.ask("DELETE", "/v2/team/a/manifests/v1")).status == 202
    await limit(us, "team")
    assert (await put(us, "team/a", "v2", b"x" * 900)).status == 201


async def test_the_default(us: Region) -> None:
    """A namespace without a quota of its own has DEFAULT_SYSTEM_REJECT_QUOTA_BYTES, as of the last SIGHUP; its own counts first."""
    us.node.settings = evolve(us.node.settings, default_quota=100)
    await us.push_blob("team/a", b"x" * 100)
    assert (await us.ask("POST", "/v2/team/a/blobs/uploads/")).failure == (403, "DENIED")
    await limit(us, "team", reject=1000)
    assert (await us.ask("POST", "/v2/team/a/blobs/uploads/")).status == 202
    us.node.settings = evolve(us.node.settings, default_quota=0)
    await limit(us, "team")
    assert (await us.ask("POST", "/v2/team/a/blobs/uploads/")).status == 202


async def test_a_warning(us: Region) -> None:
    """Beyond the warning a push is taken, and its answer warns (RFC 7234, 5.5)."""
    await us.push_blob("team/a", CONFIG)
    await us.push_blob("team/a", b"x" * 900)
    await limit(us, "team", reject=2000, warn=902)
    assert "warning" not in (await put(us, "team/a", "v1", b"x" * 900)).headers
    await limit(us, "team", reject=2000, warn=901)
    reply = await put(us, "team/a", "v1", b"x" * 900)
    assert reply.status == 201
    assert reply.headers["warning"] == '299 - "quota: the namespace team holds 902 B and may hold 2000 B"'


async def test_pushes_at_once_fit_together(world: MakeWorld) -> None:
    """Of many pushes at once, on two nodes, those that are taken fit into the quota together."""
    us, eu = await world("us eu", "eu us")
    layers = [secrets.token_bytes(1000) for _ in range(8)]
    await limit(us, "team", reject=3 * 1000 + len(CONFIG))
    taken: list[bytes] = []

    async def push(region: Region, layer: bytes, repository: str) -> None:
        for blob in (CONFIG, layer):
            begun = await region.ask("POST", f"/v2/{repository}/blobs/uploads/?digest={digest_of(blob)}", blob)
            if begun.status == 403:
                return
            assert begun.status == 201
        reply = await put(region, repository, "v1", layer)
        assert reply.status in (201, 403)
        if reply.status == 201:
            taken.append(layer)

    async with trio.open_nursery() as nursery:
        for number, layer in enumerate(layers):
            nursery.start_soon(partial(push, (us, eu)[number % 2], layer, f"team/{number}"))
    assert len(taken) <= 3
    _, size = await used(us, "team")
    assert size >= len(taken) * 1000
    later = await us.ask("POST", "/v2/team/9/blobs/uploads/")
    assert later.status == (403 if size >= 3002 else 202)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ([], ""),
        ({"limit": 1}, ""),
        ({"reject": "much"}, "reject"),
        ({"warn": -1}, "warn"),
        ({"reject": 1 << 63}, "reject"),
        ({"reject": 10, "warn": 11}, "warn"),
    ],
)
async def test_a_quota_that_cannot_be_used(us: Region, body: Any, field: str) -> None:
    """A limit that makes no sense is refused with its name, what was found and what would be right."""
    with pytest.raises(Problem) as caught:
        await set_quota(us.registry.database, "team", body, 0)
    assert caught.value.status == 400
    assert [wrong.field for wrong in caught.value.wrong] == ([field] if field else [])


async def test_pages(us: Region) -> None:
    """Namespaces are listed by name, in pages; one that nobody pushed to may have a quota already."""
    for name in ("c", "a", "b"):
        await limit(us, name, reject="1KiB")
    first = await get_quotas(us.registry.database, 0, "", 2)
    second = await get_quotas(us.registry.database, 0, "b", 2)
    names = [[line["namespace"] for line in page["quotas"]] for page in (first, second)]  # type: ignore[attr-defined]
    assert (names, first["next"], second["next"]) == ([["a", "b"], ["c"]], "b", None)
