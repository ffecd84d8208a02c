"""One registry twice, in PostgreSQL and as plain sets: every step is done to both by the functions that nodes call."""

from collections.abc import Sequence
from uuid import UUID, uuid4

from attrs import define, field

from node.push.reading import OCI_MANIFEST
from node.records.blobs import commit_blob, mount_blob
from node.records.closures import ask_for_copies
from node.records.ledger import PostgresLedger
from node.records.manifests import CompiledTags, ManifestFacts, commit_manifest, delete_manifest, delete_tag
from node.records.members import Membership, enrol_locations
from node.records.policies import write_policy
from node.records.postgres import Database
from node.records.reconcile import PostgresRounds
from node.records.uploads import Choice, begin_upload
from replication.macs import PieceProofs
from replication.model import LocationState
from replication.policy import Policy
from replication.reconciler import ReconcilerSettings, backfill
from replication.upload_state import UploadState
from tests.collection.clock import without_triggers
from tests.copies import finish_copy
from tests.replication.plain import (
    STAYING,
    Manifest,
    Plain,
    blob_digest,
    blob_size,
    manifest_digest,
    namespace_of,
)
from tests.replication.world import LOCATIONS, NoHints

DEFAULTS = ("us", "eu")


@define(eq=False)
class Twins:
    """`blobs` are the database's ids of what was pushed, by number."""

    database: Database
    plain: Plain
    ledger: PostgresLedger
    versions: dict[str, int] = field(factory=dict)
    blobs: dict[int, int] = field(factory=dict)

    @classmethod
    async def make(cls, database: Database, manifests: Sequence[Manifest]) -> "Twins":
        """Empty the database and begin with three locations."""
        names = await database.fetch(
            "SELECT quote_ident(tablename) AS name FROM pg_tables WHERE schemaname = 'public' AND tablename <> 'schema_version'"
        )
        # Without triggers, in any order; for so few rows much quicker than TRUNCATE.
        await without_triggers(database, [f"DELETE FROM {row['name']}" for row in names])  # noqa: S608  # our names
        await enrol_locations(database, list(LOCATIONS), list(DEFAULTS))
        plain = Plain(manifests, dict.fromkeys(LOCATIONS, LocationState.ACTIVE), frozenset(DEFAULTS))
        member = Membership(UUID(int=1), ("us",), DEFAULTS, "test")
        return cls(database, plain, PostgresLedger(database=database, member=member))

    async def push_blob(self, repository: str, number: int, at: str) -> None:
        """Upload a blob into the first location from `at` on that takes it."""
        plain, upload, key = self.plain, uuid4(), uuid4().hex
        order = [at, *(other for other in LOCATIONS if other != at)]
        never = plain.policy(namespace_of(repository)).never
        allowed = [other for other in order if plain.states[other] is LocationState.ACTIVE and other not in never]
        choices = [Choice(other, UploadState(f"{key}.{other}", f"{key}.r", "sha256")) for other in order]
        chosen = await begin_upload(self.database, repository, "library", upload, choices, 3600.0)
        assert (chosen and chosen.location) == (allowed[0] if allowed else None)
        if chosen is None:
            return
        committed = await commit_blob(
            self.database,
            repository,
            upload,
            1,
            digest=blob_digest(number),
            size=blob_size(number),
            pieces=b"p" * 16,
            key=chosen.state.key,
            leftovers=(),
            replicate=True,
        )
        assert committed is not None
        plain.links.add((repository, number))
        plain.copies[number, chosen.location] = True
        if number not in self.blobs:
            self.blobs[number] = await self._one("SELECT id FROM blob WHERE digest = $1", blob_digest(number))

    async def mount(self, source: str, repository: str, number: int) -> None:
        """Mount a blob, unless it is not there or may not leave its namespace."""
        plain = self.plain
        may = (source, number) in plain.links and bool(plain.good(number))
        may = may and not plain.policy(namespace_of(source)).never
        mounted = await mount_blob(self.database, repository, "library", source, blob_digest(number), replicate=True)
        assert (mounted is not None) == may
        if may:
            plain.links.add((repository, number))

    async def put(self, repository: str, number: int, tag: str | None) -> None:
        """Push a manifest, sparse indexes too; blobs that are not there are uploaded first."""
        plain, manifest = self.plain, self.plain.manifests[number]
        for blob in sorted(manifest.blobs):
            if (repository, blob) not in plain.links:
                await self.push_blob(repository, blob, "us")
        namespace = namespace_of(repository)
        tags = () if tag is None else (tag,)
        places = tuple((name, at) for name in tags for at in sorted(plain.policy(namespace).for_tag(name)))
        facts = ManifestFacts(
            manifest_digest(number),
            OCI_MANIFEST,
            b"x",
            tuple(blob_digest(blob) for blob in sorted(manifest.blobs)),
            tuple(manifest_digest(child) for child in sorted(manifest.children)),
            None if manifest.subject is None else manifest_digest(manifest.subject),
        )
        compiled = CompiledTags(tags, self.versions.get(namespace, 0), places)
        committed = await commit_manifest(self.database, repository, "library", facts, compiled, sparse=True)
        lacking = {blob_digest(blob) for blob in manifest.blobs if (repository, blob) not in plain.links}
        assert set(committed.missing) == lacking
        if not lacking:
            plain.held.add((repository, number))
            plain.tags.update({(repository, name): number for name in tags})

    async def delete_tag(self, repository: str, tag: str) -> None:
        """Delete a tag, if there is one."""
        known = self.plain.tags.pop((repository, tag), None)
        digest = await delete_tag(self.database, repository, tag)
        assert digest == (None if known is None else manifest_digest(known))

    async def delete_manifest(self, repository: str, number: int) -> None:
        """Delete a manifest by its digest with its tags; an index that names it goes on naming it."""
        plain, there = self.plain, (repository, number) in self.plain.held
        assert await delete_manifest(self.database, repository, manifest_digest(number)) == there
        plain.held.discard((repository, number))
        for tag in [tag for tag, target in plain.tags.items() if tag[0] == repository and target == number]:
            del plain.tags[tag]

    async def policy(self, namespace: str, policy: Policy) -> None:
        """Change a namespace's policy, and let the nodes compile and reconcile."""
        version = await write_policy(self.database, namespace, policy)
        assert version is not None
        self.versions[namespace], self.plain.policies[namespace] = version, policy
        await self.reconcile()

    async def state(self, at: str, state: LocationState) -> None:
        """Change a location's state, and let the nodes reconcile."""
        await self.database.fetch("UPDATE location SET state = $2 WHERE name = $1", at, state.value)
        self.plain.states[at] = state
        await self.reconcile()

    async def suspect(self, number: int, at: str) -> None:
        """Distrust a copy, if there is one."""
        if (number, at) not in self.plain.copies:
            return
        key = (
            "SELECT p.key FROM placement p JOIN location l ON l.id = p.location_id WHERE p.blob_id = $1 AND l.name = $2"
        )
        row = await self.database.fetch_row(key, self.blobs[number], at)
        assert row is not None
        await self.ledger.mark_suspect(self.blobs[number], at, row["key"], "test")
        self.plain.copies[number, at] = False

    async def pay(self, at: str) -> None:
        """Copy what is owed to a location; nothing that is forbidden there is."""
        numbers = {blob: number for number, blob in self.blobs.items()}
        for task in await self.ledger.claim_copies(at, "p/", 100, 60.0):
            number = numbers[task.blob.id]
            assert at not in self.plain.forbidden(number)
            assert self.plain.states[at] is LocationState.ACTIVE
            await finish_copy(self.ledger, task, PieceProofs())
            self.plain.copies[number, at] = True

    async def wish(self, repository: str, number: int, at: str, referrers: bool) -> None:
        """Ask for a copy of an image once, where it may be."""
        plain = self.plain
        await ask_for_copies(
            self.database,
            repository,
            manifest_digest(number),
            locations=[at],
            keep={at: 3600.0},
            referrers=referrers,
        )
        may = plain.states[at] in STAYING and at not in plain.policy(namespace_of(repository)).never
        if may and (repository, number) in plain.held:
            plain.wishes |= {(blob, at) for blob in plain.closure_blobs(repository, number, referrers=referrers)}

    async def reconcile(self) -> None:
        """Do a whole round, without trims."""
        await backfill(PostgresRounds(self.database), NoHints().publish, ReconcilerSettings())

    async def _one(self, sql: str, *args: object) -> int:
        row = await self.database.fetch_row(sql, *args)
        assert row is not None
        return int(next(iter(row.values())))
