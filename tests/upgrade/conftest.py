"""Fixtures of the upgrade tests."""

from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from tests.services import execute, fresh_database, required
from tests.upgrade.release import NoRelease, Release, last_release


@pytest.fixture
def release() -> Release:
    """The last release; without a history that has one the test is skipped, aloud."""
    try:
        return last_release()
    except NoRelease as reason:
        pytest.skip(f"nothing to upgrade from: {reason}")


@pytest.fixture
def database_uri() -> Iterator[str]:
    """A fresh database whose log is quiet: the last release's transactions may wait for each other in a circle, as ours may not."""
    with fresh_database(required("ANTIPODE_TEST_POSTGRES")) as uri:
        execute(uri, f"ALTER DATABASE {urlsplit(uri).path[1:]} SET log_min_messages = fatal")
        yield uri
