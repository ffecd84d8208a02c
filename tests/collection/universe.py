"""A small registry for histories that Hypothesis makes up: real records, stores that are sets of keys, and a model beside them.

The model knows tags, their history and when things were last touched; from these it says what must be there and what may not be.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from uuid import UUID, uuid4

from attrs import define, field, frozen

from node.push.reading import OCI_INDEX, OCI_MANIFEST, read_manifest
from node.records.blobs import commit_blob, mount_blob, unlink_blob
from node.records.collect import HEAD_PROMISE, CollectRules
from node.records.ledger import PostgresLedger
from node.records.manifests import CompiledTags, ManifestFacts, commit_manifest, delete_manifest, delete_tag
from node.records.members import Membership, enrol_locations
from node.records.postgres import Database
from node.records.pulls import find_blob, prolong_blob
from node.records.removal import delete_repository
from node.records.uploads import Choice, begin_upload
from replication.macs import PieceProofs
from replication.upload_state import UploadState
from tests.collection.clock import HOUR, collect_all, pass_time, without_triggers
from tests.copies import finish_copy
from tests.registry.world import digest_of, image, index

REPOSITORIES = ("a/x", "b/y")
TAGS = ("t", "u")
BLOBS = (b"0", b"1", b"2", b"3")
RULES = CollectRules(grace=72 * HOUR, retention=24 * HOUR, tag_expiration=336 * HOUR)
_STORES = ("us", "eu")


def _facts(document: Mapping[str, Any]) -> ManifestFacts:
    body = json.dumps(document).encode()
    return read_manifest(body, None, digest_of(body))


def _named(facts: ManifestFacts, media_type: str = OCI_MANIFEST) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": facts.digest, "size": len(facts.body)}


def _manifests() -> Sequence[ManifestFacts]:
    """Images that share blobs, an index, an index of an index, and referrers of an image, of the index, and of a referrer."""
    one, two = _facts(image(BLOBS[0], BLOBS[1])), _facts(image(BLOBS[0], BLOBS[2]))
    many = _facts(index([_named(one), _named(two)], OCI_INDEX))
    nested = _facts(index([_named(many, OCI_INDEX), _named(one)], OCI_INDEX))
    signature = _facts(image(BLOBS[3], subject=_named(one)))
    attached = _facts(image(BLOBS[1], BLOBS[3], subject=_named(many, OCI_INDEX)))
    again = _facts(image(BLOBS[2], subject=_named(signature)))
    return one, two, many, nested, signature, attached, again


MANIFESTS = _manifests()
BY_DIGEST = {facts.digest: facts for facts in MANIFESTS}


@frozen
class Former:
    """What a tag pointed to until some hour."""

    repository: str
    digest: str
    until: float


@define
class Model:
    """What was asked for and answered, in hours of the model's own clock."""

    now: float = 0.0
    tags: dict[tuple[str, str], str] = field(factory=dict)
    history: list[Former] = field(factory=list)
    linked_at: dict[tuple[str, str], float] = field(factory=dict)
    """(repository, digest of a manifest or blob) -> when it was last pushed or mounted there."""
    promised_until: dict[tuple[str, str], float] = field(factory=dict)
    """(repository, blob) -> until when a HEAD has promised it."""

    def point(self, repository: str, tag: str, digest: str | None) -> None:
        """Let a tag point elsewhere, or nowhere."""
        old = self.tags.pop((repository, tag), None)
        if old is not None and old != digest:
            self.history.append(Former(repository, old, self.now))
        if digest is not None:
            self.tags[repository, tag] = digest

    def drop(self, repository: str, digest: str) -> None:
        """A manifest or blob leaves a repository because somebody asked for that."""
        for at, tag in [key for key, target in self.tags.items() if (key[0], target) == (repository, digest)]:
            self.point(at, tag, None)
        self.linked_at.pop((repository, digest), None)
        self.promised_until.pop((repository, digest), None)

    def drop_repository(self, repository: str) -> None:
        """Everything of a repository goes, history too."""
        self.tags = {key: target for key, target in self.tags.items() if key[0] != repository}
        self.history = [former for former in self.history if former.repository != repository]
        for times in (self.linked_at, self.promised_until):
            for key in [key for key in times if key[0] == repository]:
                del times[key]

    def reachable(self, repository: str, linked: Iterable[str], *, history: bool) -> set[str]:
        """Return the digests of manifests and blobs that tags, and with `history` former tags in their window, reach."""
        window = RULES.tag_expiration / HOUR
        found = {target for (at, _), target in self.tags.items() if at == repository}
        if history:
            found |= {
                former.digest
                for former in self.history
                if former.repository == repository and self.now - former.until < window
            }
        # Through a manifest that was deleted by hand nothing is reached, unless a tag can be restored to it.
        held = {digest for digest in (*linked, *found) if digest in BY_DIGEST}
        while True:
            more = {child for digest in found & held for child in BY_DIGEST[digest].children}
            more |= {digest for digest in held if BY_DIGEST[digest].subject in found & held}
            if more <= found:
                break
            found |= more
        return found | {blob for digest in found & held for blob in BY_DIGEST[digest].blobs}


@define(eq=False)
class Universe:
    """The real records, the stores' keys, and the model. Every method is one step of a history."""

    database: Database
    ledger: PostgresLedger
    model: Model = field(factory=Model)
    stores: dict[str, set[str]] = field(factory=lambda: {name: set() for name in _STORES})

    @classmethod
    async def make(cls, database: Database) -> "Universe":
        """Empty the database and begin."""
        names = await database.fetch(
            "SELECT quote_ident(tablename) AS name FROM pg_tables WHERE schemaname = 'public' AND tablename <> 'schema_version'"
        )
        # Without triggers, in any order; for so few rows much quicker than TRUNCATE.
        await without_triggers(database, [f"DELETE FROM {row['name']}" for row in names])  # noqa: S608  # our names
        await enrol_locations(database, list(_STORES), list(_STORES))
        return cls(
            database, PostgresLedger(database=database, member=Membership(UUID(int=1), _STORES, _STORES, "test"))
        )

    async def push_blob(self, repository: str, data: bytes) -> None:
        """Upload a blob."""
        digest, key, upload = digest_of(data), f"k/{uuid4().hex}", uuid4()
        choice = Choice("us", UploadState(key, f"{key}.tail", "sha256"))
        assert await begin_upload(self.database, repository, "library", upload, [choice], 3600.0) is not None
        self.stores["us"].add(key)
        committed = await commit_blob(
            self.database,
            repository,
            upload,
            1,
            digest=digest,
            size=1,
            pieces=b"p" * 16,
            key=key,
            leftovers=(),
            replicate=True,
        )
        assert committed is not None
        self.model.linked_at[repository, digest] = self.model.now

    async def mount(self, source: str, repository: str, data: bytes) -> None:
        """Mount a blob; whether that succeeds, the records say."""
        digest = digest_of(data)
        there = (source, digest) in await self.links()
        mounted = await mount_blob(self.database, repository, "library", source, digest, replicate=True)
        assert (mounted is not None) == there
        if mounted is not None:
            self.model.linked_at[repository, digest] = self.model.now

    async def put(self, repository: str, number: int, tag: str | None) -> None:
        """Push a manifest; it is refused exactly if something that it names is not linked there."""
        facts = MANIFESTS[number]
        here = {digest for at, digest in await self.links() if at == repository}
        tags = CompiledTags(() if tag is None else (tag,))
        committed = await commit_manifest(self.database, repository, "library", facts, tags, sparse=False)
        assert set(committed.missing) == {*facts.blobs, *facts.children} - here
        if committed.missing:
            return
        self.model.linked_at[repository, facts.digest] = self.model.now
        if tag is not None:
            self.model.point(repository, tag, facts.digest)

    async def push_image(self, repository: str, number: int, tag: str | None) -> None:
        """Push a manifest with everything that it needs, as a client does."""
        facts = MANIFESTS[number]
        for data in BLOBS:
            if digest_of(data) in facts.blobs:
                await self.push_blob(repository, data)
        for child in facts.children:
            await self.push_image(repository, MANIFESTS.index(BY_DIGEST[child]), None)
        await self.put(repository, number, tag)

    async def delete_tag(self, repository: str, tag: str) -> None:
        """Delete a tag."""
        assert await delete_tag(self.database, repository, tag) == self.model.tags.get((repository, tag))
        self.model.point(repository, tag, None)

    async def delete_manifest(self, repository: str, number: int) -> None:
        """Delete a manifest by its digest, with its tags."""
        digest = MANIFESTS[number].digest
        if await delete_manifest(self.database, repository, digest):
            self.model.drop(repository, digest)

    async def delete_blob(self, repository: str, data: bytes) -> None:
        """Take a blob out of a repository by hand, unless something there, or something that can be restored, uses it."""
        digest = digest_of(data)
        here = {found for at, found in await self.links() if at == repository}
        if digest in self.model.reachable(repository, here, history=True):
            return
        if (await unlink_blob(self.database, repository, digest)).value == "done":
            self.model.drop(repository, digest)

    async def delete_repository(self, repository: str) -> None:
        """Delete a repository."""
        await delete_repository(self.database, repository)
        self.model.drop_repository(repository)

    async def head(self, repository: str, data: bytes) -> None:
        """Ask for a blob as HEAD does; an answer of 200 is a promise for an hour."""
        digest = digest_of(data)
        found = await find_blob(self.database, repository, digest, pieces=False, grace=RULES.grace)
        if found is not None and found.stays is not None and found.stays < HEAD_PROMISE:
            await prolong_blob(self.database, repository, digest)
            found = await find_blob(self.database, repository, digest, pieces=False, grace=RULES.grace)
        if found is not None:
            self.model.promised_until[repository, digest] = self.model.now + HEAD_PROMISE / HOUR

    async def claim(self) -> None:
        """Begin a copy that nobody ends: its node is gone."""
        for task in await self.ledger.claim_copies("eu", "k/", 1, 30.0):
            self.stores["eu"].add(task.key)

    async def copy(self) -> None:
        """Pay the debt that is due."""
        for task in await self.ledger.claim_copies("eu", "k/", 10, 30.0):
            self.stores["eu"].add(task.key)
            await finish_copy(self.ledger, task, PieceProofs())

    async def collect_while_copying(self) -> None:
        """Collect while copies are under way that end afterwards."""
        tasks = await self.ledger.claim_copies("eu", "k/", 10, 30.0)
        for task in tasks:
            self.stores["eu"].add(task.key)
        await self.collect()
        for task in tasks:
            await finish_copy(self.ledger, task, PieceProofs())

    async def sweep(self) -> None:
        """Delete the objects whose time has come."""
        for name in _STORES:
            while dead := await self.ledger.claim_dead(name, 100, 60.0):
                self.stores[name] -= {one.key for one in dead}
                await self.ledger.finish_dead([one.id for one in dead])

    async def wait(self, hours: float) -> None:
        """Let hours go by."""
        await pass_time(self.database, hours * HOUR)
        self.model.now += hours

    async def collect(self) -> None:
        """Collect, and look at everything that must have stayed."""
        before = await self.links()
        await collect_all(self.database, RULES, most=3)
        after, now, grace = await self.links(), self.model.now, RULES.grace / HOUR
        for repository in REPOSITORIES:
            here = {digest for at, digest in before if at == repository}
            reach = self.model.reachable(repository, here, history=True)
            assert {(repository, digest) for digest in reach & here} <= after
        for key, touched in self.model.linked_at.items():
            assert key not in before or now - touched >= grace or key in after
        for key, until in self.model.promised_until.items():
            assert key not in before or now >= until or key in after
        self.model.linked_at = {key: at for key, at in self.model.linked_at.items() if key in after}

    async def links(self) -> set[tuple[str, str]]:
        """Return what every repository links: (repository, digest of a manifest or blob)."""
        rows = await self.database.fetch(
            "SELECT r.name, m.digest FROM repository r JOIN repository_manifest x ON x.repository_id = r.id "
            "JOIN manifest m ON m.id = x.manifest_id UNION SELECT r.name, b.digest FROM repository r "
            "JOIN repository_blob x ON x.repository_id = r.id JOIN blob b ON b.id = x.blob_id"
        )
        return {(row["name"], row["digest"]) for row in rows}

    async def check(self) -> None:
        """Look at what holds at any time: copies exist, no key lives twice, and what is counted is right."""
        rows = await self.database.fetch(
            "SELECT l.name, p.key FROM placement p JOIN location l ON l.id = p.location_id"
        )
        for row in rows:
            assert row["key"] in self.stores[row["name"]]
        both = await self.database.fetch("SELECT p.key FROM placement p JOIN dead_object d USING (location_id, key)")
        assert both == []
        wrong = await self.database.fetch(
            """
            WITH sole AS (SELECT blob_id, min(location_id) AS location_id FROM placement WHERE state = 'present'
                          GROUP BY blob_id HAVING count(*) = 1)
            SELECT blob_id FROM sole FULL JOIN sole_copy s USING (blob_id, location_id) WHERE sole IS NULL OR s IS NULL
            UNION ALL SELECT sum(blobs) FROM sole_total HAVING coalesce(sum(blobs), 0) <> (SELECT count(*) FROM sole_copy)
            """
        )
        assert wrong == []
        linked = {digest for _, digest in await self.links()}
        placed = await self.database.fetch("SELECT DISTINCT b.digest FROM blob b JOIN placement p ON p.blob_id = b.id")
        assert {digest for digest in linked if digest not in BY_DIGEST} <= {row["digest"] for row in placed}

    async def end(self) -> None:
        """Let much time go by, and look whether exactly what tags reach is left, in records and stores."""
        for _ in range(9):
            await self.copy()
            await self.wait(350)
            await self.collect()
            await self.sweep()
        await self.wait(350)
        await self.sweep()
        expected: set[tuple[str, str]] = set()
        left = await self.links()
        for repository in REPOSITORIES:
            here = {digest for at, digest in left if at == repository}
            expected |= {
                (repository, digest) for digest in self.model.reachable(repository, here, history=False) & here
            }
        assert left == expected
        for table in ("garbage", "tag_history", "dead_object"):
            assert await self.database.fetch(f"SELECT * FROM {table}") == []  # noqa: S608  # our names
        rows = await self.database.fetch("SELECT digest FROM blob UNION SELECT digest FROM manifest")
        assert {row["digest"] for row in rows} == {digest for _, digest in left}
        placed = await self.database.fetch(
            "SELECT l.name, p.key FROM placement p JOIN location l ON l.id = p.location_id"
        )
        assert {(name, key) for name, keys in self.stores.items() for key in keys} == {
            (row["name"], row["key"]) for row in placed
        }
