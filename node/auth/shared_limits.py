"""Counts failed logins in Redis, for all nodes: in a thread, because failures are few, and with little patience."""

from collections.abc import Sequence
from typing import Any

import redis
import structlog
import trio
from attrs import define, field
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from engines.tls_trust import NOT_ASKED
from node.config.settings import RedisSettings

_log = structlog.get_logger("antipode.logins")

_SECONDS = 0.5
_PREFIX = "antipode_failed_logins:"


@define(eq=False)
class SharedCounts:
    """The counts in Redis. Connects when first used."""

    _client: "redis.Redis"
    _limiter: trio.CapacityLimiter = field(factory=lambda: trio.CapacityLimiter(2))

    async def count(self, keys: Sequence[str], seconds: float) -> Sequence[int] | None:
        """Count one more under each key; None while Redis does not answer in half a second."""
        with trio.move_on_after(2 * _SECONDS):
            return await trio.to_thread.run_sync(
                self._count, keys, seconds, limiter=self._limiter, abandon_on_cancel=True
            )
        return None

    def _count(self, keys: Sequence[str], seconds: float) -> Sequence[int] | None:
        try:
            pipeline = self._client.pipeline(transaction=False)
            for key in keys:
                # Only the first of a window sets its end.
                pipeline.set(_PREFIX + key, 0, ex=round(seconds), nx=True)
                pipeline.incr(_PREFIX + key)
            return [int(number) for number in pipeline.execute()[1::2]]
        except (RedisError, OSError) as error:
            _log.info("failed logins are counted on this node alone: Redis is away", reason=type(error).__name__)
            return None


def shared_counts(settings: RedisSettings) -> SharedCounts:
    """Return the counts of a Redis."""
    options: dict[str, Any] = {}
    if settings.tls:
        options = {"ssl": True, "ssl_ca_certs": settings.ca_file, "ssl_exclude_verify_flags": list(NOT_ASKED)}
    return SharedCounts(
        redis.Redis(
            host=settings.host,
            port=settings.port,
            password=settings.password,
            db=settings.db,
            socket_timeout=_SECONDS,
            socket_connect_timeout=_SECONDS,
            retry=Retry(NoBackoff(), 1),
            **options,
        )
    )
