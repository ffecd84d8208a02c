"""What a scrape reads: a node's parts as they are at that moment, and what the database said last. From memory, at once."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import inf

import structlog
import trio
from attrs import define, field
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from node.auth.told import Unread
from node.health import ServiceState
from node.metrics import Described
from node.records.collect import KINDS
from node.records.journal import JournalLag, journal_lag
from node.records.lineage import Change
from node.records.postgres import Database
from node.records.reconcile import look_at_round
from node.records.team_sync import TeamTotals, look_at_teams
from node.records.totals import LocationTotals, look_at_totals
from node.registry import Memory
from node.running import Node
from replication.model import LocationState, Verdict
from replication.ports import LedgerUnavailable
from replication.proof import Proof

_log = structlog.get_logger("antipode.metrics")

TOTALS_EVERY = 15.0
"""Seconds between two looks at the database, however often anybody scrapes."""

_LOCATION = ("location",)


def _described(kind: str, text: str, *labels: str) -> Described:
    return Described(kind, text, labels)


STATE: Mapping[str, Described] = {
    "antipode_location_verdict": _described(
        "gauge", "1 for what the watcher thinks of a location.", "location", "verdict"
    ),
    "antipode_location_state": _described("gauge", "1 for what the operators want of a location.", "location", "state"),
    "antipode_location_probe_good": _described("gauge", "Whether the latest finished probe was good.", *_LOCATION),
    "antipode_location_drill_seconds": _described(
        "gauge", "How long a drill still has this node treat a location as down.", *_LOCATION
    ),
    "antipode_location_latency_seconds": _described("gauge", "Smoothed time to first byte.", *_LOCATION),
    "antipode_debt_blobs": _described("gauge", "Copies that are owed to a location (whole registry).", *_LOCATION),
    "antipode_debt_bytes": _described("gauge", "Bytes that are owed to a location (whole registry).", *_LOCATION),
    "antipode_debt_oldest_seconds": _described("gauge", "Age of the oldest debt (whole registry).", *_LOCATION),
    "antipode_stalled_copies": _described(
        "gauge", "Copies that keep failing; still retried (whole registry).", *_LOCATION
    ),
    "antipode_sole_copies": _described("gauge", "Blobs whose only good copy is here (whole registry).", *_LOCATION),
    "antipode_sole_copy_bytes": _described("gauge", "Bytes whose only good copy is here (whole registry).", *_LOCATION),
    "antipode_dead_objects": _described("gauge", "Objects that wait to be deleted (whole registry).", *_LOCATION),
    "antipode_dead_objects_failing": _described(
        "gauge", "Of these, failed at least once (whole registry).", *_LOCATION
    ),
    "antipode_uploads_open": _described("gauge", "Uploads that are under way (whole registry).", *_LOCATION),
    "antipode_journal_entries": _described(
        "gauge", "Changes that a location's journal lacks (whole registry).", *_LOCATION
    ),
    "antipode_journal_oldest_seconds": _described(
        "gauge", "Age of the oldest of them: what would be lost with the database (whole registry).", *_LOCATION
    ),
    "antipode_journal_snapshot_age_seconds": _described(
        "gauge", "Age of a journal's last snapshot, infinite without one (whole registry).", *_LOCATION
    ),
    "antipode_journal_failing_seconds": _described(
        "gauge", "For how long a journal could not be written (whole registry).", *_LOCATION
    ),
    "antipode_totals_age_seconds": _described("gauge", "Age of what is said here of the whole registry."),
    "antipode_copies_running": _described("gauge", "Copies that this node is at.", *_LOCATION),
    "antipode_leases_lost_total": _described("counter", "Copies given up because another node had the lease."),
    "antipode_ledger_failures_total": _described("counter", "Times that replication could not reach the database."),
    "antipode_deleted_objects_total": _described("counter", "Dead objects that this node deleted."),
    "antipode_deletes_failed_total": _described("counter", "Deletes that a store did not confirm."),
    "antipode_suspects_marked_total": _described("counter", "Bad copies recorded in the database."),
    "antipode_suspects_dropped_total": _described("counter", "Bad copies that could not be remembered until then."),
    "antipode_spot_checks_total": _described(
        "counter", "Copies that clients were redirected to and a node looked into."
    ),
    "antipode_spot_checks_wrong_total": _described("counter", "Of these, those that were not good."),
    "antipode_hedged_reads_total": _described("counter", "Streams that asked a second store beside a slow one."),
    "antipode_hedged_reads_won_total": _described("counter", "Of these, those that the second store won."),
    "antipode_reconciled_blobs_total": _described(
        "counter", "Blobs that this node looked at in rounds of reconciliation."
    ),
    "antipode_reconciled_changes_total": _described("counter", "What it found and put right there, by kind.", "change"),
    "antipode_reconciler_failures_total": _described(
        "counter", "Pages of a round that were put off because the database was away."
    ),
    "antipode_trim_reads_total": _described(
        "counter",
        "Blobs of which this node read a copy that stays before it trimmed another, by what came of it.",
        "outcome",
    ),
    "antipode_trim_read_bytes_total": _described("counter", "Bytes of those that were right."),
    "antipode_drain_reads_total": _described(
        "counter",
        "Copies that this node read because their blobs are in a location that is being emptied, by what came of it.",
        "outcome",
    ),
    "antipode_drain_read_bytes_total": _described("counter", "Bytes of those that were right."),
    "antipode_trims_waiting": _described("gauge", "Blobs that wait for that."),
    "antipode_reconciliation_age_seconds": _described(
        "gauge", "Time since the last whole round ended (whole registry)."
    ),
    "antipode_collected_total": _described("counter", "Links, manifests and blobs that this node collected.", "kind"),
    "antipode_collected_bytes_total": _described("counter", "Bytes of the blobs among them."),
    "antipode_collection_rounds_total": _described("counter", "Complete collections by this node."),
    "antipode_collection_paused": _described("gauge", "Whether collection is paused, as after a restore."),
    "antipode_team_sync_teams": _described("gauge", "Teams that follow groups (whole registry).", "service"),
    "antipode_team_sync_age_seconds": _described(
        "gauge", "Time since each team had followed its group of the directory at least once (whole registry)."
    ),
    "antipode_team_sync_held_teams": _described(
        "gauge", "Teams that wait with letting most of their people go (whole registry)."
    ),
    "antipode_team_sync_rounds_total": _described("counter", "Times that this node asked the directory for teams."),
    "antipode_team_sync_unread_total": _described(
        "counter",
        "Teams of which it was not told who is in their group, each time; of a provider logins without groups.",
        *("service", "reason"),
    ),
    "antipode_team_sync_members_total": _described(
        "counter", "Memberships that this node began and ended for a group.", "service", "change"
    ),
    "antipode_database_up": _described("gauge", "Whether the latest statement was answered."),
    "antipode_clock_ahead_seconds": _described(
        "gauge", "How far this machine's clock is ahead of the database's; behind: less than zero."
    ),
    "antipode_database_trips_total": _described("counter", "Statements sent to the database."),
    "antipode_database_unavailable_total": _described("counter", "Statements that the database did not answer."),
    "antipode_database_changes_total": _described(
        "counter", "Times that another server, or an older state, answered for the database.", "change"
    ),
    "antipode_lost_commits_total": _described(
        "counter", "Pushes that this node had acknowledged and that were missing afterwards."
    ),
    "antipode_replica_lookups_total": _described(
        "counter", "Look-ups by digest at a read replica by what came of them.", "replica", "outcome"
    ),
    "antipode_hints_connected": _described("gauge", "Whether hints reach the other nodes.", "transport"),
    "antipode_hints_published_total": _described("counter", "Hints that this node published."),
    "antipode_hints_received_total": _described("counter", "Messages with hints from other nodes."),
    "antipode_hints_dropped_total": _described("counter", "Hints that were lost on the way out."),
    "antipode_hints_gaps_total": _described(
        "counter", "Times that the line came back, so that hints may have been missed."
    ),
    "antipode_hints_waiting": _described("gauge", "Hints that wait to be sent."),
    "antipode_cache_hits_total": _described(
        "counter",
        "Look-ups that a cache answered. A pull that is answered as one within the last second was makes none.",
        "cache",
    ),
    "antipode_cache_misses_total": _described("counter", "Look-ups that a cache could not answer.", "cache"),
    "antipode_cache_weight": _described("gauge", "What a cache holds: bytes, or entries.", "cache"),
    "antipode_part_memory_bytes": _described("gauge", "Memory that part buffers may take (PART_MEMORY)."),
    "antipode_part_memory_held_bytes": _described("gauge", "Memory that part buffers take."),
    "antipode_part_memory_waiting": _described("gauge", "Copies and uploads that wait for memory."),
    "antipode_places_taken": _described("gauge", "What is under way of a kind of which a node takes so much.", "kind"),
    "antipode_places_refused_total": _described(
        "counter",
        "What was sent away, because no place was free or because one already held their share.",
        "kind",
        "why",
    ),
    "antipode_service_up": _described("gauge", "Whether a service of this node runs.", "service"),
    "antipode_service_restarts_total": _described("counter", "Times that a service was started again.", "service"),
    "antipode_draining": _described("gauge", "Whether this node is about to stop."),
    "antipode_info": _described("gauge", "1; says which program and node this is.", "version", "node"),
}
"""Every metric that is read at a scrape, by name."""

Sample = tuple[str, tuple[str, ...], float]


@define(eq=False)
class Totals:
    """What the database said last about the whole registry; `keep` asks it for ever."""

    _database: Database = field(alias="database")
    locations: tuple[LocationTotals, ...] = ()
    journals: Sequence[JournalLag] = ()
    teams: Sequence[TeamTotals] = ()
    round_age: float | None = None
    """Seconds since a whole round of reconciliation ended, None if none ever did."""
    taken_at: float | None = None
    """Trio's clock, None before the first answer."""

    async def keep(
        self, *, every: float = TOTALS_EVERY, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Ask every so many seconds. Ends by cancellation; while the database is away the old answer grows older in sight."""
        task_status.started()
        while True:
            try:
                await self.look()
            except LedgerUnavailable as error:
                _log.debug("metrics of the whole registry are getting old", reason=str(error))
            await trio.sleep(every)

    async def look(self) -> None:
        """Ask once. Raises DatabaseUnavailable."""
        asked = trio.current_time()
        self.locations = await look_at_totals(self._database)
        self.journals = await journal_lag(self._database)
        self.teams = await look_at_teams(self._database)
        self.round_age = (await look_at_round(self._database)).completed_seconds
        self.taken_at = asked


class State(Collector):
    """A node's parts as metrics."""

    def __init__(self, node: Node, memory: Memory, totals: Totals, version: str) -> None:
        self._node = node
        self._memory = memory
        self._totals = totals
        self._version = version

    def collect(self) -> Iterable[Metric]:
        """Return all families of `STATE`, also those without a sample."""
        families: dict[str, Metric] = {}
        for name, said in STATE.items():
            if said.kind == "counter":
                families[name] = CounterMetricFamily(name.removesuffix("_total"), said.help, labels=said.labels)
            else:
                families[name] = GaugeMetricFamily(name, said.help, labels=said.labels)
        for name, labels, value in self._samples():
            families[name].add_metric(labels, value)  # type: ignore[attr-defined] # both families have it, Metric has not
        return families.values()

    def _samples(self) -> Iterator[Sample]:
        yield from self._locations()
        yield from self._registry()
        yield from self._replication()
        yield from self._upkeep()
        yield from self._teams()
        yield from self._shared()
        yield from self._own()

    def _locations(self) -> Iterator[Sample]:
        drills = self._node.drills()
        for name, health in self._node.watcher.board.items():
            for verdict in Verdict:
                yield "antipode_location_verdict", (name, verdict.value), float(health.verdict is verdict)
            yield "antipode_location_probe_good", (name,), float(health.probe_good)
            left = drills[name].left if name in drills else 0.0
            yield "antipode_location_drill_seconds", (name,), left
            if health.latency is not None:
                yield "antipode_location_latency_seconds", (name,), health.latency
        for name, wanted in self._node.states().items():
            for state in LocationState:
                yield "antipode_location_state", (name, state.value), float(wanted is state)

    def _registry(self) -> Iterator[Sample]:
        if self._totals.taken_at is None:
            return
        age = trio.current_time() - self._totals.taken_at
        yield "antipode_totals_age_seconds", (), age
        for at in self._totals.locations:
            where = (at.location,)
            yield "antipode_debt_blobs", where, at.debt_blobs
            yield "antipode_debt_bytes", where, at.debt_bytes
            yield "antipode_debt_oldest_seconds", where, at.oldest_debt + age if at.debt_blobs else 0.0
            yield "antipode_stalled_copies", where, at.stalled
            yield "antipode_sole_copies", where, at.sole_blobs
            yield "antipode_sole_copy_bytes", where, at.sole_bytes
            yield "antipode_dead_objects", where, at.dead_objects
            yield "antipode_dead_objects_failing", where, at.dead_failing
            yield "antipode_uploads_open", where, at.uploads
        if self._totals.round_age is not None:
            yield "antipode_reconciliation_age_seconds", (), self._totals.round_age + age
        for journal in self._totals.journals:
            where = (journal.location,)
            yield "antipode_journal_entries", where, journal.entries
            yield "antipode_journal_oldest_seconds", where, journal.oldest + age if journal.entries else 0.0
            snapshot = inf if journal.snapshot_age is None else journal.snapshot_age + age
            yield "antipode_journal_snapshot_age_seconds", where, snapshot
            yield "antipode_journal_failing_seconds", where, journal.failing or 0.0

        bound = {at.service: at for at in self._totals.teams}
        for service in ("ldap", "oidc"):
            yield "antipode_team_sync_teams", (service,), bound[service].teams if service in bound else 0
        if (directory := bound.get("ldap")) is not None:
            yield "antipode_team_sync_age_seconds", (), directory.oldest + age
        yield "antipode_team_sync_held_teams", (), sum(at.held for at in bound.values())

    def _teams(self) -> Iterator[Sample]:
        counts = self._node.access.team_counts()
        if counts is None:
            return
        service = counts.service
        yield "antipode_team_sync_rounds_total", (), counts.rounds
        for reason in Unread:
            if (reason is Unread.UNSAID) == (service == "oidc"):
                yield "antipode_team_sync_unread_total", (service, reason.value), counts.unread[reason]
        yield "antipode_team_sync_members_total", (service, "joined"), counts.joined
        yield "antipode_team_sync_members_total", (service, "left"), counts.left

    def _replication(self) -> Iterator[Sample]:
        done, suspects = self._node.scheduler.statistics, self._node.suspects
        for location in self._node.engines:
            yield "antipode_copies_running", (location,), done.running.get(location, 0)
        yield "antipode_leases_lost_total", (), done.leases_lost
        yield "antipode_ledger_failures_total", (), done.ledger_failures
        yield "antipode_deleted_objects_total", (), done.deleted
        yield "antipode_deletes_failed_total", (), done.deletes_failed
        yield "antipode_suspects_marked_total", (), suspects.marked
        yield "antipode_suspects_dropped_total", (), suspects.dropped

    def _upkeep(self) -> Iterator[Sample]:
        reconciler, collector = self._node.reconciler, self._node.collector.statistics()
        found, trims = reconciler.findings(), reconciler.trimmer
        yield "antipode_reconciled_blobs_total", (), found.blobs
        for change in ("owed", "moving", "struck", "trimmed", "tags", "busy"):
            yield "antipode_reconciled_changes_total", (change,), getattr(found, change)
        yield "antipode_reconciler_failures_total", (), reconciler.failures
        for outcome in Proof:
            yield "antipode_trim_reads_total", (outcome.value,), getattr(trims.totals, outcome.value)
        yield "antipode_trim_read_bytes_total", (), trims.totals.read_bytes
        yield "antipode_trims_waiting", (), trims.waiting
        for outcome in Proof:
            yield "antipode_drain_reads_total", (outcome.value,), getattr(reconciler.drainer.totals, outcome.value)
        yield "antipode_drain_read_bytes_total", (), reconciler.drainer.totals.read_bytes
        collected = dict(collector.collected.removed)
        for kind in KINDS:
            yield "antipode_collected_total", (kind.replace(" ", "_"),), collected.get(kind, 0)
        yield "antipode_collected_bytes_total", (), collector.collected.bytes
        yield "antipode_collection_rounds_total", (), collector.rounds
        yield "antipode_collection_paused", (), float(bool(collector.paused))

    def _shared(self) -> Iterator[Sample]:
        database, hints = self._node.database.statistics(), self._node.hints.statistics()
        yield "antipode_database_up", (), float(self._node.database.reachability()[0])
        if self._node.ledger.clock.ahead is not None:
            yield "antipode_clock_ahead_seconds", (), self._node.ledger.clock.ahead
        yield "antipode_database_trips_total", (), database.trips
        yield "antipode_database_unavailable_total", (), database.unavailable
        fail_overs = self._node.fail_overs
        for change in (Change.FAIL_OVER, Change.WENT_BACK, Change.REPLACED):
            yield "antipode_database_changes_total", (change.value,), fail_overs.changes[change]
        yield "antipode_lost_commits_total", (), fail_overs.lost
        yield "antipode_spot_checks_total", (), self._node.spot_checks.checked
        yield "antipode_spot_checks_wrong_total", (), self._node.spot_checks.wrong
        yield "antipode_hedged_reads_total", (), self._node.reader.hedging.hedges
        yield "antipode_hedged_reads_won_total", (), self._node.reader.hedging.won
        for replica in self._node.replicas.replicas if self._node.replicas is not None else ():
            for outcome in ("used", "missed", "behind", "failed"):
                yield "antipode_replica_lookups_total", (replica.name, outcome), replica.looked[outcome]
        for hub in filter(None, (self._node.hints, self._node.deletes)):
            yield "antipode_hints_connected", (hub.transport,), float(hub.statistics().connected)
        yield "antipode_hints_published_total", (), hints.published
        yield "antipode_hints_received_total", (), hints.received
        yield "antipode_hints_dropped_total", (), hints.dropped
        yield "antipode_hints_gaps_total", (), hints.gaps
        yield "antipode_hints_waiting", (), hints.waiting

    def _own(self) -> Iterator[Sample]:
        memory = self._memory
        caches = {
            "manifest_bytes": memory.manifest_bytes.statistics(),
            "small_blobs": memory.small_blobs.statistics(),
            "manifests": memory.manifests.statistics(),
            "blobs": memory.blobs.statistics(),
            "policies": memory.policies.statistics(),
        }
        for name, cache in caches.items():
            yield "antipode_cache_hits_total", (name,), cache.hits
            yield "antipode_cache_misses_total", (name,), cache.misses
            yield "antipode_cache_weight", (name,), cache.weight
        pool = self._node.pool.statistics()
        yield "antipode_part_memory_bytes", (), pool.total
        yield "antipode_part_memory_held_bytes", (), pool.held
        yield "antipode_part_memory_waiting", (), pool.waiting
        gates = self._node.gates
        for kind, places in (
            ("pulls", gates.pulls.places),
            ("streams", gates.streams.places),
            ("pushes", gates.pushes.places),
            ("tokens", gates.tokens.places),
            ("api", gates.api.places),
            ("waits", self._node.waiting.places),
            ("durable_pushes", self._node.durable.places),
            ("connections", self._node.connections),
        ):
            yield "antipode_places_taken", (kind,), places.taken
            yield "antipode_places_refused_total", (kind, "full"), places.full
            yield "antipode_places_refused_total", (kind, "share"), places.bounded
        for name, service in self._node.board.statuses().items():
            yield "antipode_service_up", (name,), float(service.state is ServiceState.RUNNING)
            yield "antipode_service_restarts_total", (name,), service.restarts
        yield "antipode_draining", (), float(self._node.draining)
        yield "antipode_info", (self._version, self._node.name), 1.0
