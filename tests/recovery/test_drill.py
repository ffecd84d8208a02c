"""A drill: nodes behave as if a location were down, nothing is harmed, and everything is as before when it is over."""

import json
import signal
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import trio
from attrs import evolve

from node.canary import Seen, Tally, tally
from node.commands.drill import show_report
from node.drill import DrillReport
from replication.drill import rehearsed
from replication.model import Drill, LocationHealth, Verdict
from tests.auth.test_nodes import KEY
from tests.cluster import Cluster, StartCluster, program
from tests.faults import FaultProxy
from tests.recovery.test_restore import Client
from tests.services import execute, fetch_rows


async def _until(look: Callable[[], Awaitable[bool]], seconds: float = 90.0) -> None:
    with trio.fail_after(seconds):
        while not await look():  # noqa: ASYNC110 - another process's doing has no event here
            await trio.sleep(0.1)


async def _lines(url: str) -> dict[str, Any]:
    async with httpx.AsyncClient(timeout=30) as http:
        answer = await http.get(f"{url}/api/v1/health/locations")
    return {line["location"]: line for line in answer.json()["locations"]}


async def _status(url: str) -> int:
    async with httpx.AsyncClient(timeout=30) as http:
        return (await http.get(f"{url}/health/endtoend")).status_code


def _words(nodes: Cluster, *words: str) -> list[str]:
    return [*program(), "drill", *words, "--config", str(nodes.configuration_file)]


@asynccontextmanager
async def _process(words: Sequence[str], **streams: Any) -> AsyncIterator[trio.Process]:
    process = await trio.lowlevel.open_process(list(words), **streams)
    try:
        yield process
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()


async def _drill(nodes: Cluster, *words: str) -> "subprocess.CompletedProcess[bytes]":
    done: subprocess.CompletedProcess[bytes] = await trio.run_process(
        _words(nodes, *words), capture_stdout=True, capture_stderr=True, check=False
    )
    return done


async def test_a_drill_of_a_running_registry(start_cluster: StartCluster, database_uri: str) -> None:
    """Nodes take the location as down and clients see no error; afterwards it has what it missed, and the canary is gone.

    Accounts are no hindrance: the command lets its canary in by itself.
    """
    nodes = await start_cluster("us eu", "eu us", FEATURE_OPEN_REGISTRY=None, DATABASE_SECRET_KEY=KEY)
    url = nodes["us"].url
    # Another process leads it, and this one looks at what the nodes say meanwhile.
    async with _process(
        _words(nodes, "us", "--registry", url, "--duration", "8s", "--output", "json", "--balancer"),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as leader:

        async def drilled() -> bool:
            lines = [(await _lines(node.url))["us"] for node in nodes]
            return all("drill" in line and line["verdict"] == "down" for line in lines)

        await _until(drilled)
        assert await _status(url) == 503
        assert await _status(nodes["eu"].url) == 200
        assert leader.stdout is not None
        said = b"".join([chunk async for chunk in leader.stdout])
        code = await leader.wait()
    report = json.loads(said)
    assert (code, report["errors"], report["aborted"]) == (0, [], None), report
    assert report["before"] == ["us"]
    assert report["pulls"]["tried"] > 3
    assert report["pushes"]["tried"] > 1
    assert 0 <= report["pulls"]["failed_over_after"] < report["seconds"]
    assert report["debt_after"] > report["debt_before"]
    assert report["converged_after"] is not None
    lines = await _lines(url)
    assert (lines["us"]["verdict"], "drill" in lines["us"]) == ("healthy", False)
    assert await trio.to_thread.run_sync(fetch_rows, database_uri, "SELECT name FROM repository") == []
    assert await trio.to_thread.run_sync(fetch_rows, database_uri, "SELECT id FROM drill") == []


@pytest.mark.long
async def test_an_interrupted_drill_ends_at_once(start_cluster: StartCluster, database_uri: str) -> None:
    """Ctrl-C ends a drill and says so; one whose leader is killed ends by itself; load balancers need not hear of either."""
    nodes = await start_cluster("us eu")
    url = nodes["us"].url

    async def drilled() -> bool:
        return "drill" in (await _lines(url))["us"]

    async def over() -> bool:
        return not await drilled()

    words = _words(nodes, "us", "--registry", url, "--duration", "5m", "--anyway", "--output", "json")
    async with _process(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as leader:
        await _until(drilled)
        assert await _status(url) == 200
        second = await _drill(nodes, "eu", "--registry", url, "--duration", "1s", "--anyway")
        assert (second.returncode, b"another drill runs" in second.stderr) == (1, True), second.stderr
        leader.send_signal(signal.SIGINT)
        assert leader.stdout is not None
        report = json.loads(b"".join([chunk async for chunk in leader.stdout]))
        assert (await leader.wait(), report["aborted"]) == (3, "interrupted")
    await _until(over)
    async with _process(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as leader:
        await _until(drilled)
        leader.kill()
        await leader.wait()
    rows = await trio.to_thread.run_sync(
        fetch_rows, database_uri, "SELECT extract(epoch FROM until - now()) FROM drill"
    )
    assert 0 < rows[0][0] <= 30
    await trio.to_thread.run_sync(execute, database_uri, "UPDATE drill SET until = now() - interval '1 second'")
    await _until(over)


@pytest.mark.long
async def test_a_drill_that_loses_its_database(start_cluster: StartCluster, database_uri: str, tmp_path: Path) -> None:
    """The command ends, and says that the drill will within 30 s and that the canary is left; clients saw no error."""
    nodes = await start_cluster("us eu")
    url, port = nodes["us"].url, urlsplit(database_uri).port or 5432

    async def drilled() -> bool:
        return "drill" in (await _lines(url))["us"]

    async with trio.open_nursery() as nursery:
        # The nodes have their database all the time: only the command loses it.
        proxy: FaultProxy = await nursery.start(FaultProxy("127.0.0.1", port).serve)
        proxied = {**nodes.configuration, "DB_URI": database_uri.replace(f":{port}/", f":{proxy.port}/")}
        file = tmp_path / "proxied.yaml"
        file.write_text(json.dumps(proxied))
        words = [*program(), "drill", "us", "--registry", url, "--settle", "3s", "--anyway", "--output", "json"]
        async with _process([*words, "--config", str(file)], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as leader:
            await _until(drilled)
            proxy.break_("refuse")
            with trio.fail_after(120):
                assert leader.stdout is not None
                assert leader.stderr is not None
                report = json.loads(b"".join([chunk async for chunk in leader.stdout]))
                said = b"".join([chunk async for chunk in leader.stderr]).decode()
                code = await leader.wait()
        nursery.cancel_scope.cancel()
    assert (code, report["errors"], report["debt_after"], report["converged_after"]) == (3, [], None, None), report
    assert "the database is away" in report["aborted"]
    assert "us is down for the nodes until the drill ends by itself, within 30 s" in said
    (left,) = await trio.to_thread.run_sync(fetch_rows, database_uri, "SELECT name FROM repository")
    assert f"the canary {left[0]} is still there" in said
    assert "the audit log has no line of this" in said
    assert "Traceback" not in said
    (row,) = await trio.to_thread.run_sync(
        fetch_rows, database_uri, "SELECT extract(epoch FROM until - now()) FROM drill"
    )
    assert row[0] <= 30


async def test_a_drill_that_would_show_a_loss_is_refused(start_cluster: StartCluster, repository: str) -> None:
    """Where blobs have their only copy a drill is refused with the tags that need them; so are unknown and lonely locations."""
    nodes = await start_cluster("us eu", FEATURE_STORAGE_REPLICATION=False)
    url = nodes["us"].url
    refused = await _drill(nodes, "mars", "--registry", url, "--duration", "1s")
    assert (refused.returncode, b"there is no such location" in refused.stderr) == (1, True), refused.stderr
    await Client(url).push(repository, "v1", b"only there")
    refused = await _drill(nodes, "us", "--registry", url, "--duration", "1s")
    assert refused.returncode == 1
    assert b"only copy there" in refused.stderr
    assert f"{repository}:v1".encode() in refused.stderr
    wrong = await _drill(nodes, "us", "--duration", "soon")
    assert (wrong.returncode, b"'soon'" in wrong.stderr) == (2, True), wrong.stderr


def test_a_drilled_location_looks_down_and_no_other() -> None:
    """The board is overlaid while a drill lasts, and says so, and since when; what was down before it has been so for longer."""
    board = {name: LocationHealth(name, Verdict.HEALTHY, probe_good=True) for name in ("us", "eu")}
    seen = rehearsed(board, {"us": Drill(12.0, ran=3.0)}, 100.0)
    assert (seen["us"].verdict, seen["us"].probe_good, "drill" in seen["us"].reason) == (Verdict.DOWN, False, True)
    assert seen["us"].since == 97.0
    assert seen["eu"] == board["eu"]
    assert rehearsed(board, {"us": Drill(0.0)}, 100.0) == board
    ill = {"us": LocationHealth("us", Verdict.DOWN, since=50.0)}
    assert rehearsed(ill, {"us": Drill(12.0, ran=3.0)}, 100.0)["us"].since == 50.0


def test_what_clients_saw_is_counted_from_the_beginning_of_the_drill() -> None:
    """What came before does not count; the last answer out of the location says when all had failed over."""
    seen = [
        Seen("pull", 1.0, 1.5, "us", "broken"),
        Seen("pull", 10.0, 10.5, "us"),
        Seen("pull", 11.0, 13.0, "us"),
        Seen("pull", 13.0, 13.1, None, "refused"),
        Seen("pull", 14.0, 14.1, "eu"),
        Seen("push", 12.0, 12.2, "eu"),
    ]
    assert tally(seen, "pull", "us", 10.0) == Tally(4, 1, 2.0, 3.0)
    assert tally(seen, "push", "us", 10.0).failed_over_after == 0.0
    assert tally([], "pull", "us", 10.0) == Tally()


def test_the_report_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    """It begins with what was done and ends with a verdict that names every reason."""
    pulls, pushes = Tally(571, 0, 1.234, 2.13), Tally(431, 0, 0.8, 0.0)
    clean = DrillReport("us", 300.2, None, ("us",), pulls, pushes, (), 1, 2048, 0, 860, 41.27)
    show_report(clean, "table")
    said = " ".join(capsys.readouterr().out.split())
    assert said == (
        "us was treated as down for 5m clients tried errors slowest last by us pulls 571 0 1.23 s 2.1 s after the beginning "
        "pushes 431 0 0.80 s none served before us would be lost 1 blob, 2.0 KiB, if us were gone for good "
        "copies owed 0 before, 860 at the end, paid 41.3 s later "
        "clean: no client saw an error, and the location has all that it missed"
    )
    bad = evolve(
        clean, aborted="interrupted", pulls=Tally(9, 2, 15.0), errors=("one",), debt_after=None, converged_after=None
    )
    show_report(bad, "table")
    said = capsys.readouterr().out
    assert "the first of 2\n  one\n" in said
    assert said.endswith(
        "not clean: ended early: interrupted; clients saw 2 errors; what was owed was not paid in time\n"
    )
