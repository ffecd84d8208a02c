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
from replication.strays import cut, mixture

SEEDS = range(int(os.environ.get("SIMULATION_FIRST_SEED", "0")), int(os.environ.get("SIMULATION_SEEDS", "25")))
_AGAIN = (404, 429, 503)


class _Faithful(Client):
    """A client that begins a blob once, and says when something of it was taken in, and when it is about to end it."""

    taken: Callable[[], None] = lambda: None
    ends: Callable[[], None] = lambda: None

    def _next(self, offset: int) -> tuple[int, bool]:
        end, last = super()._next(offset)
        if last:
            self.ends()
        return end, last

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
            names = ("us1", "eu1", "ap1")
            nodes = {name: Node(world, name, PREFERENCES["us1"], seed, reconciles=True) for name in names}
            for node in nodes.values():
                await nursery.start(node.run)
                await node.watcher.first_round()

            def living() -> list[Node]:
                return [node for node in nodes.values() if node.line.alive]

            def pick() -> Node:
                # Some clients stay with one node as long as it lives.
                return living()[0] if seed % 3 else random.choice(living())

            def doom() -> None:
                (upload,) = world.truth.uploads.values()
                if nodes["us1"].fuse is None and (seed % 5 == 0 or upload.state.parts_upload is not None):
                    nodes["us1"].fuse = random.randrange(1, 14)

            def doom_again() -> None:
                if len(living()) == 2 and living()[0].fuse is None:
                    # Perhaps with what the first one left behind.
                    living()[0].fuse = random.randrange(1, 40)

            size = random.choice([6 * MIB + 17, 12 * MIB])
            client = _Faithful(pick, random, "team", random.randbytes(size), patience=100)
            client.steps = (1000, 2 * MIB + 7, 3 * MIB, 5 * MIB + 7)
            client.taken, client.ends = doom, doom_again
            assert await client.push() is not None
            for name in ("us1", "eu1"):
                nodes[name].crash()
            await trio.sleep(2 * LATEST + KEEP)
            await settle(world)
            check_all_right(world)
            nursery.cancel_scope.cancel()

    simulate(seed, scenario, locations=("us", "eu"))


@given(
    st.lists(st.tuples(st.integers(0, 2 * MIB), st.integers(0, 3 * MIB)), max_size=5), st.integers(0), st.integers(0)
)
def test_any_bytes_of_ours_are_found_in_spans(gaps: list[tuple[int, int]], begin: int, size: int) -> None:
    """Wherever spans lie, what is cut is what was asked for, as far as they go, and little at once."""
    spans, place = [], 0
    for gap, length in gaps:
        spans.append((place + gap, length))
        place += gap + length
    ours = sum(length for _, length in spans)
    begin, size = begin % (ours + 2), size % (ours + 2)
    pieces = list(cut(spans, begin, size))
    assert all(0 < length <= MIB for _, length in pieces)
    assert sum(length for _, length in pieces) == max(0, min(size, ours - begin))
    at = begin
    for start, length in pieces:
        # The byte of ours that is at this place of the object.
        assert any(low <= start and start + length <= low + long for low, long in spans)
        assert start == next(low + at - n for low, long, n in _numbered(spans) if n <= at < n + long)
        at += length


def _numbered(spans: list[tuple[int, int]]) -> list[tuple[int, int, int]]:
    """Return each span with the number of its first byte among ours."""
    return [(low, long, sum(length for _, length in spans[:place])) for place, (low, long) in enumerate(spans)]


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
    cut = b"".join(whole[start : start + length] for start, length in found.mixed.spans)
    assert found.mixed.size == len(whole)
    assert cut == b"".join(data[part.number] for part in ours)
    assert set(found.short) == {part.number for part in listed[:-1] if part not in ours and part.size < minimum}
    for part in ours:
        replaced = [evolve(part, etag="another") if other is part else other for other in listed]
        assert mixture(replaced, ours, minimum) is None
        assert mixture([other for other in listed if other is not part], ours, minimum) is None
