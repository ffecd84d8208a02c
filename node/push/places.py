"""Where an upload's bytes go: the best store that may have them and, when that dies, the next one."""

from collections.abc import Collection, Sequence
from uuid import UUID, uuid4

from attrs import evolve

from node.errors import DIGEST_INVALID, UNAVAILABLE, RegistryError
from node.push.sessions import Session, next_reserved
from node.records.upload_rows import UploadRow
from node.records.uploads import Announced, Choice, begin_upload, move_upload
from node.registry import Registry
from replication.digests import Digest, blob_key, upload_key
from replication.hashing import BlobHasher
from replication.model import Verdict
from replication.sources import health_of
from replication.targets import choose_targets
from replication.upload_state import UploadState


async def begin(registry: Registry, repository: str, algorithm: str, digest: Digest | None, size: int = 0) -> Session:
    """Commit a new upload in the best store that may take it. Raises RegistryError, OverQuota, TooManyUploads.

    `digest` and `size` (bytes, 0: not known) are what the client says that it sends.
    """
    if algorithm not in ("sha256", "sha512"):
        raise RegistryError(
            DIGEST_INVALID, {"digest-algorithm": algorithm[:40], "reason": "sha256 or sha512 is needed"}
        )
    targets = _targets(registry)
    if not targets:
        raise RegistryError(UNAVAILABLE, {"reason": "no store of this node takes uploads now"}, retry_after=10)
    upload = uuid4()
    choices = _choices(registry, targets, upload, algorithm, digest)
    chosen = await begin_upload(
        registry.database,
        repository,
        registry.settings.library_namespace,
        upload,
        choices,
        registry.settings.upload_max_age,
        announced=Announced(size, str(digest or "")),
        default_quota=registry.current().default_quota,
        most=registry.settings.maximum_uploads_per_namespace,
    )
    if chosen is None:
        detail = {
            "reason": f"this namespace may be in none of the stores that this node can write to now: {', '.join(targets)}"
        }
        raise RegistryError(UNAVAILABLE, detail, retry_after=10)
    row = UploadRow(upload, chosen.location, 1, chosen.state)
    return Session(repository, row, BlobHasher(algorithm, registry.macs.current), kept=registry.upload_spool.keep())


async def move(registry: Registry, session: Session, tried: Collection[str]) -> bool:
    """Begin a session's upload anew, from its first byte on, in the next store that may have it and is not down.

    `tried` are stores that have failed it. False: there is no such store, or the upload is not this session's any more.
    """
    board, row = registry.watcher.board, session.row
    targets = [
        name for name in _targets(registry) if name not in tried and health_of(board, name).verdict is not Verdict.DOWN
    ]
    if not targets:
        return False
    choices = _choices(registry, targets, row.id, row.state.algorithm, None)
    chosen = await move_upload(registry.database, row.id, row.epoch, choices)
    if chosen is None:
        return False
    session.row = evolve(row, location=chosen.location, epoch=row.epoch + 1)
    # All is hashed again, as it is written: what it comes from is a disk, which is trusted only after a look.
    session.hasher = BlobHasher(row.state.algorithm, registry.macs.current)
    session.advance(chosen.state)
    return True


def _targets(registry: Registry) -> tuple[str, ...]:
    usable = [name for name in registry.settings.preference if name in registry.engines]
    return choose_targets(usable, registry.states(), registry.watcher.board)


def _choices(
    registry: Registry, targets: Sequence[str], upload: UUID, algorithm: str, digest: Digest | None
) -> list[Choice]:
    nonce, choices = uuid4().hex, []
    for target in targets:
        prefix = registry.engines[target].prefix
        key = blob_key(prefix, digest, nonce) if digest else upload_key(prefix, str(upload), nonce)
        choices.append(Choice(target, UploadState(key, next_reserved(key), algorithm)))
    return choices
