"""The rows of uploads in memory, as `node/records/uploads.py` and `commit_blob` promise them, for simulated push planes."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from random import Random
from unittest.mock import patch
from uuid import UUID

from attrs import evolve

from node.push import places, publishing, sessions, uploads
from node.records.blobs import Committed
from node.records.upload_rows import UploadRow
from node.records.uploads import Announced, Choice, Standing
from property_tests.memory_ledger import FINISH_GRACE, Line
from property_tests.memory_truth import OpenUpload, Truth
from replication.model import Blob, LocationState, Placement
from replication.offload import inline
from replication.part_numbers import record_every
from replication.upload_state import UploadState
from replication.uploading import open_writer

MAX_AGE = 150.0
"""Seconds until an upload that nobody finished is forgotten."""
_GRACE = 60.0


def _allowed(truth: Truth, choices: Sequence[Choice], namespace: str) -> Choice | None:
    never = truth.policy(namespace).never
    fits = (c for c in choices if truth.states.get(c.location) is LocationState.ACTIVE and c.location not in never)
    return next(fits, None)


async def begin_upload(
    database: Line,
    repository: str,
    library: str,
    upload: UUID,
    choices: Sequence[Choice],
    max_age: float,
    *,
    announced: Announced,
    default_quota: int,
    most: int,
) -> Choice | None:
    await database.call()
    truth, namespace = database.truth, repository.partition("/")[0]
    chosen = _allowed(truth, choices, namespace)
    if chosen is not None:
        truth.uploads[upload] = OpenUpload(namespace, chosen.location, chosen.state, truth.now() + max_age)
    database.done()
    return chosen


async def move_upload(database: Line, upload: UUID, epoch: int, choices: Sequence[Choice]) -> Choice | None:
    await database.call()
    truth, row = database.truth, _owned(database.truth, upload, epoch)
    chosen = None if row is None else _allowed(truth, choices, row.namespace)
    if row is not None and chosen is not None:
        _bury_all(truth, row)
        row.location, row.state, row.epoch = chosen.location, chosen.state, row.epoch + 1
    database.done()
    return chosen


async def take_over_upload(database: Line, repository: str, upload: UUID) -> UploadRow | None:
    await database.call()
    truth, row = database.truth, _find(database.truth, repository, upload)
    if row is None:
        return None
    state, stem = row.state, row.state.key.rpartition(".")[0]
    truth.bury(row.location, state.reserved_key, row.expires - truth.now())
    if state.parts_upload is None:
        truth.bury(row.location, state.key, row.expires - truth.now())
        state = evolve(state, key=f"{stem}.{truth.serial():08x}", next_part=1)
    else:
        state = evolve(state, next_part=state.next_part + record_every(row.epoch))
    row.state = evolve(state, reserved_key=f"{stem}.{truth.serial():08x}")
    row.epoch += 1
    database.done()
    return UploadRow(upload, row.location, row.epoch, row.state)


async def look_at_upload(database: Line, repository: str, upload: UUID) -> Standing | None:
    await database.call()
    row = _find(database.truth, repository, upload)
    database.done()
    return None if row is None else Standing(row.state.offset, row.epoch)


async def record_upload(database: Line, upload: UUID, epoch: int, state: UploadState) -> bool:
    await database.call()
    truth, row = database.truth, _owned(database.truth, upload, epoch)
    if row is not None:
        if row.state.tail is not None and row.state.tail != state.tail:
            truth.bury(row.location, row.state.tail.key, _GRACE)
        row.state = state
    database.done()
    return row is not None


async def cancel_upload(database: Line, repository: str, upload: UUID, epoch: int | None = None) -> bool:
    await database.call()
    truth = database.truth
    row = truth.uploads.get(upload)
    found = row is not None and row.namespace == repository.partition("/")[0] and epoch in (None, row.epoch)
    if found:
        _bury_all(truth, truth.uploads.pop(upload))
    database.done()
    return found


async def bury_strays(database: Line, upload: UUID, location: str, keys: Sequence[str]) -> None:
    await database.call()
    truth = database.truth
    row = truth.uploads.get(upload)
    taken = set() if row is None else set(row.written())
    placed = {placement.key for placement in truth.placements.values() if placement.location == location}
    for key in keys:
        if key not in taken | placed:
            _bury(truth, location, key)
    database.done()


async def commit_blob(
    database: Line,
    repository: str,
    upload: UUID,
    epoch: int,
    *,
    digest: str,
    size: int,
    pieces: bytes | None,
    key: str,
    leftovers: Sequence[str],
    replicate: bool,
    macs: bytes | None = None,
) -> Committed | None:
    await database.call()
    truth, row = database.truth, _owned(database.truth, upload, epoch)
    namespace = repository.partition("/")[0]
    if row is None:
        return None
    del truth.uploads[upload]
    blob = next((blob for blob in truth.blobs.values() if blob.digest == digest), None)
    if blob is None:
        blob = Blob(truth.serial(), digest, size, pieces, macs)
        truth.links[blob.id] = frozenset()
    truth.blobs[blob.id] = blob = evolve(blob, pieces=blob.pieces or pieces, macs=macs or blob.macs)
    truth.links[blob.id] |= {namespace}
    before = truth.placements.get((blob.id, row.location))
    if before is not None and not before.suspect:
        _bury(truth, row.location, key)
    else:
        if before is not None:
            truth.bury(row.location, before.key, FINISH_GRACE)
        truth.place(blob, Placement(row.location, key))
    task = truth.tasks.get((blob.id, row.location))
    if task is not None and task.lease_until <= truth.now():
        del truth.tasks[blob.id, row.location]
        if task.key is not None:
            truth.bury(row.location, task.key, _GRACE)
    for left in leftovers:
        _bury(truth, row.location, left)
    debt = sorted(truth.required(blob.id) - truth.good(blob.id))
    for at in debt:
        truth.owe(blob.id, at)
    database.done()
    return Committed(tuple(debt))


def expire_uploads(truth: Truth) -> None:
    """Forget the uploads that nobody finished in time."""
    for upload, row in list(truth.uploads.items()):
        if row.expires <= truth.now():
            _bury_all(truth, truth.uploads.pop(upload))


def _find(truth: Truth, repository: str, upload: UUID) -> OpenUpload | None:
    row = truth.uploads.get(upload)
    if row is None or row.namespace != repository.partition("/")[0] or row.expires <= truth.now():
        return None
    return row


def _owned(truth: Truth, upload: UUID, epoch: int) -> OpenUpload | None:
    row = truth.uploads.get(upload)
    return row if row is not None and row.epoch == epoch else None


def _bury_all(truth: Truth, row: OpenUpload) -> None:
    for key in row.written():
        _bury(truth, row.location, key)


def _bury(truth: Truth, location: str, key: str) -> None:
    """Make an object a dead one, no later than in a minute."""
    truth.bury(location, key, _GRACE)
    for dead in truth.dead.values():
        if (dead.location, dead.key) == (location, key):
            dead.due = min(dead.due, truth.now() + _GRACE)


@contextmanager
def instead_of_sql(random: Random) -> Iterator[None]:
    """Let the push plane find these rows where it expects statements, hash without threads, and draw its names from `random`."""

    def uuid4() -> UUID:
        return UUID(int=random.getrandbits(128), version=4)

    async def look_up_blob(registry: object, repository: str, digest: str, *, pieces: bool) -> Blob | None:
        line: Line = registry.database  # type: ignore[attr-defined]  # the simulated node's
        await line.call()
        namespace = repository.partition("/")[0]
        found = (b for b in line.truth.blobs.values() if b.digest == digest and namespace in line.truth.links[b.id])
        return next(found, None)

    with (
        patch.multiple(places, begin_upload=begin_upload, move_upload=move_upload, uuid4=uuid4),
        patch.multiple(sessions, take_over_upload=take_over_upload, uuid4=uuid4),
        patch.multiple(publishing, commit_blob=commit_blob),
        patch.multiple(
            uploads,
            look_up_blob=look_up_blob,
            look_at_upload=look_at_upload,
            record_upload=record_upload,
            cancel_upload=cancel_upload,
            bury_strays=bury_strays,
            open_writer=partial(open_writer, offload=inline),
        ),
    ):
        yield
