"""The benchmark works: every question that is quick to ask, once, at the smallest size and without peers."""

import socket
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from xml.etree import ElementTree as ET

import pytest

from scripts.bench_parts.blob import compare_blobs
from scripts.bench_parts.copy import compare_copies
from scripts.bench_parts.delay import delayed, delayed_apart
from scripts.bench_parts.pull import compare_pulls
from scripts.bench_parts.push import compare_pushes
from scripts.bench_parts.report import Outcome, draw
from scripts.bench_parts.scale import compare_scales
from scripts.bench_parts.sizes import TINY
from scripts.bench_parts.wire import Ask, Client, LoadFailed, drive
from scripts.services.processes import free_ports
from tests.services import required

MEMORY = 200
"""MiB that a node may hold in any benchmark."""


@pytest.mark.parametrize("question", [compare_pulls, compare_pushes, compare_blobs, compare_copies, compare_scales])
def test_every_question_has_an_answer(question: Callable[..., Sequence[Outcome]]) -> None:
    """A question is answered by tables whose figures are there, and by plots that can be read; no server exceeds its memory."""
    required("ANTIPODE_TEST_POSTGRES")
    required("ANTIPODE_TEST_S3")
    for outcome in question(TINY, peers=False):
        assert outcome.rows
        assert all(len(row) == len(outcome.header) and all(row) for row in outcome.rows)
        assert outcome.markdown().count("\n| ") >= 1 + len(outcome.rows)
        assert ET.fromstring(draw(outcome.chart)).tag.endswith("svg")  # noqa: S314 - ours
        if "peak MiB" in outcome.header and question is not compare_copies:  # whose copier runs in this very process
            at = outcome.header.index("peak MiB")
            assert all(int(row[at]) < MEMORY for row in outcome.rows)


def test_a_proxy_lets_no_more_through_at_once_than_its_window() -> None:
    """Across an ocean a connection has no more under way than its window: so much comes per round trip."""
    round_trip, window, size = 0.1, 1 << 20, 8 << 20
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.sendall(bytes(size))

        with ThreadPoolExecutor(1) as pool, delayed_apart(server.getsockname()[1], round_trip, window) as port:
            sent = pool.submit(serve)
            began, received = time.monotonic(), 0
            with socket.create_connection(("127.0.0.1", port), 20) as client:
                while data := client.recv(1 << 16):
                    received += len(data)
            sent.result(20)
    assert received == size
    assert time.monotonic() - began >= (size / window - 1) * round_trip


def test_a_server_that_breaks_off_fails_the_run() -> None:
    """A run whose server does not answer ends with an error, not with a rate."""
    (port,) = free_ports(1)

    def client() -> Client:
        yield Ask("127.0.0.1", port, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")

    with delayed(port, 0.0) as proxy:
        port = proxy.port
        with pytest.raises(LoadFailed, match="the server"):
            drive([client()])
