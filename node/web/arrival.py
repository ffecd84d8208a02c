"""What happens to a connection before its first request: the PROXY header of a listed proxy, then the TLS handshake.

Both are bounded: in time, and in number, so that clients which connect and then say nothing never take the connections of those who
do. Beyond that number a new one takes the place of the oldest of whoever has most: a handshake that is under way takes a round trip
or two, and one client that begins thousands ends none but its own.
"""

import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import structlog
import trio
from attrs import define, field, frozen

from node.shares import NOBODY
from node.web.access import address_text
from node.web.connection import TlsStream, stream_of
from node.web.crowd import Crowd
from node.web.eldest import Eldest
from node.web.proxies import NO_PROXIES, Proxies
from node.web.proxy_protocol import BadProxyHeader, read_header
from node.web.waits import LAST_REQUEST, Socket

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger("antipode.edge")

HANDSHAKE_SECONDS = 10.0
"""For the PROXY header and the handshake together."""
SHARE = 4
"""Of all connections at most one in so many may still be arriving."""
LEAST = 16

TlsSource = Callable[[], ssl.SSLContext]
"""What the next connection shakes hands with."""


class NotAdmitted(Exception):
    """The connection ends before its first request: too late, crowded out, or not what it must be."""


@frozen
class Arrived:
    """A connection that may send requests, and the address it comes from: the proxy's client, where there is one."""

    secure: TlsStream | None
    """What its bytes go through, where that is not the socket itself."""
    peer: str
    """As the socket or the PROXY header has it; an IPv4 peer of a dual-stack socket in its usual form."""


@define(eq=False)
class Arrivals:
    """Admits connections. `most`: how many the node has at all; `crowd` counts them as soon as it is known whose they are."""

    most: int
    crowd: Crowd
    tls: TlsSource | None = None
    proxies: Proxies = NO_PROXIES
    proxy_protocol: bool = False
    seconds: float = HANDSHAKE_SECONDS
    _arriving: Eldest[trio.CancelScope] = field(factory=Eldest, init=False)

    def stop(self) -> None:
        """Close what does not arrive soon: a handshake that is under way has a request behind it."""
        self.seconds = min(self.seconds, LAST_REQUEST)
        for scope in self._arriving:
            scope.deadline = min(scope.deadline, trio.current_time() + self.seconds)

    async def admit(self, accepted: Socket, peer: str) -> Arrived:
        """Return the connection when it may begin. It is in the crowd then. Raises NotAdmitted, and what the socket raises."""
        peer, ends = address_text(peer), trio.current_time() + self.seconds
        if self.proxy_protocol and self.proxies.trusts(peer):
            peer = await self._announced(accepted, peer, ends)
        self.crowd.enter(accepted, peer)
        if self.tls is None:
            return Arrived(None, peer)
        secure = trio.SSLStream(stream_of(accepted), self.tls(), server_side=True, https_compatible=True)
        with self._bounded(self.crowd.sources.of(peer), ends):
            await secure.do_handshake()
            return Arrived(secure, peer)
        raise NotAdmitted

    async def _announced(self, accepted: Socket, proxy: str, ends: float) -> str:
        """Return whose connection this is, as a listed proxy says."""
        with self._bounded(NOBODY, ends):
            try:
                return await read_header(trio.socket.from_stdlib_socket(accepted)) or proxy
            except BadProxyHeader as error:
                log.warning("a trusted proxy's connection was refused", proxy=proxy, reason=str(error))
                raise NotAdmitted from error
        raise NotAdmitted

    @contextmanager
    def _bounded(self, who: str, ends: float) -> Iterator[None]:
        """Let the block run until then, and only until too many newer ones have come while nobody has more of them than `who`."""
        while len(self._arriving) >= max(LEAST, self.most // SHARE):
            self._arriving.pop().cancel(reason="newer connections arrive")
        with trio.move_on_at(min(ends, trio.current_time() + self.seconds)) as scope:
            self._arriving.add(scope, who)
            try:
                yield
            finally:
                self._arriving.discard(scope)
