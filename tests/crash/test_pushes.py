"""Killed at each call of a push: the client begins again or goes on, as it likes, and nothing that was acknowledged is lost."""

import json
from collections.abc import Sequence

import pytest
from attrs import define

from tests.crash.conftest import MakeWorld
from tests.crash.harness import World, facts, pattern, sweep
from tests.registry.world import Region, image

REPOSITORY = "team/app"
MIB = 1 << 20


@define
class Push:
    """A client that pushes a blob in pieces of these sizes, at one node after the other, and then its last bytes with the PUT.

    `resumes`: after a crash it asks how far its upload is and goes on; otherwise it begins again.
    """

    sizes: Sequence[int]
    last: int = 0
    resumes: bool = True
    location: str | None = None
    seed: str = "push"

    @property
    def data(self) -> bytes:
        return pattern(sum(self.sizes) + self.last, self.seed)

    async def prepare(self, world: World) -> None:
        pass

    async def act(self, world: World, regions: Sequence[Region]) -> None:
        self.location = await regions[0].start_upload(REPOSITORY)
        await self._go_on(world, regions, 0)

    async def retry(self, world: World, region: Region) -> None:
        if self.resumes and self.location is not None:
            told = await region.ask("GET", self.location)
            if told.status == 204 and told.headers["range"] != "0-0":
                self.location = told.headers["location"]
                await self._go_on(world, [region], int(told.headers["range"].partition("-")[2]) + 1)
                return
        self.location = await region.start_upload(REPOSITORY)
        await self._go_on(world, [region], 0)

    async def _go_on(self, world: World, regions: Sequence[Region], offset: int) -> None:
        """Send what is missing: wherever its node died, an upload that is there can be ended."""
        assert self.location is not None
        data, end = self.data, 0
        for number, size in enumerate(self.sizes, 1):
            end += size
            if end <= offset:
                continue
            reply = await regions[number % len(regions)].patch(self.location, data[offset:end], start=offset)
            assert reply.status == 202, reply.body
            self.location, offset = reply.location, end
        digest = facts(data)
        reply = await regions[-1].put(self.location, digest, data[offset:])
        assert reply.status == 201, reply.body
        world.blobs[digest] = (REPOSITORY, data)


@define
class PushWhole:
    """A client that pushes a blob in one request."""

    size: int

    async def prepare(self, world: World) -> None:
        pass

    async def act(self, world: World, regions: Sequence[Region]) -> None:
        data = pattern(self.size, "whole")
        digest = await regions[0].push_blob(REPOSITORY, data)
        world.blobs[digest] = (REPOSITORY, data)

    async def retry(self, world: World, region: Region) -> None:
        await self.act(world, [region])


@define
class PushImage:
    """A client that moves a tag to an image whose blobs are there already."""

    async def prepare(self, world: World) -> None:
        region = world.region()
        await region.push_image(REPOSITORY, "v1", b"old layer")
        for blob in (b"config", b"layer"):
            world.blobs[await region.push_blob(REPOSITORY, blob)] = (REPOSITORY, blob)

    async def act(self, world: World, regions: Sequence[Region]) -> None:
        digest = await regions[0].push_manifest(REPOSITORY, "v1", image(b"config", b"layer"))
        assert digest == facts(json.dumps(image(b"config", b"layer")).encode())
        world.tags[REPOSITORY, "v1"] = digest

    async def retry(self, world: World, region: Region) -> None:
        await self.act(world, [region])


@pytest.mark.parametrize("resumes", [True, False])
async def test_a_small_push(make_world: MakeWorld, resumes: bool) -> None:
    """A blob of one part in POST, PATCH and PUT."""
    assert await sweep(make_world, lambda: Push([1000], resumes=resumes)) >= 8


@pytest.mark.parametrize("resumes", [True, False])
async def test_a_push_in_parts(make_world: MakeWorld, resumes: bool) -> None:
    """A blob of several parts with a tail between its requests, and bytes in the last one."""
    sizes = [MIB * 5 // 2, 1000, MIB + 1]
    assert await sweep(make_world, lambda: Push(sizes, last=MIB // 2, resumes=resumes)) >= 20


async def test_a_push_over_two_regions(make_world: MakeWorld) -> None:
    """An upload that goes on at another node with every request, both killed at once."""
    assert await sweep(make_world, lambda: Push([MIB * 5 // 2, 1000], last=10), ["us eu", "eu us"]) >= 15


@pytest.mark.parametrize("size", [0, 1000, 3 * MIB])
async def test_a_push_in_one_request(make_world: MakeWorld, size: int) -> None:
    """POST with a digest, empty, small and in parts."""
    assert await sweep(make_world, lambda: PushWhole(size)) >= 4


async def test_a_manifest(make_world: MakeWorld) -> None:
    """The manifest, its links and its tag are there together or not at all."""
    assert await sweep(make_world, PushImage) >= 2
