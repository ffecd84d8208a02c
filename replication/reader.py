"""The one verified fail-over reader: pulls, copies, audits and heals all read blobs through it."""

from collections.abc import Iterable, Mapping
from contextlib import AbstractAsyncContextManager

from engines.contract import Engine
from replication.hedging import Hedging
from replication.macs import MacKeys
from replication.model import Blob, Placement
from replication.offload import Offload, in_thread
from replication.roster import NoGoodSource
from replication.stream import BlobStream, Pace, Pump, streamed
from replication.transfer import ReaderSettings, Report, Suspect, Tools, Transfer

__all__ = ["BlobStream", "NoGoodSource", "Reader", "ReaderSettings", "Report", "Suspect", "Transfer"]


class Reader:
    """Reads blobs out of the stores that this node knows; `engines` is by location.

    A source that errors, stalls or sends wrong bytes is replaced by the next one at the same offset and told to `report`; one that
    is missing (which says nothing about its store's health) or wrong is told to `suspect`. Where `hedging` has a share, a stream
    whose first source is slow to begin asks the next one beside it.
    """

    def __init__(
        self,
        engines: Mapping[str, Engine],
        report: Report,
        suspect: Suspect,
        settings: ReaderSettings | None = None,
        offload: Offload = in_thread,
        hedging: Hedging | None = None,
        macs: MacKeys | None = None,
    ) -> None:
        self.hedging = hedging or Hedging()
        self.macs = macs or MacKeys()
        """What spares hashing: see `replication/macs.py`."""
        self._tools = Tools(engines, report, suspect, settings or ReaderSettings(), offload, self.hedging, self.macs)

    def begin(self, blob: Blob, sources: Iterable[Placement], *, learn: bool = False) -> Transfer:
        """Return a transfer of `blob` out of `sources`, best first, for `Transfer.read_part`; what it learns of them is kept.

        With `learn`, so are MACs of its pieces, if it has none (`PieceCheck.learnt`).
        """
        return Transfer(self._tools, blob, sources, learn=learn)

    def open_blob(
        self,
        blob: Blob,
        sources: Iterable[Placement],
        start: int = 0,
        end: int | None = None,
        pace: Pace | None = None,
    ) -> AbstractAsyncContextManager[BlobStream]:
        """Open the bytes [start, end) of a blob, to its end where `end` is None, as an async iterator of chunks up to 1 MiB.

        With pieces, a byte goes out only after its piece was verified, and a range reads no more than the rest of its first and
        last piece beyond itself. Without, a read of the whole blob is hashed along and breaks off before its last chunk if the
        digest is wrong; a range cannot be verified then and is passed through. One chunk is read ahead. `pace` is asked before
        bytes are handed on.

        Iterating raises NoGoodSource when no source is left. Raises ValueError when the range is not inside the blob.
        """
        return self.stream(self.begin(blob, sources), start, blob.size if end is None else end, pace)

    def stream(
        self, transfer: Transfer, start: int, stop: int, pace: Pace | None = None
    ) -> AbstractAsyncContextManager[BlobStream]:
        """Open [start, stop) of a transfer's blob as `open_blob` does; what is learnt of its sources is kept in the transfer."""
        if not 0 <= start <= stop <= transfer.blob.size:
            raise ValueError(f"range {start}-{stop} of a blob of {transfer.blob.size} bytes")
        return streamed(Pump(transfer, start, stop, pace))
