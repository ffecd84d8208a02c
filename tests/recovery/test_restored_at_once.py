"""Manifests that a replay links at the same moment: each with all that it names, also what the records did not know before."""

from collections.abc import Sequence

import trio

from node.records.manifests import ManifestFacts
from node.records.postgres import Database
from node.records.replay import restore_manifest
from tests.collection.held import held_transaction, wait_until_one_waits
from tests.registry.world import digest_of

_SIZE = 1000


async def restore(database: Database, repository: str, manifest: str, *blobs: str) -> None:
    digests = [digest_of(blob.encode()) for blob in blobs]
    facts = ManifestFacts(digest_of(manifest.encode()), "x", manifest.encode(), tuple(digests))
    await restore_manifest(database, repository, "library", facts, dict.fromkeys(digests, _SIZE), 1.0)


async def named(database: Database) -> Sequence[tuple[str, int, int]]:
    """Return of each repository how many blobs it has, and how many its manifests name."""
    rows = await database.fetch(
        """
        SELECT r.name, (SELECT count(*) FROM repository_blob rb WHERE rb.repository_id = r.id) AS linked, (
            SELECT count(*) FROM repository_manifest rm JOIN manifest_blob mb USING (manifest_id)
            WHERE rm.repository_id = r.id) AS named
        FROM repository r ORDER BY 1
        """
    )
    return [(row["name"], row["linked"], row["named"]) for row in rows]


async def test_a_layer_that_two_manifests_share(database: Database, migrated_uri: str) -> None:
    """A blob that another manifest's link has just made belongs to both: else collection would take it from the second one."""
    for repository in ("team/a", "team/b"):
        await restore(database, repository, "empty")
    async with trio.open_nursery() as nursery, held_transaction(migrated_uri) as held:
        await restore(held, "team/a", "one", "base", "top of one")
        nursery.start_soon(restore, database, "team/b", "other", "base", "top of the other")
        await wait_until_one_waits(database)
    assert await named(database) == [("team/a", 2, 2), ("team/b", 2, 2)]
    await restore(database, "team/b", "other", "base", "top of the other")
    assert await named(database) == [("team/a", 2, 2), ("team/b", 2, 2)]
