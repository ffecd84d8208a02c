"""Killed at each call of a copy, a heal, a sweep, a collection or a drain: another node brings all of it to its end."""

from collections.abc import Sequence

import pytest
import trio
from attrs import define

from node.records.collect import KINDS, CollectRules, collect_batch, expire_history
from node.records.locations import Change, note_drained, purge_removed, remove_location, set_state
from node.records.policies import write_policy
from node.records.reconcile import PostgresRounds
from replication.model import LocationState
from replication.policy import Policy
from replication.reconciler import ReconcilerSettings, backfill
from tests.crash.conftest import MakeWorld
from tests.crash.harness import World, facts, pattern, sweep
from tests.faulty_engine import Refuse
from tests.registry.world import Region, image

REPOSITORY = "team/app"
MIB = 1 << 20
_RULES = CollectRules(grace=0.0, retention=0.0, tag_expiration=0.0)


async def push(world: World, data: bytes) -> str:
    """Push a blob that stays."""
    digest = await world.region().push_blob(REPOSITORY, data)
    world.blobs[digest] = (REPOSITORY, data)
    return digest


@define
class Copy:
    """A node that pays a debt. `resumed`: an earlier try was cut off; `pieces` False: the blob has no piece digests."""

    size: int
    resumed: bool = False
    pieces: bool = True

    async def prepare(self, world: World) -> None:
        await push(world, pattern(self.size, "copy"))
        if not self.pieces:
            await world.sql("UPDATE blob SET pieces = NULL")
        if self.resumed:
            region = world.region("eu us")
            region.engines["eu"].plan("put_part", Refuse(), call=2)
            # The next try must not get any further, however late we look.
            region.engines["eu"].plan("list_parts", Refuse())
            with trio.fail_after(60):
                async with trio.open_nursery() as nursery:
                    await nursery.start(region.node.scheduler.run)
                    while not (await world.sql("SELECT attempts FROM task"))[0]["attempts"]:  # noqa: ASYNC110
                        await trio.sleep(0.01)
                    nursery.cancel_scope.cancel()
            region.engines["eu"].clear()

    async def act(self, world: World, regions: Sequence[Region]) -> None:
        await world.settle(regions[0])

    async def retry(self, world: World, region: Region) -> None:
        pass


@define
class Heal(Copy):
    """A node that replaces a bad copy by a good one."""

    async def prepare(self, world: World) -> None:
        digest = await push(world, pattern(self.size, "heal"))
        region = world.region("eu us")
        await world.settle(region)
        (row,) = await world.sql(
            "SELECT b.id, p.key FROM blob b JOIN placement p ON p.blob_id = b.id JOIN location l ON l.id = p.location_id "
            "WHERE b.digest = $1 AND l.name = 'eu'",
            digest,
        )
        world.stores["eu"].objects[row["key"]] = b"x" * self.size
        await region.node.ledger.mark_suspect(row["id"], "eu", row["key"], "wrong bytes")


@define
class Trim(Copy):
    """A node that takes away a copy which a policy does not want any more, after reading the one that stays."""

    async def prepare(self, world: World) -> None:
        await push(world, pattern(self.size, "trim"))
        await world.settle(world.region("eu us"))
        await write_policy(world.database, "team", Policy(frozenset({"us"})))
        world.locations = ("us",)

    async def act(self, world: World, regions: Sequence[Region]) -> None:
        node = regions[0].node
        trimmer = node.reconciler.trimmer
        await backfill(PostgresRounds(node.database), node.hints.publish, ReconcilerSettings(), trimmer=trimmer)
        left = await world.sql("SELECT l.name FROM placement p JOIN location l ON l.id = p.location_id")
        assert [row["name"] for row in left] == ["us"]

    async def retry(self, world: World, region: Region) -> None:
        await world.sql("UPDATE trim_lease SET until = now() - interval '1 second'")
        await self.act(world, [region])


@define
class Sweep(Copy):
    """A node that deletes what a cancelled upload left."""

    async def prepare(self, world: World) -> None:
        region = world.region()
        for sizes in ([1000], [self.size, 1000]):
            location = await region.start_upload(REPOSITORY)
            for size in sizes:
                location = (await region.patch(location, pattern(size, "sweep"))).location
            assert (await region.ask("DELETE", location)).status == 204


@define
class Delete:
    """A client that deletes a tag, a manifest and a blob."""

    repeated: bool = False

    async def prepare(self, world: World) -> None:
        region = world.region()
        await region.push_image(REPOSITORY, "v1", b"layer")
        await region.push_image(REPOSITORY, "v2", b"layer")
        await push(world, b"kept")
        await region.push_blob(REPOSITORY, b"loose")

    async def act(self, world: World, regions: Sequence[Region]) -> None:
        base, region = f"/v2/{REPOSITORY}", regions[0]
        second = await world.sql("SELECT digest FROM tag JOIN manifest ON id = manifest_id WHERE name = 'v2'")
        paths = [f"{base}/manifests/v1", f"{base}/blobs/{facts(b'loose')}"]
        paths += [f"{base}/manifests/{row['digest']}" for row in second]
        for path in paths:
            status = (await region.ask("DELETE", path)).status
            assert status in ((202, 404) if self.repeated else (202,))
            world.gone.add(path)

    async def retry(self, world: World, region: Region) -> None:
        self.repeated = True
        await self.act(world, [region])


@define
class Collect:
    """A node that collects an image whose last tag went, beside one that stays and shares a layer with it."""

    async def prepare(self, world: World) -> None:
        region = world.region()
        old = await region.push_image(REPOSITORY, "old", b"shared", pattern(MIB * 5 // 2, "old"))
        new = await region.push_image(REPOSITORY, "new", b"shared", b"new")
        world.tags[REPOSITORY, "new"] = new
        for data in (b"shared", b"new"):
            world.blobs[facts(data)] = (REPOSITORY, data)
        await world.settle(world.region("eu us"))
        assert (await region.ask("DELETE", f"/v2/{REPOSITORY}/manifests/{old}")).status == 202
        await world.sql("UPDATE tag_history SET since = since - interval '9 days', until = until - interval '9 days'")
        await world.sql("UPDATE garbage SET since = since - interval '9 days'")

    async def act(self, world: World, regions: Sequence[Region]) -> None:
        database = regions[0].node.database
        await expire_history(database, _RULES)
        while any([(await collect_batch(database, kind, _RULES)).removed for kind in KINDS]):
            await world.sql("UPDATE garbage SET since = since - interval '9 days'")
        world.gone.add(f"/v2/{REPOSITORY}/blobs/{facts(pattern(MIB * 5 // 2, 'old'))}")

    async def retry(self, world: World, region: Region) -> None:
        await self.act(world, [region])
        left = {row["digest"] for row in await world.sql("SELECT digest FROM blob")}
        assert facts(pattern(MIB * 5 // 2, "old")) not in left


@define
class Drain:
    """An operator who empties a location that has only copies, and takes it out."""

    async def prepare(self, world: World) -> None:
        await push(world, b"small")
        await push(world, pattern(MIB * 5 // 2, "drain"))
        world.tags[REPOSITORY, "v1"] = await world.region().push_manifest(REPOSITORY, "v1", image(b"small"))

    async def act(self, world: World, regions: Sequence[Region]) -> None:
        database = regions[0].node.database
        if (await set_state(database, "us", LocationState.DRAINING)).before is LocationState.REMOVED:
            return
        await backfill(PostgresRounds(database), regions[0].node.hints.publish, ReconcilerSettings())
        await world.settle(regions[0])
        await backfill(PostgresRounds(database), regions[0].node.hints.publish, ReconcilerSettings())
        await world.settle(regions[0])
        await regions[0].node.reconciler.drainer.work()
        await note_drained(database)
        world.locations = ("eu",)
        assert (await remove_location(database, "us")).outcome is Change.DONE
        while await purge_removed(database):
            pass

    async def retry(self, world: World, region: Region) -> None:
        await self.act(world, [region])


@pytest.mark.parametrize(("size", "pieces"), [(1000, True), (MIB * 5 // 2, True), (MIB * 5 // 2, False)])
async def test_a_copy(make_world: MakeWorld, size: int, pieces: bool) -> None:
    """A copy in one write and in parts, of a blob with and without pieces."""
    assert await sweep(make_world, lambda: Copy(size, pieces=pieces), ["eu us"]) >= 10


async def test_a_resumed_copy(make_world: MakeWorld) -> None:
    """A copy that was cut off once already."""
    assert await sweep(make_world, lambda: Copy(3 * MIB, resumed=True), ["eu us"]) >= 14


@pytest.mark.parametrize("size", [1000, pytest.param(MIB * 5 // 2, marks=pytest.mark.long)])
async def test_a_heal(make_world: MakeWorld, size: int) -> None:
    """The bad copy stays on record until the good one is there, and its object goes after that."""
    assert await sweep(make_world, lambda: Heal(size), ["eu us"]) >= 14


async def test_a_trim(make_world: MakeWorld) -> None:
    """Wherever it ends, the copy that a policy wants stays, and the other one goes once it was read."""
    assert await sweep(make_world, lambda: Trim(MIB * 5 // 2), ["eu us"]) >= 10


async def test_a_sweep(make_world: MakeWorld) -> None:
    """Every dead object goes, open multi-part writes too."""
    assert await sweep(make_world, lambda: Sweep(MIB * 5 // 2)) >= 10


async def test_deletes(make_world: MakeWorld) -> None:
    """What was acknowledged as deleted stays deleted."""
    assert await sweep(make_world, Delete) >= 6


async def test_a_collection(make_world: MakeWorld) -> None:
    """What nothing references goes with its bytes, what shares with it stays."""
    assert await sweep(make_world, Collect) >= 15


async def test_a_drain(make_world: MakeWorld) -> None:
    """Only copies move elsewhere before their location goes."""
    assert await sweep(make_world, Drain, ["eu us"]) >= 20
