"""What nothing references goes, when its time has come; what anything references stays."""

from node.records.collect import CollectRules
from tests.collection.clock import Later, collect_all
from tests.registry.world import Region

TWO_WEEKS = 14 * 24.0


async def counts(region: Region) -> dict[str, int]:
    (row,) = await region.rows(
        "SELECT (SELECT count(*) FROM repository_manifest) AS manifest_links, (SELECT count(*) FROM repository_blob) AS blob_links,"
        " (SELECT count(*) FROM manifest) AS manifests, (SELECT count(*) FROM blob) AS blobs,"
        " (SELECT count(*) FROM placement) AS placements, (SELECT count(*) FROM task) AS tasks,"
        " (SELECT count(*) FROM dead_object) AS dead"
    )
    return row


async def test_a_tagged_image_stays(us: Region, rules: CollectRules, later: Later) -> None:
    """What a tag reaches is never collected, however old it is."""
    await us.push_image("a/b", "v1", b"layer")
    before = await counts(us)
    for _ in range(3):
        await later(1000)
        assert await collect_all(us.registry.database, rules) == []
    assert await counts(us) == before
    assert await us.rows("SELECT * FROM garbage") == []


async def test_a_deleted_image_goes_in_the_end(us: Region, rules: CollectRules, later: Later) -> None:
    """After its window, the grace and the rest that each level gets, nothing of an image is left but dead objects."""
    await us.push_image("a/b", "v1", b"layer", b"another")
    assert (await us.ask("DELETE", "/v2/a/b/manifests/v1")).status == 202
    database = us.registry.database
    await later(TWO_WEEKS - 1)
    assert await collect_all(database, rules) == []
    await later(2)
    assert await collect_all(database, rules) == []  # the history went now, and only now the grace begins
    await later(73)
    assert [gone.kind for gone in await collect_all(database, rules)] == ["manifest link"]
    await later(3)
    assert {gone.kind for gone in await collect_all(database, rules)} == {"manifest", "blob link"}
    await later(3)
    assert [gone.kind for gone in await collect_all(database, rules)] == ["blob"] * 3
    left = await counts(us)
    assert left.pop("dead") == 3
    assert set(left.values()) == {0}
    (soonest,) = await us.rows("SELECT min(not_before - now()) > interval '23 hours' AS kept FROM dead_object")
    assert soonest["kept"]
