"""The pump behind a streamed read: takes verified chunks from one source after the other and hands them over."""

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from math import inf
from typing import Protocol

import trio
from attrs import define, field

from engines.contract import EngineError, ObjectReader
from replication.buffers import PieceBuffers
from replication.digests import Digest, piece_bounds
from replication.flow import FLOW_SECONDS, Flow, Sink
from replication.hedging import hedge_after
from replication.macs import PieceCheck
from replication.model import PIECE
from replication.roster import Candidate, NoGoodSource
from replication.transfer import Report, Transfer

_SMALL_STEP = 64 * 1024
"""What a slow source is asked for at a time, so that slow is not taken for silent."""


Chunk = bytes | memoryview
"""Verified bytes of a blob. They stay as they are as long as somebody holds them, or a slice of them."""

Pace = Callable[[str, int], Awaitable[None]]
"""Waits until so many bytes that came from this location may be handed on."""


class _Hash(Protocol):
    """What is used of hashlib's objects."""

    def update(self, data: Chunk, /) -> None: ...

    def digest(self) -> bytes: ...

    def hexdigest(self) -> str: ...

    def copy(self) -> "_Hash": ...


@define(eq=False)
class _Arriving:
    """What is done with bytes in the thread that received them: a piece is verified when it is whole, other bytes are hashed."""

    whole: memoryview
    _index: int
    _check: PieceCheck | None
    hash: _Hash
    right: bool = field(default=False, init=False)
    _filled: int = field(default=0, init=False)

    def seen(self, part: memoryview) -> None:
        """Take in what has come."""
        if self._check is None:
            self.hash.update(part)
            return
        self._filled += len(part)
        if self._filled == len(self.whole):
            self.right = self._check.right(self._index, self.whole)


@define(eq=False)
class Turns:
    """Whether the body has done with all chunks that it was given."""

    _asked: int = 0
    _given: int = 0
    _changed: trio.Event = field(factory=trio.Event)

    def ask(self) -> None:
        """Note that the body wants another chunk."""
        self._asked += 1
        self._changed.set()

    def withdraw(self) -> None:
        """Note that it was cancelled while it waited for one."""
        self._asked -= 1

    def give(self) -> None:
        """Note that it has one."""
        self._given += 1

    async def wait(self) -> None:
        """Wait until it has done with all of them."""
        while self._asked <= self._given:
            self._changed = trio.Event()
            await self._changed.wait()


class Feed(Protocol):
    """What fills a stream: sends all chunks and closes; where that fails `error` says why."""

    location: str | None
    error: NoGoodSource | None
    sink: Sink | None
    """Where bytes may go straight from a thread, while nobody is busy with a chunk; a feed need not make use of it."""
    turns: Turns

    async def run(self, send: trio.MemorySendChannel[Chunk]) -> None:
        """Run as one task of its own."""
        ...


class BlobStream:
    """An async iterator of a blob's chunks, in order, up to 1 MiB each. Raises NoGoodSource when no source is left."""

    def __init__(self, pump: Feed, chunks: trio.MemoryReceiveChannel[Chunk]) -> None:
        self._pump = pump
        self._chunks = chunks

    @property
    def location(self) -> str | None:
        """The location that is being read, None before the first answer."""
        return self._pump.location

    def __aiter__(self) -> "BlobStream":
        return self

    def flow_into(self, sink: Sink) -> None:
        """Let bytes that nothing else has to be done with go to `sink`, from now on; the others are chunks, in their turn."""
        self._pump.sink = sink

    async def __anext__(self) -> Chunk:
        turns = self._pump.turns
        turns.ask()
        try:
            return await self._chunks.receive()
        except trio.EndOfChannel:
            if self._pump.error is not None:
                raise self._pump.error from None
            raise StopAsyncIteration from None
        except trio.Cancelled:
            turns.withdraw()
            raise


@asynccontextmanager
async def streamed(feed: Feed) -> AsyncIterator[BlobStream]:
    """Run a feed beside the body and hand its chunks over, one read ahead; it ends with the body."""
    send, receive = trio.open_memory_channel[Chunk](0)
    raised: BaseException | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(feed.run, send)
        # Caught here, so that what the body raises leaves as it is and not inside a group.
        try:
            yield BlobStream(feed, receive)
        except BaseException as error:  # noqa: BLE001 - raised again below, after the feed has ended
            raised = error
        receive.close()
        nursery.cancel_scope.cancel()
    if raised is not None:
        raise raised


class _Race:
    """Sources that are asked side by side. The first that begins to answer has the stream to itself."""

    def __init__(self, report: Report) -> None:
        self.over = trio.Event()
        self.winner: Candidate | None = None
        self._report = report
        self._asked: list[tuple[Candidate, float, trio.CancelScope]] = []

    async def run(self, read: Callable[[Candidate, "_Race"], Awaitable[None]], candidate: Candidate) -> None:
        """Read from one source until it ends, or has lost."""
        with trio.CancelScope() as scope:
            self._asked.append((candidate, trio.current_time(), scope))
            await read(candidate, self)
        self.over.set()

    def won(self, candidate: Candidate) -> bool:
        """Say whether this source has the stream; the first that asks has it."""
        if self.winner is None:
            self.winner = candidate
            self.over.set()
            for other, began, scope in self._asked:
                if other is not candidate:
                    scope.cancel(reason="another source was quicker")
                    # It is at least that slow, which counts when sources are chosen.
                    self._report(other.placement.location, ok=True, latency=trio.current_time() - began)
        return self.winner is candidate


class Pump:
    """Reads [start, stop) of a transfer's blob. Runs as one task, in which every source is opened and closed."""

    def __init__(self, transfer: Transfer, start: int, stop: int, pace: Pace | None = None) -> None:
        self._transfer = transfer
        self._pace = pace
        self._blob = transfer.blob
        self._check = transfer.check
        self._start, self._stop = start, stop
        self._whole = (start, stop) == (0, self._blob.size)
        if self._check is None:
            self._offset, self._limit = start, stop
        else:
            self._offset, self._limit = piece_bounds(start, stop, self._blob.size)
        digest = Digest.parse(self._blob.digest)
        self._expected = digest.hex
        self._hash: _Hash = hashlib.new(digest.algorithm)
        self._buffers = PieceBuffers(self._limit - self._offset)
        self._contributors: list[Candidate] = []
        self.error: NoGoodSource | None = None
        self.location: str | None = None
        self.sink: Sink | None = None
        self.turns = Turns()
        self._rest: memoryview | None = None
        self._begun = False

    async def run(self, send: trio.MemorySendChannel[Chunk]) -> None:
        """Send all chunks and close; where that fails `error` says why."""
        async with send:
            try:
                await self._run(send)
            except NoGoodSource as error:
                self.error = error

    async def _run(self, send: trio.MemorySendChannel[Chunk]) -> None:
        if self._whole and self._check is None and 0 < self._blob.size <= PIECE:
            await self._give(send, await self._transfer.read_part(0, self._blob.size))
            return
        while self._start < self._stop and self._offset < self._limit:
            if not await self._progress(send):
                raise self._transfer.no_good_source()

    async def _progress(self, send: trio.MemorySendChannel[Chunk]) -> bool:
        """Read on from the best source. After progress all sources that are left may try again."""
        before, hedging, tries = self._offset, self._transfer.tools.hedging, self._transfer.roster.tries()
        hedged = not self._begun and hedging.begin()
        self._begun = True
        for candidate in tries:
            if hedged:
                hedged = False
                await self._race(candidate, tries, send)
            else:
                await self._read_from(candidate, send)
            if self._offset > before:
                return True
        return False

    async def _race(self, first: Candidate, others: Iterator[Candidate], send: trio.MemorySendChannel[Chunk]) -> None:
        """Read on from a source, or from the next one when this is slow to begin and that is quicker."""
        tools = self._transfer.tools
        race = _Race(tools.report)
        patience = hedge_after(
            tools.hedging.latency(first.placement.location), tools.settings.stall, tools.hedging.rules
        )

        async def read(candidate: Candidate, race: _Race) -> None:
            await self._read_from(candidate, send, race)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(race.run, read, first)
            with trio.move_on_after(patience) as waited:
                await race.over.wait()
            if not waited.cancelled_caught or self._transfer.roster.left() < 2 or not tools.hedging.take():
                return
            second = next(others, None)
            if second is not None:
                await race.run(read, second)
        if race.winner is not None and race.winner is not first:
            tools.hedging.won += 1

    async def _read_from(
        self, candidate: Candidate, send: trio.MemorySendChannel[Chunk], race: _Race | None = None
    ) -> None:
        tools, placement = self._transfer.tools, candidate.placement
        stall = tools.settings.stall
        began = trio.current_time()
        try:
            # One scope around everything, its deadline moved along: a store's context manager may hold scopes of its own.
            with trio.CancelScope(deadline=began + stall) as scope:
                async with tools.engines[placement.location].open(
                    placement.key, self._offset, self._limit - self._offset
                ) as reader:
                    tools.report(placement.location, ok=True, latency=trio.current_time() - began)
                    if race is not None and not race.won(candidate):
                        return
                    self.location = placement.location
                    while self._offset < self._limit:
                        if self._may_flow(candidate):
                            scope.deadline = inf
                            await self._hand_rest(send)
                            await self.turns.wait()
                            scope.deadline = trio.current_time() + stall + FLOW_SECONDS
                            if not await self._flow(reader, candidate, scope):
                                return
                            continue
                        arriving, filled = await self._receive(reader, candidate, scope, stall)
                        scope.deadline = inf
                        if not await self._accept(candidate, arriving, filled, send):
                            return
        except EngineError as error:
            if self._offset < self._limit:
                self._transfer.failed(candidate, error)
            return
        if scope.cancelled_caught and self._offset < self._limit:
            self._transfer.stalled(candidate, f"silent for {stall:g} s at byte {self._offset}")

    def _may_flow(self, candidate: Candidate) -> bool:
        return (
            self.sink is not None
            and self._check is not None
            and not candidate.patient
            and Flow.fits(self._offset, self._limit)
        )

    async def _flow(self, reader: ObjectReader, candidate: Candidate, scope: trio.CancelScope) -> bool:
        """Let some pieces go from the store to the client. False: this source is of no use any more."""
        assert self.sink is not None
        assert self._check is not None
        flow = Flow(self._check, self._offset, self._limit, self._start, self.sink)
        try:
            got = await reader.receive_into(self._buffers.take(PIECE), flow.take)
        finally:
            # Also where this was cancelled, or the source failed: what has gone has gone.
            flow.end()
            moved, self._offset, self._rest = flow.offset - self._offset, flow.offset, flow.rest
            if moved and candidate not in self._contributors:
                self._contributors.append(candidate)
        scope.deadline = inf
        if moved and self._pace is not None:
            await self._pace(candidate.placement.location, moved)
        if flow.wrong:
            self._transfer.lied(candidate, f"piece {self._offset // PIECE} is wrong")
        elif got < PIECE:
            self._transfer.lied(candidate, f"the object ends at byte {self._offset} of {self._blob.size}")
        return not flow.wrong and got >= PIECE

    async def _hand_rest(self, send: trio.MemorySendChannel[Chunk]) -> None:
        """Hand on what a client was too slow for."""
        if self._rest:
            await self._give(send, self._rest)
            self._rest = None

    async def _give(self, send: trio.MemorySendChannel[Chunk], chunk: Chunk) -> None:
        await send.send(chunk)
        self.turns.give()

    async def _receive(
        self, reader: ObjectReader, candidate: Candidate, scope: trio.CancelScope, stall: float
    ) -> tuple[_Arriving, int]:
        """Receive the bytes up to the end of the piece, or of the range; return how many came, fewer where the object ends."""
        wanted = min(PIECE - self._offset % PIECE, self._limit - self._offset)
        step = _SMALL_STEP if candidate.patient else wanted
        buffer, filled = self._buffers.take(wanted), 0
        # Its own hash for every try: a thread that was left behind may still add to one.
        arriving = _Arriving(buffer, self._offset // PIECE, self._check, self._hash.copy())
        while filled < wanted:
            scope.deadline = trio.current_time() + stall
            got = await reader.receive_into(buffer[filled : filled + step], arriving.seen)
            if not got:
                break
            filled += got
        return arriving, filled

    async def _accept(
        self, candidate: Candidate, arriving: _Arriving, filled: int, send: trio.MemorySendChannel[Chunk]
    ) -> bool:
        """Verify one piece and hand on what was asked for of it. False: this source is of no use any more.

        The source's time may have been over when its bytes came, as after the process stood still: then this is cancelled where it
        waits, and the bytes count as not read.
        """
        begin, end = self._offset, self._offset + filled
        if end < min((begin // PIECE + 1) * PIECE, self._limit):
            self._transfer.lied(candidate, f"the object ends at byte {end} of {self._blob.size}")
            return False
        if self._check is not None and not arriving.right:
            self._transfer.lied(candidate, f"piece {begin // PIECE} is wrong")
            return False
        if candidate not in self._contributors:
            self._contributors.append(candidate)
        if self._check is None and self._whole and end == self._limit:
            self._check_digest(arriving.hash)
        if self._pace is not None:
            await self._pace(candidate.placement.location, filled)
        low, high = max(self._start, begin), min(self._stop, end)
        data = arriving.whole[:filled].toreadonly()
        await self._hand_rest(send)
        await self._give(send, data if (low, high) == (begin, end) else data[low - begin : high - begin])
        self._offset, self._hash = end, arriving.hash
        return True

    def _check_digest(self, whole: _Hash) -> None:
        """Raise NoGoodSource if the whole blob's digest is wrong. With one source it is clear who lied."""
        if whole.hexdigest() == self._expected:
            return
        if len(self._contributors) == 1:
            self._transfer.lied(self._contributors[0], "its bytes have another digest")
        for candidate in self._contributors:
            candidate.reason = candidate.reason or "the bytes of several copies together have another digest"
        raise self._transfer.no_good_source()
