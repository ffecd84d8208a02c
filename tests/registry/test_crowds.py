"""How many uploads a namespace may have open at once."""

import re
import secrets
from functools import partial
from typing import cast
from uuid import uuid4

from attrs import Factory, define, evolve

from node.records.postgres import Database
from node.records.uploads import Choice, begin_upload, expire_uploads
from replication.upload_state import UploadState
from tests.registry.world import Region, digest_of


def bound(us: Region, most: int) -> None:
    us.registry.settings = evolve(us.registry.settings, maximum_uploads_per_namespace=most)


async def open_uploads(us: Region, *repositories: str) -> list[str]:
    return [await us.start_upload(name) for name in repositories]


async def assert_crowded(us: Region, repository: str, most: int) -> None:
    layer = secrets.token_bytes(1000)
    for query in ("", f"?digest={digest_of(layer)}"):
        trips, reply = await us.trips(partial(us.ask, "POST", f"/v2/{repository}/blobs/uploads/{query}", layer))
        assert trips == 1
        assert reply.failure == (429, "TOOMANYREQUESTS")
        assert int(reply.headers["retry-after"]) > 0
        assert reply.detail["maximum_uploads"] == most
        assert "MAXIMUM_UPLOADS_PER_NAMESPACE" in reply.detail["reason"]


async def test_a_namespace_has_so_many_uploads_at_once(us: Region) -> None:
    """One more than the bound is sent away, in any of the namespace's repositories, until one was ended, however it ends."""
    bound(us, 3)
    before = await open_uploads(us, "team/a", "team/a", "team/b")
    await assert_crowded(us, "team/a", 3)
    await assert_crowded(us, "team/c", 3)
    # What is open goes on, and others are not touched.
    data = secrets.token_bytes(1000)
    location = (await us.patch(before[0], data)).location
    await us.push_blob("other/a", data)
    assert (await us.put(location, digest_of(data))).status == 201
    await us.push_blob("team/a", secrets.token_bytes(1000))
    await open_uploads(us, "team/b")
    await assert_crowded(us, "team/a", 3)
    assert (await us.ask("DELETE", before[1])).status == 204
    await open_uploads(us, "team/a")
    await assert_crowded(us, "team/a", 3)
    # Expired, though nobody has buried it yet.
    await us.rows("UPDATE upload SET expires_at = now() WHERE created_at = (SELECT max(created_at) FROM upload)")
    await open_uploads(us, "team/a")
    await assert_crowded(us, "team/a", 3)
    assert await expire_uploads(us.registry.database) == 1
    await assert_crowded(us, "team/a", 3)
    assert (await us.put(before[2], digest_of(data), data)).status == 201
    await open_uploads(us, "team/a")


async def test_a_failed_upload_leaves_its_place(us: Region) -> None:
    """A blob in one request that does not match its digest counts no more; neither does one whose last bytes do not fit."""
    bound(us, 1)
    for _ in range(2):
        wrong = await us.ask("POST", f"/v2/team/a/blobs/uploads/?digest={digest_of(b'other')}", b"data")
        assert wrong.failure == (400, "DIGEST_INVALID")
        await us.push_blob("team/a", secrets.token_bytes(10))
    (location,) = await open_uploads(us, "team/a")
    assert (await us.put(location, digest_of(b"other"), b"data")).status == 400
    await open_uploads(us, "team/a")
    await assert_crowded(us, "team/b", 1)


async def test_without_a_bound(us: Region) -> None:
    """0 bounds nothing; what a node of the release before has opened, which names no namespace, does not count."""
    bound(us, 0)
    await open_uploads(us, *["team/a"] * 5)
    await us.rows("UPDATE upload SET opened_in = NULL")
    bound(us, 1)
    await open_uploads(us, "team/a")
    await assert_crowded(us, "team/a", 1)


async def test_it_is_counted_by_an_index(us: Region) -> None:
    """Counting reads the namespace's own uploads, and no more of them than the bound, however many there are."""
    await open_uploads(us, "team/a", "crowd/a")
    await us.rows(
        "INSERT INTO upload (id, repository_id, location_id, key, reserved_key, algorithm, expires_at, opened_in) "
        "SELECT gen_random_uuid(), repository_id, location_id, key || n, reserved_key || n, algorithm, expires_at, opened_in "
        "FROM upload u JOIN repository r ON r.id = u.repository_id, generate_series(1, 20000) n WHERE r.name = 'crowd/a'"
    )
    # All tables, as autovacuum may do at any moment.
    await us.rows("ANALYZE")
    explaining = Explaining(us.registry.database)
    choices = [Choice("us", UploadState("key", "reserved", "sha256"))]
    for name in ("team/a", "crowd/a"):
        await begin_upload(cast("Database", explaining), name, "library", uuid4(), choices, 3600.0, most=10)
    rows = [re.findall(r"Index (?:Only )?Scan using upload_opened_in .* rows=(\d+)", plan) for plan in explaining.plans]
    assert [int(read) for (read,) in rows] == [1, 10]
    assert "Seq Scan on upload" not in "".join(explaining.plans)


@define
class Explaining:
    """A database that keeps what was done for every statement, and finds nothing."""

    inner: Database
    plans: list[str] = Factory(list)

    async def fetch_row(self, sql: str, *args: object) -> None:
        plan = "EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF)"
        self.plans.append("\n".join(row["QUERY PLAN"] for row in await self.inner.fetch(f"{plan} {sql}", *args)))
