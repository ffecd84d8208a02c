"""The database in memory, on Trio's clock: what outlives the nodes, with the rules that the schema's functions keep."""

from collections.abc import Callable, Collection, Iterable, Mapping
from random import Random
from uuid import UUID

import trio
from attrs import define, evolve, field

from node.records.locations import Change, Changed
from property_tests.memory_tags import Tags
from replication.model import Blob, LocationState, Placement
from replication.policy import NO_POLICY, Policy
from replication.reconcile import BlobFacts
from replication.upload_state import UploadState

COUNTING = (LocationState.ACTIVE, LocationState.PAUSED)
_FROM = {
    LocationState.ACTIVE: frozenset(LocationState) - {LocationState.ACTIVE},
    LocationState.PAUSED: frozenset({LocationState.ACTIVE}),
    LocationState.DRAINING: frozenset({*COUNTING, LocationState.DRAINED}),
}


@define(eq=False)
class Task:
    """A row of the task table. Due when both `due` and the lease's end have passed."""

    blob: int
    destination: str
    created: float
    priority: int
    due: float
    key: str | None = None
    upload: str | None = None
    lease: str | None = None
    lease_until: float = float("-inf")
    attempts: int = 0
    error: str = ""


@define(eq=False)
class Dead:
    """A row of the table of dead objects."""

    id: int
    location: str
    key: str
    due: float
    attempts: int = 0
    error: str = ""


@define(eq=False)
class NodeRow:
    """A row of the table of nodes."""

    id: str
    preference: tuple[str, ...]
    seen: float


@define(eq=False)
class OpenUpload:
    """A row of the table of uploads. Whoever has the `epoch` owns it."""

    namespace: str
    location: str
    state: UploadState
    expires: float
    epoch: int = 1

    def written(self) -> tuple[str, ...]:
        """Return the keys under which it may have written something."""
        tail = self.state.tail
        return (self.state.key, self.state.reserved_key, *([tail.key] if tail is not None else []))


@define(eq=False)
class Round:
    """Where the shared round of reconciliation is; `pages` are (last, lease's end) by what they come after."""

    number: int = 1
    phase: str = "tags"
    after: int = 0
    until: float = float("-inf")
    hurry_before: int = 0
    completed: int = 0
    pages: dict[int, tuple[int, float]] = field(factory=dict)


@define(eq=False)
class Truth:
    """The database itself. `states` are the enrolled locations, in the order in which a blob that has to move tries them."""

    states: dict[str, LocationState]
    defaults: frozenset[str] | None = None
    """The default locations; None: every enrolled one."""
    random: Random = field(factory=lambda: Random(0))
    blobs: dict[int, Blob] = field(factory=dict)
    links: dict[int, frozenset[str]] = field(factory=dict)
    """The namespaces that link a blob."""
    policies: dict[str, Policy] = field(factory=dict)
    tags: Tags = field(factory=Tags)
    wishes: dict[tuple[int, str], float] = field(factory=dict)
    placements: dict[tuple[int, str], Placement] = field(factory=dict)
    tasks: dict[tuple[int, str], Task] = field(factory=dict)
    dead: dict[int, Dead] = field(factory=dict)
    uploads: dict[UUID, OpenUpload] = field(factory=dict)
    nodes: dict[str, NodeRow] = field(factory=dict)
    round: Round = field(factory=Round)
    trims: dict[int, float] = field(factory=dict)
    """Blobs of which a node reads a copy, and until when they are its own."""
    emptying: dict[str, float] = field(factory=dict)
    """Since when locations that are being emptied are."""
    placed: dict[tuple[int, str], float] = field(factory=dict)
    """When the copies there are were made."""
    proven: dict[tuple[int, str], tuple[str, float]] = field(factory=dict)
    """Under which key, and when, a copy was read and was right."""
    left: set[tuple[str, str]] = field(factory=set)
    """Objects in buckets of removed locations, which nobody deletes, as (location, key)."""
    suspicions: list[tuple[tuple[int, str], str]] = field(factory=list)
    unavailable_rate: float = 0.0
    latency: float = 0.001
    recorded: Callable[[Blob, Placement], None] | None = None
    """Told of every placement at the moment it is recorded."""
    skew: float = 0.0
    """Seconds that have passed beside Trio's clock."""
    _serial: int = 0

    def now(self) -> float:
        """Return the database's time in seconds."""
        return trio.current_time() + self.skew

    def serial(self) -> int:
        """Return a number that was not given before."""
        self._serial += 1
        return self._serial

    def add_blob(
        self,
        digest: str,
        size: int,
        pieces: bytes | None,
        placed: Mapping[str, str],
        owed: Iterable[str] | None = None,
        priority: int = 0,
        namespaces: Collection[str] = ("team",),
    ) -> Blob:
        """Commit a push: the blob, its links, its placements (location to key) and its debt, in one step.

        `owed` of None is what is required and not placed.
        """
        blob = Blob(self.serial(), digest, size, pieces)
        self.blobs[blob.id] = blob
        self.links[blob.id] = frozenset(namespaces)
        for location, key in placed.items():
            self.place(blob, Placement(location, key))
        for location in sorted(self.required(blob.id) - placed.keys() if owed is None else owed):
            self.owe(blob.id, location, priority)
        return blob

    def place(self, blob: Blob, placement: Placement) -> None:
        """Record a placement."""
        self.placements[blob.id, placement.location] = placement
        self.placed[blob.id, placement.location] = self.now()
        if self.recorded is not None:
            self.recorded(blob, placement)

    def owe(self, blob: int, location: str, priority: int = 0) -> None:
        """Make a piece of debt due now."""
        now = self.now()
        task = self.tasks.setdefault((blob, location), Task(blob, location, now, priority, now))
        task.due = min(task.due, now)

    def owe_all(self, blobs: Iterable[int] | None = None) -> None:
        """Owe what is required of these blobs (None: of all that manifests have) and nobody has been told of."""
        for blob in sorted(set().union(*(m.blobs for m in self.tags.manifests.values())) if blobs is None else blobs):
            for at in sorted(self.required(blob) - self.good(blob)):
                if (blob, at) not in self.tasks:
                    self.owe(blob, at)

    def compile_tags(self) -> int:
        """Give tags what their policies say, and owe what that adds; return how many blobs that concerns."""
        touched = self.tags.compile(self.policies)
        self.owe_all(touched)
        return len(touched)

    def drop_blob(self, blob: int, retention: float = 0.0) -> None:
        """Collect a blob: its rows go, its objects are dead, and their bytes stay for `retention` seconds."""
        keys = {(at, placement.key) for (owner, at), placement in self.placements.items() if owner == blob}
        keys |= {(at, task.key) for (owner, at), task in self.tasks.items() if owner == blob and task.key is not None}
        self.placements = {place: placement for place, placement in self.placements.items() if place[0] != blob}
        self.tasks = {place: task for place, task in self.tasks.items() if place[0] != blob}
        self.wishes = {place: until for place, until in self.wishes.items() if place[0] != blob}
        for location, key in sorted(keys):
            self.bury(location, key, retention)
        del self.blobs[blob], self.links[blob]

    def bury(self, location: str, key: str, after: float = 0.0) -> None:
        """Make an object a dead one, due in `after` seconds, unless it is dead already."""
        if not any(dead.location == location and dead.key == key for dead in self.dead.values()):
            serial = self.serial()
            self.dead[serial] = Dead(serial, location, key, self.now() + after)

    def sources(self, blob: int) -> tuple[Placement, ...]:
        """Return a blob's placements."""
        return tuple(placement for (owner, _), placement in self.placements.items() if owner == blob)

    def good(self, blob: int) -> frozenset[str]:
        """Return where a blob has a copy that nobody distrusts."""
        return frozenset(placement.location for placement in self.sources(blob) if not placement.suspect)

    def policy(self, namespace: str) -> Policy:
        """Return a namespace's policy."""
        return self.policies.get(namespace, NO_POLICY)

    def forbidden(self, blob: int) -> frozenset[str]:
        """Return where every namespace that links a blob says *never*."""
        nevers = [self.policy(namespace).never for namespace in self.links[blob]]
        return frozenset.intersection(*nevers) if nevers else frozenset()

    def rules(self, namespace: str) -> tuple[frozenset[str], frozenset[str]]:
        """Return where a namespace requires its blobs, whatever the locations' states, and where it forbids them."""
        defaults = frozenset(self.states) if self.defaults is None else self.defaults
        policy = self.policy(namespace)
        return (defaults if policy.required is None else policy.required) - policy.never, policy.never

    def required(self, blob: int) -> frozenset[str]:
        """Return where a blob must be."""
        wanted = {at for (owner, at), until in self.wishes.items() if owner == blob and until > self.now()}
        wanted |= self.tags.wanted(blob)
        for namespace in self.links[blob]:
            wanted |= self.rules(namespace)[0]
        counting = {at for at, state in self.states.items() if state in COUNTING}
        return frozenset(wanted & counting) - self.forbidden(blob)

    def facts(self, blob: int) -> BlobFacts:
        """Return what the reconciler decides on."""
        now = self.now()
        return BlobFacts(
            linked=bool(self.links[blob]),
            required=self.required(blob),
            forbidden=self.forbidden(blob),
            placed={placement.location: not placement.suspect for placement in self.sources(blob)},
            tasks={task.destination: task.lease_until > now for task in self.tasks.values() if task.blob == blob},
            states=tuple(self.states.items()),
        )

    def outlives(self, blob: int, location: str) -> bool:
        """Return whether a blob has a good copy outside a location that was made or read since that is being emptied."""
        since = self.emptying.get(location, float("inf"))
        for copy in self.sources(blob):
            place = blob, copy.location
            if copy.location == location or copy.suspect or self.states[copy.location] is LocationState.REMOVED:
                continue
            key, at = self.proven.get(place, ("", float("-inf")))
            if self.placed.get(place, float("-inf")) >= since or (key == copy.key and at >= since):
                return True
        return False

    def unproven_at(self, location: str) -> int:
        """Return how many blobs would not outlive a location, as far as anybody knows."""
        return sum(not self.outlives(blob, location) for blob, at in self.placements if at == location)

    def change(self, location: str, state: LocationState) -> Changed:
        """Make a location active, paused or draining, if that is possible from where it is."""
        before = self.states.get(location)
        if before is None:
            return Changed(Change.UNKNOWN)
        others = any(s is LocationState.ACTIVE for at, s in self.states.items() if at != location)
        rows = before is LocationState.REMOVED and any(at == location for _, at in self.placements)
        if before is not state and before not in _FROM[state]:
            return Changed(Change.REFUSED, before)
        if (state is not LocationState.ACTIVE and not others) or rows:
            return Changed(Change.REFUSED, before)
        self.states[location] = state
        if state is LocationState.DRAINING and before not in (state, LocationState.DRAINED):
            self.emptying[location] = self.now()
        return Changed(Change.DONE, before)

    def remove(self, location: str) -> Changed:
        """Take a draining or drained location out for good, unless a blob may have its only good copy there."""
        before = self.states.get(location)
        if before is None:
            return Changed(Change.UNKNOWN)
        if before is LocationState.REMOVED:
            return Changed(Change.DONE)
        if before not in (LocationState.DRAINING, LocationState.DRAINED):
            return Changed(Change.REFUSED)
        if any(self.states[at] is LocationState.REMOVED for _, at in self.placements):
            return Changed(Change.ANOTHER_REMOVAL)
        unproven = self.unproven_at(location)
        if unproven:
            return Changed(Change.ONLY_COPIES, blobs=unproven)
        self.states[location] = LocationState.REMOVED
        for place in [place for place in self.tasks if place[1] == location]:
            self.lose_task(*place)
        for upload in [upload for upload, row in self.uploads.items() if row.location == location]:
            self.left.update((location, key) for key in self.uploads.pop(upload).written())
        return Changed(Change.DONE)

    def lose_task(self, blob: int, location: str) -> None:
        """Forget a task with the key that it may have written under."""
        key = self.tasks.pop((blob, location)).key
        if key is not None:
            self.left.add((location, key))

    def purge_removed(self) -> int:
        """Take the rows of removed locations away; return how many went."""
        out = {at for at, state in self.states.items() if state is LocationState.REMOVED}
        copies = [place for place in self.placements if place[1] in out]
        dead = [row for row in self.dead.values() if row.location in out]
        tasks = [place for place in self.tasks if place[1] in out]
        wishes = [place for place in self.wishes if place[1] in out]
        for place in copies:
            self.left.add((place[1], self.placements.pop(place).key))
        for row in dead:
            self.left.add((row.location, self.dead.pop(row.id).key))
        for place in tasks:
            self.lose_task(*place)
        for place in wishes:
            del self.wishes[place]
        return len(copies) + len(dead) + len(tasks) + len(wishes)

    def note_drained(self) -> list[str]:
        """Make draining locations drained where each blob has a proven copy elsewhere, and the other way round."""
        drained = []
        for at, state in self.states.items():
            if state in (LocationState.DRAINING, LocationState.DRAINED):
                self.states[at] = LocationState.DRAINING if self.unproven_at(at) else LocationState.DRAINED
                if self.states[at] is not state and self.states[at] is LocationState.DRAINED:
                    drained.append(at)
        return drained

    def suspect(self, blob: int, location: str, reason: str) -> None:
        """Distrust a copy, and owe its location a good one."""
        place = blob, location
        self.placements[place] = evolve(self.placements[place], suspect=True)
        self.suspicions.append((place, reason))
        self.owe(blob, location, 1)
