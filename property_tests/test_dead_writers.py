"""Promise 8 while a node dies: an upload goes on at another one, at whatever instant that was, and never begins again."""

import os
from collections.abc import Awaitable, Callable

import pytest
import trio
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from engines.contract import Part
from node.answers import Answer, Request
from node.push.uploads import Uploads
from property_tests.chaos import PREFERENCES, check_all_right, settle, simulate
from property_tests.cluster import KEEP, Node, PromiseBroken, World
from property_tests.memory_engine import LATEST, MIB
from property_tests.uploads import Client
from replication.model import Blob
from replication.strays import mixture

SEEDS = range(int(os.environ.get("SIMULATION_FIRST_SEED", "0")), int(os.environ.get("SIMULATION_SEEDS", "25")))
_AGAIN = (404, 429, 503)


class _Faithful(Client):
    """A client that begins a blob once, says when something of it was taken in, and goes on ending it once it has tried to.

    What a PATCH brings cannot be compared with an object that is there already: only a PUT says what the whole must be.
    """

    taken: Callable[[], None] = lambda: None
    ending = False

    def _next(self, offset: int) -> tuple[int, bool]:
        end, last = super()._next(offset)
        self.ending |= last
        return (len(self.data), True) if self.ending else (end, last)

    async def _push(self) -> Blob:
        assert await self._ask(lambda uploads: uploads.post(Request("POST", ""), self.repository)) == 202
        await self._send()
        return self._found()

    async def _ask(self, request: Callable[[Uploads], Awaitable[Answer]]) -> int | None:
        status = await super()._ask(request)
        if status in _AGAIN and not self._is_there():
            raise PromiseBroken(f"{status}: the client has to begin again")
        if status == 202:
            self.taken()
        return status

    def _is_there(self) -> bool:
        return any(blob.digest == self.digest for blob in self.pick().world.truth.blobs.values())


@pytest.mark.parametrize("seed", SEEDS)
def test_an_upload_outlives_the_node_that_wrote_it(seed: int) -> None:
    """Also in stores that make an object of all parts or of none, while what the dead one had under way still comes."""

    async def scenario(world: World) -> None:
        random = world.random
        for store in world.stores.values():
            store.late_rate, store.all_or_none = 0.7, seed % 4 != 0
        async with trio.open_nursery() as nursery:
            nodes = {name: Node(world, name, PREFERENCES["us1"], seed, reconciles=True) for name in ("us1", "eu1")}
            for node in nodes.values():
                await nursery.start(node.run)
                await node.watcher.first_round()

            def pick() -> Node:
                living = [node for node in nodes.values() if node.line.alive]
                # Some clients stay with one node as long as it lives.
                return living[0] if seed % 3 else random.choice(living)

            def doom() -> None:
                (upload,) = world.truth.uploads.values()
                if nodes["us1"].fuse is None and (seed % 5 == 0 or upload.state.parts_upload is not None):
                    nodes["us1"].fuse = random.randrange(1, 14)

            size = random.choice([6 * MIB + 17, 12 * MIB])
            client = _Faithful(pick, random, "team", random.randbytes(size), patience=100)
            client.steps = (1000, 2 * MIB + 7, 3 * MIB, 5 * MIB + 7)
            client.taken = doom
            assert await client.push() is not None
            nodes["us1"].crash()
            await trio.sleep(2 * LATEST + KEEP)
            await settle(world)
            check_all_right(world)
            nursery.cancel_scope.cancel()

    simulate(seed, scenario, locations=("us", "eu"))


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 40)), min_size=1, max_size=12), st.integers(1, 20))
def test_ours_are_found_among_strays(parts: list[tuple[bool, int]], minimum: int) -> None:
    """The spans cut our bytes out of an object of all parts; without strays, or all of ours, there is nothing to cut."""
    listed = [Part(3 * number, size, f"{number}") for number, (_, size) in enumerate(parts, 1)]
    ours = [part for part, (mine, _) in zip(listed, parts, strict=True) if mine]
    found = mixture(listed[::-1], ours, minimum)
    if len(ours) == len(listed):
        assert found is None
        return
    assert found is not None
    assert list(found.parts) == listed
    data = {part.number: bytes([part.number]) * part.size for part in listed}
    whole = b"".join(data[part.number] for part in found.parts)
    cut = b"".join(whole[start : start + length] for start, length in found.spans)
    assert cut == b"".join(data[part.number] for part in ours)
    assert set(found.short) == {part.number for part in listed[:-1] if part not in ours and part.size < minimum}
    for part in ours:
        replaced = [evolve(part, etag="another") if other is part else other for other in listed]
        assert mixture(replaced, ours, minimum) is None
        assert mixture([other for other in listed if other is not part], ours, minimum) is None
