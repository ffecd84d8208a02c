"""Copies that a store makes by itself, on a real gateway: two paths of one user serve as two locations."""

import uuid
from collections.abc import AsyncIterator

import pytest

from engines.contract import MIB, CopyingEngine, EngineRefused, ObjectMissing, PartsMissing
from engines.crossing import Bridge
from tests.engines.stores import spec_of
from tests.engines.test_contract import pattern
from tests.services import Store

Pair = tuple[CopyingEngine, CopyingEngine]


@pytest.fixture(params=["us", "us-tls"])
async def pair(
    request: pytest.FixtureRequest, s3_stores: dict[str, Store], storage_path: str, bridge: Bridge
) -> AsyncIterator[Pair]:
    """Two engines on one service, under the same credentials."""
    store = s3_stores[request.param]
    async with (
        spec_of(store, f"{storage_path}/here").open() as here,
        spec_of(store, f"{storage_path}/there").open() as there,
    ):
        assert isinstance(here, CopyingEngine)
        assert isinstance(there, CopyingEngine)
        yield here, there


def keys(pair: Pair) -> tuple[str, str]:
    """Return a source and a key; the source has what a header must quote, but no %, which Ceph decodes twice in copies of parts."""
    here, there = pair
    return f"{here.prefix}a b+c~ü/{uuid.uuid4()}", f"{there.prefix}{uuid.uuid4()}"


async def test_who_copies_from_whom(pair: Pair, s3_stores: dict[str, Store], storage_path: str, bridge: Bridge) -> None:
    """Buckets of one endpoint and one user copy from each other; another service, or another user, does not."""
    here, there = pair
    assert here.copies_from(there)
    assert there.copies_from(here)
    async with spec_of(s3_stores["eu"], storage_path).open() as eu:
        assert not here.copies_from(eu)
        with pytest.raises(EngineRefused):
            await here.copy_object(eu, "source", f"{here.prefix}key", 1)
    async with spec_of(s3_stores["us"], storage_path, access_key="somebody").open() as stranger:
        assert not here.copies_from(stranger)


async def test_a_whole_object(pair: Pair) -> None:
    """An object is copied in one call, with its size told."""
    (here, there), (source, key) = pair, keys(pair)
    data = pattern(6 * MIB + 3)
    await here.put(source, data)
    assert (await there.copy_object(here, source, key, len(data))).size == len(data)
    assert await there.read(key, 0, len(data)) == data
    await here.delete(source)
    assert await there.read(key, MIB, 10) == data[MIB : MIB + 10]


async def test_parts_of_an_object(pair: Pair) -> None:
    """Ranges of an object become parts, beside parts that were written; they are listed, and the object is right."""
    (here, there), (source, key) = pair, keys(pair)
    data = pattern(13 * MIB + 3)
    await here.put(source, data)
    upload = await there.begin_parts(key)
    first = await there.copy_part(here, source, key, upload, 1, 0, 5 * MIB)
    second = await there.put_part(key, upload, 2, data[5 * MIB : 10 * MIB])
    third = await there.copy_part(here, source, key, upload, 3, 10 * MIB, 3 * MIB + 3)
    assert [part.size for part in (first, second, third)] == [5 * MIB, 5 * MIB, 3 * MIB + 3]
    assert list(await there.list_parts(key, upload)) == [first, second, third]
    assert (await there.finish_parts(key, upload, [first, second, third])).size == len(data)
    assert await there.read(key, 0, len(data)) == data


async def test_what_is_not_there(pair: Pair) -> None:
    """A missing source is told apart from a store in trouble, and so is a multi-part write that is not open."""
    (here, there), (source, key) = pair, keys(pair)
    with pytest.raises(ObjectMissing):
        await there.copy_object(here, source, key, 5)
    upload = await there.begin_parts(key)
    with pytest.raises(PartsMissing):
        await there.copy_part(here, source, key, upload, 1, 0, 5 * MIB)
    await here.put(source, b"12345")
    await there.abandon_parts(key, upload)
    with pytest.raises(PartsMissing):
        await there.copy_part(here, source, key, upload, 1, 0, 5)
