"""Hypothesis profiles: `dev` is quick, `ci` looks longer. `HYPOTHESIS_PROFILE` chooses; CI's environment means `ci`."""

import os

import pytest
from hypothesis import HealthCheck, settings

pytest.register_assert_rewrite("tests.ledger_contract")

# No deadlines: the machines that run this are shared, and time is never the subject of a Hypothesis test here.
settings.register_profile("dev", max_examples=60, stateful_step_count=25, deadline=None)
settings.register_profile(
    "ci",
    max_examples=300,
    stateful_step_count=40,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") else "dev"))
