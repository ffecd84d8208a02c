"""The contract of engines, one suite for all: memory, a folder, a folder behind the fault engine, Ceph over HTTP and over HTTPS."""

import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random
from urllib.parse import urlsplit

import pytest
import trio

from engines import parse_engine
from engines.contract import MIB, Engine, EngineUnavailable, ObjectFacts, ObjectMissing, Part, PartsMissing
from engines.crossing import Bridge
from property_tests.memory_engine import Faults, MemoryEngine, MemoryStore
from tests.engines.stores import spec_of
from tests.faulty_engine import FaultyEngine


@pytest.fixture(params=["memory", "local", "faulty", "us", "us-tls"])
async def engine(request: pytest.FixtureRequest, tmp_path: Path, bridge: Bridge) -> AsyncIterator[Engine]:
    if request.param == "memory":
        yield MemoryEngine(
            MemoryStore("memory", Random(0), Faults(latency=0.0, bytes_per_second=1e12)), part_minimum=5 * MIB
        )
        return
    if request.param in ("local", "faulty"):
        async with parse_engine("LocalStorage", {"storage_path": str(tmp_path / "store")}).open() as local:
            yield FaultyEngine(local) if request.param == "faulty" else local
        return
    stores, path = request.getfixturevalue("s3_stores"), request.getfixturevalue("storage_path")
    async with spec_of(stores[request.param], path).open() as opened:
        yield opened


@pytest.fixture
def key(engine: Engine) -> str:
    return f"{engine.prefix}contract/{uuid.uuid4()}"


def pattern(size: int, seed: int = 0) -> bytes:
    """Bytes that differ from place to place."""
    return b"".join((block * 31 + seed).to_bytes(16, "big") for block in range(size // 16 + 1))[:size]


async def parts_of(engine: Engine, key: str, upload: str, pieces: list[bytes]) -> list[Part]:
    return [await engine.put_part(key, upload, number, piece) for number, piece in enumerate(pieces, 1)]


async def test_is_an_engine(engine: Engine) -> None:
    """Every engine has the protocol's methods, and a prefix that ends in a slash or is empty."""
    assert isinstance(engine, Engine)
    assert engine.prefix == "" or (engine.prefix.endswith("/") and not engine.prefix.startswith("/"))


async def test_put_and_read(engine: Engine, key: str) -> None:
    """What was put is read back, in whole, in part and as a stream, with its size."""
    data = pattern(3 * MIB + 7)
    assert (await engine.put(key, data)).size == len(data)
    assert (await engine.head(key)).size == len(data)
    assert await engine.read(key, 0, len(data)) == data
    assert await engine.read(key, MIB + 1, 1000) == data[MIB + 1 : MIB + 1001]
    async with engine.open(key) as reader:
        pieces = []
        while piece := await reader.receive(MIB):
            pieces.append(piece)
    assert [len(piece) for piece in pieces] == [MIB, MIB, MIB, 7]
    assert b"".join(pieces) == data


@pytest.mark.parametrize(
    ("start", "length", "expected"),
    [(0, 5, (0, 5)), (95, 5, (95, 100)), (95, 50, (95, 100)), (100, 5, (100, 100)), (100, None, (100, 100)),
     (200, 5, (100, 100)), (40, None, (40, 100)), (40, 0, (40, 40)), (0, None, (0, 100))],
)  # fmt: skip
async def test_ranges(engine: Engine, key: str, start: int, length: int | None, expected: tuple[int, int]) -> None:
    """A range gives the bytes that the object has of it, none behind its end; after the end there is nothing."""
    data = pattern(100)
    await engine.put(key, data)
    async with engine.open(key, start, length) as reader:
        got = b""
        while piece := await reader.receive(7):
            got += piece
        assert await reader.receive(1) == b""
    assert got == data[slice(*expected)]


async def test_receive_is_exact(engine: Engine, key: str) -> None:
    """Receive gives exactly what was asked for until the range ends, whatever the store's own pieces are."""
    data = pattern(MIB + 300_001)
    await engine.put(key, data)
    async with engine.open(key, 1) as reader:
        first = await reader.receive(300_000)
        rest = await reader.receive(10 * MIB)
        assert (len(first), len(rest)) == (300_000, MIB)
    assert first + rest == data[1:]


async def test_receive_into_a_buffer(engine: Engine, key: str) -> None:
    """A buffer is filled until the range ends, and whoever looks on is shown every byte of it once and in order."""
    data, shown = pattern(MIB + 300_001), bytearray()
    await engine.put(key, data)
    buffer = memoryview(bytearray(MIB))
    async with engine.open(key, 1) as reader:
        assert await reader.receive_into(buffer[:300_000], shown.extend) == 300_000
        assert buffer[:300_000] == data[1:300_001]
        assert await reader.receive_into(buffer, shown.extend) == MIB
        assert buffer == data[300_001:]
        assert await reader.receive_into(buffer, shown.extend) == 0
    assert shown == data[1:]
    async with engine.open(key, MIB, 300_000) as reader:
        assert await reader.receive_into(buffer, shown.extend) == 300_000
        assert await reader.receive(1) == b""
    assert buffer[:300_000] == data[MIB : MIB + 300_000]
    runs: list[int] = []

    def go_on(part: memoryview) -> bool:
        assert part == data[sum(runs) : sum(runs) + len(part)]
        runs.append(len(part))
        return len(runs) != 3

    async with engine.open(key) as reader:
        assert await reader.receive_into(buffer[:400_000], go_on) == 1_200_000
        assert await reader.receive_into(buffer[:400_000], go_on) == len(data) - 1_200_000
        assert await reader.receive_into(buffer[:400_000], go_on) == 0
    assert runs == [400_000, 400_000, 400_000, len(data) - 1_200_000]


async def test_read_of_too_little(engine: Engine, key: str) -> None:
    """A read that the object cannot satisfy is an error, never a short answer."""
    await engine.put(key, b"short")
    with pytest.raises(EngineUnavailable):
        await engine.read(key, 0, 6)
    with pytest.raises(EngineUnavailable):
        await engine.read(key, 9, 1)


async def test_empty_object(engine: Engine, key: str) -> None:
    """An object of no bytes is an object."""
    await engine.put(key, b"")
    assert (await engine.head(key)).size == 0
    assert await engine.read(key, 0, 0) == b""
    async with engine.open(key) as reader:
        assert await reader.receive(10) == b""
    await engine.delete(key)
    with pytest.raises(ObjectMissing):
        await engine.head(key)


async def test_missing_object(engine: Engine, key: str) -> None:
    """A missing object is ObjectMissing to every way of reading it, and deleting it succeeds."""
    with pytest.raises(ObjectMissing):
        await engine.head(key)
    with pytest.raises(ObjectMissing):
        await engine.read(key, 0, 1)
    with pytest.raises(ObjectMissing):
        await engine.read(key, 0, 0)
    with pytest.raises(ObjectMissing):
        async with engine.open(key):
            pytest.fail("opened a missing object")
    await engine.delete(key)


async def test_reader_left_early(engine: Engine, key: str) -> None:
    """A reader may be left before its end; the engine goes on working."""
    data = pattern(4 * MIB)
    await engine.put(key, data)
    for _ in range(5):
        async with engine.open(key) as reader:
            await reader.receive(10)
    assert await engine.read(key, 0, len(data)) == data


async def test_delete(engine: Engine, key: str) -> None:
    """A deleted object is gone, and deleting it again succeeds."""
    await engine.put(key, b"x")
    await engine.delete(key)
    await engine.delete(key)
    with pytest.raises(ObjectMissing):
        await engine.head(key)


async def test_parts(engine: Engine, key: str) -> None:
    """Parts become one object when they are finished, and are listed until then; the object isn't there before."""
    pieces = [pattern(engine.part_minimum, 1), pattern(engine.part_minimum + 10, 2), pattern(5, 3)]
    upload = await engine.begin_parts(key)
    parts = await parts_of(engine, key, upload, pieces)
    assert [(part.number, part.size) for part in parts] == [(1, len(pieces[0])), (2, len(pieces[1])), (3, 5)]
    assert list(await engine.list_parts(key, upload)) == parts
    assert (key, upload) in [(one.key, one.upload) for one in await engine.list_open_parts(key)]
    with pytest.raises(ObjectMissing):
        await engine.head(key)
    facts = await engine.finish_parts(key, upload, parts)
    whole = b"".join(pieces)
    assert facts.size == len(whole)
    assert await engine.read(key, 0, len(whole)) == whole
    assert list(await engine.list_open_parts(key)) == []


async def test_finish_twice(engine: Engine, key: str) -> None:
    """Finishing again, as after a lost answer, succeeds and changes nothing."""
    pieces = [pattern(engine.part_minimum, 1), pattern(9, 2)]
    upload = await engine.begin_parts(key)
    parts = await parts_of(engine, key, upload, pieces)
    first = await engine.finish_parts(key, upload, parts)
    second = await engine.finish_parts(key, upload, parts)
    assert first.size == second.size == engine.part_minimum + 9
    assert await engine.read(key, 0, first.size) == b"".join(pieces)


async def test_short_part_in_the_middle(engine: Engine, key: str) -> None:
    """A part below the minimum that isn't the last is refused at the end, after which it may be replaced."""
    upload = await engine.begin_parts(key)
    parts = await parts_of(engine, key, upload, [pattern(1000, 1), pattern(1000, 2)])
    if engine.part_minimum <= 1000:
        assert (await engine.finish_parts(key, upload, parts)).size == 2000
        return
    with pytest.raises(PartsMissing):
        await engine.finish_parts(key, upload, parts)
    parts[0] = await engine.put_part(key, upload, 1, pattern(engine.part_minimum, 3))
    assert (await engine.finish_parts(key, upload, parts)).size == engine.part_minimum + 1000


async def test_replaced_part(engine: Engine, key: str) -> None:
    """The same number again replaces a part, and gaps in the numbers and any order of arrival are allowed."""
    minimum = engine.part_minimum
    upload = await engine.begin_parts(key)
    last = await engine.put_part(key, upload, 9, b"tail")
    old = await engine.put_part(key, upload, 2, pattern(minimum, 1))
    first = await engine.put_part(key, upload, 2, pattern(minimum + 1, 2))
    assert list(await engine.list_parts(key, upload)) == [first, last]
    with pytest.raises(PartsMissing):
        await engine.finish_parts(key, upload, [old, last])
    await engine.finish_parts(key, upload, [first, last])
    assert await engine.read(key, 0, minimum + 5) == pattern(minimum + 1, 2) + b"tail"


async def test_a_part_that_nobody_names(engine: Engine, key: str) -> None:
    """A store leaves out a part that is not named, or refuses the others; then the write stays open and can be ended with all."""
    minimum = engine.part_minimum
    upload = await engine.begin_parts(key)
    pieces = [pattern(minimum, 1), pattern(minimum + 3, 2), pattern(9, 3)]
    first, stray, last = await parts_of(engine, key, upload, pieces)
    try:
        assert (await engine.finish_parts(key, upload, [first, last])).size == minimum + 9
        whole = pieces[0] + pieces[2]
    except PartsMissing:
        with pytest.raises(ObjectMissing):
            await engine.head(key)
        assert list(await engine.list_parts(key, upload)) == [first, stray, last]
        assert (await engine.finish_parts(key, upload, [first, stray, last])).size == 2 * minimum + 12
        whole = b"".join(pieces)
    assert await engine.read(key, 0, len(whole)) == whole
    with pytest.raises(PartsMissing):
        await engine.put_part(key, upload, 4, b"late")
    assert await engine.read(key, 0, len(whole)) == whole


async def test_a_part_that_was_replaced_behind_ones_back(engine: Engine, key: str) -> None:
    """A list that names what was there before somebody put the same number again is refused; its bytes are no object."""
    upload = await engine.begin_parts(key)
    ours = await parts_of(engine, key, upload, [pattern(engine.part_minimum, 1), pattern(9, 2)])
    late = await engine.put_part(key, upload, 1, pattern(engine.part_minimum, 3))
    with pytest.raises(PartsMissing):
        await engine.finish_parts(key, upload, ours)
    with pytest.raises(ObjectMissing):
        await engine.head(key)
    assert (await engine.list_parts(key, upload))[0] == late
    await engine.abandon_parts(key, upload)


async def test_parts_at_once(engine: Engine, key: str) -> None:
    """Parts may be written at the same time."""
    pieces = {number: pattern(engine.part_minimum + number, number) for number in range(1, 5)}
    upload = await engine.begin_parts(key)
    parts: dict[int, Part] = {}

    async def write(number: int) -> None:
        parts[number] = await engine.put_part(key, upload, number, pieces[number])

    async with trio.open_nursery() as nursery:
        for number in pieces:
            nursery.start_soon(write, number)
    await engine.finish_parts(key, upload, [parts[number] for number in sorted(parts)])
    whole = b"".join(pieces[number] for number in sorted(pieces))
    assert await engine.read(key, 0, len(whole)) == whole


async def test_finish_without_parts(engine: Engine, key: str) -> None:
    """A multi-part write without parts cannot be finished."""
    upload = await engine.begin_parts(key)
    with pytest.raises(PartsMissing):
        await engine.finish_parts(key, upload, [])
    await engine.abandon_parts(key, upload)


async def test_abandon(engine: Engine, key: str) -> None:
    """An abandoned write is gone for every operation, and abandoning it again succeeds."""
    upload = await engine.begin_parts(key)
    part = await engine.put_part(key, upload, 1, b"x")
    await engine.abandon_parts(key, upload)
    await engine.abandon_parts(key, upload)
    with pytest.raises(PartsMissing):
        await engine.list_parts(key, upload)
    with pytest.raises(PartsMissing):
        await engine.put_part(key, upload, 2, b"y")
    with pytest.raises(PartsMissing):
        await engine.finish_parts(key, upload, [part])
    assert list(await engine.list_open_parts(key)) == []
    with pytest.raises(ObjectMissing):
        await engine.head(key)


async def test_abandon_all_of_a_key(engine: Engine, key: str) -> None:
    """Without an id every open write of exactly this key is abandoned, no other key's."""
    for _ in range(2):
        await engine.begin_parts(key)
    other = await engine.begin_parts(key + "-longer")
    assert len(await engine.list_open_parts(key)) == 3
    await engine.abandon_parts(key)
    assert [one.upload for one in await engine.list_open_parts(key)] == [other]
    await engine.abandon_parts(key + "-longer", other)


async def test_unknown_upload(engine: Engine, key: str) -> None:
    """An id that the store never gave out is PartsMissing, and abandoning it succeeds."""
    with pytest.raises(PartsMissing):
        await engine.put_part(key, "no-such-upload", 1, b"x")
    with pytest.raises(PartsMissing):
        await engine.list_parts(key, "no-such-upload")
    with pytest.raises(PartsMissing):
        await engine.finish_parts(key, "no-such-upload", [Part(1, 1, "0" * 32)])
    await engine.abandon_parts(key, "no-such-upload")


@pytest.mark.parametrize(
    "name",
    [
        "with space",
        "plus+and&amp=?#",
        "50%25",
        "süß-漢字-🙂",
        "a~b!c'(d)*;:@$,",
        "deep/er/and/deeper",
        ".hidden",
        "x" * 200,
    ],
)
async def test_unusual_keys(engine: Engine, key: str, name: str) -> None:
    """Keys are opaque: every operation takes odd ones, and a listing gives them back as they are."""
    odd = f"{key}/{name}"
    await engine.put(odd, b"odd")
    assert await engine.read(odd, 0, 3) == b"odd"
    assert await engine.list_keys(f"{key}/") == await engine.list_keys(odd)
    assert (await engine.list_keys(odd)).keys == (odd,)
    upload = await engine.begin_parts(odd + "2")
    assert [one.key for one in await engine.list_open_parts(odd)] == [odd + "2"]
    await engine.finish_parts(odd + "2", upload, [await engine.put_part(odd + "2", upload, 1, b"parts")])
    assert (await engine.head(odd + "2")).size == 5
    await engine.delete(odd)
    assert (await engine.list_keys(f"{key}/")).keys == (odd + "2",)


async def test_list_keys_pages(engine: Engine, key: str) -> None:
    """A listing comes in pages, in order, without gaps or repeats, and only below the prefix."""
    names = sorted(f"{key}/{name}" for name in ("a", "a.b", "a/b", "a0", "b/c/d", "b/c/e", "z"))
    names = [name for name in names if name != f"{key}/a"]  # a folder cannot also be a file in a local store
    for name in names:
        await engine.put(name, b"")
    await engine.put(f"{key}-other", b"")
    found: list[str] = []
    after: str | None = None
    for _ in range(10):
        page = await engine.list_keys(f"{key}/", after, most=2)
        assert len(page.keys) <= 2
        found += page.keys
        after = page.after
        if after is None:
            break
    assert found == names


async def test_many_at_once(engine: Engine, key: str) -> None:
    """An engine serves many tasks at the same time."""

    async def one(number: int) -> None:
        data = pattern(10_000, number)
        await engine.put(f"{key}/{number}", data)
        assert await engine.read(f"{key}/{number}", 0, len(data)) == data
        await engine.delete(f"{key}/{number}")

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for number in range(30):
                nursery.start_soon(one, number)


async def test_presign_is_pure(engine: Engine, key: str) -> None:
    """A presigned URL depends on the arguments alone; an engine that cannot presign says so."""
    if not engine.presigns:
        with pytest.raises(NotImplementedError):
            engine.presign(key, now=0.0, expires=60)
        return
    assert engine.presign(key, now=1e9, expires=60) == engine.presign(key, now=1e9, expires=60)
    assert engine.presign(key, now=1e9, expires=60) != engine.presign(key, now=1e9 + 1, expires=60)
    assert urlsplit(engine.presign(key, now=1e9, expires=60)).query.count("X-Amz-Expires=60") == 1


async def test_cancelled_calls_leave_no_damage(engine: Engine, key: str, bridge: Bridge) -> None:
    """Calls cancelled at any moment are ended at once, and the engine works as before."""
    data = pattern(MIB)
    await engine.put(key, data)

    async def stream() -> None:
        async with engine.open(key) as reader:
            while await reader.receive(100_000):
                pass

    async def write() -> None:
        await engine.put(f"{key}-written", data)

    async def parts() -> None:
        upload = await engine.begin_parts(f"{key}-parts")
        await engine.put_part(f"{key}-parts", upload, 1, data)

    for number in range(80):
        with trio.fail_after(30), trio.move_on_after((number % 20) * 0.001):
            await (stream, write, parts)[number % 3]()
    await engine.abandon_parts(f"{key}-parts")
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(stream)
    assert await engine.read(key, 0, len(data)) == data
    assert bridge.statistics().left_behind == 0


async def test_cancelled_scope_wins(engine: Engine, key: str) -> None:
    """In a scope that is cancelled already nothing is done, and no error of ours hides the cancellation."""
    with trio.CancelScope() as scope:
        scope.cancel()
        await engine.put(key, b"x")
        pytest.fail("went on in a cancelled scope")
    assert scope.cancelled_caught
    with pytest.raises(ObjectMissing):
        await engine.head(key)


def test_facts_are_values() -> None:
    """Two descriptions of the same object are equal."""
    assert ObjectFacts(1, "a") == ObjectFacts(1, "a")
