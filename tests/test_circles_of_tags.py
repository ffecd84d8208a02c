"""Whoever comes to several tags, or makes what is not there yet, does it in one order: tests/test_circles.py has the others."""

from collections.abc import Sequence
from uuid import uuid4

import pytest
import trio

from node.records.blobs import mount_blob
from node.records.closures import move_tags
from node.records.manifests import CompiledTags, ManifestFacts, commit_manifest
from node.records.permissions import create_repository
from node.records.policies import place_tags
from node.records.uploads import Choice, begin_upload
from replication.policy import parse_policy
from replication.upload_state import UploadState
from tests.circles import NAMESPACE, Half, check
from tests.collection.held import held_transaction, wait_until_one_waits
from tests.replication.conftest import world
from tests.replication.world import LOCATIONS, World, digest_of

__all__ = ["world"]

_TWO = CompiledTags(("first", "second"))


async def put(world: World, image: str, tags: CompiledTags) -> object:
    facts = ManifestFacts(digest_of(f"manifest {image}"), "x", b"x", (digest_of(image),))
    return await commit_manifest(world.database, "team/a", "library", facts, tags, sparse=False)


async def move(world: World, tags: CompiledTags) -> object:
    return await move_tags(world.database, "team/a", digest_of("manifest late"), tags)


async def place(world: World) -> object:
    policy = parse_policy({"tags": [{"pattern": "*", "locations": ["ap"]}]}, LOCATIONS)
    rows = await world.database.fetch("SELECT repository_id, name FROM tag ORDER BY name")
    return await place_tags(world.database, [(row["repository_id"], row["name"], policy) for row in rows])


async def begin(world: World, repository: str = "team/new") -> object:
    key = uuid4().hex
    choice = Choice("us", UploadState(key, f"{key}.tail", "sha256"))
    return await begin_upload(world.database, repository, "library", uuid4(), [choice], 3600.0)


_TAG = "SELECT FROM tag WHERE name = '{}' FOR UPDATE"
_ITS_LOCATIONS = "SELECT FROM tag_location WHERE name = 'first' FOR UPDATE"
# What whoever deletes a manifest, or collects, has besides.
_ALONE_AND = (
    "SELECT FROM repository r JOIN {} x ON x.repository_id = r.id WHERE {} FOR NO KEY UPDATE OF r FOR UPDATE OF x"
)
_OWED = (
    "INSERT INTO task (blob_id, location_id, size) SELECT b.id, l.id, 1 FROM blob b, location l "
    "WHERE b.size = {} AND l.name = '{}'"
)
_SAME_NAME = "INSERT INTO repository (namespace_id, name) SELECT id, 'team/new' FROM namespace WHERE name = 'other'"

HALVES = {
    "a manifest is deleted while its tags are pushed": Half(
        _ALONE_AND.format("tag", "x.name = 'second'"), lambda w: put(w, "late", _TWO), _TAG.format("first")
    ),
    "a manifest is deleted while its tags move": Half(
        _ALONE_AND.format("tag", "x.name = 'second'"), lambda w: move(w, _TWO), _TAG.format("first")
    ),
    "manifests are collected while their tags are pushed": Half(
        _ALONE_AND.format("garbage", "x.kind = 'manifest link' AND x.object_id = (SELECT max(id) FROM manifest)"),
        lambda w: put(w, "late", _TWO),
        "SELECT note_garbage('manifest link', array_agg(r.id), array_agg(m.id)) FROM repository r, manifest m "
        "WHERE r.name = 'team/a' AND m.id = (SELECT max(id) - 1 FROM manifest)",
    ),
    "a tag is deleted while it is pushed": Half(
        _TAG.format("first"), lambda w: put(w, "late", CompiledTags(("first",))), _ITS_LOCATIONS
    ),
    "a tag is deleted while it moves": Half(
        _TAG.format("first"), lambda w: move(w, CompiledTags(("first",))), _ITS_LOCATIONS
    ),
    "a tag is deleted while it gets locations": Half(_TAG.format("first"), place, _ITS_LOCATIONS),
    "a tag that has a location moves while another gets one": Half(
        _OWED.format(2, "eu"),
        lambda w: put(w, "late", CompiledTags(("first", "new"), 0, (("first", "eu"), ("new", "ap")))),
        _OWED.format(2, "ap"),
    ),
    "several images are owed at once": Half(_OWED.format(1, "ap"), place, _OWED.format(2, "ap")),
    "a namespace is deleted while an upload makes a repository in it": Half(NAMESPACE, begin, _SAME_NAME),
    "a namespace is deleted while a mount makes a repository in it": Half(
        NAMESPACE,
        lambda w: mount_blob(w.database, "team/new", "library", "team/a", digest_of("late"), replicate=True),
        _SAME_NAME,
    ),
    "a namespace is deleted while somebody makes a repository in it": Half(
        NAMESPACE, lambda w: create_repository(w.database, "team/new", "library", None), _SAME_NAME
    ),
}


@pytest.fixture
async def full(world: World) -> World:
    """Four tagged images in a repository, the first of which has the later blob; the first of the last two has a location."""
    await world.repository("other/b")
    for size, image in enumerate(("early", "late"), 1):
        await world.blob(image, ["team/a"], ["us"], size)
    for tag, image in (("image 1", "late"), ("image 2", "early")):
        await world.manifest(image, "team/a", blobs=[image], tag=tag)
    for tag in ("first", "second"):
        await world.manifest(tag, "team/a", tag=tag)
    await world.database.fetch(
        "INSERT INTO tag_location (repository_id, name, location_id) SELECT t.repository_id, t.name, l.id "
        "FROM tag t, location l WHERE t.name = 'first' AND l.name = 'eu'"
    )
    return world


@pytest.mark.parametrize("circle", HALVES)
async def test_who_waits_has_not_what_the_other_comes_to_next(full: World, database_uri: str, circle: str) -> None:
    """No two transactions wait for each other."""
    await check(HALVES[circle], full, database_uri)


async def test_a_namespace_that_several_begin_with_is_written_once(world: World, database_uri: str) -> None:
    """Who was not the first to make a namespace, or a repository, does not write its row again: that would hold others up."""

    async def rows() -> Sequence[object]:
        found = await world.database.fetch(
            "SELECT name, ctid::text FROM namespace UNION ALL SELECT name, ctid::text FROM repository ORDER BY 1"
        )
        return [tuple(row.values()) for row in found]

    async with trio.open_nursery() as nursery, held_transaction(database_uri) as maker:
        for sql in (
            "INSERT INTO namespace (name) VALUES ('fresh')",
            "INSERT INTO repository (namespace_id, name) SELECT id, 'fresh/a' FROM namespace",
        ):
            await maker.fetch(sql)
        for repository in ("fresh/a", "fresh/a", "fresh/b"):
            nursery.start_soon(begin, world, repository)
        await wait_until_one_waits(world.database, 3)
        await maker.fetch("COMMIT")
    assert len(await world.database.fetch("SELECT FROM upload")) == 3
    assert await rows() == [("fresh", "(0,1)"), ("fresh/a", "(0,1)"), ("fresh/b", "(0,2)")]
