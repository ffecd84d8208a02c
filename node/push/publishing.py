"""The end of an upload: its bytes verified by the digest that the client named, committed, and everybody told."""

from collections.abc import Callable
from contextlib import AbstractContextManager

from engines.contract import Engine
from node.push.sessions import Session
from node.records.blobs import Committed, commit_blob
from node.registry import Registry
from replication.digests import Digest
from replication.hashing import BlobHasher
from replication.macs import MacKey
from replication.patience import Wait
from replication.ports import Forget, Wake
from replication.uploading import DigestMismatch, StoredObject

_READ = 1 << 20


async def verified(
    stored: StoredObject,
    digest: Digest,
    engine: Engine,
    waiting: Callable[[], AbstractContextManager[Wait]],
    key: MacKey | None = None,
) -> StoredObject:
    """Return the finished object with the digest that the client named. Raises DigestMismatch, EngineError.

    Where the digest was named only at the end, or a saved hash could not be restored, the object is read once before it counts;
    `key` is what MACs of its pieces are made with then.
    """
    if stored.digest is None or not stored.digest.startswith(f"{digest.algorithm}:"):
        with waiting() as wait:
            stored = await _rehash(engine, stored, BlobHasher(digest.algorithm, key), wait)
    if stored.digest != str(digest):
        raise DigestMismatch(str(stored.digest))
    return stored


async def publish(registry: Registry, session: Session, digest: Digest, stored: StoredObject) -> bool:
    """Commit a verified object as the blob `digest`. False: the upload is no longer this session's; nothing was published."""
    state = session.row.state
    tail = None if state.tail is None else state.tail.key
    others = {tail, state.key if state.parts_upload is not None else None} - {None, stored.key}
    committed = await commit_blob(
        registry.database,
        session.repository,
        session.row.id,
        session.row.epoch,
        digest=str(digest),
        size=stored.size,
        pieces=stored.proofs.pieces,
        macs=stored.proofs.macs,
        key=stored.key,
        leftovers=sorted(key for key in others if key is not None),
        replicate=registry.settings.replicate,
    )
    if committed is None:
        return False
    announce(registry, session.repository, str(digest), committed)
    return True


def announce(registry: Registry, repository: str, digest: str, committed: Committed) -> None:
    """Tell every node what has just been committed."""
    registry.tell(Forget(repository, digest), *([Wake(committed.debt)] if committed.debt else []))


async def _rehash(engine: Engine, stored: StoredObject, hasher: BlobHasher, wait: Wait) -> StoredObject:
    async with engine.open(stored.key) as reader:
        while data := await reader.receive(_READ):
            wait.alive()
            hasher.update(data)
    return StoredObject(stored.key, stored.size, hasher.digest(), hasher.proofs())
