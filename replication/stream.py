"""The pump behind a streamed read: takes verified chunks from one source after the other and hands them over."""

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from math import inf
from typing import Protocol

import trio

from engines.contract import EngineError, ObjectReader
from replication.digests import Digest, piece_bounds, wrong_piece
from replication.hedging import hedge_after
from replication.model import PIECE
from replication.roster import Candidate, NoGoodSource
from replication.transfer import Report, Transfer

_SMALL_STEP = 64 * 1024
"""What a slow source is asked for at a time, so that slow is not taken for silent."""


Pace = Callable[[str, int], Awaitable[None]]
"""Waits until so many bytes that came from this location may be handed on."""


class Feed(Protocol):
    """What fills a stream: sends all chunks and closes; where that fails `error` says why."""

    location: str | None
    error: NoGoodSource | None

    async def run(self, send: trio.MemorySendChannel[bytes]) -> None:
        """Run as one task of its own."""
        ...


class BlobStream:
    """An async iterator of a blob's chunks, in order, up to 1 MiB each. Raises NoGoodSource when no source is left."""

    def __init__(self, pump: Feed, chunks: trio.MemoryReceiveChannel[bytes]) -> None:
        self._pump = pump
        self._chunks = chunks

    @property
    def location(self) -> str | None:
        """The location that is being read, None before the first answer."""
        return self._pump.location

    def __aiter__(self) -> "BlobStream":
        return self

    async def __anext__(self) -> bytes:
        try:
            return await self._chunks.receive()
        except trio.EndOfChannel:
            if self._pump.error is not None:
                raise self._pump.error from None
            raise StopAsyncIteration from None


@asynccontextmanager
async def streamed(feed: Feed) -> AsyncIterator[BlobStream]:
    """Run a feed beside the body and hand its chunks over, one read ahead; it ends with the body."""
    send, receive = trio.open_memory_channel[bytes](0)
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
        self._start, self._stop = start, stop
        self._whole = (start, stop) == (0, self._blob.size)
        if self._blob.pieces is None:
            self._offset, self._limit = start, stop
        else:
            self._offset, self._limit = piece_bounds(start, stop, self._blob.size)
        digest = Digest.parse(self._blob.digest)
        self._expected = digest.hex
        self._hash = hashlib.new(digest.algorithm)
        self._contributors: list[Candidate] = []
        self.error: NoGoodSource | None = None
        self.location: str | None = None
        self._begun = False

    async def run(self, send: trio.MemorySendChannel[bytes]) -> None:
        """Send all chunks and close; where that fails `error` says why."""
        async with send:
            try:
                await self._run(send)
            except NoGoodSource as error:
                self.error = error

    async def _run(self, send: trio.MemorySendChannel[bytes]) -> None:
        if self._whole and self._blob.pieces is None and 0 < self._blob.size <= PIECE:
            await send.send(await self._transfer.read_part(0, self._blob.size))
            return
        while self._start < self._stop and self._offset < self._limit:
            if not await self._progress(send):
                raise self._transfer.no_good_source()

    async def _progress(self, send: trio.MemorySendChannel[bytes]) -> bool:
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

    async def _race(self, first: Candidate, others: Iterator[Candidate], send: trio.MemorySendChannel[bytes]) -> None:
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
        self, candidate: Candidate, send: trio.MemorySendChannel[bytes], race: _Race | None = None
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
                        data = await self._receive(reader, candidate, scope, stall)
                        scope.deadline = inf
                        if not await self._accept(candidate, data, send):
                            return
        except EngineError as error:
            if self._offset < self._limit:
                self._transfer.failed(candidate, error)
            return
        if scope.cancelled_caught and self._offset < self._limit:
            self._transfer.stalled(candidate, f"silent for {stall:g} s at byte {self._offset}")

    async def _receive(
        self, reader: ObjectReader, candidate: Candidate, scope: trio.CancelScope, stall: float
    ) -> bytes:
        """Return the bytes up to the end of the piece, or of the range; fewer where the object ends."""
        wanted = min(PIECE - self._offset % PIECE, self._limit - self._offset)
        step = _SMALL_STEP if candidate.patient else wanted
        got = bytearray()
        while len(got) < wanted:
            scope.deadline = trio.current_time() + stall
            data = await reader.receive(min(step, wanted - len(got)))
            if not data:
                break
            if len(data) == wanted:
                return data
            got += data
        return bytes(got)

    async def _accept(self, candidate: Candidate, data: bytes, send: trio.MemorySendChannel[bytes]) -> bool:
        """Verify one piece and hand on what was asked for of it. False: this source is of no use any more."""
        begin, end = self._offset, self._offset + len(data)
        if end < min((begin // PIECE + 1) * PIECE, self._limit):
            self._transfer.lied(candidate, f"the object ends at byte {end} of {self._blob.size}")
            return False
        wrong = await self._transfer.tools.offload(len(data), self._check(data))
        if wrong is not None:
            self._transfer.lied(candidate, wrong)
            return False
        if candidate not in self._contributors:
            self._contributors.append(candidate)
        if self._blob.pieces is None and self._whole and end == self._limit:
            self._check_digest()
        self._offset = end
        if self._pace is not None:
            await self._pace(candidate.placement.location, len(data))
        low, high = max(self._start, begin), min(self._stop, end)
        await send.send(data if (low, high) == (begin, end) else data[low - begin : high - begin])
        return True

    def _check(self, data: bytes) -> Callable[[], str | None]:
        """Return a function for a worker thread that returns what is wrong with the next piece, if anything."""
        pieces, offset = self._blob.pieces, self._offset

        def check() -> str | None:
            if pieces is None:
                self._hash.update(data)
                return None
            index = wrong_piece(pieces, offset, data)
            return None if index is None else f"piece {index} is wrong"

        return check

    def _check_digest(self) -> None:
        """Raise NoGoodSource if the whole blob's digest is wrong. With one source it is clear who lied."""
        if self._hash.hexdigest() == self._expected:
            return
        if len(self._contributors) == 1:
            self._transfer.lied(self._contributors[0], "its bytes have another digest")
        for candidate in self._contributors:
            candidate.reason = candidate.reason or "the bytes of several copies together have another digest"
        raise self._transfer.no_good_source()
