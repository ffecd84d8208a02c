"""What operators see: every metric documented, the dashboard within it, and the numbers of a real push and its copy."""

import hashlib
import json
import re
from pathlib import Path

import httpx
import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families

from node.answers import Answer, Asker, Lasting, Request
from node.metrics import Described, Metrics, route_of
from node.metrics_state import STATE
from node.web.access import Exchange, told_again
from node.web.slow import SlowRequests
from replication.copier import CopyEnd, CopyReport
from replication.model import Blob, CopyTask, Placement
from tests.cluster import Cluster, StartCluster
from tests.faults import MakeFaulty

ROOT = Path(__file__).parent.parent
Sample = tuple[str, tuple[tuple[str, str], ...]]


def catalogue() -> dict[str, Described]:
    return {**Metrics().described(), **STATE}


def samples(text: str) -> dict[Sample, float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(found: dict[Sample, float], name: str, **labels: str) -> float:
    """Return the sum of the samples of that name that have these labels; 0 where there are none."""
    return sum(v for (n, has), v in found.items() if n == name and labels.items() <= dict(has).items())


def test_the_page_lists_every_metric() -> None:
    """The documentation and the program know the same metrics, with the same kinds and labels."""
    page = (ROOT / "docs" / "metrics.md").read_text()
    rows = re.findall(r"^\| `(antipode_\w+)` \| (\w+) \| ([^|]*) \| ([^|]*) \|$", page, re.M)
    assert {name: (kind, tuple(re.findall(r"`(\w+)`", labels)), text) for name, kind, labels, text in rows} == {
        name: (said.kind, said.labels, said.help) for name, said in catalogue().items()
    }
    assert len(rows) == len(catalogue())


def test_the_dashboard_uses_metrics_that_exist() -> None:
    """Every metric that a panel asks for is there, with the labels by which it is asked."""
    board = json.loads((ROOT / "deploy" / "grafana" / "antipode.json").read_text())
    asked = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    assert len(asked) >= 15
    for expression in asked:
        names = {re.sub(r"_(bucket|sum|count)$", "", name) for name in re.findall(r"antipode_\w+", expression)}
        assert names
        assert names <= catalogue().keys(), expression
        labels = {label for name in names for label in catalogue()[name].labels} | {"le", "instance"}
        by = {label for group in re.findall(r"by \(([^)]*)\)", expression) for label in re.split(r", *", group)}
        by |= set(re.findall(r"(\w+)=~?\"", expression))
        assert by <= labels, expression


@pytest.mark.parametrize(
    ("path", "route"),
    [
        ("/v2/", "version"),
        ("/v2", "version"),
        ("/v2/_catalog", "catalog"),
        ("/v2/a/blobs/b/manifests/blobs", "manifest"),
        ("/v2/a/b/blobs/sha256:00", "blob"),
        ("/v2/a/b/blobs/uploads/", "upload"),
        ("/v2/a/b/blobs/uploads/6f2c", "upload"),
        ("/v2/a/tags/list", "tags"),
        ("/v2/a/referrers/sha256:00", "referrers"),
        ("/v2/anything", "other"),
        ("/v2/a/anything/else", "other"),
        ("/health/endtoend", "health"),
        ("/v1/_internal_ping", "health"),
        ("/api/v1/x", "api"),
        ("/metrics", "metrics"),
        ("/favicon.ico", "other"),
        ("", "other"),
    ],
)
def test_routes(path: str, route: str) -> None:
    """Paths are told apart by a dozen words, so that no client can fill the memory of a monitor."""
    assert route_of(path) == route


def test_two_nodes_share_nothing() -> None:
    """Each node counts for itself."""
    one, other = Metrics(), Metrics()
    one(Exchange("x", "GET", "/v2/", "", status=200, sent=2, finished=True), 0.01)
    assert value(samples(one.expose().decode()), "antipode_requests_total") == 1
    assert value(samples(other.expose().decode()), "antipode_requests_total") == 0


def test_requests_that_end_alike_are_counted_as_any() -> None:
    """The short way counts what the usual one would, with slow ones among them."""
    like = Exchange("x", "GET", "/v2/a/blobs/sha256:1", "", status=307, sent=2, finished=True)
    usual, short = Metrics(), Metrics()
    told = told_again(SlowRequests(1.0, short), like)
    for seconds in (0.001, 0.5, 2.0):
        SlowRequests(1.0, usual)(like, seconds)
        told("y", "::1", seconds)
    assert [line for line in short.expose().decode().splitlines() if "antipode" in line] == [
        line for line in usual.expose().decode().splitlines() if "antipode" in line
    ]


def test_odd_methods_are_one() -> None:
    """Methods that nobody knows do not become series of their own."""
    metrics = Metrics()
    for method in ("FOO", "BAR"):
        metrics(Exchange("x", method, "/v2/", "", status=405, finished=True), 0.01)
    found = samples(metrics.expose().decode())
    assert value(found, "antipode_requests_total", method="other", status="405", outcome="complete") == 2


def test_a_copy_is_counted() -> None:
    """The lag is the debt's age when the copy was placed; a copy over a suspect one is a heal."""
    metrics = Metrics()
    blob = Blob(1, "sha256:" + "0" * 64, 100)
    task = CopyTask(blob, "eu", "k", (Placement("us", "a"), Placement("eu", "b", suspect=True)), "lease", age=3.0)
    metrics.copied(task, CopyReport(CopyEnd.PLACED, fetched=60, kept=40, seconds=1.5, source="us"))
    metrics.copied(task, CopyReport(CopyEnd.NO_SOURCE, "why", seconds=9.0, source="us"))
    found, pair = samples(metrics.expose().decode()), {"source": "us", "destination": "eu"}
    assert value(found, "antipode_replication_lag_seconds_sum", **pair) == 4.5
    assert value(found, "antipode_replication_lag_seconds_count", **pair) == 1
    assert value(found, "antipode_copied_bytes_total", **pair) == 60
    assert value(found, "antipode_copy_kept_bytes_total", **pair) == 40
    assert value(found, "antipode_copies_total", end="placed", **pair) == 1
    assert value(found, "antipode_copies_total", end="no_source", **pair) == 1
    assert value(found, "antipode_heals_total", location="eu") == 1


async def test_blob_answers_are_counted_by_source() -> None:
    """Only what gives a blob counts, by how and from where."""
    metrics = Metrics()

    async def answer(request: Request) -> Answer:
        if request.path.endswith("redirect"):
            return Answer(307, (("antipode-location", "us"),), outcome="redirect")
        return Answer(200, outcome="memory")

    counted = metrics.counting(answer)
    for path in ("/v2/a/blobs/redirect", "/v2/a/blobs/memory", "/v2/a/manifests/memory"):
        await counted(Request("GET", path))
    await counted(Request("HEAD", "/v2/a/blobs/memory"))
    found = samples(metrics.expose().decode())
    assert value(found, "antipode_blob_answers_total") == 2
    assert value(found, "antipode_blob_answers_total", how="redirect", location="us") == 1
    lasts = iter([b"", b"", None])
    at_once = metrics.counting_at_once(
        lambda request: (
            None
            if request.path.endswith("cold")
            else Lasting(Answer(200, outcome="memory"), lambda _asker, _id, _now: next(lasts))
        )
    )
    for path in ("/v2/a/blobs/warm", "/v2/a/blobs/cold", "/v2/a/manifests/warm"):
        lasting = at_once(Request("GET", path))
        if lasting is not None and "blobs" in path:
            while lasting.again(Asker("", {}), "1", 0.0) is not None:
                pass
    assert value(samples(metrics.expose().decode()), "antipode_blob_answers_total", how="memory") == 4, (
        "each given time"
    )


async def scrape(client: httpx.AsyncClient, url: str) -> dict[Sample, float]:
    answer = await client.get(f"{url}/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    return samples(answer.text)


async def test_a_push_and_its_copy_show(cluster: Cluster, repository: str) -> None:
    """A blob that is pushed in one region shows in the lag, throughput and copies of whichever node copied it."""
    data = repository.encode() * 1000
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    pair = {"source": "us", "destination": "eu"}
    async with httpx.AsyncClient(timeout=60) as client:

        async def total(name: str) -> float:
            return sum([value(await scrape(client, node.url), name, **pair) for node in cluster])

        names = ("antipode_copied_bytes_total", "antipode_replication_lag_seconds_count")
        before = [await total(name) for name in names]
        pushed = await client.post(f"{cluster['us'].url}/v2/{repository}/blobs/uploads/?digest={digest}", content=data)
        assert pushed.status_code == 201
        with trio.fail_after(60):
            while await total(names[0]) < before[0] + len(data):  # noqa: ASYNC110 - it happens in another process
                await trio.sleep(0.05)
        assert await total(names[1]) > before[1]
        us = await scrape(client, cluster["us"].url)
    assert value(us, "antipode_requests_total", route="upload", method="POST", status="201") >= 1
    assert value(us, "antipode_location_verdict", location="us", verdict="healthy") == 1
    assert value(us, "antipode_location_state", location="eu", state="active") == 1
    assert value(us, "antipode_service_up") >= 6
    assert value(us, "antipode_database_trips_total") > 0
    known = {re.sub(r"_(bucket|sum|count)$", "", name) for name, _ in us if name.startswith("antipode_")}
    assert known <= catalogue().keys()


async def test_debt_and_risk_show_while_a_store_is_away(
    start_cluster: StartCluster, faulty_store: MakeFaulty, repository: str
) -> None:
    """While a location is away, the other node says what is owed to it and what would be lost; a scrape asks no database."""
    eu = await faulty_store("eu")
    nodes = await start_cluster("us eu", stores={"eu": eu.store}, HEALTH_PROBE_INTERVAL=0.5)
    eu.break_("refuse")
    data = repository.encode() * 100
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    async with httpx.AsyncClient(timeout=60) as client:
        url = nodes["us"].url
        pushed = await client.post(f"{url}/v2/{repository}/blobs/uploads/?digest={digest}", content=data)
        assert pushed.status_code == 201
        # A node asks the database when it starts, and then every 15 s.
        await nodes["us"].stop()
        await nodes["us"].start()
        with trio.fail_after(60):
            while True:
                found = await scrape(client, url)
                if value(found, "antipode_debt_bytes", location="eu") == len(data):
                    break
                await trio.sleep(0.2)
        assert value(found, "antipode_debt_blobs", location="eu") == 1
        assert value(found, "antipode_debt_oldest_seconds", location="eu") > 0
        assert value(found, "antipode_sole_copy_bytes", location="us") == len(data)
        eu.mend()
