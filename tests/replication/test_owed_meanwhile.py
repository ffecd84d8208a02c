"""What is required is compared with what is there once the blob is had: no copy's job goes lost between two transactions."""

from collections.abc import Awaitable, Callable
from uuid import UUID

import pytest
import trio

from node.records.blobs import commit_blob, mount_blob
from node.records.closures import ask_for_copies, move_tags
from node.records.history import relink_closure
from node.records.manifests import CompiledTags, ManifestFacts, commit_manifest
from node.records.policies import place_tags
from replication.policy import parse_policy
from tests.collection.held import Held, held_transaction, wait_until_one_waits
from tests.replication.world import LOCATIONS, World, digest_of

_UPLOAD = UUID(int=7)
_TAG = CompiledTags(("new",), 0, (("new", "ap"),))
_IMAGE = digest_of("manifest m")


async def _commit(world: World) -> object:
    return await commit_blob(
        world.database,
        "other/b",
        _UPLOAD,
        1,
        digest=digest_of("layer"),
        size=1000,
        pieces=None,
        key="new.us",
        leftovers=(),
        replicate=True,
    )


async def _push(world: World) -> object:
    facts = ManifestFacts(_IMAGE, "x", b"x", (digest_of("layer"),))
    return await commit_manifest(world.database, "team/a", "library", facts, _TAG, sparse=False)


async def _place(world: World) -> object:
    policy = parse_policy({"tags": [{"pattern": "*", "locations": ["ap"]}]}, LOCATIONS)
    rows = await world.database.fetch("SELECT repository_id, name FROM tag")
    return await place_tags(world.database, [(row["repository_id"], row["name"], policy) for row in rows])


_REQUIRING: dict[str, Callable[[World], Awaitable[object]]] = {
    "an upload ends": _commit,
    "a blob is mounted": lambda w: mount_blob(
        w.database, "other/b", "library", "team/a", digest_of("layer"), replicate=True
    ),
    "an image is linked again": lambda w: relink_closure(w.database, "other/c", _IMAGE, {}, replicate=True),
    "a manifest is pushed": _push,
    "a tag moves": lambda w: move_tags(w.database, "team/a", _IMAGE, _TAG),
    "a tag gets a location": _place,
    "a copy is asked for": lambda w: ask_for_copies(
        w.database, "team/a", _IMAGE, locations=["ap"], keep={"ap": 3600.0}
    ),
}


@pytest.fixture
async def full(world: World) -> World:
    """A tagged image in a namespace that does not require `ap`, and in one that does its manifest alone, and an upload."""
    await world.repository("other/b")
    await world.blob("layer", ["team/a"], ["us", "eu"])
    await world.manifest("m", "team/a", blobs=["layer"], tag="first")
    await world.policy("other", required=["us", "eu", "ap"])
    await world.database.fetch(
        "INSERT INTO repository_manifest (repository_id, manifest_id, media_type) VALUES ($1, $2, 'x')",
        await world.repository("other/c"),
        world.manifests["m"],
    )
    await world.database.fetch(
        "INSERT INTO upload (id, repository_id, location_id, key, reserved_key, algorithm, expires_at) "
        "SELECT $1, r.id, l.id, 'new.us', 'new.tail', 'sha256', now() + interval '1 hour' "
        "FROM repository r, location l WHERE r.name = 'other/b' AND l.name = 'us'",
        _UPLOAD,
    )
    return world


async def _settle(held: Held, blob: int, *, strike: str = "{}", trim: str = "{}") -> None:
    (row,) = await held.fetch(
        "SELECT settle_blob($1, blob_facts($1), '{}', $2::text::text[], $3::text::text[], 0) AS outcome",
        blob,
        strike,
        trim,
    )
    assert row["outcome"] == "done"


@pytest.mark.parametrize("requiring", _REQUIRING)
async def test_a_copy_that_is_let_go_at_this_moment_is_owed_anew(
    full: World, database_uri: str, requiring: str
) -> None:
    """Whoever requires a copy while another transaction takes it away, because nobody did, makes the task for a new one."""
    await full.place("layer", "ap")
    async with trio.open_nursery() as nursery, held_transaction(database_uri) as held:
        await _settle(held, full.blobs["layer"], trim="{ap}")
        nursery.start_soon(_REQUIRING[requiring], full)
        await wait_until_one_waits(full.database)
        await held.fetch("COMMIT")
    assert await full.placed("layer") == {"us": "present", "eu": "present"}
    assert await full.tasks("layer") == {"ap"}


@pytest.mark.parametrize("requiring", _REQUIRING)
async def test_a_task_that_is_struck_at_this_moment_is_made_anew(
    full: World, database_uri: str, requiring: str
) -> None:
    """Whoever requires a copy while another transaction strikes its task off, because nobody did, makes another one."""
    await full.owe("layer", "ap")
    async with trio.open_nursery() as nursery, held_transaction(database_uri) as held:
        await _settle(held, full.blobs["layer"], strike="{ap}")
        nursery.start_soon(_REQUIRING[requiring], full)
        await wait_until_one_waits(full.database)
        await held.fetch("COMMIT")
    assert await full.tasks("layer") == {"ap"}
