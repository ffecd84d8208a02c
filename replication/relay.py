"""Hands a blob's bytes from one store to another in a single worker thread: received, verified, sent on, one piece at a time.

No byte leaves the thread for the destination before its piece was right, and no part is in memory as a whole.
"""

import time
from collections.abc import Awaitable, Callable, Generator, Mapping
from typing import TypeVar

from attrs import define, field, frozen

from engines.contract import (
    CannotStream,
    Chunk,
    ChunkMaker,
    Engine,
    EngineError,
    EngineUnavailable,
    Inflow,
    StreamingEngine,
)
from replication.destination import WriteFailed
from replication.macs import PieceCheck
from replication.model import PIECE
from replication.parts import PartPool
from replication.roster import Candidate
from replication.transfer import MIB, Transfer

T = TypeVar("T")
Send = Callable[[ChunkMaker, float], Awaitable[T]]

IN_FLIGHT = 4 * MIB
"""What one relay holds of the pool at most: a piece of its own, and what the kernel keeps for its two sockets."""
_BUFFERS = 3
"""In how many places its bytes may be, where they are fewer."""

_SHARED = 2
"""A relay is one of many on the same line: its source may be so much slower than one that has the line to itself."""


class _FetchedAnyway(Exception):
    """The same bytes have begun to come for somebody else, and need not come twice."""


class SourceBroken(Exception):
    """A source did not deliver. `lied` when what it did deliver was wrong, `slow` when it took too long."""

    def __init__(
        self, reason: str, error: EngineError | None = None, *, lied: bool = False, slow: bool = False
    ) -> None:
        self.reason, self.error, self.lied, self.slow = reason, error, lied, slow
        super().__init__(reason)


@frozen
class Span:
    """The bytes [start, start + length) of a blob with pieces; `start` is a piece's first byte."""

    start: int
    length: int
    whole: bool
    """It is all of the blob."""
    check: PieceCheck = field(repr=False)


@define(eq=False)
class Body:
    """One try to bring a span over: makes the chunks that a destination's engine sends."""

    _span: Span
    _stall: float
    """The source's longest silence in seconds."""
    seconds: float
    """How long it may take in all."""
    _shared: Callable[[], bool]
    receiving: bool = field(default=False, init=False)
    """It is the source that is waited for."""
    _inflow: Inflow = field(init=False)

    async def begin(self, engine: StreamingEngine, key: str) -> None:
        """Say where the bytes are. Raises SourceBroken, CannotStream."""
        try:
            span = self._span
            self._inflow = await engine.inflow(key, span.start, span.length, self._stall, whole=span.whole)
        except EngineError as error:
            raise SourceBroken(str(error), error) from error

    def stop(self) -> None:
        """End what the thread waits for. Never waits."""
        self._inflow.stop()

    def chunks(self) -> Generator[Chunk, None, None]:
        """Yield verified pieces. Runs in a worker thread. Raises SourceBroken, CannotStream, _FetchedAnyway."""
        span, spent = self._span, 0.0
        buffer = memoryview(bytearray(min(PIECE, span.length)))
        try:
            for offset in range(span.start, span.start + span.length, PIECE):
                if 2 * (offset - span.start) < span.length and self._shared():
                    raise _FetchedAnyway
                view = buffer[: min(PIECE, span.start + span.length - offset)]
                spent += self._receive(view)
                if spent > self.seconds:
                    raise SourceBroken(f"no {span.length} bytes within {self.seconds:.1f} s", slow=True)
                right, digest = span.check.look(offset // PIECE, view)
                if not right:
                    raise SourceBroken(f"piece {offset // PIECE} is wrong", lied=True)
                yield Chunk(view, digest, self._inflow.md5)
        finally:
            self._inflow.close()

    def _receive(self, view: memoryview) -> float:
        """Fill the view; return the seconds that it took."""
        began, self.receiving = time.monotonic(), True
        try:
            self._inflow.receive_into(view)
        except CannotStream:
            raise
        except EngineError as error:
            slow = isinstance(error, EngineUnavailable) and time.monotonic() - began >= self._stall
            raise SourceBroken(str(error), error, slow=slow) from error
        self.receiving = False
        return time.monotonic() - began


class Relay:
    """Brings spans of blobs from the best sources into destinations, for all copies of a node.

    `engines` is by location, `pool` the memory that all share.
    """

    def __init__(self, engines: Mapping[str, Engine], pool: PartPool) -> None:
        self._streaming = {name: engine for name, engine in engines.items() if isinstance(engine, StreamingEngine)}
        self._pool = pool

    def destination(self, location: str, transfer: Transfer) -> StreamingEngine | None:
        """Return the engine to send to, None where copies of this blob out of these sources cannot be relayed."""
        best = transfer.roster.best()
        if best not in self._streaming or transfer.check is None or transfer.blob.size == 0:
            return None
        return self._streaming.get(location)

    async def bring(
        self, transfer: Transfer, start: int, length: int, send: Send[T], shared: Callable[[], bool] = lambda: False
    ) -> T | None:
        """Let `send` send the verified bytes [start, start + length); return what it returns, None where that cannot be done.

        Nor is it done once `shared`, which is asked in a thread, says that the blob is being fetched anyway, unless half of the
        span has come by then.

        `send` is given the chunks, and how long making them may take. A source that fails, stalls or lies is replaced by the
        next, and the span begun anew. Raises NoGoodSource, and what `send` raises.
        """
        settings, check = transfer.tools.settings, transfer.check
        assert check is not None
        async with self._pool.hold(min(IN_FLIGHT, _BUFFERS * length)):
            for candidate in transfer.roster.tries():
                engine = self._streaming.get(candidate.placement.location)
                if engine is None:
                    return None
                patience = settings.patience if candidate.patient else 1.0
                stall = patience * settings.stall
                body = Body(
                    Span(start, length, length == transfer.blob.size, check),
                    stall,
                    stall + patience * _SHARED * length / settings.slowest,
                    shared,
                )
                try:
                    await body.begin(engine, candidate.placement.key)
                    try:
                        return await send(body.chunks, 2 * body.seconds)
                    finally:
                        body.stop()
                except (CannotStream, _FetchedAnyway):
                    return None
                except SourceBroken as broken:
                    _note(transfer, candidate, broken)
                except WriteFailed as error:
                    if not body.receiving:
                        raise
                    # It is not the destination that the call's deadline was spent on.
                    transfer.stalled(candidate, str(error))
        raise transfer.no_good_source()


def _note(transfer: Transfer, candidate: Candidate, broken: SourceBroken) -> None:
    if broken.lied:
        transfer.lied(candidate, broken.reason)
    elif broken.error is None or broken.slow:
        transfer.stalled(candidate, broken.reason)
    else:
        transfer.failed(candidate, broken.error)
