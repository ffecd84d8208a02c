"""A store in memory with seeded faults: slow, hanging, failing, torn writes, wrong bytes. Keeps the engine contract otherwise."""

import hashlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from random import Random

import trio
from attrs import define, evolve, field

from engines.contract import (
    Engine,
    EngineUnavailable,
    KeyPage,
    ObjectFacts,
    ObjectMissing,
    OpenParts,
    Part,
    PartsMissing,
    Seen,
)

MIB = 1 << 20
LATEST = 20.0


@define
class Faults:
    """What is wrong with a store right now. Rates are probabilities per call."""

    down: bool = False
    hanging: bool = False
    latency: float = 0.002
    bytes_per_second: float = 200e6
    fail_rate: float = 0.0
    torn_rate: float = 0.0
    """A write that stores half an object, or all of it, and then fails."""
    wrong_rate: float = 0.0
    """A read whose bytes are damaged on the way."""

    @property
    def any(self) -> bool:
        """Whether a reader could notice."""
        return self != Faults()


def random_faults(random: Random) -> Faults:
    """Return something that goes wrong with a store."""
    return random.choice(
        [
            Faults(down=True),
            Faults(hanging=True),
            Faults(latency=1.5),
            Faults(bytes_per_second=100e3),
            Faults(fail_rate=0.3),
            Faults(torn_rate=0.3),
            Faults(wrong_rate=0.3),
        ]
    )


@define(eq=False)
class _Open:
    key: str
    parts: dict[int, bytes] = field(factory=dict)


@define(eq=False)
class MemoryStore:
    """The store itself; survives its nodes. `give_up` seconds is how long a call to a hanging store takes to fail."""

    name: str
    random: Random
    faults: Faults = field(factory=Faults)
    objects: dict[str, bytes] = field(factory=dict)
    uploads: dict[str, _Open] = field(factory=dict)
    finished: dict[str, str] = field(factory=dict)
    deleted: set[str] = field(factory=set)
    give_up: float = 10.0
    calls: list[tuple[str, str]] = field(factory=list)
    fault_epoch: int = 0
    """Counts changes of `faults`, so that an observer knows whether a store was well all the time."""
    all_or_none: bool = True
    """Whether it refuses, as Ceph's gateway does, to end a write with some of its parts only; Amazon leaves the others out."""
    late_rate: float = 0.0
    """How likely a write whose client went away lands all the same, up to `LATEST` seconds later."""
    deleting: Callable[[str], None] = lambda _: None
    """Told of every key that is deleted, before it is."""
    _late: list[tuple[float, Callable[[], None]]] = field(factory=list)
    _numbers: int = 0

    def set_faults(self, faults: Faults) -> None:
        """Change what is wrong."""
        self.faults = faults
        self.fault_epoch += 1

    def land(self) -> None:
        """Let writes land whose clients went away and whose time has come."""
        now = trio.current_time()
        due = [write for at, write in self._late if at <= now]
        self._late = [(at, write) for at, write in self._late if at > now]
        for write in due:
            write()

    def maybe_later(self, write: Callable[[], None]) -> None:
        """The client of a write went away: perhaps it lands all the same."""
        if self.random.random() < self.late_rate:
            self._late.append((trio.current_time() + self.random.uniform(0, LATEST), write))

    def new_upload(self, key: str) -> str:
        """Open a multi-part write."""
        self._numbers += 1
        upload = f"{self.name}-{self._numbers}"
        self.uploads[upload] = _Open(key)
        return upload


class _MemoryReader:
    def __init__(self, engine: "MemoryEngine", data: bytes) -> None:
        self._engine = engine
        self._data = data
        self._offset = 0

    async def receive(self, most: int) -> bytes:
        chunk = self._data[self._offset : self._offset + most]
        await self._engine.step("receive", "", len(chunk))
        self._offset += len(chunk)
        return self._engine.damaged(chunk)

    async def receive_into(self, buffer: memoryview, seen: Seen) -> int:
        got, more = 0, True
        while more and (data := await self.receive(len(buffer))):
            buffer[: len(data)] = data
            got += len(data)
            more = seen(buffer[: len(data)]) is True
        await self._engine.received()
        return got


class MemoryEngine:
    """An engine over a `MemoryStore`; keeps the contract in `engines/contract.py`."""

    def __init__(self, store: MemoryStore, part_minimum: int = 1) -> None:
        self.store = store
        self.part_minimum = part_minimum
        self.called: Callable[[], None] = lambda: None
        """Called before every call to the store."""

    @property
    def kind(self) -> str:
        return "MemoryStorage"

    @property
    def prefix(self) -> str:
        return "registry/"

    @property
    def presigns(self) -> bool:
        return False

    def presign(self, key: str, *, now: float, expires: int, method: str = "GET") -> str:
        raise NotImplementedError("memory cannot be reached by a URL")

    async def received(self) -> None:
        """Do nothing, between the last bytes that were received and whoever waits for them."""

    async def step(self, call: str, key: str, nbytes: int = 0) -> None:
        """Take the time that a call takes, and fail if it is to fail."""
        self.called()
        store, faults = self.store, self.store.faults
        store.calls.append((call, key))
        store.land()
        if faults.hanging:
            await trio.sleep(store.give_up)
            raise EngineUnavailable(f"{call}: {store.name} does not answer")
        await trio.sleep(faults.latency + nbytes / faults.bytes_per_second)
        if faults.down or store.faults.down or store.random.random() < faults.fail_rate:
            raise EngineUnavailable(f"{call}: {store.name} is out of order")

    def damaged(self, data: bytes) -> bytes:
        """Return `data`, or something like it."""
        store = self.store
        if data and store.random.random() < store.faults.wrong_rate:
            place = store.random.randrange(len(data))
            return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
        return data

    def _object(self, key: str) -> bytes:
        try:
            return self.store.objects[key]
        except KeyError:
            raise ObjectMissing(f"no object {key}") from None

    def _upload(self, key: str, upload: str) -> _Open:
        found = self.store.uploads.get(upload)
        if found is None or found.key != key:
            raise PartsMissing(f"no multi-part write {upload} of {key}")
        return found

    async def head(self, key: str) -> ObjectFacts:
        await self.step("head", key)
        return _facts(self._object(key))

    @asynccontextmanager
    async def open(self, key: str, start: int = 0, length: int | None = None) -> AsyncIterator[_MemoryReader]:
        await self.step("open", key)
        data = self._object(key)
        yield _MemoryReader(self, data[start:] if length is None else data[start : start + length])

    async def read(self, key: str, start: int, length: int) -> bytes:
        await self.step("read", key, length)
        data = self._object(key)[start : start + length]
        if len(data) < length:
            raise EngineUnavailable(f"read: {len(data)} of {length} bytes")
        return self.damaged(data)

    async def put(self, key: str, data: bytes, sha256: str | None = None) -> ObjectFacts:
        assert sha256 in (None, hashlib.sha256(data).hexdigest())
        try:
            await self.step("put", key, len(data))
        except trio.Cancelled:
            self.store.maybe_later(lambda: self.store.objects.update({key: data}))
            raise
        self._tear(key, data)
        self.store.objects[key] = data
        return _facts(data)

    def _tear(self, key: str, data: bytes) -> None:
        store = self.store
        if store.random.random() < store.faults.torn_rate:
            store.objects[key] = data if store.random.random() < 0.5 else data[: len(data) // 2]
            raise EngineUnavailable("put: the connection broke")

    async def begin_parts(self, key: str) -> str:
        await self.step("begin_parts", key)
        return self.store.new_upload(key)

    async def put_part(self, key: str, upload: str, number: int, data: bytes) -> Part:
        try:
            await self.step("put_part", key, len(data))
        except trio.Cancelled:
            self._part_may_come(key, upload, number, data)
            raise
        found = self._upload(key, upload)
        found.parts[number] = data
        if self.store.random.random() < self.store.faults.torn_rate:
            raise EngineUnavailable("put_part: the connection broke")
        return _part(number, data)

    def _part_may_come(self, key: str, upload: str, number: int, data: bytes) -> None:
        """The client of a part went away: perhaps the part comes all the same, if its write is still open then."""

        def write() -> None:
            found = self.store.uploads.get(upload)
            if found is not None and found.key == key:
                found.parts[number] = data

        self.store.maybe_later(write)

    async def list_parts(self, key: str, upload: str) -> Sequence[Part]:
        await self.step("list_parts", key)
        found = self._upload(key, upload)
        return [_part(number, data) for number, data in sorted(found.parts.items())]

    async def finish_parts(self, key: str, upload: str, parts: Sequence[Part]) -> ObjectFacts:
        try:
            await self.step("finish_parts", key)
        except trio.Cancelled:
            self.store.maybe_later(lambda: self._finish_if_it_can(key, upload, parts))
            raise
        return self._finish(key, upload, parts)

    def _finish_if_it_can(self, key: str, upload: str, parts: Sequence[Part]) -> None:
        with suppress(PartsMissing, EngineUnavailable):
            self._finish(key, upload, parts)

    def _finish(self, key: str, upload: str, parts: Sequence[Part]) -> ObjectFacts:
        if self.store.finished.get(upload) == key and key in self.store.objects:
            facts = _facts(self.store.objects[key])
            if facts.size == sum(part.size for part in parts):
                return evolve(facts, found=True)
        found = self._upload(key, upload)
        if not parts:
            raise PartsMissing(f"{upload} has no parts")
        if self.store.all_or_none and found.parts.keys() != {part.number for part in parts}:
            raise PartsMissing(f"{upload} has other parts, too")
        for place, part in enumerate(parts, 1):
            data = found.parts.get(part.number)
            if data is None or _part(part.number, data) != part:
                raise PartsMissing(f"part {part.number} of {upload} is unknown")
            if len(data) < self.part_minimum and place < len(parts):
                raise PartsMissing(f"part {part.number} of {upload} is too small")
        data = b"".join(found.parts[part.number] for part in parts)
        self.store.objects[key] = data
        self.store.finished[upload] = key
        del self.store.uploads[upload]
        if self.store.random.random() < self.store.faults.torn_rate:
            raise EngineUnavailable("finish_parts: the connection broke")
        return _facts(data)

    async def abandon_parts(self, key: str, upload: str | None = None) -> None:
        await self.step("abandon_parts", key)
        for name, found in list(self.store.uploads.items()):
            if found.key == key and upload in (None, name):
                del self.store.uploads[name]

    async def list_open_parts(self, prefix: str) -> Sequence[OpenParts]:
        await self.step("list_open_parts", prefix)
        return [OpenParts(o.key, name) for name, o in self.store.uploads.items() if o.key.startswith(prefix)]

    async def delete(self, key: str) -> None:
        try:
            await self.step("delete", key)
        except trio.Cancelled:
            self.store.maybe_later(lambda: self._delete(key))
            raise
        self._delete(key)

    def _delete(self, key: str) -> None:
        self.store.deleting(key)
        self.store.objects.pop(key, None)
        self.store.deleted.add(key)

    async def list_keys(self, prefix: str, after: str | None = None, most: int = 1000) -> KeyPage:
        await self.step("list_keys", prefix)
        keys = sorted(k for k in self.store.objects if k.startswith(prefix) and (after is None or k > after))
        page = tuple(keys[:most])
        return KeyPage(page, page[-1] if len(keys) > most else None)


def _facts(data: bytes) -> ObjectFacts:
    return ObjectFacts(len(data), hashlib.md5(data, usedforsecurity=False).hexdigest())


def _part(number: int, data: bytes) -> Part:
    return Part(number, len(data), hashlib.md5(data, usedforsecurity=False).hexdigest())


class MemoryCopyingEngine(MemoryEngine):
    """A store that copies by itself from every other store in memory that is named in `service`."""

    def __init__(self, store: MemoryStore, service: frozenset[str], part_minimum: int = 1) -> None:
        super().__init__(store, part_minimum)
        self.service = service

    def copies_from(self, other: Engine) -> bool:
        return isinstance(other, MemoryEngine) and other.store.name in self.service

    async def _source(self, call: str, other: Engine, source: str, key: str, size: int) -> bytes:
        """Take the time of a copy on both sides; return what the other store has there, as it arrives."""
        assert isinstance(other, MemoryEngine)
        await other.step(call, source)
        await self.step(call, key, size)
        return self.damaged(other._object(source))

    async def copy_object(self, other: Engine, source: str, key: str, size: int) -> ObjectFacts:
        assert isinstance(other, MemoryEngine)
        try:
            data = await self._source("copy_object", other, source, key, size)
        except trio.Cancelled:
            copied = other.store.objects.get(source)
            if copied is not None:
                self.store.maybe_later(lambda: self.store.objects.update({key: copied}))
            raise
        if len(data) != size:
            raise EngineUnavailable(f"copy_object: {source} has {len(data)} bytes, not {size}")
        self._tear(key, data)
        self.store.objects[key] = data
        return _facts(data)

    async def copy_part(
        self, other: Engine, source: str, key: str, upload: str, number: int, start: int, length: int
    ) -> Part:
        assert isinstance(other, MemoryEngine)
        try:
            data = (await self._source("copy_part", other, source, key, length))[start : start + length]
        except trio.Cancelled:
            copied = other.store.objects.get(source)
            if copied is not None:
                self._part_may_come(key, upload, number, copied[start : start + length])
            raise
        found = self._upload(key, upload)
        found.parts[number] = data
        return _part(number, data)
