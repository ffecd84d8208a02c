"""How many files a process may have open, and so how many clients: each is one, and each stream one more to its store."""

import resource

import structlog
from attrs import evolve

from node.config.settings import Settings

_OTHERS = 256
"""What is not for clients: stores, the database, Redis, spools, logs, and connections that are only told to come back."""
_log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger("antipode.node")


def needed(settings: Settings) -> int:
    """Return how many files a node with these settings may come to need at once."""
    return settings.maximum_connections + settings.maximum_pulls + settings.maximum_streams + _OTHERS


def allowed(settings: Settings, limit: int) -> int:
    """Return how many connections there may be where `limit` files may be open: MAXIMUM_CONNECTIONS, or fewer."""
    return max(1, min(settings.maximum_connections, settings.maximum_connections + limit - needed(settings)))


def raise_limit(wanted: int) -> int:
    """Let this process open `wanted` files, or as many as it may (RLIMIT_NOFILE); return how many of them it may then."""
    soft, hard = (
        wanted if limit == resource.RLIM_INFINITY else limit for limit in resource.getrlimit(resource.RLIMIT_NOFILE)
    )
    if soft >= wanted:
        return wanted
    limit = min(wanted, hard)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    except (OSError, ValueError):
        # A sandbox may forbid it (SystemCallFilter=~@resources).
        return soft
    return limit


def within_limit(settings: Settings) -> Settings:
    """Raise the limit as far as it goes, and return settings that keep to it: beyond it nothing could be opened, a store least."""
    limit = raise_limit(needed(settings))
    most = allowed(settings, limit)
    if most < settings.maximum_connections:
        _log.warning(
            "MAXIMUM_CONNECTIONS is more than the limit of open files allows",
            found=settings.maximum_connections,
            taken=most,
            limit=limit,
            needed=needed(settings),
        )
    return evolve(settings, maximum_connections=most)
