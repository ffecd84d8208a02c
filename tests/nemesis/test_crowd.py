"""A crowd's own process tells what it saw in full."""

import json
import time

import pytest
import trio

from tests.nemesis.crowd import read, tell
from tests.nemesis.history import Failure, Operation


async def test_operations_survive_the_way_between_processes() -> None:
    """What one process has seen is the same to the other, its times on the other's clock."""
    ahead = trio.current_time() - time.monotonic()
    seen = Operation("pull", "crowd-1", "streams", "a/b", None, 5.0, ended=7.0, error="busy", wrong=["a byte"])
    seen.failures.append(Failure(5.5, 6.5, "busy"))
    (line,) = json.loads(json.dumps([tell(seen, ahead)]))
    assert line["began"] == pytest.approx(5.0 - ahead)
    again = read(line, ahead + 100)
    assert (again.error, again.wrong) == ("busy", ["a byte"])
    # Trio's clock begins anywhere, and its seconds are rounded accordingly.
    assert (again.began, again.ended) == pytest.approx((105.0, 107.0))
    (failure,) = again.failures
    assert failure == Failure(failure.began, failure.ended, "busy")
    assert (failure.began, failure.ended) == pytest.approx((105.5, 106.5))
