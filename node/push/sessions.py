"""Who writes an upload: sessions in this process, the proof that they are still current, and the one that pre-empts another.

An upload's truth is its row. A session is only this process's memory of what it wrote there last, kept so that the next request
of the same client need not read it. It is used when the client shows the token of exactly that state, which every answer's
Location carries; otherwise the upload is taken over from the row, and whoever held it before loses it.
"""

from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from uuid import UUID, uuid4

import structlog
import trio
from attrs import define, evolve, field

from node.errors import BLOB_UPLOAD_UNKNOWN, RANGE_INVALID, RegistryError
from node.records.upload_rows import UploadRow
from node.records.uploads import take_over_upload
from node.registry import Registry
from replication.hashing import BlobHasher, HashStateInvalid
from replication.macs import MacKey
from replication.upload_spool import KeptUpload
from replication.upload_state import UploadState

_MOST_SESSIONS = 2048
_PREEMPT_SECONDS = 10.0
_log = structlog.get_logger("antipode.uploads")


@define(eq=False)
class Session:
    """An upload that this process owns: its row as last written, the hasher at its offset, its bytes on disk (None: not known)."""

    repository: str
    row: UploadRow
    hasher: BlobHasher | None
    counter: int = 0
    kept: KeptUpload | None = None

    @property
    def token(self) -> str:
        """What the Location of the last answer says; changes with every recorded state."""
        return f"{self.row.epoch}.{self.counter}.{self.row.state.offset}"

    def advance(self, state: UploadState) -> None:
        """Remember a state that was recorded."""
        self.row = evolve(self.row, state=state)
        self.counter += 1

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Be written by a request: what is kept of it stays."""
        kept = self.kept
        if kept is not None:
            kept.busy = True
        try:
            yield
        finally:
            if kept is not None:
                kept.busy, kept.used_at = False, trio.current_time()

    async def close(self) -> None:
        """Give back what it holds besides memory. It may be written on all the same."""
        if self.kept is not None:
            await self.kept.close()
            self.kept = None


@define(eq=False)
class _Writing:
    scope: trio.CancelScope = field(factory=trio.CancelScope)
    ended: trio.Event = field(factory=trio.Event)


class Sessions:
    """The sessions of one process."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._idle: OrderedDict[UUID, Session] = OrderedDict()
        self._writing: dict[tuple[str, UUID], _Writing] = {}
        """By repository and upload: whoever may not push there cuts nobody off, whatever ids they know."""

    async def open(self, session: Session) -> None:
        """Keep a session between two requests; the oldest are forgotten, which costs their clients a look-up."""
        self._idle[session.row.id] = session
        while len(self._idle) > _MOST_SESSIONS:
            await self._idle.popitem(last=False)[1].close()

    def location(self, session: Session) -> str:
        """Return the path that the client goes on with."""
        return (
            f"/v2/{session.repository}/blobs/uploads/{session.row.id}?_state={self._registry.instance}.{session.token}"
        )

    def peek(self, repository: str, upload: UUID) -> Session | None:
        """Return an idle session without taking it."""
        session = self._idle.get(upload)
        return session if session is not None and session.repository == repository else None

    async def forget(self, upload: UUID) -> None:
        """Forget an upload that is gone."""
        session = self._idle.pop(upload, None)
        if session is not None:
            await session.close()

    @asynccontextmanager
    async def writing(
        self, repository: str, upload: UUID, token: str | None, start: int | None
    ) -> AsyncIterator[Session]:
        """Own an upload for one request. Kept afterwards only if the caller calls `open` again.

        `start` is where the client believes that it goes on (None: at the end, wherever that is). The newest writer wins: one in
        this process that is still busy, typically for a client whose connection has died, is cut off. Raises RegistryError:
        BLOB_UPLOAD_UNKNOWN, or 416 where `start` is wrong and for the writer that was cut off.
        """
        key = (repository, upload)
        busy = self._writing.get(key)
        if busy is not None:
            await self._preempt(busy, upload)
        me = _Writing()
        if key in self._writing:
            raise RegistryError(RANGE_INVALID, {"upload": str(upload), "reason": "another request writes this upload"})
        self._writing[key] = me
        session: Session | None = None
        try:
            with me.scope:
                session = self._current(repository, upload, token) or await self._take_over(repository, upload)
                offset = session.row.state.offset
                if start is not None and start != offset:
                    await self.open(session)
                    raise self.out_of_order(session, start)
                yield session
                return
            raise RegistryError(
                RANGE_INVALID, {"upload": str(upload), "reason": "another request took this upload over"}
            )
        finally:
            if session is not None and self._idle.get(upload) is not session:
                await session.close()
            del self._writing[key]
            me.ended.set()

    def out_of_order(self, session: Session, start: int) -> RegistryError:
        """Return the 416 that tells a client where the upload really is (spec: "Pushing a blob in chunks")."""
        offset = session.row.state.offset
        return RegistryError(
            RANGE_INVALID,
            {"upload": str(session.row.id), "found": start, "expected": offset},
            headers=(("location", self.location(session)), ("range", f"0-{max(0, offset - 1)}")),
        )

    async def _preempt(self, busy: _Writing, upload: UUID) -> None:
        _log.info("upload taken over within the node", upload=str(upload))
        busy.scope.cancel(reason="another request took this upload over")
        with trio.move_on_after(_PREEMPT_SECONDS):
            await busy.ended.wait()

    def _current(self, repository: str, upload: UUID, token: str | None) -> Session | None:
        session = self.peek(repository, upload)
        if session is None or token != f"{self._registry.instance}.{session.token}":
            return None
        return self._idle.pop(upload)

    async def _take_over(self, repository: str, upload: UUID) -> Session:
        if self.peek(repository, upload) is not None:
            await self.forget(upload)
        row = await take_over_upload(self._registry.database, repository, upload)
        if row is None:
            raise RegistryError(BLOB_UPLOAD_UNKNOWN, {"upload": str(upload), "name": repository})
        return Session(repository, row, _hasher(row, self._registry.macs.current))


def next_reserved(key: str) -> str:
    """Return a fresh key beside an upload's own, for its next tail."""
    return f"{key.rpartition('.')[0]}.{uuid4().hex}"


def _hasher(row: UploadRow, key: MacKey | None) -> BlobHasher | None:
    state = row.state
    if state.hash_state is None:
        return BlobHasher(state.algorithm, key) if state.offset == 0 else None
    try:
        hasher = BlobHasher.restore(state.hash_state)
    except HashStateInvalid as error:
        _log.warning("saved hash not usable: the blob will be read once more", upload=str(row.id), reason=str(error))
        return None
    return hasher if hasher.offset == state.offset else None
