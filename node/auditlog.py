"""The audit log of a node: pulls in batches beside the pull path, administration at once, old lines let go.

A pull waits for nothing: its line goes into a bounded queue. What finds the queue full is counted, and said in the log. Pushes and
deletes do not come here: they write their line in their own transaction (`node/records/auditlog.py`).
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from typing import TypeVar

import structlog
import trio
from attrs import define, field, frozen

from node.answers import Request
from node.config.settings import Settings
from node.names import namespace_of
from node.records.auditlog import Line, Pull, drop_lines, write_lines, write_pulls
from node.records.postgres import Database
from replication.ports import LedgerUnavailable

_log = structlog.get_logger("antipode.audit")

T = TypeVar("T")


@frozen
class AuditSettings:
    """Durations in seconds."""

    waiting: int = 10_000
    """Lines that may wait."""
    batch: int = 500
    every: float = 1.0
    again: float = 5.0
    """Between tries while the database is away."""
    last: float = 2.0
    """How long the last lines may take when the node stops."""
    drop_every: float = 60.0
    drop_batch: int = 5000


@define(eq=False)
class AuditLog:
    """One node's part in the log. `run` is its service."""

    _database: Database = field(alias="database")
    _current: Callable[[], Settings] = field(alias="current")
    _node: str = field(alias="node")
    settings: AuditSettings = field(factory=AuditSettings)
    clock: Callable[[], float] = time.time
    dropped: int = field(default=0, init=False)
    """Lines that found the queue full since the start."""
    _said: int = field(default=0, init=False)
    _waiting: deque[tuple[float, Line]] = field(factory=deque, init=False)
    _pulls: deque[Pull] = field(factory=deque, init=False)
    _arrived: trio.Event = field(factory=trio.Event, init=False)

    @property
    def node(self) -> str:
        """This process's id, as lines have it."""
        return self._node

    def pulled(self, request: Request, repository: str, reference: str, digest: str) -> None:
        """Note the pull of a manifest, if pulls are noted (AUDIT_PULLS). Never waits."""
        settings = self._current()
        if not settings.audit_pulls:
            return
        if self._lines() >= self.settings.waiting:
            self.dropped += 1
            return
        namespace = namespace_of(repository, settings.library_namespace)
        self._pulls.append(
            Pull(self.clock(), request.who, namespace, repository, reference, digest, request.client, request.id)
        )
        self._arrived.set()

    async def record(self, line: Line) -> None:
        """Write a line that must not be lost; returns when it is committed, or, while the database is away, waits in the queue."""
        try:
            await write_lines(self._database, (line,))
        except LedgerUnavailable as error:
            _log.warning("a line of the audit log waits: the database is away", action=line.action, reason=str(error))
            self._waiting.append((self.clock(), line))
            self._arrived.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Write and let go for ever; what waits at the end is written, too, if that can be done soon."""
        task_status.started()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write_for_ever)
                nursery.start_soon(self._drop_for_ever)
        finally:
            with trio.move_on_after(self.settings.last, shield=True):
                try:
                    await self._write()
                except LedgerUnavailable as error:
                    _log.error("the last lines of the audit log are lost", lines=self._lines(), reason=str(error))

    async def _write_for_ever(self) -> None:
        while True:
            await self._arrived.wait()
            self._arrived = trio.Event()
            # Others come with it.
            await trio.sleep(self.settings.every)
            try:
                await self._write()
            except LedgerUnavailable as error:
                _log.warning("the audit log waits: the database is away", lines=self._lines(), reason=str(error))
                self._arrived.set()
                await trio.sleep(self.settings.again)
            self._say_dropped()

    def _lines(self) -> int:
        return len(self._waiting) + len(self._pulls)

    async def _write(self) -> None:
        while self._waiting:
            batch = self._first(self._waiting)
            await write_lines(self._database, [line for _, line in batch], [at for at, _ in batch])
            for _ in batch:
                self._waiting.popleft()
        while self._pulls:
            pulls = self._first(self._pulls)
            await write_pulls(self._database, self._node, pulls)
            for _ in pulls:
                self._pulls.popleft()

    def _first(self, waiting: deque[T]) -> Sequence[T]:
        """Return a batch of those that have waited longest. They go when they are written."""
        return list(islice(waiting, self.settings.batch))

    def _say_dropped(self) -> None:
        if self.dropped > self._said:
            _log.error("the audit log lost pulls: its queue was full", lines=self.dropped - self._said)
            self._said = self.dropped

    async def _drop_for_ever(self) -> None:
        while True:
            try:
                while True:
                    older = self._current().audit_retention
                    gone = await drop_lines(self._database, older, self.settings.drop_batch)
                    if gone < self.settings.drop_batch:
                        break
            except LedgerUnavailable as error:
                _log.info("old lines of the audit log stay: the database is away", reason=str(error))
            await trio.sleep(self.settings.drop_every)
