"""One nursery per node: opens the parts in the order in which they need each other, runs the services, and drains.

    bridge -> database -> hints -> engines -> [ markers, watcher, desks, scheduler, tees, events, janitor, disk ] -> HTTP server

On SIGTERM or SIGINT: health says 503, then after DRAIN_DELAY the listener closes, requests in flight end (bounded), the
services end by cancellation and give back what they had leased, and the node takes its row out of the table.
"""

import os
import signal
import socket
import tempfile
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial
from importlib.metadata import version
from shutil import disk_usage
from typing import Protocol
from uuid import uuid4

import structlog
import trio

from engines.crossing import open_bridge
from node.access_writer import access_writer
from node.again import answering_again
from node.allocator import return_large_buffers
from node.assembly import assemble
from node.auth.first import offer_first_contact
from node.cache import Freshness
from node.config.database import describe_database
from node.config.settings import Settings, TlsSettings
from node.cycles import spare_the_collector
from node.descriptors import within_limit
from node.health import DiskSpace
from node.hint_hub import Hub
from node.hints import open_hints
from node.janitor import run_janitor
from node.markers import keep_markers
from node.metrics_state import State, Totals
from node.records.members import LocationRow, Membership, default_locations, enrol_locations, sign_off
from node.records.migrate import migrate
from node.records.postgres import Database, DatabaseMisconfigured, DatabaseUnavailable, open_database
from node.records.replicas import DEADLINE, Replica
from node.reload import reload_on_hangup
from node.routes import Routes
from node.running import Node
from node.services import ALWAYS_RESTART, NodeFailure, RestartPolicy, Service, supervise
from node.shares import Places
from node.systemd import Manager, inherited_sockets
from node.tls import BadCertificate, Certificates
from node.web.access import log_exchange
from node.web.api_app import create_api
from node.web.app import create_app
from node.web.arrival import TlsSource
from node.web.asgi import App
from node.web.lane import Lane
from node.web.listener import Address, CannotListen, serve, serve_sockets, tune
from node.web.slow import SlowRequests
from replication.ports import Forget, Heard, Placed, Seen
from replication.standstill import Standstill

_log = structlog.get_logger("antipode.node")

_SIGN_OFF_SECONDS = 3.0
_ENROL_SECONDS = 5.0
_DISK_EVERY = 15.0
LAST_RESORT = 20.0
"""Seconds that services, pools and clients together may take to close after the last request ended."""

_UNTIL_DONE = RestartPolicy(may_end=True)
_SERVER = RestartPolicy(restart=False, may_end=True)


class Serve(Protocol):
    """Serves an application, wherever it was told to, until `shutdown`."""

    async def __call__(
        self,
        app: App,
        lane: Lane,
        settings: Settings,
        shutdown: trio.Event,
        tls: TlsSource | None,
        places: Places,
        *,
        task_status: trio.TaskStatus[Address],
    ) -> None:
        """Serve; report the bound address."""
        ...


async def run_node(settings: Settings, bind: tuple[str, int], load: Callable[[], Settings]) -> None:
    """Run a node until SIGTERM or SIGINT; at SIGHUP it takes over what it can of what `load` returns then.

    Raises NodeFailure when it cannot start or go on, with one line for the operator.
    """
    return_large_buffers()
    for line in settings.warnings:
        _log.warning(line)
    settings = within_limit(settings)
    certificates = None if settings.edge.tls is None else _certificates(settings.edge.tls)
    manager, sockets = Manager(os.environ), inherited_sockets(os.environ)
    member = Membership(
        uuid4(), settings.preference, settings.default_locations, version("antipode"), tuple(settings.locations)
    )
    standstill = Standstill()
    try:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(open_bridge())
            database = await stack.enter_async_context(
                open_database(settings.database_uri, most=settings.database_pool, standstill=standstill)
            )
            rows = await _prepare(database, settings)
            hints = await stack.enter_async_context(open_hints(settings.redis, settings.database_uri, str(member.id)))
            deletes = None
            if settings.redis is not None:
                deletes = await stack.enter_async_context(open_hints(None, settings.database_uri, str(member.id)))
            engines = {
                name: await stack.enter_async_context(location.engine.open())
                for name, location in settings.locations.items()
            }
            replicas = [
                Replica(
                    describe_database(uri),
                    await stack.enter_async_context(open_database(uri, deadline=DEADLINE, standstill=standstill)),
                )
                for uri in settings.read_replicas
            ]
            node = assemble(settings, database, hints, engines, rows, member, replicas, standstill, deletes)
            structlog.contextvars.bind_contextvars(node=node.name)
            node.handed_over = bool(sockets)
            node.load = load
            node.certificates = certificates
            await _run(
                node, manager, partial(_serve_on, sockets) if sockets else partial(_serve_at, str(Address(*bind)))
            )
            await _sign_off(database, member)
    except (DatabaseUnavailable, DatabaseMisconfigured) as error:
        raise NodeFailure(f"DB_URI: the database cannot be used: {error}") from error
    _log.info("node is down")


def _certificates(settings: TlsSettings) -> Certificates:
    try:
        return Certificates(settings)
    except BadCertificate as error:
        raise NodeFailure(f"SSL_CERTIFICATE: {error}") from error


async def _prepare(database: Database, settings: Settings) -> Mapping[str, LocationRow]:
    applied = await migrate(database)
    if applied:
        _log.info("database brought up to date", migrations=list(applied))
    rows = await enrol_locations(database, list(settings.locations), settings.default_locations)
    counted = await default_locations(database)
    if set(counted) != set(settings.default_locations):
        _log.warning(
            "the database's default locations differ from this file's, and count until all live nodes have changed to another list",
            database=sorted(counted),
            file=sorted(settings.default_locations),
        )
    return rows


async def _run(node: Node, manager: Manager, serving_on: Serve) -> None:
    freshness = Freshness(node.settings.metadata_staleness, node.settings.metadata_grace)
    registry, totals = node.registry(freshness), Totals(node.database)
    node.metrics.add(State(node, registry.memory, totals, version("antipode")))
    routes = Routes(registry)
    answer = node.metrics.counting(answering_again(routes.answer, node.standstill))
    access = access_writer(node.name)
    app = create_app(
        answer,
        node,
        node.settings,
        api=create_api(registry),
        draining=lambda: node.draining,
        metrics=node.metrics,
        write=access,
    )
    slow = SlowRequests(node.settings.slow_request, node.metrics)
    at_once = node.metrics.counting_at_once(routes.at_once)
    lane = Lane(answer, lambda: node.draining, slow, access or log_exchange, at_once=at_once)

    marked = trio.Event()

    async def markers(*, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        await keep_markers(node.engines, node.rows, node.keys)
        marked.set()

    async def suspects(*, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        await node.suspects.run()

    async def wanted(*, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        await node.wanted.run()

    # From here on a signal is an orderly stop, also one that comes before the node is up.
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as services:

            async def start(name: str, service: Service, restart: RestartPolicy = ALWAYS_RESTART) -> None:
                await services.start(partial(supervise, name, service, board=node.board, restart=restart))

            await start("clock", node.standstill.run)
            await start("markers", markers, _UNTIL_DONE)
            # A store that is new and well has its marker before it is first probed for it; one that is away is not waited for.
            with trio.move_on_after(node.settings.probe_deadline):
                await marked.wait()
            await start("watcher", node.watcher.run)
            await start("suspects", suspects)
            await start("wanted", wanted)
            await start("scheduler", node.scheduler.run)
            await start("tees", node.tees.run)
            await start("upload spool", node.upload_spool.run)
            await start("reconciler", node.reconciler.run)
            await start("waiting", node.waiting.run)
            await start("durability", node.durable.run)
            if node.certificates is not None:
                await start("certificate", node.certificates.run)
            if node.load is not None:
                await start("reload", partial(reload_on_hangup, node, node.load))
            if access is not None:
                await start("access log", access.run)
            await node.mac_keyring.refresh()
            await start("keys for MACs", node.mac_keyring.run)
            await _start_access(node, start)
            await start("events", partial(_listen, node, freshness))
            if node.deletes is not None:
                await start("deletes", partial(_listen_for_deletes, node, freshness, node.deletes))
            if node.replicas is not None:
                await start("replicas", node.replicas.run)
            await start("spot checks", node.spot_checks.run)
            await start("fail-overs", node.fail_overs.run)
            await start("janitor", partial(run_janitor, node.database, node.hints))
            if node.settings.collect:
                await start("collector", partial(node.collector.run, node.settings.collect_every, node.read_only))
            await start("journal", node.journal.run)
            await start("audit log", node.auditlog.run)
            await start("webhooks", node.courier.run)
            await start("disk", partial(_look_at_disk, node))
            await start("totals", totals.keep)
            await node.watcher.first_round()
            # Whoever deletes something waits for the nodes that have a row; one that answers clients should have one.
            with trio.move_on_after(_ENROL_SECONDS):
                await node.scheduler.enrolled.wait()
            shutdown = trio.Event()
            async with trio.open_nursery() as serving:
                tls = None if node.certificates is None else node.certificates.current
                server = partial(serving_on, app, lane, node.settings, shutdown, tls, node.connections)
                bound = await serving.start(partial(supervise, "http", server, board=node.board, restart=_SERVER))
                spare_the_collector()
                _log.info("node is up", address=str(bound), preference=list(node.settings.preference))
                await start("watchdog", partial(manager.run_watchdog, lambda: True))
                manager.tell("READY=1", f"STATUS=serving {bound}")
                await _wait_for_stop(node, signals)
                manager.tell("STOPPING=1", "STATUS=draining")
                shutdown.set()
            services.cancel_scope.cancel(reason="the node stops")


async def _start_access(node: Node, start: Callable[[str, Service], Awaitable[None]]) -> None:
    """Start what knows who may do what."""
    await node.access.open()
    if not node.settings.open_registry:
        await offer_first_contact(node.database)
    await start("access", node.access.run)
    if (teams := node.access.teams()) is not None:
        await start("team sync", teams.run)
    if (login_teams := node.access.login_teams()) is not None:
        await start("team sync", login_teams.run)


async def _serve_at(
    address: str,
    app: App,
    lane: Lane,
    settings: Settings,
    shutdown: trio.Event,
    tls: TlsSource | None,
    places: Places,
    *,
    task_status: trio.TaskStatus[Address],
) -> None:
    try:
        await serve(
            app, settings, bind=address, shutdown=shutdown, tls=tls, lane=lane, places=places, task_status=task_status
        )
    except CannotListen as error:
        raise NodeFailure(str(error)) from error


async def _serve_on(
    sockets: Sequence[socket.socket],
    app: App,
    lane: Lane,
    settings: Settings,
    shutdown: trio.Event,
    tls: TlsSource | None,
    places: Places,
    *,
    task_status: trio.TaskStatus[Address],
) -> None:
    for listening in sockets:
        tune(listening, send_stall=settings.stall_deadline)
    await serve_sockets(
        app,
        settings,
        sockets=sockets,
        shutdown=shutdown,
        tls=tls,
        outlived=True,
        lane=lane,
        places=places,
        task_status=task_status,
    )


async def _wait_for_stop(node: Node, signals: AsyncIterator[int]) -> None:
    """Return when the node shall close its listener: DRAIN_DELAY after the first signal, or at the second."""
    received = await anext(signals)
    node.start_draining()
    _arm_last_resort(node.settings)
    _log.info("node stops", signal=signal.Signals(received).name, drain_delay=node.settings.drain_delay)
    with trio.move_on_after(node.settings.drain_delay):
        await anext(signals)


def _arm_last_resort(settings: Settings) -> None:
    """Make sure that the process ends even if a foreign library holds it: a thread outside Trio that nothing can block."""

    def give_up() -> None:
        _log.critical("the node did not stop in time and is ended", seconds=seconds)
        os._exit(1)

    seconds = settings.drain_delay + settings.drain_deadline + LAST_RESORT
    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()


async def _listen(node: Node, freshness: Freshness, *, task_status: trio.TaskStatus[None]) -> None:
    """Drop from memory what other nodes say has changed, and say so to those who wait for it."""
    async with node.hints.subscribe() as subscription:
        task_status.started()
        async for hint in subscription:
            node.access.heard(hint)
            if isinstance(hint, Placed):
                freshness.note(hint, trio.current_time())
            elif isinstance(hint, Seen):
                node.elsewhere.heard(hint)
            elif isinstance(hint, Forget | Heard):
                _heed(node, freshness, hint, node.hints)


async def _listen_for_deletes(
    node: Node, freshness: Freshness, way: Hub, *, task_status: trio.TaskStatus[None]
) -> None:
    """Do for deletes that come by a way of their own what `_listen` does.

    A gap in this way says nothing: it has no more to tell than the other.
    """
    async with way.subscribe() as subscription:
        task_status.started()
        async for hint in subscription:
            if isinstance(hint, Heard) or (isinstance(hint, Forget) and hint.token is not None):
                _heed(node, freshness, hint, way)


def _heed(node: Node, freshness: Freshness, hint: Forget | Heard, way: Hub) -> None:
    """Forget what another node has deleted and say so by the way that the word came; or take in that another one has."""
    if isinstance(hint, Heard):
        node.forgetting.heard(hint)
        return
    freshness.note(hint, trio.current_time())
    if hint.token is not None:
        node.acknowledged.forget(hint.repository, hint.digest)
    node.forgetting.obeyed(hint, way)


async def _look_at_disk(node: Node, *, task_status: trio.TaskStatus[None]) -> None:
    folder = tempfile.gettempdir()
    task_status.started()
    while True:
        usage = await trio.to_thread.run_sync(disk_usage, folder)
        node.disk = DiskSpace(usage.free, usage.total)
        await trio.sleep(_DISK_EVERY)


async def _sign_off(database: Database, member: Membership) -> None:
    with trio.move_on_after(_SIGN_OFF_SECONDS, shield=True):
        try:
            await sign_off(database, member)
        except DatabaseUnavailable as error:
            _log.info("could not sign off; the others will notice by the silence", reason=str(error))
