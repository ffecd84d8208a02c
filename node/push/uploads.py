"""Blob uploads: begun, written in any number of requests on any nodes, asked for, cancelled, finished.

Source: distribution-spec, end-4 to 6, 11, 13 and 14.
"""

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import AbstractContextManager, asynccontextmanager
from functools import partial
from typing import TypeVar
from uuid import UUID

import structlog
import trio
from attrs import evolve

from engines.contract import Engine, EngineError, ObjectMissing, PartsMissing
from node.answers import Answer, BodyStalled, ClientGone, Headers, Request
from node.errors import (
    BLOB_UPLOAD_INVALID,
    BLOB_UPLOAD_UNKNOWN,
    DIGEST_INVALID,
    RANGE_INVALID,
    UNAVAILABLE,
    RegistryError,
)
from node.names import check_digest, is_name
from node.pull.blobs import look_up_blob
from node.push.begin_again import begin_again
from node.push.intake import Intake, check_size
from node.push.places import begin, move
from node.push.publishing import announce, publish, verified
from node.push.sessions import Session, Sessions, next_reserved
from node.records.blobs import mount_blob
from node.records.postgres import DatabaseUnavailable
from node.records.uploads import bury_strays, cancel_upload, look_at_upload, record_upload
from node.registry import Registry
from replication.digests import Digest
from replication.part_numbers import record_every
from replication.patience import Wait
from replication.strays import Mixed
from replication.upload_spool import NotKept
from replication.upload_state import UploadState
from replication.uploading import DigestMismatch, StoredObject, UploadWriter, open_writer

Result = TypeVar("Result")

_CONTENT_RANGE = re.compile(r"(?:bytes[ =])?(\d{1,19})-(\d{1,19})(?:/(?:\d{1,19}|\*))?", re.ASCII)
_MOST_SIZE = 1 << 60
_COMMIT_SECONDS = 15.0
_SALVAGE_SECONDS = 5.0
_LEGACY: Headers = (("docker-distribution-api-version", "registry/2.0"),)
_log = structlog.get_logger("antipode.uploads")


class _Lost(RegistryError):
    """Another request took the upload over, or cancelled it. `untouched`: nothing of this request's body went into it."""

    untouched = False


class Uploads:
    """The push plane of blobs. One per process."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._sessions = Sessions(registry)

    async def post(self, request: Request, repository: str) -> Answer:
        """Mount a blob, take one whole in a single request, or begin an upload."""
        mount, source = request.one("mount"), request.one("from")
        if (
            mount is not None
            and source is not None
            and (answer := await self._mount(repository, str(check_digest(mount)), source))
        ):
            return answer
        digest = request.one("digest")
        if digest is not None:
            return await self._post_whole(request, repository, check_digest(digest))
        session = await begin(self._registry, repository, request.one("digest-algorithm") or "sha256", None)
        await self._sessions.open(session)
        return self._accepted(session)

    async def patch(self, request: Request, repository: str, upload: str) -> Answer:
        """Take the next bytes of an upload in, in any amount. 202 means that any node can go on from here."""
        start, length = _content_range(request)
        async with self._sessions.writing(repository, _upload_id(upload), request.one("_state"), start) as session:
            intake = self._intake(request, session, length)

            async def work(writer: UploadWriter) -> Exception | None:
                gone: Exception | None = None
                try:
                    await intake.pour(writer)
                except (ClientGone, BodyStalled, RegistryError) as error:
                    # What has come is kept, so that the client can go on after it.
                    gone = error
                with trio.move_on_after(_SALVAGE_SECONDS if gone else float("inf"), shield=gone is not None):
                    if session.kept is not None:
                        await session.kept.flush()
                    state = await writer.rest()
                    await self._record(session, state)
                    await self._sessions.open(session)
                return gone

            gone = await self._surviving(request, session, work)
            if gone is not None:
                raise gone
            return self._accepted(session)

    async def put(self, request: Request, repository: str, upload: str) -> Answer:
        """Take the last bytes in, if any, verify the whole and publish it."""
        text = request.one("digest")
        if text is None:
            raise RegistryError(DIGEST_INVALID, {"digest": None, "reason": "the query parameter digest is needed"})
        digest = check_digest(text)
        start, length = _content_range(request)
        upload_id = _upload_id(upload)
        token = request.one("_state")
        try:
            try:
                async with self._sessions.writing(repository, upload_id, token, start) as session:
                    return await self._finish(request, session, digest, length)
            except _Lost as lost:
                if not lost.untouched:
                    raise
            # What this node remembered was out of date, and the client had no more to send: begin from the row.
            async with self._sessions.writing(repository, upload_id, None, start) as session:
                return await self._finish(request, session, digest, length)
        except RegistryError as error:
            # A client that repeats a PUT whose answer was lost finds its upload gone and its blob there.
            if error.code is BLOB_UPLOAD_UNKNOWN and await look_up_blob(self._registry, repository, text, pieces=False):
                return _created(repository, digest)
            raise

    async def get(self, _request: Request, repository: str, upload: str) -> Answer:
        """Say how far an upload is."""
        upload_id = _upload_id(upload)
        found = await look_at_upload(self._registry.database, repository, upload_id)
        if found is None:
            raise RegistryError(BLOB_UPLOAD_UNKNOWN, {"upload": upload, "name": repository})
        session = self._sessions.peek(repository, upload_id)
        # Whoever took it over since then may have died, and recorded nothing.
        if session is not None and (session.row.state.offset, session.row.epoch) == (found.offset, found.epoch):
            return self._progress(204, self._sessions.location(session), upload_id, found.offset)
        return self._progress(204, _path(repository, upload_id), upload_id, found.offset)

    async def delete(self, repository: str, upload: str) -> Answer:
        """Cancel an upload: its session, its parts and its bytes."""
        upload_id = _upload_id(upload)
        if not await cancel_upload(self._registry.database, repository, upload_id):
            raise RegistryError(BLOB_UPLOAD_UNKNOWN, {"upload": upload, "name": repository})
        await self._sessions.forget(upload_id)
        return Answer(204, _LEGACY, outcome="database")

    async def _mount(self, repository: str, digest: str, source: str) -> Answer | None:
        if not is_name(source):
            return None
        registry = self._registry
        committed = await mount_blob(
            registry.database,
            repository,
            registry.settings.library_namespace,
            source,
            digest,
            replicate=registry.settings.replicate,
        )
        if committed is None:
            return None
        announce(registry, repository, digest, committed)
        return _created(repository, Digest.parse(digest))

    async def _post_whole(self, request: Request, repository: str, digest: Digest) -> Answer:
        size = _announced(request)
        check_size(size, self._registry.settings.maximum_layer_size)
        session = await begin(self._registry, repository, digest.algorithm, digest, size)
        try:
            return await self._finish(request, session, digest, None)
        except (ClientGone, BodyStalled, RegistryError, EngineError):
            await self._drop(session)
            raise
        finally:
            await session.close()

    async def _finish(self, request: Request, session: Session, digest: Digest, length: int | None) -> Answer:
        intake = self._intake(request, session, length)

        async def work(writer: UploadWriter) -> StoredObject:
            await intake.pour(writer)
            stored = await writer.finish(str(digest))
            key = self._registry.macs.current
            return await verified(stored, digest, self._engine(session), self._waiting(session), key)

        try:
            stored = await self._surviving(request, session, work)
        except DigestMismatch as error:
            if not await self._drop(session):
                raise await self._lost(session, untouched=not intake.taken) from error
            raise RegistryError(DIGEST_INVALID, {"digest": str(digest), "found": error.found}) from error
        with trio.move_on_after(_COMMIT_SECONDS, shield=True):
            if not await publish(self._registry, session, digest, stored):
                await self._bury(session, stored.key)
                raise await self._lost(session, untouched=not intake.taken)
            return _created(session.repository, digest)
        # Whoever repeats it finds the blob, or the upload.
        raise DatabaseUnavailable(f"a blob's commit is not done after {_COMMIT_SECONDS:g} s")

    def _intake(self, request: Request, session: Session, length: int | None) -> Intake:
        offset, kept = session.row.state.offset, session.kept
        if kept is not None and (not kept.whole or kept.size != offset):
            kept = None
        most = self._registry.settings.maximum_layer_size
        # Before the first byte: a client would send as much as may be, be refused, and begin again.
        check_size(offset + _announced(request), most)
        return Intake(request.body, offset, length, most, kept)

    async def _surviving(
        self, request: Request, session: Session, work: Callable[[UploadWriter], Awaitable[Result]]
    ) -> Result:
        """Do a request's work with a writer; where the store dies, all of it once more in the next one, if that can be.

        `work` begins with what is kept. Raises RegistryError that makes the client begin again where nothing is kept.
        """
        begun = session.row.state.offset
        tried: set[str] = set()
        with session.in_use():
            while True:
                try:
                    async with self._writer(session, last=request.method != "PATCH") as writer:
                        return await work(writer)
                except EngineError as error:
                    tried.add(session.row.location)
                    self._report(session, error)
                    kept = session.kept
                    if kept is None or not kept.whole or not await move(self._registry, session, tried):
                        whole = request.method == "PUT" and begun == 0
                        raise await self._begin_again(request, session, tried if whole else None) from error
                    _log.warning("upload goes on in another store", upload=str(session.row.id), size=kept.size)
                except NotKept as error:
                    raise await self._begin_again(request, session, None) from error

    def _report(self, session: Session, error: EngineError) -> None:
        row = session.row
        _log.warning("store failed an upload", upload=str(row.id), location=row.location, error=repr(error))
        if not isinstance(error, PartsMissing | ObjectMissing):
            self._registry.watcher.report(row.location, ok=False, reason=str(error))

    async def _begin_again(self, request: Request, session: Session, tried: Collection[str] | None) -> RegistryError:
        """Give an upload up whose store has died; return what makes its client begin that blob again.

        With `tried`, nothing was acknowledged yet and the client has the whole blob at hand: it may send that again to the same
        place, which is in another store then.
        """
        row = session.row
        agent = request.headers.get("user-agent", "")
        if tried is not None and await move(self._registry, session, tried):
            return begin_again(agent, row.id, row.location, stays=True)
        if not await self._drop(session):
            return await self._lost(session)
        return begin_again(agent, row.id, row.location)

    def _waiting(self, session: Session) -> Callable[[], AbstractContextManager[Wait]]:
        return partial(self._registry.patience.waiting, session.row.location)

    @asynccontextmanager
    async def _writer(self, session: Session, *, last: bool) -> AsyncIterator[UploadWriter]:
        settings = self._registry.settings
        async with open_writer(
            self._engine(session),
            session.row.state,
            session.hasher,
            self._registry.pool,
            part_size=settings.part_size,
            record_every=record_every(session.row.epoch),
            last=last,
            record=partial(self._record, session),
            note=partial(self._note, session),
            waiting=self._waiting(session),
        ) as writer:
            yield writer

    async def _record(self, session: Session, state: UploadState) -> None:
        used = state.tail is not None and state.tail.key == state.reserved_key
        state = evolve(state, reserved_key=next_reserved(state.key)) if used else state
        if not await record_upload(self._registry.database, session.row.id, session.row.epoch, state):
            await self._bury(session)
            raise await self._lost(session)
        session.advance(state)

    async def _note(self, session: Session, mixed: Mixed) -> None:
        await self._record(session, evolve(session.row.state, mixed=mixed))

    async def _drop(self, session: Session) -> bool:
        """Cancel a session's upload, if it is still this session's; tell whether it was."""
        dropped = False
        with trio.move_on_after(_SALVAGE_SECONDS, shield=True):
            row = session.row
            # Only while it is ours: somebody else may have taken it over, and be well.
            dropped = await cancel_upload(self._registry.database, session.repository, row.id, row.epoch)
            if not dropped:
                await self._bury(session)
        await self._sessions.forget(session.row.id)
        return dropped

    async def _bury(self, session: Session, *more: str) -> None:
        """Account for what was written without owning the upload any more."""
        row = session.row
        keys = {row.state.key, row.state.reserved_key, *more}
        await bury_strays(self._registry.database, row.id, row.location, sorted(keys))

    async def _lost(self, session: Session, *, untouched: bool = False) -> _Lost:
        """Return what to tell a client whose upload went on without it: where it is now, or that it is gone."""
        upload = session.row.id
        found = await look_at_upload(self._registry.database, session.repository, upload)
        if found is None:
            return _Lost(BLOB_UPLOAD_UNKNOWN, {"upload": str(upload), "reason": "another request ended this upload"})
        lost = _Lost(
            RANGE_INVALID,
            {"upload": str(upload), "expected": found.offset, "reason": "another request took this upload over"},
            headers=(("location", _path(session.repository, upload)), ("range", f"0-{max(0, found.offset - 1)}")),
        )
        lost.untouched = untouched
        return lost

    def _engine(self, session: Session) -> Engine:
        engine = self._registry.engines.get(session.row.location)
        if engine is None:
            detail = {
                "upload": str(session.row.id),
                "reason": f"this node does not reach the store {session.row.location!r}",
            }
            raise RegistryError(UNAVAILABLE, detail, retry_after=2)
        return engine

    def _accepted(self, session: Session) -> Answer:
        return self._progress(202, self._sessions.location(session), session.row.id, session.row.state.offset)

    def _progress(self, status: int, location: str, upload: UUID, offset: int) -> Answer:
        return Answer(
            status,
            (
                ("location", location),
                ("range", f"0-{max(0, offset - 1)}"),
                ("docker-upload-uuid", str(upload)),
                *_LEGACY,
            ),
            outcome="database",
        )


def _created(repository: str, digest: Digest) -> Answer:
    location = f"/v2/{repository}/blobs/{digest}"
    return Answer(201, (("location", location), ("docker-content-digest", str(digest)), *_LEGACY), outcome="database")


def _path(repository: str, upload: UUID) -> str:
    return f"/v2/{repository}/blobs/uploads/{upload}"


def _upload_id(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise RegistryError(BLOB_UPLOAD_UNKNOWN, {"upload": text[:80], "reason": "not an upload's id"}) from None


def _announced(request: Request) -> int:
    """Return how many bytes a request says that its body has; 0 where it does not say."""
    text = request.headers.get("content-length", "")
    # The edge lets no longer numbers through.
    return min(int(text), _MOST_SIZE) if text.isascii() and text.isdigit() and len(text) <= 20 else 0


def _content_range(request: Request) -> tuple[int | None, int | None]:
    """Return where the body goes on and how long it is, by its Content-Range (spec: `<start>-<end>`, inclusive), or None twice."""
    header = request.headers.get("content-range")
    if header is None:
        return None, None
    match = _CONTENT_RANGE.fullmatch(header.strip())
    if match is None or int(match[2]) < int(match[1]):
        raise RegistryError(
            BLOB_UPLOAD_INVALID, {"content-range": header[:80], "reason": "expected <first byte>-<last byte>"}
        )
    return int(match[1]), int(match[2]) - int(match[1]) + 1
