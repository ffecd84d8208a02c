"""What a client is told when a request fails: the one place where exceptions become answers."""

import structlog
from attrs import evolve

from engines.contract import EngineError
from node.answers import Answer, BodyStalled
from node.auth.directory import DirectoryUnavailable
from node.errors import TAG_IMMUTABLE, UNAVAILABLE, Code, RegistryError
from node.push.quota import over_quota, too_many_uploads
from node.records.postgres import TagImmutable
from node.records.quotas import OverQuota
from node.records.uploads import TooManyUploads
from replication.ports import LedgerUnavailable

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger("antipode.edge")

INTERNAL = Code("UNKNOWN", 500, "the registry failed; its log has the cause under this request id")
STALLED = Code("UNKNOWN", 408, "the request body stopped coming")
BAD_REQUEST = Code("UNSUPPORTED", 400, "malformed request")

RETRY_AFTER_UNAVAILABLE = 2
"""Seconds. The database's fail-over takes longer, but every client backs off from here by itself."""


def answer_to(error: Exception, request_id: str) -> Answer:
    """Return the answer to a failed request, and log what is not the client's doing, with its traceback.

    `RegistryError` has its own answer; a full namespace is 403; one with too many uploads open is 429; a tag that never moves is
    409; a stalled body is 408; an unreachable database, directory or store is 503; anything else is a bug: 500.
    """
    if isinstance(error, RegistryError):
        return error.answer(request_id)
    if isinstance(error, TagImmutable):
        told = evolve(TAG_IMMUTABLE, message=f"the tag {error} can be neither moved nor deleted")
        return RegistryError(told, {"tag": str(error)}).answer(request_id)
    if isinstance(error, OverQuota):
        return over_quota(error).answer(request_id)
    if isinstance(error, TooManyUploads):
        return too_many_uploads(error).answer(request_id)
    if isinstance(error, BodyStalled):
        return RegistryError(STALLED, headers=(("connection", "close"),)).answer(request_id)
    if isinstance(error, LedgerUnavailable):
        log.warning("database unavailable", error=str(error))
        return RegistryError(UNAVAILABLE, retry_after=RETRY_AFTER_UNAVAILABLE).answer(request_id)
    if isinstance(error, DirectoryUnavailable):
        reason = {"reason": "who proves this secret cannot be asked"}
        return RegistryError(UNAVAILABLE, reason, retry_after=RETRY_AFTER_UNAVAILABLE).answer(request_id)
    if isinstance(error, EngineError):
        log.warning("store failed a request", error=repr(error))
        return RegistryError(UNAVAILABLE, {"store": type(error).__name__}, retry_after=RETRY_AFTER_UNAVAILABLE).answer(
            request_id
        )
    log.error("request failed", exc_info=error)
    return RegistryError(INTERNAL).answer(request_id)
