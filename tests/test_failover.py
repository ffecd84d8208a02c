"""PostgreSQL fails over to its standby under running nodes: they go on by themselves, and say what was lost on the way."""

import json
import time
from urllib.parse import urlsplit

import httpx
import pytest
import trio

from engines.crossing import open_bridge
from node.push.reading import OCI_MANIFEST
from node.records import dial
from node.records.hosts import each_host
from node.records.lineage import Change, Lineage, compare, latest
from node.records.postgres import DatabaseUnavailable, open_database
from tests.cluster import StartCluster
from tests.faults import FaultProxy
from tests.registry.world import digest_of, image, until
from tests.replicas import Pair, open_pair
from tests.services import fetch_rows

HERE = Lineage(7, 3, 1000)
_LONG = 40.0
"""Seconds that a host may take to answer, where none is to be given up."""
QUICKLY = 13.0
"""Seconds: two statements' deadlines and what a busy machine adds."""


@pytest.mark.parametrize(
    ("after", "change"),
    [
        (Lineage(7, 3, 1000), Change.NONE),
        (Lineage(7, 3, 1001), Change.NONE),
        (Lineage(7, 3, 999), Change.WENT_BACK),
        (Lineage(7, 4, 1001), Change.FAIL_OVER),
        (Lineage(7, 4, 999), Change.FAIL_OVER),
        (Lineage(7, 2, 2000), Change.OUTDATED),
        (Lineage(8, 1, 10), Change.REPLACED),
    ],
)
def test_what_a_server_is_to_the_one_before(after: Lineage, change: Change) -> None:
    """A later timeline is a fail-over, fewer transactions are an older state, an earlier timeline is a primary with a successor."""
    assert compare(HERE, after) is change
    assert compare(None, after) is Change.NONE
    assert latest(None, after) == after
    assert latest(HERE, Lineage(7, 3, 999)) == HERE


@pytest.mark.parametrize(
    ("uri", "found"),
    [
        ("postgresql://u:p@h/db", ("postgresql://u:p@h/db",)),
        ("postgresql:///db?host=/run", ("postgresql:///db?host=/run",)),
        (
            "postgresql://u:p%40@h1,[::1]:6/db?sslmode=require",
            (
                "postgresql://u:p%40@h1/db?sslmode=require&target_session_attrs=read-write",
                "postgresql://u:p%40@[::1]:6/db?sslmode=require&target_session_attrs=read-write",
            ),
        ),
        (
            "postgresql://h1,h2:7/db?target_session_attrs=any",
            ("postgresql://h1/db?target_session_attrs=any", "postgresql://h2:7/db?target_session_attrs=any"),
        ),
        (
            "postgresql:///db?host=h1,h2&port=1,2",
            (
                "postgresql:///db?host=h1&port=1&target_session_attrs=read-write",
                "postgresql:///db?host=h2&port=2&target_session_attrs=read-write",
            ),
        ),
    ],
)
def test_each_host_has_a_uri(uri: str, found: tuple[str, ...]) -> None:
    """Several hosts are tried one by one, with everything else as it was; what takes no writes is no use unless that is said."""
    assert each_host(uri) == found


async def test_a_database_that_lets_nobody_in_is_away(database_uri: str) -> None:
    """As while it is under maintenance: no bug of the node, and over when it is open again."""
    name = urlsplit(database_uri).path[1:]
    async with open_bridge(), open_database(database_uri, most=2) as database:
        await database.fetch("SELECT 1")
        async with open_database(database_uri.replace(f"/{name}", "/postgres"), most=1) as other:
            await other.fetch(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
            try:
                await other.fetch("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", name)
                said = []
                for _ in range(3):
                    with pytest.raises(DatabaseUnavailable) as caught:
                        await database.fetch("SELECT 1")
                    said.append(str(caught.value))
                # The first one may have had a connection that was there, and has just been ended.
                assert "is not currently accepting connections" in said[-1]
            finally:
                await other.fetch(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
        assert await database.fetch("SELECT 1")


@pytest.mark.parametrize("state", ["disk_full", "out_of_memory", "io_error", "insufficient_resources"])
async def test_a_server_without_room_is_away(database_uri: str, state: str) -> None:
    """What it cannot store or read it says; clients are told to come back, and nothing of a node ends by it."""
    async with open_bridge(), open_database(database_uri, most=2) as database:
        with pytest.raises(DatabaseUnavailable, match="no room"):
            await database.fetch(f"DO $$ BEGIN RAISE EXCEPTION 'no room' USING ERRCODE = '{state}'; END $$")
        assert await database.fetch("SELECT 1")


async def test_a_silent_host_holds_nobody_up(database_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the first host takes connections and says nothing, the next one is asked beside it; later it is asked first."""
    port = urlsplit(database_uri).port or 5432
    async with open_bridge(), trio.open_nursery() as nursery:
        proxy: FaultProxy = await nursery.start(FaultProxy("127.0.0.1", port).serve)
        proxy.break_("hang")
        uri = database_uri.replace(f":{port}/", f":{proxy.port},127.0.0.1:{port}/")
        async with open_database(uri, deadline=_LONG) as database:
            began = trio.current_time()
            assert await database.fetch_row("SELECT 1 AS one")
            assert trio.current_time() - began < _LONG / 2
            assert proxy.connections == 1
            # Asked first, it has the time that a busy machine takes.
            monkeypatch.setattr(dial, "_NEXT_HOST_AFTER", _LONG)
            async with trio.open_nursery() as callers:
                for _ in range(5):
                    callers.start_soon(database.fetch, "SELECT pg_sleep(0.2)")
            assert proxy.connections == 1
        nursery.cancel_scope.cancel()


async def push(client: httpx.AsyncClient, repository: str, tag: str, data: bytes) -> httpx.Response:
    """Push an image of one layer and return the answer to its manifest, or to what failed before."""
    config = json.dumps({"architecture": "amd64", "os": "linux", "tag": tag}).encode()
    for blob in (config, data):
        answer = await client.post(f"/v2/{repository}/blobs/uploads/?digest={digest_of(blob)}", content=blob)
        if answer.status_code != 201:
            return answer
    headers = {"content-type": OCI_MANIFEST}
    body = json.dumps(image(config, data)).encode()
    return await client.put(f"/v2/{repository}/manifests/{tag}", content=body, headers=headers)


def is_refusal(answer: httpx.Response) -> bool:
    """Say whether it is the answer of a node whose database is away."""
    return (answer.status_code, answer.json()["errors"][0]["code"], "retry-after" in answer.headers) == (
        503,
        "UNAVAILABLE",
        True,
    )


async def test_a_fail_over_that_lost_commits(start_cluster: StartCluster, repository: str) -> None:
    """The primary dies; what is warm is served, the rest is refused quickly; the standby takes over; what it missed is named."""
    async with open_pair() as pair:
        nodes = await start_cluster("us eu", DB_URI=pair.uri)
        async with httpx.AsyncClient(base_url=nodes["us"].url, timeout=60, trust_env=False) as client:
            kept = await push(client, repository, "kept", b"kept")
            assert kept.status_code == 201
            warm = f"/v2/{repository}/manifests/{kept.headers['docker-content-digest']}"
            assert (await client.get(warm)).status_code == 200
            await pair.caught_up()
            pair.line.break_("hang")
            lost = await push(client, repository, "lost", b"lost")
            assert lost.status_code == 201
            pair.primary.kill()
            for _ in range(5):
                began = time.monotonic()
                assert is_refusal(await client.get(f"/v2/{repository}/manifests/kept"))
                assert is_refusal(await push(client, repository, "new", b"new"))
                assert time.monotonic() - began < 2 * QUICKLY
                assert (await client.get(warm)).status_code == 200
            await pair.promote()

            async def pushes_again() -> bool:
                return (await push(client, repository, "new", b"new")).status_code == 201

            await until(pushes_again, 60)
            assert (await client.get(f"/v2/{repository}/manifests/kept")).status_code == 200

            async def counted() -> bool:
                text = (await client.get("/metrics")).text
                # The manifest, and its tag.
                changed = 'antipode_database_changes_total{change="fail-over"} 1.0'
                return "antipode_lost_commits_total 2.0" in text and changed in text

            await until(counted, 60)
            named = [line for line in nodes["us"].log.splitlines() if "an acknowledged push is lost" in line]
            assert all(lost.headers["docker-content-digest"] in line for line in named)
            assert len(named) == 2
            asked = "SELECT value ? 'hurry_before' FROM bookmark WHERE name = 'reconcile'"
            assert await trio.to_thread.run_sync(fetch_rows, Pair.uri_of(pair.standby), asked) == [(True,)]
            again = await push(client, repository, "lost", b"lost")
            assert again.status_code == 201
            assert (await client.get(f"/v2/{repository}/manifests/lost")).status_code == 200


async def test_a_primary_that_was_replaced_is_not_used(database_uri: str) -> None:
    """A server of an earlier timeline than was seen is refused, as one that is away."""
    async with open_bridge(), open_database(database_uri) as database:
        await database.fetch("SELECT 1")
        seen = database.lineage()
        assert seen is not None
        database._dial.lineage = Lineage(seen.system, seen.timeline + 1, seen.next_transaction)
        database._dial.drop_resting()
        with pytest.raises(DatabaseUnavailable, match="has been replaced"):
            await database.fetch("SELECT 1")
