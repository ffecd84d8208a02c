"""What a replay concludes from the journals while nodes go on: nothing about what a client was just told that it is there."""

from collections.abc import Awaitable, Callable, Sequence
from uuid import UUID

import trio
from attrs import define, field

from node.records.blobs import commit_blob
from node.records.manifests import CompiledTags, ManifestFacts, commit_manifest
from node.records.postgres import Database, Row
from node.records.replay import delete_gone, forget_gone_copies
from node.records.uploads import Choice, begin_upload
from replication.upload_state import UploadState
from tests.collection.held import held_transaction, wait_until_one_waits
from tests.replication.conftest import world
from tests.replication.world import World, digest_of

__all__ = ["world"]

_UPLOAD = UUID(int=7)


@define(eq=False)
class Between:
    """A database that lets something happen before its second statement."""

    database: Database
    happens: Callable[[], Awaitable[object]]
    statements: int = field(default=0, init=False)

    async def fetch(self, sql: str, *args: object, deadline: float = 5.0) -> Sequence[Row]:
        self.statements += 1
        if self.statements == 2:
            await self.happens()
        return await self.database.fetch(sql, *args, deadline=deadline)

    async def fetch_row(self, sql: str, *args: object, deadline: float = 5.0) -> Row | None:
        rows = await self.fetch(sql, *args, deadline=deadline)
        return rows[0] if rows else None


async def say_gone(world: World, kind: str, name: str) -> None:
    """Let the journals say that something is gone since now."""
    await world.database.fetch(
        "INSERT INTO journal_fact (kind, name, at, seq) VALUES ($1, $2, extract(epoch FROM now()) * 1000000, 1)",
        kind,
        name,
    )


async def links(world: World) -> set[str]:
    rows = await world.database.fetch(
        "SELECT r.name, b.digest FROM repository_blob rb JOIN repository r ON r.id = rb.repository_id "
        "JOIN blob b ON b.id = rb.blob_id"
    )
    names = {digest_of(name): name for name in world.blobs}
    return {f"{row['name']} {names[row['digest']]}" for row in rows}


async def upload(world: World) -> None:
    assert await begin_upload(
        world.database, "team/a", "library", _UPLOAD, [Choice("eu", UploadState("new", "tail", "sha256"))], 3600.0
    )


async def commit(database: Database, blob: str) -> object:
    return await commit_blob(
        database, "team/a", _UPLOAD, 1, digest=digest_of(blob), size=1000, pieces=None, key="new", leftovers=(), replicate=True
    )  # fmt: skip


async def put(database: Database, blob: str) -> object:
    facts = ManifestFacts(digest_of("manifest"), "x", b"x", (digest_of(blob),))
    return await commit_manifest(database, "team/a", "library", facts, CompiledTags(("t",)), sparse=False)


async def test_a_link_goes_with_the_last_copy_unless_something_needs_it(world: World) -> None:
    """With the copies that the journals know to be gone go the links of blobs that have no other, and that no manifest names."""
    for name, at in (("lost", ["us"]), ("elsewhere", ["us", "eu"]), ("named", ["us"]), ("kept", ["us"])):
        await world.blob(name, ["team/a", "other/b"], at)
        if name != "kept":
            await say_gone(world, "copy", f"us {name}.us")
    await world.manifest("m", "team/a", blobs=["named"])
    assert await forget_gone_copies(world.database) == 3
    assert await links(world) == {
        f"{repository} {blob}" for repository in ("team/a", "other/b") for blob in ("elsewhere", "named", "kept")
    }
    assert [await world.placed(blob) for blob in world.blobs] == [{}, {"eu": "present"}, {}, {"us": "present"}]
    assert await forget_gone_copies(world.database) == 0


async def test_a_blob_that_is_pushed_meanwhile_stays_linked(world: World, database_uri: str) -> None:
    """A client that was answered 201 finds its blob in the repository, however a replay forgets the copy that it had before."""
    await world.blob("b", ["team/a"], ["us"])
    await say_gone(world, "copy", "us b.us")
    await upload(world)
    gone: list[int] = []
    async with trio.open_nursery() as nursery, held_transaction(database_uri) as held:

        async def forget() -> None:
            gone.append(await forget_gone_copies(Between(world.database, lambda: commit(held, "b"))))  # type: ignore[arg-type]

        nursery.start_soon(forget)
        await wait_until_one_waits(world.database)
    assert gone == [1]
    assert await world.placed("b") == {"eu": "present"}
    assert await links(world) == {"team/a b"}


async def test_a_manifest_that_is_pushed_meanwhile_keeps_its_blobs_links(world: World, database_uri: str) -> None:
    """What a manifest was just taken for names is in its repository, also where the copy is gone: a push of the blob heals it."""
    await world.blob("b", ["team/a"], ["us"])
    await say_gone(world, "copy", "us b.us")
    async with trio.open_nursery() as nursery, held_transaction(database_uri) as held:
        await put(held, "b")
        nursery.start_soon(forget_gone_copies, world.database)
        await wait_until_one_waits(world.database)
    assert await world.placed("b") == {}
    assert await links(world) == {"team/a b"}


async def test_a_repository_that_is_pushed_into_meanwhile_stays(world: World, database_uri: str) -> None:
    """The journals know it to be deleted: what was pushed since counts, blob or manifest, also while the replay waits for it."""
    await world.blob("b", ["team/a"], ["us"])
    await say_gone(world, "repository", "team/a")
    for push in (put, commit):
        await world.database.fetch("DELETE FROM repository_manifest")
        await world.database.fetch("UPDATE repository_blob SET linked_at = now() - interval '1 hour'")
        await world.database.fetch("UPDATE repository SET created_at = now() - interval '1 hour'")
        await upload(world)
        async with trio.open_nursery() as nursery, held_transaction(database_uri) as held:
            await push(held, "b")
            nursery.start_soon(delete_gone, world.database)
            await wait_until_one_waits(world.database)
        assert await links(world) == {"team/a b"}
        await world.database.fetch("DELETE FROM upload")


async def test_a_repository_that_was_deleted_goes(world: World) -> None:
    """With all that it had, where nothing came later."""
    await world.blob("b", ["team/a", "team/b"], ["us"])
    for table, column in (("repository", "created_at"), ("repository_blob", "linked_at")):
        await world.database.fetch(f"UPDATE {table} SET {column} = now() - interval '1 hour'")  # noqa: S608  # our names
    await say_gone(world, "repository", "team/a")
    assert await delete_gone(world.database) == 1
    assert await links(world) == {"team/b b"}
