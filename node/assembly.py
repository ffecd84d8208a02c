"""How a node's parts fit together: every part is made here, once, and given what it needs. Starts nothing."""

import random
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

import structlog
import trio
from attrs import define, evolve, field

from engines.contract import Engine
from node.acknowledged import Acknowledged
from node.auditlog import AuditLog
from node.auth.access import Access
from node.cache import Freshness
from node.collector import Collector, collect_rules
from node.config_spool import folder_of
from node.elsewhere import LIES, Elsewhere
from node.failover import FailOvers
from node.forgetting import Forgetting
from node.gates import Gates
from node.health import DiskSpace, HealthFacts, Reachability
from node.hint_hub import Hub
from node.hooks.courier import Courier
from node.journal.writer import JournalSettings, JournalWriter
from node.metrics import Metrics
from node.modes import READ_ONLY
from node.pull.spot_checks import SpotChecks
from node.records.closures import read_closure
from node.records.ledger import PostgresLedger
from node.records.members import LocationRow, Membership
from node.records.postgres import Database
from node.records.pulls import FoundBlob, find_blob
from node.records.reconcile import PostgresRounds
from node.records.replicas import Replica, Replicas
from node.registry import Memory, Registry
from node.services import ServiceBoard
from node.settings import Settings
from node.tls import Certificates
from node.waiting import Subject, Waiting
from replication.bandwidth import Bandwidth, FailoverCap
from replication.closure import Closure
from replication.copier import Copier, CopierSettings, CopyEnd, CopyReport
from replication.health import HealthRules
from replication.hedging import HedgeRules, Hedging
from replication.model import Blob, ClusterView, CopyTask, Drill, LocationHealth, LocationState, Placement, Verdict
from replication.parts import PartPool
from replication.patience import Patience
from replication.ports import Seen
from replication.reader import Reader, ReaderSettings
from replication.reconciler import Reconciler, ReconcilerSettings
from replication.scheduler import Scheduler, SchedulerSettings
from replication.sources import choose_sources, health_of, in_service, may_tee, readable
from replication.spool import Spool
from replication.suspects import Suspects
from replication.sweeper import Sweeper
from replication.tees import Tees
from replication.upload_spool import UploadSpool
from replication.wanted import Wanted
from replication.watcher import ProbeKeys, Watcher, probe_keys

_log = structlog.get_logger("antipode.locations")


@define(eq=False)
class Node:
    """A running node: its parts, and the facts that the health endpoints ask for."""

    settings: Settings
    access: Access
    database: Database
    hints: Hub
    engines: Mapping[str, Engine]
    rows: Mapping[str, LocationRow]
    keys: Mapping[str, ProbeKeys]
    watcher: Watcher
    scheduler: Scheduler
    copier: Copier
    suspects: Suspects
    wanted: Wanted
    tees: Tees
    bandwidth: Mapping[str, Bandwidth]
    cap: FailoverCap
    ledger: PostgresLedger
    reconciler: Reconciler
    collector: Collector
    journal: JournalWriter
    courier: Courier
    reader: Reader
    pool: PartPool
    patience: Patience
    upload_spool: UploadSpool
    gates: Gates
    auditlog: AuditLog
    forgetting: Forgetting
    elsewhere: Elsewhere
    acknowledged: Acknowledged
    fail_overs: FailOvers
    replicas: Replicas | None
    spot_checks: SpotChecks
    waiting: Waiting
    durable: Waiting
    name: str
    """This process's id, new at every start."""
    metrics: Metrics = field(factory=Metrics)
    board: ServiceBoard = field(factory=ServiceBoard)
    certificates: Certificates | None = None
    """The listener's; None where it speaks plain HTTP."""
    load: Callable[[], Settings] | None = None
    """Reads the configuration anew."""
    draining: bool = False
    handed_over: bool = False
    """The listening socket outlives this process: the next one takes over at once, so the load balancer need not know."""
    disk: DiskSpace | None = None

    def states(self) -> Mapping[str, LocationState]:
        """Return what the operators want of each location, as of the last heartbeat."""
        if self.scheduler.cluster is not None:
            return self.scheduler.cluster.states
        return {name: row.state for name, row in self.rows.items()}

    def drills(self) -> Mapping[str, Drill]:
        """Return the drills that are not over, with the seconds that are left now. One ends even while the database is away."""
        return running_drills(self.scheduler.cluster, self.scheduler.cluster_at, trio.current_time())

    def read_only(self) -> bool:
        """Return whether nothing may change what the registry holds, as of the last SIGHUP."""
        return self.settings.registry_state == READ_ONLY

    def facts(self) -> HealthFacts:
        """Return what the health endpoints show. From memory, at once."""
        hints = self.hints.statistics()
        redis = Reachability(hints.connected, hints.since, hints.last_error or "") if self.settings.redis else None
        return HealthFacts(
            preference=self.settings.preference,
            board=self.watcher.board,
            measured=self.watcher.measured,
            drills=self.drills(),
            probe_period=self.settings.probe_interval + self.settings.probe_deadline,
            database=Reachability(*self.database.reachability()),
            policy=self.settings.health_policy,
            elsewhere=self.elsewhere.said(self._lives),
            database_grace=self.settings.health_database_grace,
            redis=redis,
            services=self.board.facts(),
            disk=self.disk,
            collection_paused=self.collector.statistics().paused,
            draining=self.draining and not self.handed_over,
            node=self.name,
        )

    def _lives(self, name: str) -> bool:
        """Say whether the node of this name was there at the last heartbeat; before the first, everybody is."""
        cluster = self.scheduler.cluster
        return cluster is None or any(node.id.startswith(name) for node in cluster.nodes)

    def start_draining(self) -> None:
        """Take on nothing new, and say so."""
        self.draining = self.scheduler.draining = self.ledger.draining = True
        self.waiting.close()
        self.durable.close()

    def registry(self, freshness: Freshness) -> Registry:
        """Return what registry requests are answered from."""
        return Registry(
            settings=self.settings,
            access=self.access,
            current=lambda: self.settings,
            database=self.database,
            engines=self.engines,
            watcher=self.watcher,
            reader=self.reader,
            tees=self.tees,
            wanted=self.wanted,
            hints=self.hints,
            forgetting=self.forgetting,
            pool=self.pool,
            patience=self.patience,
            upload_spool=self.upload_spool,
            gates=self.gates,
            auditlog=self.auditlog,
            waiting=self.waiting,
            durable=self.durable,
            states=self.states,
            instance=self.name,
            clock=time.time,
            memory=Memory(freshness),
            acknowledged=self.acknowledged,
            replicas=self.replicas,
            note_redirect=self.spot_checks.note,
        )


_WHOLE = 16 * 1024 * 1024
"""Bytes of a blob that is copied in one piece: two thirds of the layers in production registries are smaller than 1 MiB, and four
fifths than 10 (Anwar et al., FAST'18)."""

_ALIVE_SECONDS = 10.0
"""A node that has been silent for longer is not waited for."""


def living_others(cluster: ClusterView | None, seen_at: float, now: float) -> frozenset[str]:
    """Return the ids of the other nodes that live, as far as a heartbeat at `seen_at` could tell. Pure."""
    if cluster is None:
        return frozenset()
    return frozenset(node.id for node in cluster.nodes if node.silent_for + now - seen_at < _ALIVE_SECONDS)


def running_drills(cluster: ClusterView | None, seen_at: float, now: float) -> Mapping[str, Drill]:
    """Return the drills that a heartbeat at `seen_at` told of and that are not over. Pure."""
    if cluster is None:
        return {}
    left = {name: evolve(drill, left=drill.left - (now - seen_at)) for name, drill in cluster.drills.items()}
    return {name: drill for name, drill in left.items() if drill.left > 0}


def assemble(
    settings: Settings,
    database: Database,
    hints: Hub,
    engines: Mapping[str, Engine],
    rows: Mapping[str, LocationRow],
    member: Membership,
    replicas: Sequence[Replica] = (),
) -> Node:
    """Return a node of these parts, ready to be started."""
    name = str(member.id)[:8]
    keys = {at: probe_keys(engine.prefix, name, rows[at].marker.encode()) for at, engine in engines.items()}
    ledger = PostgresLedger(database=database, member=member)
    pool = PartPool(settings.part_memory)
    suspects, metrics, acknowledged = Suspects(ledger, hints), Metrics(), Acknowledged()

    def distrust(blob: Blob, placement: Placement, reason: str) -> None:
        metrics.distrusted(blob, placement, reason)
        suspects.note(blob, placement, reason)

    def changed(before: LocationHealth, after: LocationHealth) -> None:
        tell = {Verdict.DOWN: _log.error, Verdict.HEALTHY: _log.info}.get(after.verdict, _log.warning)
        tell(
            f"location is {after.verdict.value}",
            location=after.location,
            before=before.verdict.value,
            reason=after.reason,
        )
        scheduler.nudge(after.location)
        courier.location_changed(after)
        hints.publish(Seen(after.location, after.verdict.value, name))

    def lied(location: str) -> None:
        hints.publish(Seen(location, LIES, name))

    courier = Courier(database, lambda: node.settings, name)
    rules = HealthRules(
        interval=settings.probe_interval, deadline=settings.probe_deadline, recovery_quiet=settings.recovery_quiet
    )
    patience = Patience()
    watcher = Watcher(
        engines,
        keys,
        rules,
        lambda location: location in settings.preference,
        changed,
        patience.probed,
        lied,
        lambda: {name: drill.left for name, drill in node.drills().items()},
    )

    def latency(location: str) -> float | None:
        return health_of(watcher.board, location).latency

    reader = Reader(
        engines,
        watcher.report,
        distrust,
        ReaderSettings(stall=settings.source_stall),
        hedging=Hedging(HedgeRules(share=settings.hedged_reads / 100), latency),
    )

    def choose(placements: Iterable[Placement]) -> tuple[Placement, ...]:
        return choose_sources(readable(placements, node.states()), settings.preference, watcher.board)

    def copied(task: CopyTask, report: CopyReport) -> None:
        metrics.copied(task, report)
        if report.end is CopyEnd.PLACED:
            now = trio.current_time()
            ledger.throughput.note(task.destination, report.fetched, now - report.seconds, now)

    def look(subject: Subject) -> Awaitable[Closure | None]:
        return read_closure(
            database,
            subject.repository,
            subject.digest,
            locations=subject.locations or None,
            referrers=subject.referrers,
            replicate=settings.replicate,
            whole=subject.whole,
        )

    def find(repository: str, digest: str) -> Awaitable[FoundBlob | None]:
        return find_blob(database, repository, digest, pieces=True, grace=settings.garbage_grace)

    bandwidth = {location: Bandwidth(settings.bandwidth_per_location) for location in engines}
    copier = Copier(
        engines,
        reader,
        ledger,
        pool,
        choose,
        CopierSettings(
            part_size=settings.part_size,
            parts_per_blob=settings.copy_parts_per_blob,
            whole=min(_WHOLE, settings.part_memory // 3),
        ),
        bandwidth,
        shared=lambda digest: tees.running(digest),
    )
    scheduler = Scheduler(
        ledger,
        hints,
        copier,
        Sweeper(engines, ledger, random.random),
        lambda: in_service(watcher.board, node.states()),
        settings.preference,
        {location: engine.prefix for location, engine in engines.items()},
        SchedulerSettings(
            streams=settings.copy_streams,
            streams_per_location=settings.copy_streams_per_location,
            lease_seconds=settings.lease_seconds,
        ),
        random.random,
        copied,
    )
    cap = FailoverCap(settings.preferred, settings.failover_bandwidth)

    def worth_a_tee(blob: Blob, sources: tuple[Placement, ...]) -> bool:
        return may_tee(
            blob,
            sources,
            settings.preferred,
            node.states().get(settings.preferred),
            watcher.board,
            least=settings.redirect_minimum_size,
            most=settings.tee_spool.most,
        )

    tees = Tees(
        reader,
        Spool(folder_of(settings.tee_spool), settings.tee_spool.most),
        worth_a_tee,
        lambda blob: scheduler.pay_at_once(blob.id, settings.preferred),
        cap.take,
    )
    node = Node(
        settings=settings,
        access=Access(settings=settings, database=database, clock=time.time),
        database=database,
        hints=hints,
        engines=engines,
        rows=rows,
        keys=keys,
        watcher=watcher,
        scheduler=scheduler,
        copier=copier,
        suspects=suspects,
        wanted=Wanted(ledger, hints),
        tees=tees,
        bandwidth=bandwidth,
        cap=cap,
        ledger=ledger,
        courier=courier,
        reconciler=Reconciler(
            PostgresRounds(database),
            hints,
            ReconcilerSettings(
                keep=settings.presign_lifetime + settings.metadata_staleness, replicate=settings.replicate
            ),
            lambda: frozenset(name for name, line in watcher.board.items() if line.verdict is Verdict.DOWN),
        ),
        collector=Collector(database, hints.publish, collect_rules(settings)),
        journal=JournalWriter(
            database,
            engines,
            JournalSettings(
                every=settings.journal_every,
                retention=settings.journal_retention,
                snapshot_every=settings.journal_snapshot_every,
            ),
        ),
        reader=reader,
        pool=pool,
        patience=patience,
        upload_spool=UploadSpool(Spool(folder_of(settings.upload_spool), settings.upload_spool.most)),
        metrics=metrics,
        waiting=Waiting(look, hints, settings.replication_waiters),
        durable=Waiting(look, hints, settings.durability_waiters),
        elsewhere=Elsewhere(name, watcher.look_now, watcher.doubt),
        acknowledged=acknowledged,
        spot_checks=SpotChecks(reader, find, settings.redirect_spot_checks, settings.probe_interval),
        replicas=Replicas(database, replicas, member.id) if replicas else None,
        fail_overs=FailOvers(database, acknowledged, hints.publish),
        forgetting=Forgetting(
            hints,
            str(member.id),
            lambda: living_others(scheduler.cluster, scheduler.cluster_at, trio.current_time()),
        ),
        auditlog=AuditLog(database, lambda: node.settings, name),
        gates=Gates(settings.maximum_pulls, settings.maximum_streams, settings.maximum_pushes, settings.queue_patience),
        name=name,
    )
    return node
