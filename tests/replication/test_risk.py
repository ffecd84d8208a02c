"""What would be lost if a location died now, compared with the plainest way to find out, while copies come and go."""

import time

import hypothesis.strategies as st
import pytest
import trio
from hypothesis import HealthCheck, Phase, given, settings

from node.api.debts import replication_risk
from node.api.frame import Problem
from node.records.risk import risk_totals, tags_at_risk
from scripts.bench_parts.scale import TABLES
from tests.replication.world import LOCATIONS, World, digest_of, open_world
from tests.services import fresh_database, required

_STEPS = st.lists(
    st.tuples(st.sampled_from(["place", "suspect", "heal", "drop", "forget"]), st.integers(0, 5), st.sampled_from(LOCATIONS)),
    max_size=40,
)  # fmt: skip


_MINUTES = 600.0
_FILL = (
    (
        "INSERT INTO blob (digest, size) SELECT 'sha256:' || encode(sha256(n::text::bytea), 'hex'), 1000 "
        "FROM generate_series(1, 1000000) n"
    ),
    "INSERT INTO repository_blob (repository_id, blob_id) SELECT $1::bigint, id FROM blob",
    "INSERT INTO placement (blob_id, location_id, key) SELECT id, 1, id FROM blob",
    (
        "INSERT INTO sole_copy (blob_id, location_id, size, since) "
        "SELECT id, 1, size, now() - (2000000 - id) * interval '1 second' FROM blob"
    ),
    "INSERT INTO sole_total SELECT 1, 0, count(*), sum(size) FROM blob",
    (
        "INSERT INTO manifest (digest, bytes) SELECT 'sha256:m' || n, 'x' FROM generate_series(1, 1000000) n "
        "WHERE $1::bigint > 0 AND CASE $2::text WHEN 'untagged' THEN n > 4000 WHEN 'base layer' THEN n <= 100000 ELSE true END"
    ),
    "INSERT INTO repository_manifest (repository_id, manifest_id, media_type) SELECT $1::bigint, id, 'x' FROM manifest",
    (
        "INSERT INTO manifest_blob SELECT id, CASE WHEN $1::bigint > 0 AND $2::text = 'base layer' THEN 1 "
        "ELSE substr(digest, 9)::bigint END FROM manifest"
    ),
    "INSERT INTO tag (repository_id, name, manifest_id) SELECT $1::bigint, 'v' || id, id FROM manifest",
)
"""A million blobs in one location: each with a tag of its own; the oldest thousands without; or one below 100 000 tags."""


async def _brute_force(world: World) -> dict[str, tuple[int, int, set[str]]]:
    """Count from nothing but placements, and find the tags by walking every closure down."""
    rows = await world.database.fetch(
        """
        WITH lone AS (
            SELECT blob_id, min(location_id) AS location_id FROM placement WHERE state = 'present' GROUP BY 1 HAVING count(*) = 1)
        SELECT l.name, count(o.blob_id) AS blobs, coalesce(sum(b.size), 0)::bigint AS bytes,
            ARRAY(SELECT DISTINCT t.name FROM tag t CROSS JOIN LATERAL closure_in(t.repository_id, t.manifest_id, true) m
                JOIN manifest_blob mb ON mb.manifest_id = m JOIN lone q ON q.blob_id = mb.blob_id
                WHERE q.location_id = l.id) AS tags
        FROM location l LEFT JOIN lone o ON o.location_id = l.id LEFT JOIN blob b ON b.id = o.blob_id GROUP BY l.id
        """
    )
    return {row["name"]: (row["blobs"], row["bytes"], set(row["tags"])) for row in rows}


async def _apply(world: World, step: str, blob: str, at: str) -> None:
    if step == "place":
        await world.database.fetch(
            "INSERT INTO placement (blob_id, location_id, key) SELECT $1, id, $3 FROM location WHERE name = $2 "
            "ON CONFLICT DO NOTHING",
            world.blobs[blob], at, f"{blob}.{at}",
        )  # fmt: skip
    elif step == "forget":
        await world.database.fetch("DELETE FROM placement WHERE blob_id = $1", world.blobs[blob])
    else:
        change = {"suspect": "UPDATE placement SET state = 'suspect'", "heal": "UPDATE placement SET state = 'present'",
                  "drop": "DELETE FROM placement"}[step]  # fmt: skip
        await world.database.fetch(
            f"{change} WHERE blob_id = $1 AND location_id = (SELECT id FROM location WHERE name = $2)",  # noqa: S608 - ours
            world.blobs[blob],
            at,
        )


async def _images(world: World) -> None:
    for n in range(6):
        await world.blob(f"b{n}", ["team/a"], [], size=1000 + n)
    await world.manifest("one", "team/a", blobs=["b0", "b1"], tag="one")
    await world.manifest("two", "team/b", blobs=["b1", "b2"], tag="two")
    await world.manifest("index", "team/b", children=["two"], tag="index")
    await world.manifest("sbom", "team/a", blobs=["b3"], subject="one")
    await world.manifest("signature", "team/a", blobs=["b4"], tag=f"sha256-{digest_of('manifest one')[7:]}.sig")


def test_totals_and_names_are_those_of_a_count_from_scratch() -> None:
    """At any point of any sequence of copies, heals and losses, totals and tags are what a full count says."""

    async def check(uri: str, steps: list[tuple[str, int, str]]) -> None:
        async with open_world(uri) as world:
            await world.database.fetch("TRUNCATE blob, manifest, namespace, sole_copy, sole_total CASCADE")
            await _images(world)
            for step, blob, at in steps:
                await _apply(world, step, f"b{blob}", at)
            expected = await _brute_force(world)
            for total in await risk_totals(world.database):
                page = await tags_at_risk(world.database, total.location, 100)
                assert (total.blobs, total.size, {tag.tag for tag in page.tags}) == expected[total.location]
                assert (total.oldest is None) == (total.blobs == 0)
                assert not page.more

    with fresh_database(required("ANTIPODE_TEST_POSTGRES")) as uri:

        @settings(max_examples=25, deadline=None, phases=[Phase.generate, Phase.shrink],
                  suppress_health_check=[HealthCheck.too_slow])  # fmt: skip
        @given(_STEPS)
        def run(steps: list[tuple[str, int, str]]) -> None:
            trio.run(check, uri, steps)

        run()


async def test_copies_at_the_same_moment_are_counted_right(world: World) -> None:
    """Totals stay right when many copies of the same blobs arrive and go at once."""
    await _images(world)

    async def worker(number: int) -> None:
        for n in range(20):
            at = LOCATIONS[(number + n) % 3]
            await _apply(world, "place" if n % 3 else "drop", f"b{(n + number) % 6}", at)

    async with trio.open_nursery() as nursery:
        for number in range(6):
            nursery.start_soon(worker, number)
    expected = await _brute_force(world)
    assert {t.location: (t.blobs, t.size) for t in await risk_totals(world.database)} == {
        at: line[:2] for at, line in expected.items()
    }


async def test_pages_say_that_there_is_more(world: World) -> None:
    """The first page holds the tags of the oldest blobs, and says that there are more."""
    for n in range(5):
        await world.blob(f"b{n}", ["team/a"], ["us"])
        await world.manifest(f"m{n}", "team/a", blobs=[f"b{n}"], tag=f"t{n}")
    page = await tags_at_risk(world.database, "us", 2)
    assert [tag.tag for tag in page.tags] == ["t0", "t1"]
    assert page.more
    document = await replication_risk(world.database, "us", 2)
    assert document["risk"][0]["more_tags"] is True  # type: ignore[index]  # JSON
    with pytest.raises(Problem, match="no such location"):
        await replication_risk(world.database, "nowhere", 2)


@pytest.mark.long
@pytest.mark.parametrize("shape", ["sole", "untagged", "base layer"])
async def test_the_first_page_comes_at_once_at_a_million_blobs(world: World, shape: str) -> None:
    """The first page of names takes less than 200 ms with a million blobs that only one location has."""
    database = world.database
    repository = await world.repository("team/a")
    # The rows are made as the triggers would leave them, and right; a million calls of each, or of a check, would take minutes.
    for table in TABLES:
        await database.fetch(f"ALTER TABLE {table} DISABLE TRIGGER ALL")
    await database.fetch("ALTER TABLE blob DROP CONSTRAINT blob_digest_check")
    for sql in _FILL:
        args = (repository, shape)[: sql.count("$1::") + sql.count("$2::")]
        await database.fetch(sql, *args, deadline=_MINUTES)
    for table in ("blob", "placement", "sole_copy", "manifest", "manifest_blob", "tag", "repository_manifest"):
        await database.fetch(f"ANALYZE {table}", deadline=_MINUTES)
    await tags_at_risk(database, "us", 20)
    began = time.perf_counter()
    page = await tags_at_risk(database, "us", 20)
    took = time.perf_counter() - began
    plan = await database.fetch(
        "EXPLAIN ANALYZE SELECT blob_id, since FROM sole_copy WHERE location_id = 1 ORDER BY since, blob_id LIMIT 200"
    )
    print(f"\n{shape}: first page of {len(page.tags)} tags in {1000 * took:.1f} ms")
    print("\n".join(row["QUERY PLAN"] for row in plan))
    assert took < 0.2
    assert page.more
    (total,) = await risk_totals(database, "us")
    assert (total.blobs, total.size) == (1_000_000, 1_000_000_000)
