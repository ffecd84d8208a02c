"""Tags over time, as in Quay's time machine; and whole repositories and namespaces deleted."""

import json
from typing import Any

import pytest

from node.api.frame import Problem
from node.api.tags import (
    Means,
    expiration_of,
    history_of,
    remove_namespace,
    remove_repository,
    restore_tag,
    set_expiration,
)
from node.push.reading import OCI_INDEX, OCI_MANIFEST
from node.records.collect import CollectRules
from tests.collection.clock import Later, collect_all
from tests.registry.world import MakeWorld, Region, digest_of, image, index


@pytest.fixture
def means(us: Region) -> Means:
    """What the API's functions work with."""
    return Means(us.registry.database, us.registry.settings, us.registry.hints.publish)


async def digests(means: Means, name: str, tag: str) -> list[object]:
    """Return what a tag's history names, latest first."""
    document = await history_of(means, name, tag, {})
    lines = document["history"]
    assert isinstance(lines, list)
    return [line["digest"] for line in lines]


async def test_a_moved_tag_can_be_restored(us: Region, means: Means, later: Later, rules: CollectRules) -> None:
    """What a tag pointed to before is listed with its times, kept, and the tag can point to it again."""
    old = await us.push_image("a/b", "v1", b"old")
    await later(10)
    new = await us.push_image("a/b", "v1", b"new")
    assert await digests(means, "a/b", "v1") == [new, old]
    await later(14 * 24 - 1)
    await collect_all(us.registry.database, rules)
    assert await restore_tag(means, "a/b", "v1", {"digest": old}) == {"name": "a/b", "tag": "v1", "digest": old}
    assert (await us.ask("GET", "/v2/a/b/manifests/v1")).headers["docker-content-digest"] == old
    assert await digests(means, "a/b", "v1") == [old, new, old]


async def test_history_pages(us: Region, means: Means) -> None:
    """A long history comes in pages that leave nothing out."""
    pushed = [await us.push_image("a/b", "v1", b"layer %d" % number) for number in range(5)]
    seen: list[object] = []
    query: dict[str, tuple[str, ...]] = {"n": ("2",)}
    while True:
        page = await history_of(means, "a/b", "v1", query)
        lines = page["history"]
        assert isinstance(lines, list)
        assert len(lines) <= 2
        seen += [line["digest"] for line in lines]
        if page["next"] is None:
            break
        query = {"n": ("2",), "before": (repr(page["next"]),)}
    assert seen == pushed[::-1]


async def test_a_manifest_that_was_deleted_by_digest_can_be_restored_whole(
    us: Region, means: Means, later: Later, rules: CollectRules
) -> None:
    """History keeps all that a deleted manifest uses, as long as its tags can be restored; and not longer."""
    digest = await us.push_image("a/b", "v1", b"layer")
    await us.ask("DELETE", f"/v2/a/b/manifests/{digest}")
    assert (await us.ask("GET", f"/v2/a/b/manifests/{digest}")).status == 404
    await later(14 * 24 - 1)
    assert await collect_all(us.registry.database, rules) == []
    await restore_tag(means, "a/b", "v1", {"digest": digest})
    got = await us.ask("GET", "/v2/a/b/manifests/v1")
    assert got.headers["docker-content-digest"] == digest
    for blob in (got.json["config"], *got.json["layers"]):
        assert (await us.ask("GET", f"/v2/a/b/blobs/{blob['digest']}")).status == 200
    await us.ask("DELETE", f"/v2/a/b/manifests/{digest}")
    for _ in range(6):
        await later(14 * 24 + 1)
        await collect_all(us.registry.database, rules)
    assert await us.rows("SELECT * FROM blob") == []
    assert await us.rows("SELECT * FROM manifest") == []
    with pytest.raises(Problem) as refused:
        await restore_tag(means, "a/b", "v1", {"digest": digest})
    assert refused.value.status == 404


async def test_what_is_older_than_the_window_is_not_restored(us: Region, means: Means, later: Later) -> None:
    """The window counts although nothing was collected yet."""
    digest = await us.push_image("a/b", "v1", b"layer")
    await us.ask("DELETE", "/v2/a/b/manifests/v1")
    await later(14 * 24 + 1)
    with pytest.raises(Problem) as refused:
        await restore_tag(means, "a/b", "v1", {"digest": digest})
    assert refused.value.status == 404


def _index(*children: str, media_type: str = OCI_MANIFEST) -> dict[str, Any]:
    return index([{"mediaType": media_type, "digest": child, "size": 500} for child in children], OCI_INDEX)


async def _push_untagged(us: Region, repository: str, manifest: dict[str, Any]) -> str:
    body = json.dumps(manifest).encode()
    return await us.push_manifest(repository, digest_of(body), body, **{"content-type": manifest["mediaType"]})


async def _push_child(us: Region, repository: str) -> str:
    """Push an image that no tag points to, and none ever did."""
    for data in (b"{}", b"layer"):
        await us.push_blob(repository, data)
    return await _push_untagged(us, repository, image(b"{}", b"layer"))


async def test_deleted_children_come_back_with_their_index(
    us: Region, means: Means, later: Later, rules: CollectRules
) -> None:
    """What a restored index names, at any depth, and was deleted by its digest comes back with its blobs and their debt."""
    child = await _push_child(us, "a/b")
    inner = await _push_untagged(us, "a/b", _index(child))
    outer = await us.push_manifest("a/b", "v1", _index(inner, media_type=OCI_INDEX))
    (blob,) = await us.rows("SELECT digest FROM blob WHERE size = 5")
    paths = [f"/v2/a/b/manifests/{digest}" for digest in (outer, inner, child)] + [f"/v2/a/b/blobs/{blob['digest']}"]
    for path in paths:
        assert (await us.ask("DELETE", path)).status == 202
    await later(rules.grace / 3600 / 2)
    await collect_all(us.registry.database, rules)
    await restore_tag(means, "a/b", "v1", {"digest": outer})
    for path in paths:
        assert (await us.ask("GET", path)).status == 200
    await later(14 * 24 + 1)
    await collect_all(us.registry.database, rules)
    for path in paths:
        assert (await us.ask("GET", path)).status == 200


async def test_a_restore_that_is_not_whole_says_what_is_missing(
    us: Region, means: Means, later: Later, rules: CollectRules
) -> None:
    """A child of an index that was deleted by hand and has been collected is named; the tag stays as it was."""
    child = await _push_child(us, "a/b")
    digest = await us.push_manifest("a/b", "v1", _index(child))
    await us.ask("DELETE", "/v2/a/b/manifests/v1")
    await us.ask("DELETE", f"/v2/a/b/manifests/{child}")
    for _ in range(3):
        await later(rules.grace / 3600 + 1)
        await collect_all(us.registry.database, rules)
    with pytest.raises(Problem) as refused:
        await restore_tag(means, "a/b", "v1", {"digest": digest})
    assert (refused.value.status, refused.value.more["missing"]) == (409, [child])
    assert (await us.ask("GET", "/v2/a/b/manifests/v1")).status == 404


async def test_a_restore_brings_nothing_from_another_repository(us: Region, means: Means) -> None:
    """A child that this repository's index named without having it, and another one has, does not come with a restore."""
    child = await _push_child(us, "secret/s")
    digest = await us.push_manifest("secret/s", "v1", _index(child))
    await us.rows("INSERT INTO awaited_child SELECT id, $2 FROM manifest WHERE digest = $1", digest, child)
    await us.push_image("a/b", "v1", b"other")
    repository = "(SELECT id FROM repository WHERE name = 'a/b')"
    await us.rows(
        f"INSERT INTO repository_manifest (repository_id, manifest_id, media_type) "  # noqa: S608 - our own words
        f"SELECT {repository}, id, $2 FROM manifest WHERE digest = $1",
        digest,
        OCI_INDEX,
    )
    await us.rows(
        f"UPDATE tag SET manifest_id = m.id FROM manifest m WHERE m.digest = $1 AND repository_id = {repository}",  # noqa: S608
        digest,
    )
    await us.ask("DELETE", "/v2/a/b/manifests/v1")
    with pytest.raises(Problem) as refused:
        await restore_tag(means, "a/b", "v1", {"digest": digest})
    assert (refused.value.status, refused.value.more["missing"]) == (409, [child])
    assert (await us.ask("GET", f"/v2/a/b/manifests/{child}")).status == 404


async def test_a_blob_that_was_deleted_comes_back_with_its_tag(
    us: Region, means: Means, later: Later, rules: CollectRules
) -> None:
    """A deleted blob cannot be pulled any more, but a tag that can be restored keeps its bytes, and brings it back with debt."""
    await us.rows("INSERT INTO location (name) VALUES ('far')")
    await us.rows("INSERT INTO default_location SELECT id FROM location ON CONFLICT DO NOTHING")
    digest = await us.push_image("a/b", "v1", b"layer")
    await us.ask("DELETE", f"/v2/a/b/manifests/{digest}")
    (blob,) = await us.rows("SELECT digest FROM blob WHERE size = 5")
    path = f"/v2/a/b/blobs/{blob['digest']}"
    assert (await us.ask("DELETE", path)).status == 202
    assert (await us.ask("GET", path)).status == 404
    await us.rows("DELETE FROM task")
    await later(14 * 24 - 1)
    assert await collect_all(us.registry.database, rules) == []
    await restore_tag(means, "a/b", "v1", {"digest": digest})
    assert (await us.ask("GET", path)).status == 200
    assert await us.rows("SELECT FROM task JOIN blob b ON b.id = blob_id AND b.digest = $1", blob["digest"]) != []
    await us.ask("DELETE", f"/v2/a/b/manifests/{digest}")
    assert (await us.ask("DELETE", path)).status == 202
    for _ in range(6):
        await later(14 * 24 + 1)
        await collect_all(us.registry.database, rules)
    assert await us.rows("SELECT * FROM blob") == []


async def test_a_namespace_has_a_window_of_its_own(us: Region, means: Means, later: Later, rules: CollectRules) -> None:
    """One of TAG_EXPIRATION_OPTIONS counts for the namespace, and for no other."""
    for name in ("a/b", "c/d"):
        await us.push_image(name, "v1", name.encode())
        await us.ask("DELETE", f"/v2/{name}/manifests/v1")
    assert (await expiration_of(means, "a"))["tag_expiration"] == "14d"
    with pytest.raises(Problem) as refused:
        await set_expiration(means, "a", {"tag_expiration": "3h"})
    assert refused.value.status == 400
    assert (await set_expiration(means, "a", {"tag_expiration": "1d"}))["own"] is True
    await later(25)
    await collect_all(us.registry.database, rules)
    rows = await us.rows("SELECT r.name FROM tag_history h JOIN repository r ON r.id = h.repository_id")
    assert [row["name"] for row in rows] == ["c/d"]
    assert (await set_expiration(means, "a", {"tag_expiration": None}))["own"] is False


async def test_a_window_comes_before_the_first_push(us: Region, means: Means) -> None:
    """Whoever makes an organisation says how long its tags can be restored before anybody pushes, as with its quota."""
    assert (await set_expiration(means, "new", {"tag_expiration": "1d"}))["own"] is True
    await us.push_image("new/app", "v1", b"layer")
    assert (await expiration_of(means, "new"))["tag_expiration"] == "1d"


async def test_unknown_names_are_problems(us: Region, means: Means) -> None:
    """Whatever is not there is said to be not there, with 404; bodies that cannot be used are 400."""
    await us.push_image("a/b", "v1", b"layer")
    wrong = [
        (history_of(means, "no/where", "v1", {}), 404),
        (history_of(means, "a/b", "v2", {}), 404),
        (history_of(means, "a/b", "v1", {"n": ("0",)}), 400),
        (restore_tag(means, "a/b", "v1", {}), 400),
        (restore_tag(means, "a/b", "v1", {"digest": "x"}), 400),
        (remove_repository(means, "no/where"), 404),
        (remove_namespace(means, "nowhere"), 404),
        (set_expiration(means, "Not A Name", {"tag_expiration": "1d"}), 400),
        (set_expiration(means, "a/b", {"tag_expiration": "1d"}), 400),
    ]
    for asked, status in wrong:
        with pytest.raises(Problem) as refused:
            await asked
        assert refused.value.status == status


async def test_a_deleted_repository_leaves_nothing(world: MakeWorld, later: Later, rules: CollectRules) -> None:
    """Its tags, history, uploads and links go at once, everywhere; its bytes when their time has come; others' stay."""
    us, eu = await world("us eu", "eu us")
    means = Means(us.registry.database, us.registry.settings, us.registry.hints.publish)
    kept = await us.push_image("c/d", "v1", b"shared")
    await us.push_image("a/b", "v1", b"shared", b"own")
    await us.push_image("a/b", "v1", b"shared", b"newer")
    location = await us.start_upload("a/b")
    await us.patch(location, b"part of a blob")
    assert await remove_repository(means, "a/b") == {"name": "a/b", "deleted": True}
    assert (await eu.ask("GET", "/v2/a/b/tags/list")).status == 404
    assert (await us.ask("PATCH", location, b"more")).failure == (404, "BLOB_UPLOAD_UNKNOWN")
    for table in ("upload", "tag_history"):
        assert await us.rows(f"SELECT * FROM {table}") == []  # noqa: S608  # our names
    assert await us.unaccounted("us") == set()
    for _ in range(6):
        await later(100)
        await collect_all(us.registry.database, rules)
    assert await us.rows("SELECT * FROM garbage") == []
    assert len(await us.rows("SELECT * FROM blob")) == 2
    assert (await eu.ask("GET", f"/v2/c/d/manifests/{kept}")).status == 200
    # And the name can be used again.
    assert (await us.ask("GET", "/v2/a/b/manifests/v1")).status == 404
    await us.push_image("a/b", "v1", b"again")


async def test_a_deleted_namespace_takes_its_repositories_along(us: Region, means: Means) -> None:
    """The namespace, its policy and all its repositories go; others stay."""
    await us.push_image("a/b", "v1", b"1")
    await us.push_image("a/c", "v1", b"2")
    await us.push_image("d/e", "v1", b"3")
    assert await remove_namespace(means, "a") == {"namespace": "a", "repositories": 2, "deleted": True}
    assert [row["name"] for row in await us.rows("SELECT name FROM namespace")] == ["d"]
    assert (await us.ask("GET", "/v2/_catalog")).json == {"repositories": ["d/e"]}
