"""Rescue: a registry rebuilt in an empty database from what its stores hold, when the database is lost and no backup is left.

Every store's journal says what there was, its manifests are objects, and a copy's place is in the journals. What they do not say is
looked for: objects whose key names a digest, and uploads whose bytes, read and hashed, are a blob's that lacks a copy. A copy that
was only seen and not read is listed as unverified until `antipode verify` has read it.

May be cut off at any moment and begun again: every step looks at what is there.
"""

from collections.abc import Callable, Mapping
from uuid import UUID

from attrs import evolve, field, frozen

from engines.contract import Engine, EngineError, ObjectMissing
from node.findings import Finding, Tell
from node.journal.reader import list_journals, read_journals
from node.journal.replay import Replayed, replay
from node.records.members import enrol_locations
from node.records.postgres import Database
from node.records.reconcile import ask_for_round
from node.records.repair import count_unverified
from node.records.replay import staged, take_location
from node.records.replay_turn import clear_facts, resume_after, take_turn
from node.records.rescue import Beginning, begin_rescue, end_rescue
from node.repair import RepairReport, check_objects, name_lost
from replication.watcher import probe_keys

NOT_KNOWN = (
    "accounts, organisations, teams, robots and application tokens: the first superuser is made anew",
    "permissions and default permissions: repositories belong to the account that has their namespace's name",
    "visibility: every repository comes back private",
    "quotas: none holds until it is set again",
    "which tags are immutable: every tag can be moved and deleted until the patterns are set again",
    "webhooks and what they had not delivered, and the audit log",
    "uploads that were open: their clients begin again",
    "what tags pointed to before: nothing can be restored from the time before the rescue",
    "repositories without a manifest, and blobs that no manifest names: the latter are collected",
    "copies that were asked for once, beyond policy",
)
"""What no rescue can know."""

_MARKER = 4096


class NotEmpty(Exception):
    """The database holds a registry, or one is being made in it. The text says what to do."""


@frozen
class RescueReport:
    """What a rescue found. Counts."""

    replayed: Replayed = field(factory=Replayed)
    adopted: int = 0
    """Copies that no journal knew, found by their digest."""
    unknown: int = 0
    """Objects that are nothing a manifest needs."""
    unverified: int = 0
    """Copies that were seen and not read."""
    lost: int = 0
    """Blobs without any copy."""
    unreachable: tuple[str, ...] = ()
    """Locations whose store could not be looked at to the end: the rescue must be repeated with them."""


async def rescue(
    database: Database,
    engines: Mapping[str, Engine],
    defaults: tuple[str, ...],
    library: str,
    tell: Tell,
    progress: Callable[[Replayed], None] = lambda _: None,
) -> RescueReport:
    """Rebuild what the stores know. `defaults`: the configuration's default locations; `library`: LIBRARY_NAMESPACE.

    Collection is paused until a rescue has looked at every store. Raises NotEmpty, LedgerUnavailable, and Overtaken
    where another one began meanwhile.
    """
    found = await begin_rescue(database)
    if found is not Beginning.BEGUN:
        raise NotEmpty(found.value)
    await enrol_locations(database, sorted(engines), defaults)
    turn = await take_turn(database)
    reachable = await _take_locations(database, engines, turn, tell)
    report = RescueReport(await replay(database, reachable, library, tell, progress, turn))
    missing = set(engines) - set(reachable) | set(report.replayed.unreached)
    looked_at = RepairReport()
    for location, engine in sorted(reachable.items()):
        try:
            looked_at = await check_objects(database, engine, location, tell, looked_at)
        except EngineError as error:
            tell(Finding("unreachable", location, str(error)))
            missing.add(location)
    report = evolve(
        report,
        adopted=looked_at.adopted,
        unknown=looked_at.unknown,
        lost=await name_lost(database, tell),
        unverified=await count_unverified(database),
        unreachable=tuple(sorted(missing)),
    )
    await ask_for_round(database)
    if not report.unreachable:
        await resume_after(database, turn)
        await end_rescue(database)
    return report


async def _take_locations(
    database: Database, engines: Mapping[str, Engine], turn: UUID, tell: Tell
) -> Mapping[str, Engine]:
    """Believe the stores' markers; return the engines of those that can be asked. The journals know the markers of the others."""
    await clear_facts(database, turn)
    await read_journals(database, engines, await list_journals(engines, tell), tell)
    states: dict[str, tuple[str, str]] = {}
    for named in await staged(database, "location"):
        if named.fact is not None:
            states[named.name] = str(named.fact["marker"]), str(named.fact["state"])
    reachable: dict[str, Engine] = {}
    for location, engine in sorted(engines.items()):
        said, state = states.get(location, (None, None))
        try:
            marker = await _marker(engine)
        except EngineError as error:
            tell(Finding("unreachable", location, str(error)))
            marker = None
        else:
            if marker is None:
                tell(Finding("unreachable", location, "its store holds no marker: is it another bucket?"))
            else:
                reachable[location] = engine
        if marker or said:
            await take_location(database, location, str(marker or said), None if state == "removed" else state)
    return reachable


async def _marker(engine: Engine) -> str | None:
    key = probe_keys(engine.prefix, "-").marker
    try:
        facts = await engine.head(key)
        return str(UUID((await engine.read(key, 0, min(facts.size, _MARKER))).decode()))
    except (ObjectMissing, ValueError):
        return None
