"""One transfer of a blob: its sources, what is done about those that fail, and the verified read of one part in memory."""

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

import trio
from attrs import field, frozen

from engines.contract import Engine, EngineError, ObjectMissing
from replication.digests import Digest
from replication.hedging import Hedging
from replication.macs import MacKeys
from replication.model import PIECE, Blob, Placement
from replication.offload import Offload
from replication.roster import Candidate, NoGoodSource, Roster

MIB = 1 << 20

Suspect = Callable[[Blob, Placement, str], None]
"""Told that a copy is missing or wrong, and why. Must not wait."""


class Report(Protocol):
    """Told what live traffic saw at a location (`Watcher.report`). Must not wait."""

    def __call__(
        self, location: str, ok: bool, latency: float | None = None, reason: str | None = None, lied: bool = False
    ) -> None:
        """Take it in. `lied`: its bytes were wrong."""
        ...


@frozen
class ReaderSettings:
    """How long a source may keep its reader waiting."""

    stall: float = 5.0
    """Longest silence in seconds before the next source takes over."""
    slowest: int = MIB
    """Bytes per second: a part that is fetched in one go may take `stall` seconds and its size over this."""
    patience: float = 8.0
    """How many times as long a part may take when all other sources have failed."""


@frozen(eq=False)
class Tools:
    """What every transfer of a node shares. `engines` is by location."""

    engines: Mapping[str, Engine]
    report: Report
    suspect: Suspect
    settings: ReaderSettings
    offload: Offload
    hedging: Hedging = field(factory=Hedging)
    macs: MacKeys = field(factory=MacKeys)


class Transfer:
    """Reads one blob out of its copies; may be shared by any number of tasks that read parts of it.

    With `learn` its `check` makes MACs for a blob that has none.
    """

    def __init__(self, tools: Tools, blob: Blob, sources: Iterable[Placement], *, learn: bool = False) -> None:
        self.tools = tools
        self.blob = blob
        self.check = tools.macs.check(blob, learn=learn)
        self.roster = Roster.of(sources)
        for candidate in self.roster.candidates:
            if candidate.placement.location not in tools.engines:
                self.roster.drop(candidate, "this node has no such location", unreached=True)

    async def read_part(self, start: int, length: int) -> bytes:
        """Return the verified bytes [start, start + length) in one go.

        `start` must be a piece's first byte, and the part end where a piece does. Without pieces only the whole blob can be read
        so. Raises NoGoodSource when no source would do, ValueError when the part cannot be verified.
        """
        end = start + length
        if start % PIECE or (end % PIECE and end != self.blob.size):
            raise ValueError(f"part {start}+{length} is not made of whole pieces")
        if self.blob.pieces is None and (start, end) != (0, self.blob.size):
            raise ValueError("a part of a blob without pieces cannot be verified")
        for candidate in self.roster.tries():
            data = await self._fetch(candidate, start, length)
            if data is not None and await self._verified(candidate, start, data):
                return data
        raise self.no_good_source()

    async def _fetch(self, candidate: Candidate, start: int, length: int) -> bytes | None:
        settings = self.tools.settings
        patience = settings.patience if candidate.patient else 1.0
        seconds = patience * (settings.stall + length / settings.slowest)
        data = None
        try:
            with trio.move_on_after(seconds):
                data = await self.tools.engines[candidate.placement.location].read(
                    candidate.placement.key, start, length
                )
        except EngineError as error:
            self.failed(candidate, error)
            return None
        if data is None:
            self.stalled(candidate, f"no {length} bytes within {seconds:.1f} s")
        return data

    async def _verified(self, candidate: Candidate, start: int, data: bytes) -> bool:
        check = self.check
        if check is None:
            digest = Digest.parse(self.blob.digest)
            if await self.tools.offload(len(data), lambda: digest.matches(data)):
                return True
            self.lied(candidate, "its bytes have another digest")
            return False
        index = await self.tools.offload(len(data), lambda: check.wrong(start, data))
        if index is None:
            return True
        self.lied(candidate, f"piece {index} is wrong")
        return False

    def no_good_source(self) -> NoGoodSource:
        """Return the error that says why no source would do."""
        return NoGoodSource(self.blob.digest, self.roster.reasons(), self.roster.unreached())

    def failed(self, candidate: Candidate, error: EngineError) -> None:
        """Note that a source raised an error. A missing object says that the copy is bad, not that its store is ill."""
        reason = f"{type(error).__name__}: {error}"
        if isinstance(error, ObjectMissing):
            self.roster.drop(candidate, reason)
            self.tools.suspect(self.blob, candidate.placement, reason)
        else:
            self.roster.failed(candidate, reason)
            self.tools.report(candidate.placement.location, ok=False, reason=reason)

    def stalled(self, candidate: Candidate, reason: str) -> None:
        """Note that a source was silent for too long."""
        self.roster.failed(candidate, reason, slow=True)
        self.tools.report(candidate.placement.location, ok=False, reason=reason)

    def lied(self, candidate: Candidate, reason: str) -> None:
        """Note that a source sent wrong bytes. Of a suspect copy that is no news, and says nothing more about its store."""
        self.roster.drop(candidate, reason)
        self.tools.suspect(self.blob, candidate.placement, reason)
        if not candidate.placement.suspect:
            self.tools.report(candidate.placement.location, ok=False, reason=reason, lied=True)
