"""Connects only to addresses that were checked, for URLs that somebody else has chosen.

The name is looked up once, every address is checked, and the connection goes to the very address that was: a name that answers
differently a moment later changes nothing.
"""

from collections.abc import Iterable, Sequence
from functools import partial
from socket import SOCK_STREAM, getaddrinfo
from typing import Any

import httpcore
import structlog
import trio

from node.hooks.addresses import Network, refuse_address

_log = structlog.get_logger("antipode.webhooks")

_MOST_ADDRESSES = 8

LOOKUPS = trio.CapacityLimiter(32)
"""Threads that look up names which tenants chose. Nobody can stop one that waits for a name server, so they are none of those in
which hashing runs: who owns a name server that never answers keeps webhooks waiting, and no push."""


class Refused(Exception):
    """Nothing may be sent there; the text says why."""


class Checked(httpcore.AsyncNetworkBackend):
    """Connects only where that is allowed; `lookups` bounds the threads that look up names."""

    def __init__(self, allowed: Sequence[Network], lookups: trio.CapacityLimiter = LOOKUPS) -> None:
        self._allowed = allowed
        self._lookups = lookups
        self._inner = httpcore.TrioBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect to the first address of a name that answers; refuse a name that has any address which is not allowed."""
        ask = partial(getaddrinfo, host, port, type=SOCK_STREAM)
        found = await trio.to_thread.run_sync(ask, limiter=self._lookups, abandon_on_cancel=True)
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))[:_MOST_ADDRESSES]
        for address in addresses:
            reason = refuse_address(address, self._allowed)
            if reason is not None:
                # Whoever chose the name shall not learn which addresses the operator's names have.
                _log.info("a name leads to an address that nothing may be sent to", host=host, reason=reason)
                raise Refused(
                    f"what {host} leads to is not a public address, and WEBHOOK_ALLOWED_NETWORKS does not allow it"
                )
        for address in addresses[:-1]:
            try:
                return await self._inner.connect_tcp(address, port, timeout, local_address, socket_options)
            except httpcore.ConnectError:
                continue
        return await self._inner.connect_tcp(addresses[-1], port, timeout, local_address, socket_options)

    async def sleep(self, seconds: float) -> None:
        """Sleep."""
        await self._inner.sleep(seconds)
