"""The local engine: keys stay below its folder, finishing copies only what it must, a lost disk is not a lost object."""

import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from engines import parse_engine
from engines.contract import Engine, EngineRefused, ObjectMissing, Part


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "not" / "there yet"


@pytest.fixture
async def engine(folder: Path) -> AsyncIterator[Engine]:
    async with parse_engine("LocalStorage", {"storage_path": str(folder)}).open() as opened:
        yield opened


@pytest.mark.parametrize(
    "key",
    ["", "/etc/passwd", "../out", "a/../../out", "a//b", "a/./b", "a/", "nul\0", ".antipode/uploads/x", "x" * 256],
)
async def test_no_escape(engine: Engine, folder: Path, key: str) -> None:
    """A key that would lead out of the folder, or into the engine's own, is refused by everything that takes one."""
    before = sorted(folder.parent.rglob("*"))
    for call in (
        engine.put(key, b"x"), engine.head(key), engine.read(key, 0, 1), engine.delete(key), engine.begin_parts(key),
    ):  # fmt: skip
        with pytest.raises(EngineRefused):
            await call
    with pytest.raises(EngineRefused):
        async with engine.open(key):
            pytest.fail("opened it")
    assert sorted(folder.parent.rglob("*")) == before


@pytest.mark.parametrize("upload", ["../../x", "..", "", "."])
async def test_upload_ids_stay_inside(engine: Engine, upload: str) -> None:
    """An upload's id names a folder of the engine's own or nothing."""
    with pytest.raises(Exception, match="no multi-part write"):
        await engine.put_part("k", upload, 1, b"x")


async def parts_in(engine: Engine, order: list[int]) -> tuple[str, list[Part]]:
    upload = await engine.begin_parts("k")
    parts = {number: await engine.put_part("k", upload, number, b"%d" % number * 10) for number in order}
    return upload, [parts[number] for number in sorted(parts)]


async def inode(folder: Path, upload: str) -> int:
    return (folder / ".antipode" / "uploads" / upload / "data").stat().st_ino


@pytest.mark.parametrize(("order", "renamed"), [([1, 2, 3], True), ([2, 1, 3], False)])
async def test_finish_renames_where_it_can(engine: Engine, folder: Path, order: list[int], renamed: bool) -> None:
    """Parts that came in order become the object without being copied; others are put in order."""
    upload, parts = await parts_in(engine, order)
    written = await inode(folder, upload)
    await engine.finish_parts("k", upload, parts)
    assert (folder / "k").read_bytes() == b"1" * 10 + b"2" * 10 + b"3" * 10
    assert ((folder / "k").stat().st_ino == written) is renamed
    assert list((folder / ".antipode" / "uploads").iterdir()) == []
    assert list((folder / ".antipode" / "temporary").iterdir()) == []


async def test_some_of_the_parts(engine: Engine) -> None:
    """Parts that are not named stay out of the object."""
    upload, parts = await parts_in(engine, [1, 2, 3])
    await engine.finish_parts("k", upload, [parts[0], parts[2]])
    assert await engine.read("k", 0, 20) == b"1" * 10 + b"3" * 10


async def test_two_engines_one_folder(engine: Engine, folder: Path) -> None:
    """A write begun by one process is continued and finished by another; parts of both at once do not mix."""
    async with parse_engine("LocalStorage", {"storage_path": str(folder)}).open() as other:
        upload = await engine.begin_parts("k")
        parts: dict[int, Part] = {}

        async def write(number: int) -> None:
            parts[number] = await (engine, other)[number % 2].put_part("k", upload, number, bytes([number]) * 100_000)

        async with trio.open_nursery() as nursery:
            for number in range(1, 11):
                nursery.start_soon(write, number)
        await other.finish_parts("k", upload, [parts[number] for number in sorted(parts)])
        assert await engine.read("k", 0, 1_000_000) == b"".join(bytes([number]) * 100_000 for number in range(1, 11))


async def test_lost_folder(engine: Engine, folder: Path) -> None:
    """When the whole folder is gone its objects are not missing: the store refuses."""
    await engine.put("k", b"x")
    shutil.rmtree(folder)
    with pytest.raises(EngineRefused):
        await engine.head("k")
    with pytest.raises(EngineRefused):
        await engine.put("k2", b"x")
    with pytest.raises(EngineRefused):
        await engine.list_keys("")


async def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    """An engine opens although its folder cannot be made; each call says what is wrong."""
    (tmp_path / "file").write_text("")
    async with parse_engine("LocalStorage", {"storage_path": str(tmp_path / "file" / "store")}).open() as engine:
        with pytest.raises(EngineRefused):
            await engine.put("k", b"x")


async def test_a_folder_is_no_object(engine: Engine) -> None:
    """The part of a key before a slash is not an object, and can be deleted as little as read."""
    await engine.put("a/b", b"x")
    with pytest.raises(ObjectMissing):
        await engine.head("a")
    await engine.delete("a")
    assert await engine.read("a/b", 0, 1) == b"x"
    with pytest.raises(ObjectMissing):
        await engine.head("a/b/c")


async def test_deleted_while_read(engine: Engine) -> None:
    """A reader goes on after its object was deleted."""
    await engine.put("k", b"x" * 3_000_000)
    async with engine.open("k") as reader:
        first = await reader.receive(1)
        await engine.delete("k")
        assert first + await reader.receive(3_000_000) == b"x" * 3_000_000
