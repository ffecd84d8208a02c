"""Reads one copy of a blob to its end, within the limits of copies, and says whether it is right."""

from collections.abc import Callable, Mapping
from enum import Enum

from replication.bandwidth import Bandwidth
from replication.digests import part_layout
from replication.model import Blob, Placement
from replication.parts import PartPool
from replication.reader import NoGoodSource, Reader, Transfer
from replication.workers import each

MIB = 1 << 20


class Proof(Enum):
    """What came of reading a copy."""

    RIGHT = "right"
    """Every byte was read, and has the digest."""
    WRONG = "wrong"
    """It is missing, or its bytes are not the blob's: the reader has told so (`Reader`)."""
    UNREAD = "unread"
    """Its store did not give it, which says nothing about the copy."""


class Prover:
    """Reads copies. The memory comes out of `pool`, the bytes out of `bandwidth`, as those of copies do.

    `part_size` returns the bytes that are read in one go, `parallel` how many of a blob's parts at once.
    """

    def __init__(
        self,
        reader: Reader,
        pool: PartPool,
        bandwidth: Mapping[str, Bandwidth],
        part_size: Callable[[], int],
        parallel: Callable[[], int],
    ) -> None:
        self._reader = reader
        self._pool = pool
        self._bandwidth = bandwidth
        self._part_size = part_size
        self._parallel = parallel

    async def prove(self, blob: Blob, placement: Placement) -> Proof:
        """Read this copy of `blob` and no other. An empty blob has no bytes that could be lost: it is right."""
        transfer = self._reader.begin(blob, [placement])
        try:
            if blob.pieces is not None or blob.size <= self._part_size():
                await self._read_parts(transfer)
            else:
                await self._read_serially(transfer)
        except NoGoodSource:
            return Proof.UNREAD if transfer.roster.left() else Proof.WRONG
        return Proof.RIGHT

    async def _read_parts(self, transfer: Transfer) -> None:
        layout = part_layout(transfer.blob.size, self._part_size())

        async def read(number: int) -> None:
            start, length = layout.span(number)
            await self._wait_for_bandwidth(transfer, length)
            async with self._pool.hold(length):
                await transfer.read_part(start, length)

        numbers = range(1, layout.count + 1) if transfer.blob.size else ()
        await each(numbers, min(self._parallel(), layout.count), read, (NoGoodSource,))

    async def _read_serially(self, transfer: Transfer) -> None:
        """Without pieces only the whole has a digest: the stream breaks off where it is wrong."""
        async with (
            self._pool.hold(2 * MIB),
            self._reader.stream(transfer, 0, transfer.blob.size) as stream,
        ):
            async for chunk in stream:
                await self._wait_for_bandwidth(transfer, len(chunk))

    async def _wait_for_bandwidth(self, transfer: Transfer, nbytes: int) -> None:
        (candidate,) = transfer.roster.candidates
        if candidate.placement.location in self._bandwidth:
            await self._bandwidth[candidate.placement.location].take(nbytes)
