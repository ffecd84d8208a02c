"""Fixtures of the upgrade tests."""

import pytest

from tests.upgrade.release import NoRelease, Release, last_release


@pytest.fixture
def release() -> Release:
    """The last release; without a history that has one the test is skipped, aloud."""
    try:
        return last_release()
    except NoRelease as reason:
        pytest.skip(f"nothing to upgrade from: {reason}")
