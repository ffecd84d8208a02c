"""The clients that run at once: writers, a deleter, readers of tags, readers of digests; and a crowd on demand."""

import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Protocol

import trio

from tests.nemesis.client import BARE, DOCKER, PODMAN, Client, Habits
from tests.nemesis.crowd import pull_at_once
from tests.nemesis.history import History, Kind, Operation
from tests.nemesis.images import KIB, Image, make_image, version_of

BASE_IMAGES = 4
CROWD = 1000


class Doors(Protocol):
    """What clients must know of a registry: its two doors by name, `streams` and `redirects`, and a prefix that is its own."""

    @property
    def doors(self) -> Mapping[str, str]: ...

    @property
    def storage_path(self) -> str: ...


def base_images(ground: Doors) -> list[Image]:
    """Return the images that are there from the beginning."""
    return [make_image(f"base{ground.storage_path}/image", number) for number in range(BASE_IMAGES)]


def crowd_image(ground: Doors) -> Image:
    """Return the image that a crowd pulls."""
    return make_image(f"crowd{ground.storage_path}/image", 0, [200 * KIB])


class Workload:
    """Clients of one ground that go on until they are told to stop; `name` keeps their repositories apart from other runs'.

    `readers` pull by digest through nodes that stream, and through nodes that redirect.
    """

    def __init__(self, ground: Doors, name: str, seed: int, readers: tuple[int, int] = (3, 2)) -> None:
        self.ground = ground
        self._readers = readers
        self.history = History()
        self._name = name
        self._random = random.Random(seed)
        self._stop = trio.Event()
        self._tags: list[tuple[str, str]] = []

    def stop(self) -> None:
        """Let every client end what it is doing."""
        self._stop.set()

    async def run(self) -> None:
        """Run all clients; returns when all have stopped."""
        streams, redirects = "streams", "redirects"
        streaming, redirected = self._readers
        clients: list[Callable[[], Awaitable[None]]] = [
            partial(self._write, "docker-writer", DOCKER, redirects, streams, chunked=False),
            partial(self._write, "podman-writer", PODMAN, streams, redirects, chunked=False),
            partial(self._write, "chunks-writer", PODMAN, redirects, redirects, chunked=True),
            partial(self._delete, "deleter", PODMAN, redirects, streams),
            partial(self._read_tags, "docker-reader", DOCKER, redirects),
            partial(self._read_tags, "podman-reader", PODMAN, streams),
            *(partial(self._read_digests, f"stream-reader-{n}", streams) for n in range(streaming)),
            *(partial(self._read_digests, f"redirect-reader-{n}", redirects) for n in range(redirected)),
        ]
        async with trio.open_nursery() as nursery:
            for client in clients:
                nursery.start_soon(client)

    async def crowd(self) -> None:
        """Pull one image a thousand times at once."""
        image = crowd_image(self.ground)
        seen = await pull_at_once(self.ground.doors["streams"], image.repository, image.digest, CROWD)
        self.history.operations += seen

    async def _write(self, name: str, habits: Habits, door: str, other: str, *, chunked: bool) -> None:
        """Push one version after the other and look at each through another door."""
        repository, client = f"{self._name}/{name}", Client(habits, self.ground.doors[door])
        witness = Client(habits, self.ground.doors[other])
        self._tags.append((repository, "latest"))
        doors = list(self.ground.doors.values()) if chunked else []
        version = 0
        while not self._stop.is_set():
            version += 1
            await self._push(client, name, door, repository, version, doors)
            await self._look(witness, name, other, repository)
            await self._pause(0.3)
        await client.close()
        await witness.close()

    async def _delete(self, name: str, habits: Habits, door: str, other: str) -> None:
        """Push and delete a tag in turn, and look after each."""
        repository, client = f"{self._name}/{name}", Client(habits, self.ground.doors[door])
        witness = Client(habits, self.ground.doors[other])
        version = 0
        while not self._stop.is_set():
            version += 1
            await self._push(client, name, door, repository, version, ())
            await self._look(witness, name, other, repository)
            version += 1
            with self._record("delete", name, door, repository, habits, "latest", version) as operation:
                await client.delete(operation, repository, "latest")
            await self._look(witness, name, other, repository)
            await self._pause(0.3)
        await client.close()
        await witness.close()

    async def _push(
        self, client: Client, name: str, door: str, repository: str, version: int, doors: Sequence[str]
    ) -> None:
        image = make_image(repository, version)
        with self._record("push", name, door, repository, client.habits, "latest", version) as operation:
            operation.digest = image.digest
            await client.push(operation, image, "latest", doors)

    async def _look(self, client: Client, name: str, door: str, repository: str) -> None:
        with self._record("look", f"{name}-look", door, repository, client.habits, "latest") as operation:
            manifest = await client.look(operation, repository, "latest")
            operation.version = None if manifest is None else version_of(manifest)

    async def _read_tags(self, name: str, habits: Habits, door: str) -> None:
        client = Client(habits, self.ground.doors[door])
        while not self._stop.is_set():
            if self._tags:
                repository, tag = self._random.choice(self._tags)
                with self._record("pull", name, door, repository, habits, tag) as operation:
                    manifest = await client.pull(operation, repository, tag)
                    operation.version = None if manifest is None else version_of(manifest)
            await self._pause(0.2)
        await client.close()

    async def _read_digests(self, name: str, door: str) -> None:
        """Pull by digest what every node has been asked for before, and try nothing again."""
        client = Client(BARE, self.ground.doors[door])
        images = base_images(self.ground)
        while not self._stop.is_set():
            image = self._random.choice(images)
            with self._record("pull", name, door, image.repository, BARE) as operation:
                operation.digest, operation.warm = image.digest, True
                manifest = await client.pull(operation, image.repository, image.digest)
                operation.version = None if manifest is None else version_of(manifest)
            await self._pause(0.15)
        await client.close()

    def _record(
        self,
        kind: Kind,
        client: str,
        door: str,
        repository: str,
        habits: Habits,
        tag: str | None = None,
        version: int | None = None,
    ) -> AbstractContextManager[Operation]:
        return self.history.record(
            Operation(kind, client, door, repository, tag, trio.current_time(), version, retries=habits.retries)
        )

    async def _pause(self, seconds: float) -> None:
        with trio.move_on_after(seconds * self._random.uniform(0.5, 1.5)):
            await self._stop.wait()
