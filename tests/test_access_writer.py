"""Access lines for machines are written in batches, whole, in order and never in the way of a request."""

import io
import json

import trio

from node.access_writer import MOST_WAITING, AccessWriter
from node.web.access import Exchange


def ended(path: str, status: int = 200) -> Exchange:
    return Exchange("id-1", "GET", path, "127.0.0.1", status=status, sent=5, answered="memory", finished=True)


async def test_lines_are_json_in_the_order_of_the_requests(autojump_clock: object) -> None:
    """Every line has what the usual log line has."""
    stream = io.StringIO()
    writer = AccessWriter(stream, "n1")
    async with trio.open_nursery() as nursery:
        await nursery.start(writer.run)
        for n in range(3):
            writer(ended(f"/v2/{n}"), 0.25)
        await trio.sleep(1)
        nursery.cancel_scope.cancel()
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["path"] for line in lines] == ["/v2/0", "/v2/1", "/v2/2"]
    assert {"method", "status", "sent", "duration", "outcome", "answered", "request_id", "client", "node"} <= lines[
        0
    ].keys()
    assert (lines[0]["outcome"], lines[0]["duration"], lines[0]["level"]) == ("complete", 0.25, "info")


async def test_what_waits_at_the_end_is_written(autojump_clock: object) -> None:
    """A node that stops loses no line."""
    stream = io.StringIO()
    writer = AccessWriter(stream, "n1")
    async with trio.open_nursery() as nursery:
        await nursery.start(writer.run)
        for _ in range(1200):
            writer(ended("/v2/"), 0.1)
        nursery.cancel_scope.cancel()
    assert len(stream.getvalue().splitlines()) == 1200


def test_good_health_checks_are_for_debugging_only() -> None:
    """Probes come every second and say nothing; failed ones are written."""
    writer = AccessWriter(io.StringIO(), "n1")
    writer(ended("/health/endtoend"), 0.1)
    assert len(writer._waiting) == 0
    writer(ended("/health/endtoend", 503), 0.1)
    assert len(writer._waiting) == 1


def test_a_full_queue_drops_and_counts() -> None:
    """A stream that nobody reads costs lines, not memory and not requests."""
    writer = AccessWriter(io.StringIO(), "n1")
    for _ in range(MOST_WAITING + 5):
        writer(ended("/v2/"), 0.1)
    assert writer.dropped == 5
