"""An engine around another one that fails where a test says, to the byte. Without faults it is the engine inside.

    engine = FaultyEngine(inner)
    engine.plan("open", Break(at=1000))            every body breaks off after 1000 bytes
    engine.plan("put_part", Refuse(EngineUnavailable("busy")), call=2)     the third part from now on is refused, once

With a specification: `attrs.evolve(spec, wrap=FaultyEngine)`.
"""

from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import trio
from attrs import define, field, frozen

from engines.contract import (
    Engine,
    EngineError,
    EngineUnavailable,
    KeyPage,
    ObjectFacts,
    ObjectReader,
    OpenParts,
    Part,
    Seen,
)


@frozen
class Break:
    """Fails in the piece that goes beyond byte `at` of a body; in a write, before anything reaches the store."""

    at: int = 0
    error: EngineError = field(factory=lambda: EngineUnavailable("fault: broken off"))


@frozen
class Stall:
    """Is silent in the piece that goes beyond byte `at` for `seconds`, then fails as when a read limit has passed."""

    at: int = 0
    seconds: float = float("inf")


@frozen
class Wrong:
    """Gives or stores byte number `at` of the object (in `put_part`: of the part) with all its bits turned over."""

    at: int = 0


@frozen
class Slow:
    """Takes its time: seconds before each answer, and bytes per second in bodies."""

    seconds: float = 0.0
    rate: float = float("inf")


@frozen
class Refuse:
    """Raises an error instead of doing anything."""

    error: EngineError = field(factory=lambda: EngineUnavailable("fault: refused"))


@frozen
class LoseAnswer:
    """Does what was asked, then fails as if the answer had been lost."""

    error: EngineError = field(factory=lambda: EngineUnavailable("fault: the answer was lost"))


@define(eq=False)
class Hold:
    """Does what was asked, sets `reached`, and keeps the answer back until `go_on` is set. `first`: waits, and does it then."""

    first: bool = False
    reached: trio.Event = field(factory=trio.Event)
    go_on: trio.Event = field(factory=trio.Event)


Fault = Break | Stall | Wrong | Slow | Refuse | LoseAnswer | Hold

OPERATIONS = (
    *("head", "open", "read", "put", "begin_parts", "put_part", "list_parts", "finish_parts"),
    *("abandon_parts", "list_open_parts", "delete", "list_keys"),
)


@frozen
class _Plan:
    fault: Fault
    call: int | None
    """The number of the one call it is for, None for every call."""
    where: str
    """What the keys contain that it is for."""


@define(eq=False)
class FaultyEngine:
    """Passes everything on to `inner`, except for what `plan` says. Records every call in `calls`."""

    inner: Engine
    calls: list[tuple[str, str]] = field(factory=list)
    """(operation, key) of every call so far, refused ones too."""
    _plans: dict[str, list[_Plan]] = field(factory=lambda: defaultdict(list))
    _counts: dict[str, int] = field(factory=lambda: defaultdict(int))

    def plan(self, operation: str, fault: Fault, call: int | None = None, where: str = "") -> None:
        """Fail `operation` (a method's name): its `call`-th call from now (from 0), or every one. Later plans go first.

        Only for keys that contain `where`.
        """
        if operation not in OPERATIONS:
            raise ValueError(f"an engine has no operation {operation!r}")
        number = None if call is None else self._counts[operation] + call
        self._plans[operation].insert(0, _Plan(fault, number, where))

    def plan_all(self, fault: Fault) -> None:
        """Fail every operation, as a store does that is down or hangs."""
        for operation in OPERATIONS:
            self.plan(operation, fault)

    def clear(self) -> None:
        """Forget all plans: the store is well again."""
        self._plans.clear()

    @property
    def kind(self) -> str:
        return self.inner.kind

    @property
    def prefix(self) -> str:
        return self.inner.prefix

    @property
    def part_minimum(self) -> int:
        return self.inner.part_minimum

    @property
    def presigns(self) -> bool:
        return self.inner.presigns

    def presign(self, key: str, *, now: float, expires: int, method: str = "GET") -> str:
        return self.inner.presign(key, now=now, expires=expires, method=method)

    async def head(self, key: str) -> ObjectFacts:
        async with self._faulty("head", key):
            return await self.inner.head(key)

    @asynccontextmanager
    async def open(self, key: str, start: int = 0, length: int | None = None) -> AsyncIterator[ObjectReader]:
        async with self._faulty("open", key, body=True) as fault, self.inner.open(key, start, length) as reader:
            yield reader if fault is None else _FaultyReader(reader, fault, start)

    async def read(self, key: str, start: int, length: int) -> bytes:
        async with self._faulty("read", key, body=True) as fault:
            data = await self.inner.read(key, start, length)
            if isinstance(fault, Break | Stall) and length > fault.at:
                await _fail(fault)
            if isinstance(fault, Slow):
                await trio.sleep(length / fault.rate)
            return _turned(data, fault, start)

    async def put(self, key: str, data: bytes, sha256: str | None = None) -> ObjectFacts:
        async with self._faulty("put", key) as fault:
            turned = _turned(data, fault, 0)
            # A store that turns bytes does so after it has compared them.
            return await self.inner.put(key, turned, sha256 if turned is data else None)

    async def begin_parts(self, key: str) -> str:
        async with self._faulty("begin_parts", key):
            return await self.inner.begin_parts(key)

    async def put_part(self, key: str, upload: str, number: int, data: bytes) -> Part:
        async with self._faulty("put_part", key) as fault:
            return await self.inner.put_part(key, upload, number, _turned(data, fault, 0))

    async def list_parts(self, key: str, upload: str) -> Sequence[Part]:
        async with self._faulty("list_parts", key):
            return await self.inner.list_parts(key, upload)

    async def finish_parts(self, key: str, upload: str, parts: Sequence[Part]) -> ObjectFacts:
        async with self._faulty("finish_parts", key):
            return await self.inner.finish_parts(key, upload, parts)

    async def abandon_parts(self, key: str, upload: str | None = None) -> None:
        async with self._faulty("abandon_parts", key):
            await self.inner.abandon_parts(key, upload)

    async def list_open_parts(self, prefix: str) -> Sequence[OpenParts]:
        async with self._faulty("list_open_parts", prefix):
            return await self.inner.list_open_parts(prefix)

    async def delete(self, key: str) -> None:
        async with self._faulty("delete", key):
            await self.inner.delete(key)

    async def list_keys(self, prefix: str, after: str | None = None, most: int = 1000) -> KeyPage:
        async with self._faulty("list_keys", prefix):
            return await self.inner.list_keys(prefix, after, most)

    @asynccontextmanager
    async def _faulty(self, operation: str, key: str, *, body: bool = False) -> AsyncIterator[Fault | None]:
        number = self._counts[operation]
        self._counts[operation] += 1
        self.calls.append((operation, key))
        plans = self._plans.get(operation, ())
        fault = next((plan.fault for plan in plans if plan.call in (None, number) and plan.where in key), None)
        if isinstance(fault, Refuse):
            raise fault.error
        if isinstance(fault, Break | Stall) and not body:
            await _fail(fault)
        if isinstance(fault, Slow):
            await trio.sleep(fault.seconds)
        if isinstance(fault, Hold) and fault.first:
            fault.reached.set()
            await fault.go_on.wait()
        yield fault
        if isinstance(fault, LoseAnswer):
            raise fault.error
        if isinstance(fault, Hold) and not fault.first:
            fault.reached.set()
            await fault.go_on.wait()


@define(eq=False)
class _FaultyReader:
    _inner: ObjectReader
    _fault: Fault
    _start: int
    _given: int = 0

    async def receive(self, most: int) -> bytes:
        fault = self._fault
        if isinstance(fault, Break | Stall) and self._given + most > fault.at:
            # A shorter answer would be the end of the object, so the fault takes the whole piece with it.
            await _fail(fault)
        data = await self._inner.receive(most)
        if isinstance(fault, Slow) and data:
            await trio.sleep(len(data) / fault.rate)
        data = _turned(data, fault, self._start + self._given)
        self._given += len(data)
        return data

    async def receive_into(self, buffer: memoryview, seen: Seen) -> int:
        got, more = 0, True
        while more and (data := await self.receive(len(buffer))):
            buffer[: len(data)] = data
            got += len(data)
            more = seen(buffer[: len(data)]) is True
        return got


async def _fail(fault: Break | Stall) -> None:
    await trio.lowlevel.checkpoint()
    if isinstance(fault, Break):
        raise fault.error
    await trio.sleep(fault.seconds)
    raise EngineUnavailable("fault: silent for too long")


def _turned(data: bytes, fault: Fault | None, start: int) -> bytes:
    """Return the data with the byte at the fault's absolute place turned over, where that lies within."""
    if not isinstance(fault, Wrong) or not start <= fault.at < start + len(data):
        return data
    place = fault.at - start
    return data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :]
