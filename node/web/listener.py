"""Sockets, the accept loop, and the drain: stop accepting, finish what has begun or is on its way, close what idles or stalls."""

import errno
import logging
import socket
from collections.abc import Sequence
from typing import cast

import structlog
import trio
from attrs import Factory, define, field, frozen
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ASGIFramework, LifespanState

from node.config.settings import Settings
from node.shares import Places, Share, Sources
from node.web.app import BEYOND_LIMIT
from node.web.arrival import Arrivals, Arrived, NotAdmitted, TlsSource
from node.web.asgi import App
from node.web.connection import Connection, Pushback, TlsStream, stream_of
from node.web.crowd import RESERVE, Crowd
from node.web.groups import unwrap
from node.web.lane import Lane
from node.web.proxies import Proxies
from node.web.waits import Waits, close

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger("antipode.edge")

KEEP_ALIVE = 75.0
"""Seconds an idle connection lives. Load balancers keep theirs 60 s as a rule and must not reuse one that we just closed."""

BACKLOG = 1024
CUT_GRACE = 1.0
"""Seconds between asking the last connections to end and closing their sockets under them."""

OVERLOAD = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
OVERLOAD_PAUSE = 0.1

KEEPALIVE_IDLE = 60
KEEPALIVE_INTERVAL = 15
"""TCP keep-alive, seconds: finds a client that vanished without a word while its request is being worked on."""

UNSENT = 16 * 1024
"""Bytes that the kernel takes beyond what is on its way to a client, as with Trio's streams; else up to 4 MiB for each slow one."""


class CannotListen(Exception):
    """The address is malformed, taken, or not this host's. The message says which."""


@frozen
class Address:
    """Where the node listens; prints as `host:port` or `[::1]:port`."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_bind(text: str) -> Address:
    """Return the address of `host:port` or `[::1]:port`. Raises CannotListen with what was wrong."""
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise CannotListen(f"cannot listen on {text!r}: an IPv6 address stands in brackets, [::1]:8080")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise CannotListen(f"cannot listen on {text!r}: expected host:port or [::1]:port")
    return Address(host, int(port))


def tune(listening: socket.socket, *, send_stall: float) -> None:
    """Set what accepted sockets inherit. See `open_socket`; a socket that somebody else opened needs it too."""
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        (socket.TCP_NODELAY, 1),
        (socket.TCP_KEEPIDLE, KEEPALIVE_IDLE),
        (socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL),
        (socket.TCP_NOTSENT_LOWAT, UNSENT),
        (socket.TCP_USER_TIMEOUT, round(send_stall * 1000)),
    ):
        listening.setsockopt(socket.IPPROTO_TCP, option, value)


async def open_socket(bind: str, *, send_stall: float) -> socket.socket:
    """Return a listening socket. `send_stall`: seconds after which the kernel gives up on a peer that takes no bytes.

    That (TCP_USER_TIMEOUT, inherited by accepted sockets) is what ends a stalled reader: Hypercorn shields its sends.
    Port 0 is any free port; `[::]` takes IPv4 too where the host is set up so. Raises CannotListen.
    """
    address = parse_bind(bind)
    try:
        found = await trio.socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        family, kind, protocol, _, where = found[0]
        listening = socket.socket(family, kind, protocol)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tune(listening, send_stall=send_stall)
            listening.setblocking(False)
            listening.bind(where)
            listening.listen(BACKLOG)
        except BaseException:
            listening.close()
            raise
    except OSError as error:
        raise CannotListen(f"cannot listen on {bind!r}: {error.strerror or error}") from error
    return listening


async def serve(
    app: App,
    settings: Settings,
    *,
    bind: str,
    shutdown: trio.Event,
    keep_alive: float = KEEP_ALIVE,
    tls: TlsSource | None = None,
    lane: Lane | None = None,
    places: Places | None = None,
    task_status: trio.TaskStatus[Address] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve `app` on `bind` until `shutdown`, then drain and return; `task_status` reports the bound address.

    `places`: what its connections take, where somebody else counts them, too.
    Returns at most `settings.drain_deadline` and a second after `shutdown`. Raises CannotListen.
    """
    listening = await open_socket(bind, send_stall=settings.stall_deadline)
    await serve_sockets(
        app,
        settings,
        sockets=[listening],
        shutdown=shutdown,
        keep_alive=keep_alive,
        tls=tls,
        lane=lane,
        places=places,
        task_status=task_status,
    )


async def serve_sockets(
    app: App,
    settings: Settings,
    *,
    sockets: Sequence[socket.socket],
    shutdown: trio.Event,
    keep_alive: float = KEEP_ALIVE,
    tls: TlsSource | None = None,
    outlived: bool = False,
    lane: Lane | None = None,
    places: Places | None = None,
    task_status: trio.TaskStatus[Address] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve on sockets that already listen, and close them at the end; otherwise as `serve`. Reports the first one's address.

    `outlived`: somebody else keeps them open, so what waits in their queues at the end is left to the process that comes next.
    """
    host, port = sockets[0].getsockname()[:2]
    most = settings.maximum_connections
    proxies = Proxies(settings.edge.trusted_proxies)
    crowd = Crowd(places or Places("connections", Share(most)), Sources(proxies))
    arrivals = Arrivals(most, crowd, tls, proxies, settings.edge.proxy_protocol)
    waits = Waits(keep_alive / 10) if lane is None else lane.waits
    server = _Server(app, hypercorn_config(keep_alive), arrivals, trio.Semaphore(most + RESERVE), lane, waits)
    for listening in sockets:
        listening.setblocking(False)
    try:
        with unwrap():
            async with trio.open_nursery() as outer:
                await outer.start(server.cut_when_cancelled)
                if lane is not None:
                    outer.start_soon(lane.run)
                async with trio.open_nursery() as connections:
                    async with trio.open_nursery() as accepting:
                        for listening in sockets:
                            accepting.start_soon(server.accept, listening, connections)
                        log.info("listening", address=str(Address(host, port)))
                        task_status.started(Address(host, port))
                        await shutdown.wait()
                        accepting.cancel_scope.cancel(reason="the node stops")
                    for listening in sockets:
                        if not outlived:
                            server.take_last(listening, connections)
                        listening.close()
                    log.info("draining", connections=len(server.live), seconds=settings.drain_deadline)
                    waits.stop()
                    arrivals.stop()
                    outer.cancel_scope.deadline = trio.current_time() + settings.drain_deadline
                outer.cancel_scope.cancel(reason="every connection has ended")
    finally:
        for listening in sockets:
            listening.close()


def hypercorn_config(keep_alive: float) -> Config:
    """Return Hypercorn's configuration: no access log (ours has outcomes), no server header, HTTP/1.1 only, bounded queues."""
    config = Config()
    config.accesslog = None
    config.errorlog = logging.getLogger("hypercorn.error")
    config.include_server_header = False
    config.alpn_protocols = ["http/1.1"]
    config.keep_alive_timeout = keep_alive
    config.h11_max_incomplete_size = 16 * 1024
    config.max_app_queue_size = 10
    return config


@define
class _Server:
    """Accepts connections, knows the live ones, and can close their sockets under them."""

    app: App
    config: Config
    arrivals: Arrivals
    slots: trio.Semaphore
    lane: Lane | None
    waits: Waits
    context: WorkerContext = field(factory=lambda: WorkerContext(None))
    live: set[socket.socket] = Factory(set)
    quiet: trio.Event = Factory(trio.Event)
    """Set when, after the end was asked for, the last connection has gone."""
    saturated: bool = False

    async def accept(self, listening: socket.socket, connections: trio.Nursery) -> None:
        """Accept for ever. Beyond the limit a reserve is told to come back; beyond that new ones wait in the kernel's queue.

        Not by Trio's accept: it tries before it waits, which is in vain, and passes through the scheduler once more.
        """
        while True:
            if self.slots.value == 0 and not self.saturated:
                log.warning("all connections are in use; new ones wait", limit=len(self.live))
            self.saturated = self.slots.value == 0
            if self.saturated:
                await self.slots.acquire()
                self.slots.release()
            await trio.lowlevel.wait_readable(listening)
            # A round of the event loop takes long when much is going on: one a round would leave a crowd waiting for minutes.
            try:
                self.take_waiting(listening, connections)
            except OSError as error:
                if error.errno in OVERLOAD:
                    log.warning("cannot accept for now", error=str(error))
                    await trio.sleep(OVERLOAD_PAUSE)
                elif error.errno != errno.ECONNABORTED:
                    raise

    def take_waiting(self, listening: socket.socket, connections: trio.Nursery) -> None:
        """Accept what the kernel has already accepted for us: closing the listener would reset it."""
        while self.slots.value:
            try:
                accepted, (host, *_) = listening.accept()
            except BlockingIOError:
                return
            self.slots.acquire_nowait()
            accepted.setblocking(False)
            connections.start_soon(self.connection, accepted, host)

    def take_last(self, listening: socket.socket, connections: trio.Nursery) -> None:
        """Accept what waits when the node stops, as far as that can be done: those who are being answered go on."""
        try:
            self.take_waiting(listening, connections)
        except OSError as error:
            log.warning("cannot accept what still waits", error=str(error))

    async def connection(self, accepted: socket.socket, peer: str) -> None:
        """Serve one connection: the pull lane as long as it can, then Hypercorn. Whatever goes wrong in it ends here."""
        self.live.add(accepted)
        try:
            arrived = await self.arrivals.admit(accepted, peer)
            rest: bytes | None = b""
            with unwrap():
                if self.lane is not None and not self.arrivals.crowd.is_beyond(accepted):
                    rest = await self.lane.serve(arrived.secure or accepted, arrived.peer, self.arrivals.proxies)
                if rest is not None:
                    await self._hand_over(arrived, accepted, rest)
                elif arrived.secure is not None:
                    await arrived.secure.aclose()
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError, NotAdmitted) as error:
            log.debug("connection lost", error=repr(error))
        except Exception:
            log.exception("connection failed")
        finally:
            accepted.close()  # nobody waits for it any more
            self.arrivals.crowd.leave(accepted)
            self.live.discard(accepted)
            self.slots.release()
            if not self.live:
                self.quiet.set()

    async def _hand_over(self, arrived: Arrived, accepted: socket.socket, rest: bytes) -> None:
        """Let Hypercorn have a connection of which `rest` has been read."""
        app = ASGIWrapper(cast("ASGIFramework", self.app))
        state = LifespanState({BEYOND_LIMIT: self.arrivals.crowd.is_beyond(accepted)})
        held = cast("TlsStream", Pushback(arrived.secure or stream_of(accepted), rest))
        connection = Connection(self.waits, app, self.config, self.context, state, held)
        await connection.serve(accepted, peer=arrived.peer, secure=self.arrivals.tls is not None)

    async def cut_when_cancelled(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Wait to be cancelled, give the connections a moment to end, then close their sockets: their sends are shielded."""
        task_status.started()
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await self._cut()

    async def _cut(self) -> None:
        self.quiet = trio.Event()
        if self.live:
            with trio.move_on_after(CUT_GRACE):
                await self.quiet.wait()
        if self.live:
            log.warning("connections cut", connections=len(self.live))
        for accepted in tuple(self.live):
            close(accepted)
