"""A node takes no more connections than it may have open files, and lets itself open as many as it needs where it may."""

import subprocess
import sys

from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from node.descriptors import allowed, needed
from tests.edge.conftest import SETTINGS


@given(st.integers(1, 100_000), st.integers(0, 1 << 20))
def test_connections_fit_into_the_limit(most: int, limit: int) -> None:
    """With as many connections as are allowed the rest still fits; where nothing would, one connection is left to say so."""
    settings = evolve(SETTINGS, maximum_connections=most)
    taken = allowed(settings, limit)
    assert 1 <= taken <= most
    assert taken == 1 or needed(evolve(settings, maximum_connections=taken)) <= limit
    assert allowed(settings, needed(settings)) == most


def _limit_after(soft: int, hard: int, wanted: int) -> list[int]:
    code = f"""
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))
from node.descriptors import raise_limit
print(raise_limit({wanted}), *resource.getrlimit(resource.RLIMIT_NOFILE))
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return [int(word) for word in done.stdout.split()]


def test_the_limit_is_raised_as_far_as_it_goes() -> None:
    """The usual 1 024 of a shell is no bound where more is allowed; what is there already is not lowered."""
    assert _limit_after(1024, 4096, 2000) == [2000, 2000, 4096]
    assert _limit_after(1024, 1500, 2000) == [1500, 1500, 1500]
    assert _limit_after(3000, 4096, 2000) == [2000, 3000, 4096]
