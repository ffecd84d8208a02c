"""How a node's parts fit together: every part is made here, once, and given what it needs. Starts nothing."""

import random
import time
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from functools import partial

import structlog
import trio

from engines.contract import Engine
from node.acknowledged import Acknowledged
from node.auditlog import AuditLog
from node.auth.access import Access
from node.collector import Collector, collect_rules
from node.config.settings import Settings
from node.config.spool import folder_of
from node.elsewhere import LIES, Elsewhere
from node.failover import FailOvers
from node.forgetting import Forgetting
from node.gates import Gates
from node.hint_hub import Hub
from node.hooks.courier import Courier
from node.journal.writer import JournalSettings, JournalWriter
from node.mac_keyring import MacKeyring
from node.metrics import Metrics
from node.pull.spot_checks import SpotChecks
from node.records.closures import read_closure
from node.records.ledger import PostgresLedger
from node.records.members import LocationRow, Membership
from node.records.postgres import Database
from node.records.pulls import FoundBlob, find_blob
from node.records.reconcile import PostgresRounds
from node.records.replicas import Replica, Replicas
from node.running import Node, ask_who_lives
from node.shares import Places, Share
from node.waiting import Subject, Waiting
from replication.bandwidth import Bandwidth, FailoverCap
from replication.closure import Closure
from replication.copier import Copier, CopierSettings, CopyEnd, CopyReport
from replication.drainer import Drainer, DrainSettings
from replication.health import HealthRules, down_for, why_down
from replication.hedging import HedgeRules, Hedging
from replication.model import (
    PIECE,
    Blob,
    CopyTask,
    LocationHealth,
    Placement,
    Verdict,
)
from replication.parts import PartPool
from replication.patience import Patience
from replication.ports import Seen
from replication.proof import Prover
from replication.reader import Reader, ReaderSettings
from replication.reconciler import Reconciler, ReconcilerSettings
from replication.scheduler import Scheduler, SchedulerSettings
from replication.sources import choose_sources, health_of, in_service, may_tee, readable
from replication.spool import Spool
from replication.standstill import Standstill
from replication.suspects import Suspects
from replication.sweeper import Sweeper
from replication.tees import Tees
from replication.trimmer import Trimmer, TrimSettings
from replication.upload_spool import UploadSpool
from replication.wanted import Wanted
from replication.watcher import Watcher, probe_keys

_log = structlog.get_logger("antipode.locations")

_COPIED = 16 * 1024 * 1024
"""Bytes of a blob that is copied in one piece, and of a part of larger ones: two thirds of the layers in production registries are
smaller than 1 MiB, and four fifths than 10 (Anwar et al., FAST'18)."""


def assemble(
    settings: Settings,
    database: Database,
    hints: Hub,
    engines: Mapping[str, Engine],
    rows: Mapping[str, LocationRow],
    member: Membership,
    replicas: Sequence[Replica] = (),
    standstill: Standstill | None = None,
    deletes: Hub | None = None,
) -> Node:
    """Return a node of these parts, ready to be started. `deletes`: a way of their own, beside `hints`, for hints of deletes."""
    standstill = standstill or Standstill()
    ways = (hints,) if deletes is None else (hints, deletes)
    name = str(member.id)[:8]
    keys = {at: probe_keys(engine.prefix, name, rows[at].marker.encode()) for at, engine in engines.items()}
    ledger = PostgresLedger(
        database=database,
        member=member,
        down=lambda: down_for(watcher.board, trio.current_time()),
        why_down=lambda: why_down(watcher.board),
    )
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
    patience, mac_keyring = Patience(), MacKeyring(database=database, secret_key=settings.secret_key)
    watcher = Watcher(
        engines,
        keys,
        rules,
        lambda location: location in settings.preference,
        changed,
        patience.probed,
        lied,
        lambda: node.drills(),
        standstill.since,
    )

    def latency(location: str) -> float | None:
        return health_of(watcher.board, location).latency

    reader = Reader(
        engines,
        watcher.report,
        distrust,
        ReaderSettings(stall=settings.source_stall),
        hedging=Hedging(HedgeRules(share=settings.hedged_reads / 100), latency),
        macs=mac_keyring.keys,
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

    at_once = min(_COPIED, settings.part_memory // 3 // PIECE * PIECE)
    bandwidth = {location: Bandwidth(settings.bandwidth_per_location) for location in engines}
    copier = Copier(
        engines,
        reader,
        ledger,
        pool,
        choose,
        CopierSettings(
            part_size=max(settings.part_size, at_once),
            parts_per_blob=settings.copy_parts_per_blob,
            whole=at_once,
        ),
        bandwidth,
        shared=lambda digest: tees.running(digest),
    )
    rounds = PostgresRounds(database)
    prover = Prover(reader, pool, bandwidth, lambda: copier.settings.part_size, lambda: copier.settings.parts_per_blob)

    def down() -> frozenset[str]:
        return frozenset(name for name, line in watcher.board.items() if line.verdict is Verdict.DOWN)

    trimmer = Trimmer(rounds, hints.publish, prover.prove, choose, down, TrimSettings(keep=settings.keep_trimmed))
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
        pool.hold,
    )
    node = Node(
        settings=settings,
        access=Access(settings=settings, database=database, clock=time.time, publish=hints.publish, node=name),
        database=database,
        hints=hints,
        deletes=deletes,
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
        mac_keyring=mac_keyring,
        courier=courier,
        reconciler=Reconciler(
            rounds,
            hints,
            ReconcilerSettings(keep=settings.keep_trimmed, replicate=settings.replicate),
            trimmer,
            Drainer(rounds, prover.prove, choose, down, DrainSettings()),
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
        waiting=Waiting(look, hints, Places("waits", Share(settings.replication_waiters))),
        durable=Waiting(look, hints, Places("pushes that wait for copies", Share(settings.durability_waiters))),
        elsewhere=Elsewhere(name, watcher.look_now, watcher.doubt),
        acknowledged=acknowledged,
        spot_checks=SpotChecks(reader, find, settings.redirect_spot_checks, settings.probe_interval),
        replicas=Replicas(database, replicas, member.id) if replicas else None,
        fail_overs=FailOvers(database, acknowledged, hints.publish),
        forgetting=Forgetting(
            ways,
            str(member.id),
            partial(ask_who_lives, database, scheduler, member.id),
            lambda: any(way.statistics().connected for way in ways),
        ),
        auditlog=AuditLog(database, lambda: node.settings, name),
        gates=Gates(
            settings.maximum_pulls,
            settings.maximum_streams,
            settings.maximum_pushes,
            settings.maximum_token_requests,
            queue=settings.maximum_waiting,
            patience=settings.queue_patience,
        ),
        connections=Places("connections", Share(settings.maximum_connections)),
        standstill=standstill,
        name=name,
    )
    return node
