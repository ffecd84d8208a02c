"""Uploads whose writer died, on real gateways, which end no write that has parts nobody tells them of: go on, and end right."""

import secrets
from functools import partial

import pytest
import trio

from engines.contract import Part, PartsMissing
from tests.faulty_engine import Hold, Stall, Wrong
from tests.registry.test_any_node import bury_due
from tests.registry.world import MIB, Body, MakeWorld, Region, digest_of, until

PART = 5 * MIB
BEGUN = 2 * PART + MIB


async def parts_in(region: Region) -> list[Part]:
    """Return the parts that the store has of the one upload."""
    (row,) = await region.rows("SELECT key, parts_upload FROM upload")
    return list(await region.engines["us"].inner.list_parts(row["key"], row["parts_upload"]))


async def called(region: Region, operation: str) -> bool:
    """Whether a region's store was asked for this."""
    return operation in [call for call, _ in region.engines["us"].calls]


async def die_in_the_middle(region: Region, location: str, data: bytes, digest: str | None, parts: int) -> None:
    """Be a request whose node dies when the store has so many parts in all, none of them recorded."""
    body = Body(data, pause_at=len(data))

    async def there() -> bool:
        return len(await parts_in(region)) == parts

    async with trio.open_nursery() as nursery:
        nursery.start_soon(*((region.put, location, digest, body) if digest else (region.patch, location, body)))
        await until(there)
        nursery.cancel_scope.cancel()


async def die_before_the_end_is_recorded(region: Region, location: str, data: bytes, call: str, number: int) -> None:
    """Be a PUT of the rest whose node dies while its store holds the answer to that call."""
    region.engines["us"].plan(call, held := Hold(), call=number)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(region.put, location, digest_of(data), data[BEGUN:])
        with trio.fail_after(60):
            await held.reached.wait()
        nursery.cancel_scope.cancel()


async def check_whole(us: Region, eu: Region, repository: str, data: bytes) -> None:
    """The blob is right on both nodes, and nothing else is left in the store."""
    for region in (us, eu):
        assert (await region.ask("GET", f"/v2/{repository}/blobs/{digest_of(data)}")).body == data
    assert await us.unaccounted("us") == set()
    await bury_due(us)
    assert len(await us.contents("us")) == 1


@pytest.mark.parametrize("more", [0, 3 * PART + 7], ids=["PUT without bytes", "PUT with bytes"])
async def test_a_patch_that_died_after_its_parts(world: MakeWorld, repository: str, more: int) -> None:
    """Parts that a dead node put and did not record do not fail the upload that goes on from its last record."""
    us, eu = await world("us eu", "eu us", ceph=True, proxy_storage=True)
    data = secrets.token_bytes(BEGUN + 4 * PART + more)
    location = (await us.patch(await us.start_upload(repository), data[:BEGUN])).location
    await die_in_the_middle(us, location, data[BEGUN : BEGUN + 3 * PART], None, 4)
    status = await eu.ask("GET", location)
    assert status.headers["range"] == f"0-{BEGUN - 1}"
    reply = await eu.patch(status.location, data[BEGUN : BEGUN + 4 * PART], BEGUN)
    assert reply.status == 202
    assert (await eu.put(reply.location, digest_of(data), data[BEGUN + 4 * PART :])).status == 201
    await check_whole(us, eu, repository, data)


@pytest.mark.parametrize("size", [700, PART + 700], ids=["short part", "long part"])
async def test_a_put_that_died_before_its_end(world: MakeWorld, repository: str, size: int) -> None:
    """Nor does a last part, however short, whose writer died before the store made an object of it: the PUT is repeated."""
    us, eu = await world("us eu", "eu us", ceph=True, proxy_storage=True)
    data = secrets.token_bytes(BEGUN + size)
    location = (await us.patch(await us.start_upload(repository), data[:BEGUN])).location
    us.engines["us"].plan("finish_parts", Stall())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(us.put, location, digest_of(data), data[BEGUN:])
        await until(partial(called, us, "finish_parts"))
        nursery.cancel_scope.cancel()
    us.engines["us"].clear()
    assert len(await parts_in(us)) == 3
    assert (await eu.put(location, digest_of(data), data[BEGUN:])).status == 201
    await check_whole(us, eu, repository, data)


@pytest.mark.parametrize("late", ["before the end", "at the end"])
async def test_a_part_that_comes_after_the_take_over(world: MakeWorld, repository: str, late: str) -> None:
    """What a dead writer's store takes in afterwards is left out, too, also while the upload is being ended; then it is refused."""
    us, eu = await world("us eu", "eu us", ceph=True, proxy_storage=True)
    data = secrets.token_bytes(BEGUN + 3 * PART)
    location = (await us.patch(await us.start_upload(repository), data[:BEGUN])).location
    (row,) = await us.rows("SELECT key, parts_upload, next_part FROM upload")
    write = partial(us.engines["us"].inner.put_part, row["key"], row["parts_upload"])
    await write(row["next_part"], secrets.token_bytes(PART))
    reply = await eu.patch(location, data[BEGUN:], BEGUN)
    replies = []

    async def end() -> None:
        replies.append(await eu.put(reply.location, digest_of(data)))

    if late == "before the end":
        await write(row["next_part"] + 1, secrets.token_bytes(PART))
        await end()
    else:
        eu.engines["us"].plan("list_parts", listing := Hold(), call=0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(end)
            with trio.fail_after(60):
                await listing.reached.wait()
            await write(row["next_part"] + 1, secrets.token_bytes(PART))
            listing.go_on.set()
    assert [reply.status for reply in replies] == [201]
    with pytest.raises(PartsMissing):
        await write(row["next_part"] + 2, secrets.token_bytes(PART))
    await check_whole(us, eu, repository, data)


async def test_whoever_lost_the_upload_does_not_end_it(world: MakeWorld, repository: str) -> None:
    """A writer that comes to the end of an upload which somebody else goes on with leaves it alone, and that one ends it right."""
    us, eu = await world("us eu", "eu us", ceph=True, proxy_storage=True)
    data = secrets.token_bytes(BEGUN + 4 * PART)
    location = (await us.patch(await us.start_upload(repository), data[:BEGUN])).location
    slow, replies = Body(data[BEGUN:], pause_at=2 * PART), []

    async def end_late() -> None:
        replies.append(await us.put(location, digest_of(data), slow))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(end_late)
        with trio.fail_after(60):
            await slow.paused.wait()
        reply = await eu.patch(location, data[BEGUN : BEGUN + 2 * PART], BEGUN)
        assert reply.status == 202
        slow.go_on.set()
    assert replies[0].failure == (416, "BLOB_UPLOAD_INVALID")
    assert replies[0].headers["range"] == f"0-{BEGUN + 2 * PART - 1}"
    assert (await eu.put(reply.location, digest_of(data), data[BEGUN + 2 * PART :])).status == 201
    await check_whole(us, eu, repository, data)


async def test_a_wrong_digest_beside_strays(world: MakeWorld, repository: str) -> None:
    """What the client did not say is no blob, whatever else is in the store; nothing of it is left."""
    us, eu = await world("us eu", "eu us", ceph=True)
    data = secrets.token_bytes(BEGUN + 2 * PART)
    location = (await us.patch(await us.start_upload(repository), data[:BEGUN])).location
    await die_in_the_middle(us, location, data[BEGUN:], None, 3)
    # Known only when all was read, too: the saved hash is gone.
    await us.rows("UPDATE upload SET hash_state = NULL")
    refused = await eu.put(location, digest_of(data), data[BEGUN:-1] + bytes([data[-1] ^ 1]))
    assert refused.failure == (400, "DIGEST_INVALID")
    assert await us.rows("SELECT FROM blob") == []
    assert await us.unaccounted("us") == set()
    await bury_due(us)
    assert await us.contents("us") == set()


async def test_strays_of_a_store_that_spoils_bytes(world: MakeWorld, repository: str) -> None:
    """What does not come back as it was stored is not written once more as the blob."""
    us, eu = await world("us eu", "eu us", ceph=True)
    data = secrets.token_bytes(BEGUN + 2 * PART)
    location = (await us.patch(await us.start_upload(repository), data[:BEGUN])).location
    await die_in_the_middle(us, location, data[BEGUN:], None, 3)
    eu.engines["us"].plan("read", Wrong(PART + 3))
    assert (await eu.put(location, digest_of(data), data[BEGUN:])).failure == (503, "UNAVAILABLE")
    assert await us.rows("SELECT FROM blob") == []
    assert await us.unaccounted("us") == set()


async def test_whose_writers_live_pay_nothing(world: MakeWorld, repository: str) -> None:
    """Where nobody died, on one node or on two in turns, no store is asked for its parts, and each byte is written once."""
    us, eu = await world("us eu", "eu us", ceph=True)
    data = secrets.token_bytes(BEGUN + 4 * PART)
    location = (await us.patch(await us.start_upload(repository), data[:BEGUN])).location
    location = (await eu.patch(location, data[BEGUN:-PART], BEGUN)).location
    assert (await us.put(location, digest_of(data), data[-PART:])).status == 201
    calls = [call for region in (us, eu) for call, key in region.engines["us"].calls if "/uploads/" in key]
    assert sorted(calls) == ["begin_parts", "finish_parts", *["put_part"] * 6]


@pytest.mark.parametrize("size", [700, 3 * PART], ids=["short", "long"])
async def test_a_put_that_died_after_its_end(world: MakeWorld, repository: str, size: int) -> None:
    """Where the store has made the object, and nobody has recorded it, the repeated PUT finds it, and believes its bytes only."""
    us, eu = await world("us eu", "eu us", ceph=True, proxy_storage=True)
    data = secrets.token_bytes(BEGUN + size)

    location = (await us.patch(await us.start_upload(repository), data[:BEGUN])).location
    await die_before_the_end_is_recorded(us, location, data, "finish_parts", 0)
    other = data[:-1] + bytes([data[-1] ^ 1])
    assert (await eu.put(location, digest_of(other), other[BEGUN:])).status == 503
    assert await us.rows("SELECT FROM blob") == []
    location = (await us.patch(await us.start_upload(repository), data[:BEGUN])).location
    await die_before_the_end_is_recorded(us, location, data, "finish_parts", 0)
    body = Body(data[BEGUN:])
    assert (await eu.put(location, digest_of(data), body)).status == 201
    assert await body.receive() == b"", "the client was not heard to its end"
    await check_whole(us, eu, repository, data)


@pytest.mark.parametrize("way", ["same PUT", "same PUT with its range", "PATCH and PUT", "asks first"])
@pytest.mark.parametrize("last", ["the end", "the copy"])
async def test_a_second_death_while_strays_are_left_out(world: MakeWorld, repository: str, way: str, last: str) -> None:
    """Whoever dies while the store's bytes are written once more is outlived, too, however its client goes on."""
    us, eu = await world("us eu", "eu us", ceph=True, proxy_storage=True)
    data = secrets.token_bytes(BEGUN + 4 * PART + 700)
    location = (await us.patch(await us.start_upload(repository), data[:BEGUN])).location
    await die_in_the_middle(us, location, data[BEGUN : BEGUN + 3 * PART], None, 4)
    call, number = ("finish_parts", 1) if last == "the end" else ("put_part", 6)
    await die_before_the_end_is_recorded(eu, location, data, call, number)
    start = BEGUN
    if way == "asks first":
        status = await us.ask("GET", location)
        location, start = status.location, int(status.headers["range"].partition("-")[2]) + 1
    if way == "PATCH and PUT":
        reply = await us.patch(location, data[start : start + PART + 100], start)
        assert reply.status == 202
        location, start = reply.location, start + PART + 100
    ranged = {"content-range": f"{start}-{len(data) - 1}"} if way == "same PUT with its range" else {}
    assert (await us.put(location, digest_of(data), data[start:], **ranged)).status == 201
    await check_whole(us, eu, repository, data)


async def test_a_take_over_while_strays_are_left_out(world: MakeWorld, repository: str) -> None:
    """Whoever has lost the upload meanwhile does not end it with the parts of the one that goes on with it."""
    us, eu = await world("us eu", "eu us", ceph=True, proxy_storage=True)
    data = secrets.token_bytes(BEGUN + 4 * PART)
    location = (await us.patch(await us.start_upload(repository), data[:BEGUN])).location
    await die_in_the_middle(us, location, data[BEGUN : BEGUN + 2 * PART], None, 3)
    eu.engines["us"].plan("finish_parts", ending := Hold(first=True), call=1)
    replies = []

    async def end_late() -> None:
        replies.append(await eu.put(location, digest_of(data), data[BEGUN:]))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(end_late)
        with trio.fail_after(60):
            await ending.reached.wait()
        reply = await us.patch(location, data[BEGUN:], BEGUN)
        ending.go_on.set()
    assert replies[0].failure == (416, "BLOB_UPLOAD_INVALID")
    assert reply.status == 202
    assert (await us.put(reply.location, digest_of(data))).status == 201
    await check_whole(us, eu, repository, data)


@pytest.mark.parametrize("size", [700, 3 * PART + 700], ids=["short", "long"])
@pytest.mark.parametrize("spoilt", [False, True], ids=["the same", "other bytes"])
async def test_a_patch_after_an_end(world: MakeWorld, repository: str, size: int, spoilt: bool) -> None:
    """Where a PUT has made the object, and nobody has recorded it, what a PATCH brings is found there, and nothing else is."""
    us, eu = await world("us eu", "eu us", ceph=True, proxy_storage=True)
    data = secrets.token_bytes(BEGUN + size)
    location = (await us.patch(await us.start_upload(repository), data[:BEGUN])).location
    await die_before_the_end_is_recorded(us, location, data, "finish_parts", 0)
    if spoilt:
        data = data[: BEGUN + 5] + bytes([data[BEGUN + 5] ^ 1]) + data[BEGUN + 6 :]
    middle, start = BEGUN + (size - 300) // 2, BEGUN
    for region, end in ((eu, middle), (us, middle + 300), (eu, len(data))):
        reply = await region.patch(location, data[start:end], start)
        if reply.status != 202:
            break
        location, start = reply.location, end
    if reply.status == 202:
        reply = await us.put(location, digest_of(data))
    if spoilt:
        assert reply.failure == (503, "UNAVAILABLE")
        assert await us.rows("SELECT FROM blob") == []
        assert await us.unaccounted("us") == set()
        return
    assert reply.status == 201
    await check_whole(us, eu, repository, data)


async def test_nobody_is_sent_to_what_a_node_remembers_from_before(world: MakeWorld, repository: str) -> None:
    """After another node took an upload over and died, the first one's answer does not lead to its own, older memory of it."""
    us, eu = await world("us eu", "eu us", ceph=True, proxy_storage=True)
    data = secrets.token_bytes(BEGUN + 2 * PART)
    location = (await us.patch(await us.start_upload(repository), data[:BEGUN])).location
    await die_in_the_middle(eu, location, data[BEGUN:], None, 3)
    status = await us.ask("GET", location)
    assert status.headers["range"] == f"0-{BEGUN - 1}"
    reply = await us.patch(status.location, data[BEGUN:], BEGUN)
    assert reply.status == 202
    assert (await us.put(reply.location, digest_of(data))).status == 201
    await check_whole(us, eu, repository, data)
