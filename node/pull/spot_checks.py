"""Spot checks of what clients were sent to: nobody sees the bytes that a client reads from a store itself, unless somebody looks.

A few of the blobs that pulls were redirected to since the last round are read in part and verified. One that is wrong makes its
copy suspect, and its store unfit for redirects for a while, on every node (`replication/health.py`).
"""

import random
from collections import OrderedDict
from collections.abc import Awaitable, Callable

import structlog
import trio
from attrs import define, field

from node.records.postgres import DatabaseUnavailable
from node.records.pulls import FoundBlob
from replication.model import PIECE, Blob, Placement
from replication.reader import NoGoodSource, Reader

_log = structlog.get_logger("antipode.locations")

_MOST_NOTED = 256
_SECONDS = 5.0
"""For one check: whether a store is slow, its probes find out."""


@define(eq=False)
class SpotChecks:
    """Takes notes of redirects, and checks up to `most` of them in every round. Run `run` in a nursery.

    `find` looks a blob up in a repository, with its pieces.
    """

    _reader: Reader
    _find: Callable[[str, str], Awaitable[FoundBlob | None]]
    _most: int
    _every: float
    _sent: OrderedDict[tuple[str, str], Placement] = field(factory=OrderedDict, init=False)
    checked: int = field(default=0, init=False)
    """Since the start."""
    wrong: int = field(default=0, init=False)

    def note(self, repository: str, digest: str, placement: Placement) -> None:
        """A client is being sent to this copy. Never waits."""
        if not self._most:
            return
        self._sent[repository, digest] = placement
        if len(self._sent) > _MOST_NOTED:
            self._sent.popitem(last=False)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Check for ever, one round after the other. Ends by cancellation."""
        task_status.started()
        while True:
            await trio.sleep(self._every)
            chosen = random.sample(list(self._sent.items()), min(self._most, len(self._sent)))
            self._sent.clear()
            async with trio.open_nursery() as nursery:
                for (repository, digest), placement in chosen:
                    nursery.start_soon(self._check, repository, digest, placement)

    async def _check(self, repository: str, digest: str, placement: Placement) -> None:
        with trio.move_on_after(_SECONDS):
            try:
                found = await self._find(repository, digest)
                if found is None or placement not in found.placements:
                    return
                await self._read(found.blob, placement)
            except DatabaseUnavailable:
                return  # without its pieces nothing can be said of a blob

    async def _read(self, blob: Blob, placement: Placement) -> None:
        """Read one piece, or all of a small blob; the reader tells whom it concerns when it is wrong."""
        if blob.pieces is None and blob.size > PIECE:
            return
        start = 0 if blob.pieces is None else PIECE * random.randrange(max(1, -(-blob.size // PIECE)))  # noqa: S311
        self.checked += 1
        try:
            await self._reader.begin(blob, [placement]).read_part(start, min(PIECE, blob.size - start))
        except NoGoodSource as error:
            self.wrong += 1
            _log.warning(
                "a copy that clients were sent to is not good", digest=blob.digest, reasons=dict(error.reasons)
            )
