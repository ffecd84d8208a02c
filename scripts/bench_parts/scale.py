"""Question `scale`: the same requests and pages with ten thousand to a million blobs and tags in one repository."""

import re
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from random import Random
from statistics import median
from typing import Any, cast

import trio
from attrs import define, field, frozen

from engines.crossing import open_bridge
from node.records.closures import read_closure
from node.records.listings import list_tags
from node.records.manifests import TagAsked, find_by_digest, find_by_tags
from node.records.postgres import Database, open_database
from node.records.pulls import find_blob
from node.records.reconcile import PostgresRounds
from node.records.risk import tags_at_risk

from .clients import Samples, once, one, push, request
from .images import MANIFEST, make_image
from .peers import say
from .report import Chart, Outcome, number
from .servers import Server, open_ground, open_servers
from .sizes import Sizes
from .wire import drive

_FILL_SECONDS = 1800.0
_REPOSITORY = "bench/scale-0"
TABLES = (
    "blob",
    "repository_blob",
    "placement",
    "sole_copy",
    "manifest",
    "repository_manifest",
    "manifest_blob",
    "tag",
)
_WITH_TRIGGERS = ("repository_blob", "placement", "sole_copy", "repository_manifest", "tag")

# $1 first and $2 last number, $3 repository, $4 and $5 the highest ids of blobs and manifests before; all are numbers of ours.
# The rows are as the triggers would leave them; a million calls of each would take minutes.
_FILL = f"""
INSERT INTO blob (digest, size) SELECT 'sha256:' || encode(sha256(n::text::bytea), 'hex'), 100000
FROM generate_series($1::bigint, $2::bigint) n;
INSERT INTO repository_blob (repository_id, blob_id) SELECT $3::bigint, id FROM blob WHERE id > $4::bigint;
INSERT INTO placement (blob_id, location_id, key)
SELECT b.id, l.id, b.id::text FROM blob b, location l WHERE l.name = 'us' AND b.id > $4::bigint;
INSERT INTO sole_copy (blob_id, location_id, size, since) SELECT b.id, l.id, b.size, now() - b.id * interval '1 ms'
FROM blob b, location l WHERE l.name = 'us' AND b.id > $4::bigint;
INSERT INTO manifest (digest, bytes) SELECT 'sha256:' || encode(sha256(('m' || n)::bytea), 'hex'), '{{}}'
FROM generate_series($1::bigint, $2::bigint) n;
INSERT INTO repository_manifest (repository_id, manifest_id, media_type) SELECT $3::bigint, id, '{MANIFEST}'
FROM manifest WHERE id > $5::bigint;
INSERT INTO manifest_blob SELECT id, id - $5::bigint + $4::bigint FROM manifest WHERE id > $5::bigint;
INSERT INTO tag (repository_id, name, manifest_id) SELECT $3::bigint, 'v' || id, id FROM manifest WHERE id > $5::bigint
"""  # noqa: S608 - a constant


@frozen
class _Sample:
    """Tags that exist, with what they lead to."""

    tag: str
    manifest: str
    blob: str


def compare_scales(sizes: Sizes, *, peers: bool) -> list[Outcome]:  # noqa: ARG001 - no peer has such tables
    """Measure requests and pages at every scale."""
    found: dict[str, dict[int, float]] = {}
    scans: Sequence[str] = ()
    with open_ground(peers=False) as ground, open_servers(ground) as (server,):
        drive([once(Samples(), partial(push, server.target, make_image(0, "scale", 10_000)))])
        before = 0
        for scale in sizes.scales:
            say(f"filling up to {scale} blobs and tags")
            samples, pages, scans = trio.run(_look, ground.database, before, scale, sizes.looks)
            before = scale
            for label, seconds in {**_ask(server, samples, scale), **pages}.items():
                found.setdefault(label, {})[scale] = seconds
                say(f"{scale}: {label}: {1000 * seconds:.2f} ms")
    rows = [
        (
            label,
            *(number(1000 * at[scale]) for scale in sizes.scales),
            f"{at[sizes.scales[-1]] / at[sizes.scales[0]]:.1f} x",
        )
        for label, at in found.items()
    ]
    header = ("request", *(f"{scale:,} ms".replace(",", " ") for scale in sizes.scales), "largest to smallest")
    plans = f"of {', '.join(sorted(set(scans)))}" if scans else "of none of the tables that grow"
    notes = [
        "Medians. Blobs, manifests and tags in one repository, as many of each as the column says.",
        f"Plans at the largest scale (EXPLAIN of every statement of these pages and look-ups): sequential scans {plans}.",
    ]
    groups = {
        label: {f"{scale:,}".replace(",", " "): 1000 * at[scale] for scale in sizes.scales}
        for label, at in found.items()
    }
    chart = Chart("Latency by number of blobs and tags", "ms, less is better", groups, logarithmic=True)
    return [Outcome("scale", "Ten thousand to a million blobs and tags", header, rows, chart, notes)]


def _ask(server: Server, samples: Sequence[_Sample], scale: int) -> dict[str, float]:
    """Return the median seconds of requests to the node."""
    target, name = server.target, f"/v2/{_REPOSITORY}"
    accept = f"Accept: {MANIFEST}\r\n"
    middle = samples[len(samples) // 2].tag
    paths = {
        "GET a manifest by tag": [f"{name}/manifests/{sample.tag}" for sample in samples],
        "GET a manifest by digest": [f"{name}/manifests/{sample.manifest}" for sample in samples],
        "GET a blob (redirect)": [f"{name}/blobs/{sample.blob}" for sample in samples],
        "first 100 tags": [f"{name}/tags/list?n=100"] * len(samples),
        "100 tags from the middle": [f"{name}/tags/list?n=100&last={middle}"] * len(samples),
    }
    found = {}
    for label, those in paths.items():
        done = Samples()
        drive([once(done, *(partial(one, request(target, "GET", path, more=accept), 200, 307) for path in those))])
        found[label] = median(done.seconds)
    done = Samples()
    images = [make_image(at, f"scale-{scale}", 10_000) for at in range(max(1, len(samples) // 20))]
    drive([once(done, *(partial(push, target, image) for image in images))])
    found["push an image"] = median(done.seconds)
    return found


async def _look(
    uri: str, before: int, scale: int, looks: int
) -> tuple[Sequence[_Sample], dict[str, float], Sequence[str]]:
    """Fill, and return samples of what is there, the median seconds of pages, and the large tables that plans scan."""
    async with open_bridge(), open_database(uri) as database:
        await _fill(database, before, scale)
        samples = await _samples(database, scale, looks)
        explaining = _Explaining(database)
        pages = _pages(database, scale)
        for work in _pages(cast("Database", explaining), scale).values():
            await work(samples[0])
        found = {}
        for label, work in pages.items():
            if label.startswith("look-up"):
                continue  # measured at the node; here for its plan
            seconds = []
            for sample in samples[: max(3, looks // 4)]:
                began = time.perf_counter()
                await work(sample)
                seconds.append(time.perf_counter() - began)
            found[label] = median(seconds)
    return (
        samples,
        found,
        [table for plan in explaining.plans for table in re.findall(r"Seq Scan on (\w+)", plan) if table in TABLES],
    )


def _pages(database: Database, scale: int) -> dict[str, Callable[[_Sample], Awaitable[object]]]:
    random, rounds = Random(scale), PostgresRounds(database)  # noqa: S311 - which page
    return {
        "look-up of a tag": lambda s: find_by_tags(database, [TagAsked(_REPOSITORY, s.tag)]),
        "look-up of a digest": lambda s: find_by_digest(database, _REPOSITORY, s.manifest, None),
        "look-up of a blob": lambda s: find_blob(database, _REPOSITORY, s.blob, pieces=False, grace=3600.0),
        "look-up of tags": lambda s: list_tags(database, _REPOSITORY, s.tag, 100),
        "where an image is (wait)": lambda s: read_closure(database, _REPOSITORY, s.tag, replicate=True),
        "first 20 tags at risk": lambda _: tags_at_risk(database, "us", 20),
        "one page of reconcile (500 blobs)": lambda _: rounds.find_candidates(
            random.randrange(max(1, scale - 500)), None, 500, replicate=True
        ),
    }


async def _fill(database: Database, before: int, scale: int) -> None:
    (row,) = await database.fetch(
        "SELECT (SELECT id FROM repository WHERE name = $1) AS repository, (SELECT max(id) FROM blob) AS blob, "
        "(SELECT max(id) FROM manifest) AS manifest",
        _REPOSITORY,
    )
    given = (before + 1, scale, row["repository"], row["blob"], row["manifest"])
    for table in _WITH_TRIGGERS:
        await database.fetch(f"ALTER TABLE {table} DISABLE TRIGGER USER")
    try:
        for statement in _FILL.split(";"):
            sql = re.sub(r"\$(\d)", lambda found: str(given[int(found.group(1)) - 1]), statement)
            await database.fetch(sql, deadline=_FILL_SECONDS)
    finally:
        for table in _WITH_TRIGGERS:
            await database.fetch(f"ALTER TABLE {table} ENABLE TRIGGER USER")
    for table in TABLES:
        await database.fetch(f"ANALYZE {table}", deadline=_FILL_SECONDS)


async def _samples(database: Database, scale: int, looks: int) -> Sequence[_Sample]:
    random = Random(scale)  # noqa: S311 - which rows
    rows = await database.fetch(
        "SELECT t.name, m.digest AS manifest, b.digest AS blob FROM tag t JOIN manifest m ON m.id = t.manifest_id "
        "JOIN manifest_blob mb ON mb.manifest_id = m.id JOIN blob b ON b.id = mb.blob_id "
        "WHERE m.id = ANY($1::bigint[]) AND b.size = 100000",
        [random.randrange(2, scale) for _ in range(looks)],
    )
    return [_Sample(row["name"], row["manifest"], row["blob"]) for row in rows]


@define
class _Explaining:
    """A database that keeps the plan of every statement."""

    inner: Database
    plans: list[str] = field(factory=list)

    async def fetch(self, sql: str, *args: object, **names: Any) -> Any:
        """Explain, then do it."""
        await self._explain(sql, args)
        return await self.inner.fetch(sql, *args, **names)

    async def fetch_row(self, sql: str, *args: object, **names: Any) -> Any:
        """Explain, then do it."""
        await self._explain(sql, args)
        return await self.inner.fetch_row(sql, *args, **names)

    async def _explain(self, sql: str, args: Sequence[object]) -> None:
        rows = await self.inner.fetch(f"EXPLAIN {sql}", *args)
        self.plans.append("\n".join(row["QUERY PLAN"] for row in rows))
