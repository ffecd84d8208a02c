"""A running node: its parts, and what can be told of it at once, from memory."""

import time
from collections.abc import Callable, Mapping
from uuid import UUID

import trio
from attrs import define, evolve, field

from engines.contract import Engine
from node.acknowledged import Acknowledged
from node.auditlog import AuditLog
from node.auth.access import Access
from node.cache import Freshness
from node.collector import Collector
from node.config.settings import Settings
from node.elsewhere import Elsewhere
from node.failover import FailOvers
from node.forgetting import Forgetting
from node.gates import Gates
from node.health import DiskSpace, HealthFacts, Reachability
from node.hint_hub import Hub
from node.hooks.courier import Courier
from node.journal.writer import JournalWriter
from node.mac_keyring import MacKeyring
from node.metrics import Metrics
from node.modes import READ_ONLY
from node.pull.spot_checks import SpotChecks
from node.records.ledger import PostgresLedger
from node.records.members import LocationRow, living_nodes
from node.records.postgres import Database, DatabaseUnavailable
from node.records.replicas import Replicas
from node.registry import Memory, Registry
from node.services import ServiceBoard
from node.shares import Places
from node.tls import Certificates
from node.waiting import Waiting
from replication.bandwidth import Bandwidth, FailoverCap
from replication.copier import Copier
from replication.model import ClusterView, Drill, LocationState
from replication.parts import PartPool
from replication.patience import Patience
from replication.reader import Reader
from replication.reconciler import Reconciler
from replication.scheduler import Scheduler
from replication.standstill import Standstill
from replication.suspects import Suspects
from replication.tees import Tees
from replication.upload_spool import UploadSpool
from replication.wanted import Wanted
from replication.watcher import ProbeKeys, Watcher

_ALIVE_SECONDS = 10.0
"""A node that has been silent for longer is not waited for."""


def living_others(cluster: ClusterView | None, seen_at: float, now: float) -> frozenset[str]:
    """Return the ids of the other nodes that live, as far as a heartbeat at `seen_at` could tell. Pure."""
    if cluster is None:
        return frozenset()
    return frozenset(node.id for node in cluster.nodes if node.silent_for + now - seen_at < _ALIVE_SECONDS)


async def ask_who_lives(database: Database, scheduler: Scheduler, me: UUID) -> frozenset[str]:
    """Return the ids of the other nodes that live now; while the database is away, as far as the last heartbeat could tell."""
    try:
        # A node may have come since the last heartbeat, which can be two seconds old.
        return await living_nodes(database, me, _ALIVE_SECONDS)
    except DatabaseUnavailable:
        return living_others(scheduler.cluster, scheduler.cluster_at, trio.current_time())


def running_drills(cluster: ClusterView, seen_at: float, now: float) -> Mapping[str, Drill]:
    """Return the drills that a heartbeat at `seen_at` told of and that are not over. Pure."""
    passed = now - seen_at
    running = {
        name: evolve(drill, left=drill.left - passed, ran=drill.ran + passed) for name, drill in cluster.drills.items()
    }
    return {name: drill for name, drill in running.items() if drill.left > 0}


@define(eq=False)
class Node:
    """A running node: its parts, and the facts that the health endpoints ask for."""

    settings: Settings
    access: Access
    database: Database
    hints: Hub
    deletes: Hub | None
    """PostgreSQL's NOTIFY, for hints of deletes, where all others go by Redis."""
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
    mac_keyring: MacKeyring
    reconciler: Reconciler
    collector: Collector
    journal: JournalWriter
    courier: Courier
    reader: Reader
    pool: PartPool
    patience: Patience
    upload_spool: UploadSpool
    gates: Gates
    connections: Places
    """Clients' connections."""
    auditlog: AuditLog
    forgetting: Forgetting
    elsewhere: Elsewhere
    acknowledged: Acknowledged
    fail_overs: FailOvers
    replicas: Replicas | None
    spot_checks: SpotChecks
    waiting: Waiting
    durable: Waiting
    standstill: Standstill
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
        cluster = self.scheduler.cluster
        if cluster is None or not cluster.drills:
            # As nearly always, and asked for with every redirect.
            return {}
        return running_drills(cluster, self.scheduler.cluster_at, trio.current_time())

    def read_only(self) -> bool:
        """Return whether nothing may change what the registry holds, as of the last SIGHUP."""
        return self.settings.registry_state == READ_ONLY

    def facts(self) -> HealthFacts:
        """Return what the health endpoints show. From memory, at once."""
        hints = self.hints.statistics()
        teams = self.access.teams()
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
            clock=self.ledger.clock.said() if self.ledger.clock.wrong else "",
            team_sync="" if teams is None else teams.trouble,
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
            macs=self.mac_keyring.keys,
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
            scheduler=self.scheduler,
            states=self.states,
            instance=self.name,
            clock=time.time,
            memory=Memory(freshness),
            acknowledged=self.acknowledged,
            replicas=self.replicas,
            note_redirect=self.spot_checks.note,
        )
