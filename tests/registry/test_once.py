"""Idempotency-Key: a manifest PUT that is sent again is done once, on whichever nodes, at whatever time the tries arrive."""

import json
import random
import secrets
from functools import partial

import asyncpg
import pytest
import trio

from engines.crossing import cross
from node.api.immutability import set_immutability
from node.api.quotas import set_quota
from node.api.tags import Means
from node.push.reading import OCI_MANIFEST
from node.records.idempotency import drop_old_keys
from node.records.postgres import DatabaseUnavailable
from node.records.removal import delete_repository
from node.records.webhooks import Webhook, write_webhook
from tests.registry.world import Body, MakeWorld, Region, Reply, digest_of, image, until

NAME = "team/app"


async def prepare(region: Region, *marks: str, name: str = NAME) -> list[bytes]:
    """Push the blobs of one image per mark and return the manifests."""
    bodies = []
    for mark in marks:
        blobs = [json.dumps({"mark": mark}).encode(), mark.encode()]
        for blob in blobs:
            await region.push_blob(name, blob)
        bodies.append(json.dumps(image(*blobs)).encode())
    return bodies


async def put(region: Region, body: bytes | Body, key: str | None = None, to: str = "v1", name: str = NAME) -> Reply:
    headers = {"content-type": OCI_MANIFEST, **({} if key is None else {"idempotency-key": key})}
    return await region.ask("PUT", f"/v2/{name}/manifests/{to}", body, headers)


async def tagged(region: Region, tag: str = "v1", name: str = NAME) -> str | None:
    """Return the digest that a tag names, None if there is no such tag."""
    return (await region.ask("HEAD", f"/v2/{name}/manifests/{tag}")).headers.get("docker-content-digest")


async def traces(region: Region) -> dict[str, int]:
    """Return how many rows of everything are there that a push leaves behind."""
    tables = ("audit", "tag_history", "delivery", "journal_entry", "repository", "repository_manifest", "tag")
    return {table: (await region.rows(f"SELECT count(*) FROM {table}"))[0]["count"] for table in tables}  # noqa: S608


async def listen(region: Region) -> None:
    """Let a webhook hear of pushes, so that what it is told is counted."""
    webhook = Webhook(None, "all", "https://hooks.test/", ("pushed",), active=True)
    await write_webhook(region.registry.database, webhook, b"secret", change_secret=True, most=1)


async def test_a_repetition_does_nothing_again(world: MakeWorld) -> None:
    """A repetition is answered as the first was, on another node too, and changes nothing: no tag, no history, no webhook."""
    us, eu = await world("us eu", "eu us")
    old, new = await prepare(us, "old", "new")
    await listen(us)
    done = await put(us, old, "key-1")
    assert done.status == 201
    assert (await put(eu, new)).status == 201
    before = await traces(us)
    assert before["delivery"] > 0
    for region in (us, eu, us):
        again = await put(region, old, "key-1")
        assert (again.status, again.headers) == (201, done.headers)
    assert await traces(us) == before
    assert await tagged(us) == await tagged(eu) == digest_of(new)
    # Without a key, and with another one, the same request is a new one.
    assert (await put(us, old, "key-2")).status == 201
    assert await tagged(eu) == digest_of(old)


async def test_a_repetition_by_digest(us: Region) -> None:
    """A push by digest is remembered with the tags that it names, and answered with them."""
    old, new = await prepare(us, "old", "new")
    done = await put(us, old, "key-1", f"{digest_of(old)}?tag=a&tag=b")
    await put(us, new, None, "a")
    again = await put(us, old, "key-1", f"{digest_of(old)}?tag=a&tag=b")
    assert (again.status, again.headers["oci-tag"]) == (201, "a, b")
    assert again.headers == done.headers
    assert [await tagged(us, tag) for tag in "ab"] == [digest_of(new), digest_of(old)]


async def test_the_same_key_for_something_else(us: Region) -> None:
    """A key that a client uses for another manifest, tag, repository or account loses no push."""
    one, two = await prepare(us, "one", "two")
    await prepare(us, "one", name="team/other")
    assert (await put(us, one, "same")).status == 201
    assert (await put(us, two, "same")).status == 201
    assert await tagged(us) == digest_of(two)
    assert (await put(us, one, "same", "v2")).status == 201
    assert (await put(us, one, "same", "v1", "team/other")).status == 201
    assert await tagged(us, "v2") == await tagged(us, "v1", "team/other") == digest_of(one)


async def test_it_costs_no_round_trip(us: Region) -> None:
    """A manifest with a key costs as many round trips as one without, the repetition too."""
    (body,) = await prepare(us, "one")
    bare, _ = await us.trips(partial(put, us, body, None, "bare"))
    for _ in range(2):
        trips, reply = await us.trips(partial(put, us, body, "key-1"))
        assert (reply.status, trips) == (201, bare)
    assert bare <= 2


async def test_of_tries_at_once_one_counts(world: MakeWorld) -> None:
    """Of any number of tries at once, on two nodes, one pushes and all are answered 201."""
    us, eu = await world("us eu", "eu us")
    for number in range(5):
        (body,) = await prepare(us, f"image {number}")
        before = (await traces(us))["audit"]
        statuses: list[int] = []

        async def one(region: Region, body: bytes, key: str, found: list[int]) -> None:
            found.append((await put(region, body, key)).status)

        async with trio.open_nursery() as nursery:
            for region in (us, eu) * 4:
                nursery.start_soon(one, region, body, f"key-{number}", statuses)
        assert statuses == [201] * 8
        assert (await traces(us))["audit"] - before == 1
        assert await tagged(us) == digest_of(body)


@pytest.mark.parametrize("dies", [False, True])
async def test_a_try_that_waits_for_another(world: MakeWorld, migrated_uri: str, dies: bool) -> None:
    """A repetition that comes while the first is in the database waits for it; and does what that one, if it dies, could not."""
    us, eu = await world("us eu", "eu us")
    old, new = await prepare(us, "old", "new")
    await put(us, old)
    before = (await traces(us))["audit"]

    async def hold() -> asyncpg.Connection:
        connection = await asyncpg.connect(migrated_uri)
        await connection.execute("BEGIN")
        await connection.execute("SELECT FROM tag WHERE name = 'v1' FOR UPDATE")
        return connection

    async def waiting() -> list[int]:
        # In this database: others of the same server may be another run's.
        rows = await eu.rows(
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock' "
            "ORDER BY query_start"
        )
        return [row["pid"] for row in rows]

    async def at_least(most: int) -> bool:
        return len(await waiting()) >= most

    holder = await cross(hold, deadline=10, unavailable=DatabaseUnavailable)
    found: dict[str, int] = {}

    async def one(name: str, region: Region) -> None:
        found[name] = (await put(region, new, "key-1")).status

    async with trio.open_nursery() as nursery:
        nursery.start_soon(one, "us", us)
        await until(partial(at_least, 1))
        first = (await waiting())[0]
        nursery.start_soon(one, "eu", eu)
        await until(partial(at_least, 2))
        assert found == {}
        if dies:
            await eu.rows("SELECT pg_terminate_backend($1)", first)
        await cross(partial(holder.execute, "COMMIT"), deadline=10, unavailable=DatabaseUnavailable)
    await cross(holder.close, deadline=10, unavailable=DatabaseUnavailable)
    assert found == {"us": 503 if dies else 201, "eu": 201}
    assert await tagged(us) == digest_of(new)
    after = await traces(us)
    assert (after["audit"] - before, after["tag_history"]) == (1, 1)


async def test_the_first_comes_late(world: MakeWorld) -> None:
    """A try that stood still while its repetition was done, and the tag moved on, does nothing when it goes on."""
    us, eu = await world("us eu", "eu us")
    old, new = await prepare(us, "old", "new")
    standing = Body(old, chunk=len(old) // 2, pause_at=len(old) // 2)
    found: list[Reply] = []

    async def late() -> None:
        found.append(await put(us, standing, "key-1"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(late)
        await standing.paused.wait()
        done = await put(eu, old, "key-1")
        await put(eu, new)
        before = await traces(us)
        standing.go_on.set()
    assert [(reply.status, reply.headers) for reply in found] == [(201, done.headers)]
    assert await traces(us) == before
    assert await tagged(us) == digest_of(new)


async def test_a_tag_that_never_moves(us: Region) -> None:
    """The repetition of a push under a tag that may not move any more is answered as the push was; a new one is refused."""
    old, new = await prepare(us, "old", "new")
    await put(us, old, "key-1")
    await put(us, new)
    means = Means(us.registry.database, us.node.settings, us.registry.hints.publish)
    await set_immutability(means, {"patterns": ["v*"]}, namespace="team", repository=None)
    assert (await put(us, old, "key-1")).status == 201
    assert (await put(us, old, "key-2")).failure == (409, "TAG_IMMUTABLE")
    assert await tagged(us) == digest_of(new)


async def test_a_namespace_that_is_full(us: Region) -> None:
    """The repetition of a push that was taken is not refused by a quota that is used up meanwhile."""
    (body,) = await prepare(us, "one")
    await put(us, body, "key-1")
    await us.ask("DELETE", f"/v2/{NAME}/manifests/{digest_of(body)}")
    await set_quota(us.registry.database, "team", {"reject": 1}, 0)
    assert (await put(us, body, "key-1")).status == 201
    assert (await put(us, body, "key-2")).failure == (403, "DENIED")
    assert await tagged(us) is None


async def test_what_was_refused_is_not_remembered(us: Region) -> None:
    """A push that was refused may be tried again with its key, when what it lacked is there."""
    body = json.dumps(image(b"{}")).encode()
    assert (await put(us, body, "key-1")).status == 404
    assert await us.rows("SELECT FROM idempotency_key") == []
    await us.push_blob(NAME, b"{}")
    assert (await put(us, body, "key-1")).status == 201
    assert await tagged(us) == digest_of(body)


async def test_what_was_deleted_stays_so(us: Region) -> None:
    """A repetition brings back neither a tag nor a repository that was deleted after the first."""
    (body,) = await prepare(us, "one")
    await put(us, body, "key-1")
    assert (await us.ask("DELETE", f"/v2/{NAME}/manifests/v1")).status == 202
    assert (await put(us, body, "key-1")).status == 201
    assert await tagged(us) is None
    assert await delete_repository(us.registry.database, NAME)
    assert (await put(us, body, "key-1")).status == 201
    assert await us.rows("SELECT FROM repository") == []


@pytest.mark.parametrize("key", ["", "a b", 'a"b', '"a', '""', '"a";b=1', "a, b", "k" * 129, "\xe4", "\t"])
async def test_keys_that_cannot_be_used(us: Region, key: str) -> None:
    """What is no key, or too long, is 400 with the header's name and what would be right, and stores nothing."""
    (body,) = await prepare(us, "one")
    reply = await put(us, body, key)
    assert reply.status == 400
    assert reply.detail["header"] == "Idempotency-Key"
    assert "128 characters" in reply.detail["reason"]
    assert (await us.ask("HEAD", f"/v2/{NAME}/manifests/{digest_of(body)}")).status == 404


async def test_quotes_are_no_part_of_a_key(us: Region) -> None:
    """A key is the same one with the draft's quotes and without."""
    old, new = await prepare(us, "old", "new")
    await put(us, old, "key-1")
    await put(us, new)
    await put(us, old, '"key-1"')
    assert await tagged(us) == digest_of(new)


async def test_keys_are_kept_for_a_while(us: Region) -> None:
    """Old keys go, however many there are, and young ones stay."""
    await us.rows(
        "INSERT INTO idempotency_key (id, moved, at) SELECT gen_random_uuid(), true, now() - interval '25 hours' "
        "FROM generate_series(1, 2500)"
    )
    (body,) = await prepare(us, "one")
    await put(us, body, "key-1")
    assert await drop_old_keys(us.registry.database) == 2500
    assert len(await us.rows("SELECT FROM idempotency_key")) == 1


async def test_any_order(world: MakeWorld) -> None:
    """Whatever is pushed, deleted and repeated in whatever order: each request is done once, when it is first tried."""
    regions = await world("us eu", "eu us")
    bodies = await prepare(regions[0], "one", "two", "three")
    seed = secrets.randbits(32)
    source = random.Random(seed)
    # What each tag should name, by a model of three lines: a key that was used for the same before changes nothing.
    tags: dict[str, str | None] = {}
    done: set[tuple[str, str, str]] = set()
    for step in range(120):
        region, tag = source.choice(regions), source.choice(["v1", "v2"])
        if source.random() < 0.15:
            await region.ask("DELETE", f"/v2/{NAME}/manifests/{tag}")
            tags[tag] = None
        else:
            body, key = source.choice(bodies), source.choice("abcd")
            assert (await put(region, body, key, tag)).status == 201
            if (request := (key, tag, digest_of(body))) not in done:
                done.add(request)
                tags[tag] = digest_of(body)
        found = {tag: await tagged(source.choice(regions), tag) for tag in tags}
        assert found == tags, f"seed {seed}, step {step}"
