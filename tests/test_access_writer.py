"""Access lines for machines are written in batches, whole, in order and never in the way of a request."""

import io
import json
from datetime import datetime

import trio
from attrs import evolve

from node.access_writer import EVERY, MOST_WAITING, AccessWriter
from node.web.access import Exchange, told_again

_SEEN = 5
"""Batches."""


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


def test_a_line_says_what_the_usual_one_says() -> None:
    """Whatever clients put into a path, a line is JSON with the exchange's own fields."""
    path, stream = '/v2/"\\\u2028\U0001f40b/x', io.StringIO()
    exchange = Exchange("id-1", "GET", path, "::1", 200, 5, "memory", client_id="theirs")
    writer = AccessWriter(stream, 'n"1')
    writer(exchange, 0.000012345)
    writer._write_batch()
    line = json.loads(stream.getvalue())
    datetime.fromisoformat(line.pop("timestamp"))
    more = {"event": "request", "node": 'n"1', "logger": "antipode.access", "level": "info"}
    assert line == {**exchange.fields(0.000012345), **more}


def test_who_ends_as_another_one_did_has_the_same_line() -> None:
    """The short way writes what the usual one would; what is not written in one is not in the other."""
    like = Exchange("id-1", "GET", "/v2/a/blobs/x", "::1", 307, 5, "redirect", finished=True)
    quiet = evolve(like, path="/health/instance")
    lines = []
    for short in (False, True):
        writer = AccessWriter(stream := io.StringIO(), "n1")
        for exchange in (like, quiet, like):
            other = evolve(exchange, id='i"2', client="::2")
            if short:
                told_again(writer, exchange)(other.id, other.client, 0.25)
            else:
                writer(other, 0.25)
        writer._write_batch()
        lines.append([json.loads(line) for line in stream.getvalue().splitlines()])
        for line in lines[-1]:
            del line["timestamp"]
    assert lines[0] == lines[1]
    assert len(lines[0]) == 2


async def test_lines_that_come_while_others_are_written_wait_for_more(autojump_clock: object) -> None:
    """A busy node writes a few batches a second, not one for every line that comes while the one before is written."""
    batches, enough = 0, trio.Event()

    class Busy(io.StringIO):
        def write(self, text: str) -> int:
            nonlocal batches
            batches += 1
            if batches == _SEEN:
                trio.from_thread.run_sync(enough.set)
            else:
                writer(ended("/v2/meanwhile"), 0.1)
            return super().write(text)

    writer = AccessWriter(Busy(), "n1")
    async with trio.open_nursery() as nursery:
        await nursery.start(writer.run)
        began = trio.current_time()
        writer(ended("/v2/first"), 0.1)
        # No deadline: the clock would jump to it while the thread writes.
        await enough.wait()
        assert trio.current_time() - began > (_SEEN - 1.5) * EVERY
        nursery.cancel_scope.cancel()


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
