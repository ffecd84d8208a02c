"""What a node counts as it happens, in Prometheus form: requests, blob answers, copies, bad copies. One registry per node.

Nothing here waits. What every request adds to is in `tallies.py`, what is read at a scrape instead in `metrics_state.py`.
"""

from collections.abc import Awaitable, Callable
from functools import lru_cache

from attrs import frozen
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.registry import Collector

from node.answers import Answer, Asker, Lasting, Request
from node.tallies import Named, Requests, Sums, Tally
from node.web.access import QUIET, Exchange, Told
from replication.copier import CopyEnd, CopyReport
from replication.model import Blob, CopyTask, Placement

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

LAG_BUCKETS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 14400.0, 86400.0)
"""Seconds. A small blob takes well below one, the backlog of an outage hours."""

REQUEST_BUCKETS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0, 300.0)

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"})
_BELOW_V2 = {"manifests": "manifest", "blobs": "blob", "uploads": "upload", "tags": "tags", "referrers": "referrers"}
_SERVED = frozenset({"redirect", "streamed", "memory", "teed"})

# When a series began is what a scraper finds out by itself; it would double every counter's lines.
disable_created_metrics()  # type: ignore[no-untyped-call] # it has no annotations


def route_of(path: str) -> str:
    """Return the kind of a request by its path: one of a dozen words, whatever clients ask for."""
    return _kept_route(path) if len(path) <= _KEPT_MOST else _route(path)


def _route(path: str) -> str:
    if path.startswith("/v2/"):
        before, _, last = path.rpartition("/")
        if before == "/v2":
            return {"": "version", "_catalog": "catalog"}.get(last, "other")
        return _BELOW_V2.get(before.rpartition("/")[2], "other")
    if path == "/v2":
        return "version"
    if path == "/metrics":
        return "metrics"
    if path.startswith("/api/"):
        return "api"
    return "health" if QUIET.match(path) else "other"


_kept_route = lru_cache(maxsize=4096)(_route)
"""A blob's path is read twice, and by many requests: 0.1 us instead of 0.5."""
_KEPT_MOST = 512
"""Characters of a path that is remembered."""


@frozen
class Described:
    """What the documentation says of a metric."""

    kind: str
    help: str
    labels: tuple[str, ...]


class Metrics:
    """The counters and histograms of one node, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        self._described: dict[str, Described] = {}
        ProcessCollector(registry=self.registry)
        self._requests = Requests(
            self._named(
                "antipode_requests", "Requests by what became of them.", "route", "method", "status", "outcome"
            ),
            self._named(
                "antipode_request_seconds", "Time from a request's head to its answer's end.", "route", kind="histogram"
            ),
            self._named("antipode_sent_bytes", "Bytes of answers' bodies handed to clients.", "route"),
            REQUEST_BUCKETS,
        )
        self.registry.register(self._requests)
        self._tallies: dict[object, Tally] = {}
        self._blobs = self._sums(
            "antipode_blob_answers", "Blob answers by how the bytes go out and from which location.", "how", "location"
        )
        self._lag = self._histogram(
            "antipode_replication_lag_seconds",
            "Age of the debt at the moment at which its copy was placed.",
            LAG_BUCKETS,
            *("source", "destination"),
        )
        self._copies = self._counter(
            "antipode_copies", "Tries to copy a blob by how they ended.", "source", "destination", "end"
        )
        self._copied = self._counter(
            "antipode_copied_bytes", "Bytes of placed copies that were fetched.", "source", "destination"
        )
        self._kept = self._counter(
            "antipode_copy_kept_bytes",
            "Bytes that a resumed copy did not have to fetch again.",
            *("source", "destination"),
        )
        self._heals = self._counter("antipode_heals", "Suspect copies that were replaced by a good one.", "location")
        self._bad = self._counter(
            "antipode_verification_failures", "Copies that were found missing or wrong when they were read.", "location"
        )

    def _sums(self, name: str, text: str, *labels: str) -> Sums:
        self.registry.register(sums := Sums(*self._named(name, text, *labels)))
        return sums

    def _named(self, name: str, text: str, *labels: str, kind: str = "counter") -> Named:
        self._described[name + ("_total" if kind == "counter" else "")] = Described(kind, text, labels)
        return name, text, labels

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(*self._named(name, text, *labels), registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(*self._named(name, text, *labels, kind="histogram"), buckets=buckets, registry=self.registry)

    def described(self) -> dict[str, Described]:
        """Return what is counted here, by name as a scrape shows it."""
        return dict(self._described)

    def add(self, collector: Collector) -> None:
        """Ask `collector` too at every scrape."""
        self.registry.register(collector)

    def expose(self) -> bytes:
        """Return everything in Prometheus' text form (`CONTENT_TYPE`). Costs no I/O but a look at /proc/self."""
        return generate_latest(self.registry)

    def __call__(self, exchange: Exchange, seconds: float) -> None:
        """Count a request that has ended, `seconds` after it began."""
        self._tally(exchange).add(seconds, exchange.sent)

    def again(self, exchange: Exchange) -> Told:
        """Return what counts requests that end like this one."""
        tally, sent = self._tally(exchange), exchange.sent
        return lambda _made, _client, seconds: tally.add(seconds, sent)

    def _tally(self, exchange: Exchange) -> Tally:
        route = route_of(exchange.path)
        method = exchange.method if exchange.method in _METHODS else "other"
        # What its outcome is made of: to ask for that takes longer than all else here.
        alike = route, method, exchange.status, exchange.failed, exchange.client_left, exchange.finished
        tally = self._tallies.get(alike)
        if tally is None:
            tally = self._tallies[alike] = self._requests.tally((route, method, exchange.status, exchange.outcome))
        return tally

    def counting(self, answer: Callable[[Request], Awaitable[Answer]]) -> Callable[[Request], Awaitable[Answer]]:
        """Return `answer` with every blob that it gives counted by where its bytes come from."""

        async def counted(request: Request) -> Answer:
            given = await answer(request)
            self._given(request, given)
            return given

        return counted

    def counting_at_once(self, at_once: Callable[[Request], Lasting | None]) -> Callable[[Request], Lasting | None]:
        """Return `at_once`, counted likewise as often as it answers."""

        def counted(request: Request) -> Lasting | None:
            given = at_once(request)
            if given is None:
                return None
            self._given(request, given.answer)
            labels, same = self._labels(request, given.answer), given.again
            if labels is None:
                return given

            def again(asker: Asker, request_id: str, now: float) -> bytes | None:
                body = same(asker, request_id, now)
                if body is not None:
                    self._blobs.add(labels)
                return body

            return Lasting(given.answer, again)

        return counted

    def _given(self, request: Request, answer: Answer) -> None:
        labels = self._labels(request, answer)
        if labels is not None:
            self._blobs.add(labels)

    @staticmethod
    def _labels(request: Request, answer: Answer) -> tuple[str, str] | None:
        """Return how a blob was given and where from; None for anything else."""
        if answer.outcome not in _SERVED or request.method != "GET" or route_of(request.path) != "blob":
            return None
        return answer.outcome, dict(answer.headers).get("antipode-location", "")

    def copied(self, task: CopyTask, report: CopyReport) -> None:
        """Count a try to pay a debt."""
        pair = (report.source, task.destination)
        self._copies.labels(*pair, report.end.name.lower()).inc()
        if report.end is not CopyEnd.PLACED:
            return
        self._lag.labels(*pair).observe(task.age + report.seconds)
        self._copied.labels(*pair).inc(report.fetched)
        self._kept.labels(*pair).inc(report.kept)
        if any(placement.location == task.destination and placement.suspect for placement in task.placements):
            self._heals.labels(task.destination).inc()

    def distrusted(self, _blob: Blob, placement: Placement, _reason: str) -> None:
        """Count a copy that was found missing or wrong."""
        self._bad.labels(placement.location).inc()
